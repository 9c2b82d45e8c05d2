//! Conditional writes: the precondition goes with the write, and a lost reply is never taken for another's write.
//!
//! Each write carries an id of its own in the object's user metadata. When a write is refused or its reply lost, the object
//! that is there tells whose it is. The probe asks a bucket whether it honours the conditions that all this rests on.

use aws_sdk_s3::operation::complete_multipart_upload::CompleteMultipartUploadOutput;
use aws_sdk_s3::operation::put_object::PutObjectOutput;
use aws_sdk_s3::primitives::ByteStream;
use bytes::Bytes;

use super::s3::{Place, S3Store, etag, object_of, place_of};
use super::s3_call::{Fault, fault};
use super::s3_upload::Upload;
use super::{ConditionalWrites, Etag, Location, Object, Precondition, StoreError};

/// The key of the write id in an object's user metadata (`x-amz-meta-…` on the wire).
pub(super) const WRITE_ID: &str = "lakescrub-write";

/// What the reply to a write told.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) etag: Option<String>,
    pub(super) version_id: Option<String>,
}

impl From<PutObjectOutput> for Told {
    fn from(reply: PutObjectOutput) -> Told {
        Told { etag: reply.e_tag, version_id: reply.version_id }
    }
}

impl From<CompleteMultipartUploadOutput> for Told {
    fn from(reply: CompleteMultipartUploadOutput) -> Told {
        Told { etag: reply.e_tag, version_id: reply.version_id }
    }
}

/// The headers that state a precondition.
#[derive(Debug, Clone, Default)]
pub(super) struct Conditions {
    pub(super) if_match: Option<String>,
    pub(super) if_none_match: Option<String>,
}

impl Conditions {
    fn of(when: &Precondition) -> Conditions {
        match when {
            Precondition::Absent => Conditions { if_none_match: Some("*".to_owned()), if_match: None },
            Precondition::Unchanged(etag) => Conditions { if_match: Some(etag.0.clone()), if_none_match: None },
            Precondition::None => Conditions::default(),
        }
    }
}

/// One write: where, under which condition, under which name, and how many bytes the object then has.
#[derive(Debug, Clone, Copy)]
pub(super) struct Write<'a> {
    pub(super) place: Place<'a>,
    pub(super) when: &'a Precondition,
    pub(super) id: &'a str,
    pub(super) size_bytes: u64,
    /// The server does not honour the condition on this call: look at the object right before it instead.
    pub(super) look_first: bool,
}

impl S3Store {
    /// A small object without anything carried over.
    pub(super) async fn put_small(
        &self,
        place: Place<'_>,
        bytes: Bytes,
        when: &Precondition,
    ) -> Result<Object, StoreError> {
        let id = random_id(place.location)?;
        let look_first = self.known_verdict(place.bucket) == Some(ConditionalWrites::Ignored);
        let write = Write { place, when, id: &id, size_bytes: bytes.len() as u64, look_first };
        let send = |conditions: Conditions| {
            let request = self.0.client.put_object().bucket(place.bucket).key(place.key).metadata(WRITE_ID, &id);
            let request = request.body(ByteStream::from(bytes.clone()));
            let request = request.set_if_match(conditions.if_match).set_if_none_match(conditions.if_none_match);
            async move { request.send().await.map(Told::from).map_err(fault) }
        };
        self.write(write, send).await
    }

    /// Sends a write until it is known what became of it. `send` is one attempt.
    pub(super) async fn write<F: Future<Output = Result<Told, Fault>>>(
        &self,
        write: Write<'_>,
        send: impl Fn(Conditions) -> F,
    ) -> Result<Object, StoreError> {
        let place = write.place;
        let attempt = || async {
            if write.look_first {
                self.look(write).await?;
                return send(Conditions::default()).await;
            }
            send(Conditions::of(write.when)).await
        };
        match self.0.line.call(attempt).await {
            Ok(Told { etag: Some(told), version_id }) if !told.trim_matches('"').is_empty() => Ok(Object {
                location: place.location.clone(),
                size_bytes: write.size_bytes,
                etag: etag(&told),
                version_id,
                storage_class: None,
            }),
            // Ceph completes an upload without telling the ETag.
            Ok(_) => self.ours(write).await?.ok_or_else(|| StoreError::Changed(place.location.clone())),
            Err(fault) => self.settle(write, fault).await,
        }
    }

    /// A refusal may be the echo of an attempt whose reply was lost, or of one that a proxy on the way sent twice.
    async fn settle(&self, write: Write<'_>, fault: Fault) -> Result<Object, StoreError> {
        let place = write.place;
        let error = match (fault, write.when) {
            // What was to be replaced is gone.
            (Fault::Missing, Precondition::Unchanged(_)) => StoreError::Changed(place.location.clone()),
            (
                fault @ (Fault::Refused
                | Fault::Busy
                | Fault::MissingUpload
                | Fault::Transient(_)
                | Fault::Throttled(_)),
                _,
            ) => fault.error(place.location),
            (certain, _) => return Err(certain.error(place.location)),
        };
        match self.ours(write).await {
            Ok(Some(object)) => Ok(object),
            Ok(None) => Err(error),
            // Nobody knows: the error that says so is the one that does not call it another's write.
            Err(unknown) => Err(unknown),
        }
    }

    /// The object as it now is if this write made it.
    async fn ours(&self, write: Write<'_>) -> Result<Option<Object>, StoreError> {
        let Write { place, id, size_bytes, .. } = write;
        let head = match self.head_output(place, None).await {
            Err(Fault::Missing) => return Ok(None),
            other => other.map_err(|fault| fault.error(place.location))?,
        };
        let is_ours = head.metadata().and_then(|metadata| metadata.get(WRITE_ID)).is_some_and(|told| told == id);
        let object = object_of(place.location, &head).filter(|object| is_ours && object.size_bytes == size_bytes);
        Ok(object)
    }

    async fn look(&self, write: Write<'_>) -> Result<(), Fault> {
        let now = match self.head_once(write.place, None).await {
            Ok(head) => head.e_tag().map(etag),
            Err(Fault::Missing) => None,
            Err(fault) => return Err(fault),
        };
        let holds = match write.when {
            Precondition::Absent => now.is_none(),
            Precondition::Unchanged(etag) => now.as_ref() == Some(etag),
            Precondition::None => true,
        };
        if holds { Ok(()) } else { Err(Fault::Refused) }
    }

    /// Demands the refusals that the writes rely on, through the same calls.
    pub(super) async fn probe_bucket(&self, near: Place<'_>) -> Result<ConditionalWrites, StoreError> {
        let folder = near.key.rfind('/').map_or("", |slash| &near.key[..=slash]);
        // A leading dot hides it from those who read the prefix as a table in the meantime.
        let key = format!("{folder}.lakescrub-probe-{}", random_id(near.location)?);
        let location = Location::S3 { bucket: near.bucket.to_owned(), key };
        let place = place_of(&location)?;
        let mut written = Vec::new();
        let verdict = match self.probe_single(place, &mut written).await {
            Ok(true) => self.probe_upload(place, &mut written).await.map(|honoured| match honoured {
                true => ConditionalWrites::Honoured,
                false => ConditionalWrites::SingleWritesOnly,
            }),
            other => other.map(|_| ConditionalWrites::Ignored),
        };
        if let Err(error) = self.remove_probe(place, &written).await {
            tracing::warn!(object = %location, %error, "probe object not removed");
        }
        // The probe's own name tells nobody what is wrong.
        let asked = Location::S3 { bucket: near.bucket.to_owned(), key: folder.to_owned() };
        let verdict = verdict.map_err(|error| error.at(asked))?;
        tracing::debug!(bucket = near.bucket, ?verdict, "conditional writes probed");
        Ok(verdict)
    }

    /// Whether a put is refused, and only then, when its condition does not hold.
    async fn probe_single(&self, place: Place<'_>, written: &mut Vec<Object>) -> Result<bool, StoreError> {
        let first = self.put_small(place, Bytes::from_static(b"1"), &Precondition::Absent).await?;
        let stale = Precondition::Unchanged(first.etag.clone());
        written.push(first);
        if was_done(self.put_small(place, Bytes::from_static(b"2"), &Precondition::Absent).await, written)? {
            return Ok(false);
        }
        // Ceph 16 refuses every If-Match.
        if !was_done(self.put_small(place, Bytes::from_static(b"3"), &stale).await, written)? {
            return Ok(false);
        }
        Ok(!was_done(self.put_small(place, Bytes::from_static(b"4"), &stale).await, written)?)
    }

    /// Whether the end of a multipart upload is refused, and only then, when its condition does not hold.
    async fn probe_upload(&self, place: Place<'_>, written: &mut Vec<Object>) -> Result<bool, StoreError> {
        let Some(current) = written.last().cloned() else { return Ok(false) };
        let mut upload = match Upload::create_plain(self, place, &random_id(place.location)?).await {
            Ok(upload) => upload,
            Err(Fault::Unsupported) => return Ok(false),
            Err(fault) => return Err(fault.error(place.location)),
        };
        upload.send(Bytes::from_static(b"5")).await?;
        let stale = Precondition::Unchanged(Etag("\"00000000000000000000000000000000\"".to_owned()));
        if was_done(upload.complete(&stale, false).await, written)? {
            return Ok(false);
        }
        let outcome = upload.complete(&Precondition::Unchanged(current.etag), false).await;
        if was_done(outcome, written)? {
            return Ok(true);
        }
        upload.abort().await?;
        Ok(false)
    }

    /// Leaves no version and no delete marker of the probe behind where versions can be told.
    async fn remove_probe(&self, place: Place<'_>, written: &[Object]) -> Result<(), StoreError> {
        let mut versions: Vec<Option<&str>> = written.iter().map(|object| object.version_id.as_deref()).collect();
        versions.dedup();
        for version in versions {
            let removed = self.remove_version(place, version.filter(|version| *version != "null")).await;
            removed.map_err(|fault| fault.error(place.location))?;
        }
        Ok(())
    }

    pub(super) async fn remove_version(&self, place: Place<'_>, version: Option<&str>) -> Result<(), Fault> {
        let request = self.0.client.delete_object().bucket(place.bucket).key(place.key);
        let request = request.set_version_id(version.map(str::to_owned));
        let removed = self.0.line.call(|| async { request.clone().send().await.map_err(fault) }).await;
        match removed {
            Ok(_) | Err(Fault::Missing) => Ok(()),
            Err(fault) => Err(fault),
        }
    }
}

/// Whether the probe's write was carried out, by the write itself or by its refusal.
fn was_done(outcome: Result<Object, StoreError>, written: &mut Vec<Object>) -> Result<bool, StoreError> {
    match outcome {
        Ok(object) => {
            written.push(object);
            Ok(true)
        }
        Err(StoreError::Changed(_)) => Ok(false),
        Err(other) => Err(other),
    }
}

pub(super) fn random_id(location: &Location) -> Result<String, StoreError> {
    let mut bytes = [0u8; 16];
    getrandom::fill(&mut bytes)
        .map_err(|_| StoreError::Other { location: location.clone(), reason: "no random bytes".to_owned() })?;
    Ok(hex::encode(bytes))
}
