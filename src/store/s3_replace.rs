//! New content for an object of S3, with everything that belongs to the object carried over, as one conditional write.
//!
//! Content of one part or less is put in one piece; more is a multipart upload whose completion is the swap, and what it takes over
//! from the old object need not be sent. On a server that ignores the condition of a completion, the content waits in a nameless
//! temporary file and is put in one piece as well.
//! Invariant: parts that were sent are completed or aborted, whatever becomes of the replacement.

use std::os::fd::AsRawFd;

use async_trait::async_trait;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::SdkError;
use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use aws_sdk_s3::operation::put_object::builders::PutObjectFluentBuilder;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{StorageClass, Tag, Tagging};
use bytes::Bytes;
use tokio::io::AsyncWriteExt;

use super::s3::{Place, S3Store, etag, place_of};
use super::s3_attributes::{Attributes, carry_over};
use super::s3_call::{Fault, fault};
use super::s3_copy::Outcome;
use super::s3_splice::{Copied, Digesting, Part, Parts, Sizes};
use super::s3_upload::{PARTS_MAX, Upload, patience, set_expires};
use super::s3_write::{Conditions, Told, Write};
use super::{ConditionalWrites, Object, Precondition, Replacement, StoreError};

/// The smallest part, and the largest content that is put in one piece.
const PART_BYTES: u64 = 8 << 20;
/// S3's largest single put.
const SINGLE_PUT_BYTES_MAX: u64 = 5 << 30;

/// A class whose objects cannot be read at once, be this one restored for a while or not: what is written would be archived before
/// it could be read back.
fn archive_class(head: &HeadObjectOutput) -> Option<String> {
    let class = head.storage_class().filter(|class| matches!(class, StorageClass::Glacier | StorageClass::DeepArchive));
    class
        .map(|class| class.as_str().to_owned())
        .or_else(|| head.archive_status().map(|status| status.as_str().to_owned()))
}

/// Parts must suffice for the source's size and something more, should the new content be larger.
fn part_bytes(source_bytes: u64) -> usize {
    PART_BYTES.max(source_bytes.div_ceil(PARTS_MAX as u64 * 9 / 10).next_multiple_of(1 << 20)) as usize
}

/// What becomes of content that is larger than one part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Large {
    Upload,
    Spool,
}

// Neither this nor the replacement can be shown: they hold what is in the object.
enum Content {
    /// None of it is in a part.
    Small,
    Upload(Upload),
    Spool(tokio::fs::File),
}

pub(super) struct S3Replacement {
    store: S3Store,
    object: Object,
    write_id: String,
    attributes: Attributes,
    large: Large,
    look_first: bool,
    part_bytes: usize,
    parts: Parts,
    size_bytes: u64,
    content: Content,
}

impl S3Replacement {
    pub(super) async fn begin(store: &S3Store, object: &Object, write_id: &str) -> Result<S3Replacement, StoreError> {
        let place = place_of(&object.location)?;
        let verdict = store.verdict(place).await?;
        let (large, look_first) = way(verdict, store.0.unconditional_writes, object)?;
        let head = match store.head_output(place, Some(&object.etag)).await {
            // It was there when it was listed.
            Err(Fault::Missing) => return Err(StoreError::Changed(object.location.clone())),
            other => other.map_err(|fault| fault.error_on(object))?,
        };
        if head.e_tag().map(etag).as_ref() != Some(&object.etag) {
            return Err(StoreError::Changed(object.location.clone()));
        }
        if let Some(class) = archive_class(&head) {
            return Err(StoreError::Archived { location: object.location.clone(), class });
        }
        if head.missing_meta().is_some_and(|missing| missing > 0) {
            return Err(other(object, "it has user metadata that the store cannot tell, so that it would be lost"));
        }
        let tags = store.tags(place, None).await.map_err(|fault| fault.error_on(object))?;
        let part_bytes = part_bytes(object.size_bytes);
        Ok(S3Replacement {
            store: store.clone(),
            object: object.clone(),
            write_id: write_id.to_owned(),
            attributes: Attributes::of(&head, tags, write_id),
            large,
            look_first,
            part_bytes,
            parts: Parts::new(Sizes::of(object.size_bytes, part_bytes)),
            size_bytes: 0,
            content: Content::Small,
        })
    }

    fn place(&self) -> Result<Place<'_>, StoreError> {
        place_of(&self.object.location)
    }

    /// More than one part came: the content needs another place than the buffer.
    async fn grow(&self) -> Result<Content, StoreError> {
        match self.large {
            Large::Spool => {
                let file = tempfile::tempfile().map_err(|error| spool_failed(&self.object, &error))?;
                Ok(Content::Spool(tokio::fs::File::from_std(file)))
            }
            Large::Upload => {
                let place = self.place()?;
                let request = carry_over!(self.store.0.client.create_multipart_upload(), self.attributes);
                let expires = self.attributes.expires.clone();
                let upload = Upload::create(&self.store, place, &self.write_id, request, expires).await;
                upload.map(Content::Upload).map_err(|fault| fault.error_on(&self.object))
            }
        }
    }

    async fn send(&mut self, part: Bytes) -> Result<(), StoreError> {
        if matches!(self.content, Content::Small) {
            self.content = self.grow().await?;
        }
        match &mut self.content {
            Content::Small => Ok(()),
            Content::Upload(upload) => upload.send(part).await,
            Content::Spool(_) if self.size_bytes > SINGLE_PUT_BYTES_MAX => Err(too_large(&self.object)),
            Content::Spool(file) => file.write_all(&part).await.map_err(|error| spool_failed(&self.object, &error)),
        }
    }

    /// Whether parts may be copied from the old object. Where its ETag does not guard the completion, each byte is one that was read.
    fn may_copy(&self) -> Result<bool, StoreError> {
        let is_guarded = self.large == Large::Upload && !self.look_first;
        // A small object is put in one piece, which is one request instead of several.
        let is_large = self.object.size_bytes > self.part_bytes as u64;
        Ok(is_guarded && is_large && self.store.copies_parts(self.place()?))
    }

    async fn send_parts(&mut self) -> Result<(), StoreError> {
        while let Some(part) = self.parts.pop() {
            match part {
                Part::Sent(bytes) => self.send(bytes).await?,
                Part::Copied(copied) => self.copy(copied).await?,
            }
        }
        Ok(())
    }

    async fn copy(&mut self, copied: Copied) -> Result<(), StoreError> {
        if self.may_copy()? {
            if matches!(self.content, Content::Small) {
                self.content = self.grow().await?;
            }
            if let Content::Upload(upload) = &mut self.content
                && upload.copy(&self.object, &copied).await? == Outcome::Copied
            {
                return Ok(());
            }
        }
        self.send_again(copied).await
    }

    /// The bytes passed by and were not kept. Read again, they make parts of at least the usual size, or the one that was wished.
    async fn send_again(&mut self, copied: Copied) -> Result<(), StoreError> {
        let Copied { mut range, digests } = copied;
        let mut digesting = Digesting::default();
        let mut pieces = ((range.end - range.start) / self.part_bytes as u64).max(1);
        while pieces > 0 {
            let end = range.start + (range.end - range.start) / pieces;
            let bytes = super::read(&self.store, &self.object, range.start..end).await?;
            digesting.update(&bytes);
            self.send(bytes).await?;
            (range.start, pieces) = (end, pieces - 1);
        }
        // That they stand there was only told: the swap must not find out that they do not.
        match digesting.finish() == digests {
            true => Ok(()),
            false => {
                Err(other(&self.object, "its bytes, read a second time, are not those that its new content takes over"))
            }
        }
    }

    async fn put(&self, body: impl Fn() -> Body) -> Result<Object, StoreError> {
        let place = self.place()?;
        let when = Precondition::Unchanged(self.object.etag.clone());
        let (id, size_bytes) = (self.write_id.as_str(), self.size_bytes);
        let write = Write { place, when: &when, id, size_bytes, look_first: self.look_first };
        self.store.write(write, |conditions| self.put_once(place, conditions, body())).await
    }

    async fn put_once(&self, place: Place<'_>, conditions: Conditions, body: Body) -> Result<Told, Fault> {
        let body = match body {
            Body::Bytes(bytes) => ByteStream::from(bytes),
            // Opened anew for each attempt, so that none starts where another stopped reading.
            Body::File(path) => ByteStream::from_path(path)
                .await
                .map_err(|_| Fault::Other("the temporary file cannot be read".to_owned()))?,
        };
        let request = carry_over!(self.store.0.client.put_object(), self.attributes).body(body);
        let expires = self.attributes.expires.clone();
        send_put(request, place, conditions, expires, self.size_bytes).await
    }

    async fn swap(&mut self) -> Result<Object, StoreError> {
        let when = Precondition::Unchanged(self.object.etag.clone());
        match &mut self.content {
            Content::Upload(upload) => upload.complete(&when, self.look_first).await,
            Content::Spool(file) => {
                file.flush().await.map_err(|error| spool_failed(&self.object, &error))?;
                let path = format!("/proc/self/fd/{}", file.as_raw_fd());
                self.put(|| Body::File(path.clone())).await
            }
            Content::Small => {
                let bytes = self.parts.take_rest();
                self.put(|| Body::Bytes(bytes.clone())).await
            }
        }
    }

    /// Some servers drop the tags that come with a write.
    async fn keep_tags(&self, written: &Object) -> Result<(), StoreError> {
        let place = self.place()?;
        let failed = |fault: Fault| fault.error_on(written);
        if self.attributes.tags.is_empty()
            || same_tags(&self.store.tags(place, None).await.map_err(failed)?, &self.attributes.tags)
        {
            return Ok(());
        }
        // Tags have no condition of their own: at least look whose object it is.
        self.store.head_output(place, Some(&written.etag)).await.map_err(failed)?;
        self.store.put_tags(place, &self.attributes.tags).await.map_err(failed)?;
        if same_tags(&self.store.tags(place, None).await.map_err(failed)?, &self.attributes.tags) {
            Ok(())
        } else {
            Err(other(written, "its new content is written, but the store does not keep its tags"))
        }
    }
}

/// Where a put's body comes from.
enum Body {
    Bytes(Bytes),
    File(String),
}

/// How content larger than one part goes to a server of this sort, and whether the object is looked at right before the swap
/// because the server does not look itself.
fn way(verdict: ConditionalWrites, allowed: bool, object: &Object) -> Result<(Large, bool), StoreError> {
    match verdict {
        ConditionalWrites::Honoured => Ok((Large::Upload, false)),
        ConditionalWrites::SingleWritesOnly if object.size_bytes <= SINGLE_PUT_BYTES_MAX => Ok((Large::Spool, false)),
        ConditionalWrites::SingleWritesOnly => Err(too_large(object)),
        ConditionalWrites::Ignored if allowed => Ok((Large::Upload, true)),
        ConditionalWrites::Ignored => Err(other(object, "its store ignores conditional writes")),
    }
}

fn other(object: &Object, reason: &str) -> StoreError {
    StoreError::Other { location: object.location.clone(), reason: reason.to_owned() }
}

fn too_large(object: &Object) -> StoreError {
    other(object, "it is larger than 5 GiB and its store ignores conditions on multipart uploads")
}

fn spool_failed(object: &Object, error: &std::io::Error) -> StoreError {
    other(object, &format!("the temporary file of its new content cannot be written: {}", error.kind()))
}

fn is_empty_ok(reply: &HttpResponse) -> bool {
    reply.status().as_u16() == 200 && reply.body().bytes() == Some(b"")
}

fn same_tags(a: &[Tag], b: &[Tag]) -> bool {
    let pairs = |tags: &[Tag]| {
        tags.iter().map(|tag| (tag.key().to_owned(), tag.value().to_owned())).collect::<std::collections::BTreeSet<_>>()
    };
    pairs(a) == pairs(b)
}

async fn send_put(
    request: PutObjectFluentBuilder,
    place: Place<'_>,
    conditions: Conditions,
    expires: Option<String>,
    size_bytes: u64,
) -> Result<Told, Fault> {
    let request = request.bucket(place.bucket).key(place.key);
    let request = request.set_if_match(conditions.if_match).set_if_none_match(conditions.if_none_match);
    let request = request.customize().config_override(patience(size_bytes));
    let request = request.mutate_request(move |request| set_expires(request, expires.as_deref()));
    request.send().await.map(Told::from).map_err(fault)
}

impl S3Store {
    pub(super) async fn tags(&self, place: Place<'_>, version_id: Option<String>) -> Result<Vec<Tag>, Fault> {
        let request = self.0.client.get_object_tagging().bucket(place.bucket).key(place.key);
        let request = request.set_version_id(version_id);
        let ask = || async {
            match request.clone().send().await {
                // Ceph's answer for an object that was uploaded in parts: nothing at all, which is no XML.
                Err(SdkError::ServiceError(answer)) if is_empty_ok(answer.raw()) => Ok(Vec::new()),
                reply => reply.map(|reply| reply.tag_set).map_err(fault),
            }
        };
        match self.0.line.call(ask).await {
            Ok(tags) => Ok(tags),
            // A server without tags has none to lose.
            Err(Fault::Unsupported) => Ok(Vec::new()),
            Err(Fault::Other(told)) if told.ends_with("NoSuchTagSet") => Ok(Vec::new()),
            Err(fault) => Err(fault),
        }
    }

    async fn put_tags(&self, place: Place<'_>, tags: &[Tag]) -> Result<(), Fault> {
        let tagging = Tagging::builder().set_tag_set(Some(tags.to_vec())).build();
        let tagging = tagging.map_err(|_| Fault::Other("the request cannot be built".to_owned()))?;
        let request = self.0.client.put_object_tagging().bucket(place.bucket).key(place.key).tagging(tagging);
        self.0.line.call(|| async { request.clone().send().await.map(|_| ()).map_err(fault) }).await
    }
}

#[async_trait]
impl Replacement for S3Replacement {
    async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        self.size_bytes += bytes.len() as u64;
        self.parts.write(&bytes);
        self.send_parts().await
    }

    async fn take_over(&mut self, at: u64, bytes: Bytes) -> Result<(), StoreError> {
        if !self.may_copy()? {
            return self.write(bytes).await;
        }
        self.size_bytes += bytes.len() as u64;
        self.parts.take_over(at, bytes);
        self.send_parts().await
    }

    /// S3 shows new content only once it has replaced the old.
    async fn stage(&mut self) -> Result<Option<Object>, StoreError> {
        self.parts.end();
        self.send_parts().await?;
        if !matches!(self.content, Content::Small) {
            let last = self.parts.take_rest();
            if !last.is_empty() {
                self.send(last).await?;
            }
        }
        Ok(None)
    }

    async fn commit(mut self: Box<Self>) -> Result<Object, StoreError> {
        self.stage().await?;
        let swapped = self.swap().await;
        if let (Err(StoreError::Changed(_)), Content::Upload(_)) = (&swapped, &self.content) {
            // Certain not to be completed any more.
            self.take_upload_and_abort().await;
        }
        let mut object = swapped?;
        object.storage_class = self.object.storage_class.clone();
        // The swap has happened: whatever stops the tags must not be taken for a swap that did not.
        let untagged = |error| other(&object, &format!("its new content is written, but not its tags: {error}"));
        self.keep_tags(&object).await.map_err(untagged)?;
        Ok(object)
    }

    async fn abort(mut self: Box<Self>) -> Result<(), StoreError> {
        match std::mem::replace(&mut self.content, Content::Small) {
            Content::Upload(upload) => upload.abort().await,
            Content::Small | Content::Spool(_) => Ok(()),
        }
    }
}

impl S3Replacement {
    async fn take_upload_and_abort(&mut self) {
        if let Content::Upload(upload) = std::mem::replace(&mut self.content, Content::Small)
            && let Err(error) = upload.abort().await
        {
            tracing::warn!(object = %self.object.location, %error, "upload not aborted; its parts stay until it is");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_suffice_for_the_largest_object() {
        for source_bytes in [0, 8 << 20, 1 << 30, 80 << 30, 5 << 40] {
            let part_bytes = part_bytes(source_bytes) as u64;
            assert!((PART_BYTES..=5 << 30).contains(&part_bytes));
            assert!((source_bytes + source_bytes / 20).div_ceil(part_bytes) <= PARTS_MAX as u64, "{source_bytes}");
        }
        assert_eq!(part_bytes(1 << 30), 8 << 20);
    }

    #[test]
    fn no_swap_goes_without_a_condition_that_holds_unless_allowed() {
        use ConditionalWrites::*;
        let way = |verdict, allowed, size_bytes| {
            let location = crate::store::Location::S3 { bucket: "lake".into(), key: "a".into() };
            let etag = crate::store::Etag("\"1\"".into());
            way(verdict, allowed, &Object { location, size_bytes, etag, version_id: None, storage_class: None }).ok()
        };
        for (verdict, allowed, size_bytes, wanted) in [
            (Honoured, false, 5 << 40, Some((Large::Upload, false))),
            (Honoured, true, 1, Some((Large::Upload, false))),
            (SingleWritesOnly, false, 5 << 30, Some((Large::Spool, false))),
            (SingleWritesOnly, true, (5 << 30) + 1, None),
            (Ignored, false, 1, None),
            (Ignored, true, 1, Some((Large::Upload, true))),
        ] {
            assert_eq!(way(verdict, allowed, size_bytes), wanted, "{verdict:?} {allowed} {size_bytes}");
        }
    }
}
