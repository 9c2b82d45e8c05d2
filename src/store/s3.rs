//! S3-compatible storage through aws-sdk-s3: listing, reads, deletes, and the [`Store`] that ties the parts together.
//!
//! How the store is reached is [`super::s3_open`], one request and its failure [`super::s3_call`], conditional writes and the
//! probe [`super::s3_write`], new content for an object [`super::s3_replace`]. Invariants: a key goes to and comes from the
//! wire exactly as the store spells it; every read says which ETag it means and checks what it got.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use aws_credential_types::Credentials;
use aws_sdk_s3::Client;
use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output;
use aws_sdk_s3::types::EncodingType;
use bytes::Bytes;
use tokio::sync::OnceCell;

use super::s3_call::{Fault, Line, fault};
use super::s3_replace::S3Replacement;
use super::s3_write::WRITE_ID;
use super::{
    ConditionalWrites, Etag, Location, Object, Precondition, Replacement, Store, StoreError, UnfinishedUpload, Version,
    s3_open,
};
use crate::error::Error;

/// `[storage.s3]`; what is `None` comes from the AWS environment variables and the default chain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct S3Settings {
    pub endpoint: Option<String>,
    pub region: Option<String>,
    pub profile: Option<String>,
    pub allow_http: bool,
    pub path_style: Option<bool>,
    /// `unconditional_writes = "allow"`: rewrite even on a store that ignores conditional writes.
    pub unconditional_writes: bool,
}

/// How many requests are under way at a time where no job file says it.
pub const REQUESTS_IN_FLIGHT: usize = 32;

/// All buckets that one set of credentials reaches.
#[derive(Debug, Clone)]
pub struct S3Store(pub(super) Arc<Inner>);

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) client: Client,
    pub(super) line: Line,
    pub(super) unconditional_writes: bool,
    /// What the probe saw, by bucket.
    verdicts: Mutex<HashMap<String, Arc<OnceCell<ConditionalWrites>>>>,
    /// Buckets whose server was seen not to copy parts.
    pub(super) copies_no_parts: Mutex<HashSet<String>>,
}

/// A key in a bucket.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) location: &'a Location,
    pub(super) bucket: &'a str,
    pub(super) key: &'a str,
}

pub(super) fn place_of(location: &Location) -> Result<Place<'_>, StoreError> {
    match location {
        Location::S3 { bucket, key } => Ok(Place { location, bucket, key }),
        Location::Local(_) => Err(StoreError::Other { location: location.clone(), reason: "is not on S3".to_owned() }),
    }
}

/// ETags are quoted in S3's language; some servers forget it in some replies.
pub(super) fn etag(told: &str) -> Etag {
    if told.starts_with('"') || told.starts_with("W/") { Etag(told.to_owned()) } else { Etag(format!("\"{told}\"")) }
}

/// The default class is told in listings and left out by HEAD.
pub(super) fn class(told: Option<&str>) -> Option<String> {
    told.filter(|class| *class != "STANDARD").map(str::to_owned)
}

/// What a HEAD or GET told of an object; `None` where it told no ETag or size, which no S3 server does.
pub(super) fn object_of(location: &Location, head: &HeadObjectOutput) -> Option<Object> {
    Some(Object {
        location: location.clone(),
        size_bytes: u64::try_from(head.content_length()?).ok()?,
        etag: etag(head.e_tag()?),
        version_id: head.version_id().map(str::to_owned),
        storage_class: class(head.storage_class().map(|class| class.as_str())),
    })
}

const NO_ETAG: &str = "the store's reply names no ETag or size";
/// A reply's body that takes longer than this is asked for again; what stalls altogether the SDK notices sooner.
const BODY_TIMEOUT: Duration = Duration::from_secs(300);

impl S3Store {
    /// With the credentials of the environment, the profile or the machine's role.
    pub async fn open(settings: &S3Settings, requests_in_flight: usize) -> Result<S3Store, Error> {
        Ok(S3Store::new(s3_open::client(settings, None).await?, settings, requests_in_flight))
    }

    /// With these credentials and no look at the environment for others.
    pub async fn open_as(
        credentials: Credentials,
        settings: &S3Settings,
        requests_in_flight: usize,
    ) -> Result<S3Store, Error> {
        Ok(S3Store::new(s3_open::client(settings, Some(credentials)).await?, settings, requests_in_flight))
    }

    fn new(client: Client, settings: &S3Settings, requests_in_flight: usize) -> S3Store {
        S3Store(Arc::new(Inner {
            client,
            line: Line::new(requests_in_flight),
            unconditional_writes: settings.unconditional_writes,
            verdicts: Mutex::default(),
            copies_no_parts: Mutex::default(),
        }))
    }

    /// What the bucket does with conditions, asking it when it was not asked yet.
    pub(super) async fn verdict(&self, near: Place<'_>) -> Result<ConditionalWrites, StoreError> {
        let cell = {
            let mut verdicts = self.0.verdicts.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            verdicts.entry(near.bucket.to_owned()).or_default().clone()
        };
        cell.get_or_try_init(|| self.probe_bucket(near)).await.copied()
    }

    pub(super) fn known_verdict(&self, bucket: &str) -> Option<ConditionalWrites> {
        let verdicts = self.0.verdicts.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        verdicts.get(bucket).and_then(|cell| cell.get().copied())
    }

    pub(super) async fn head_output(
        &self,
        place: Place<'_>,
        if_match: Option<&Etag>,
    ) -> Result<HeadObjectOutput, Fault> {
        self.0.line.call(|| self.head_once(place, if_match)).await
    }

    pub(super) async fn head_once(&self, place: Place<'_>, if_match: Option<&Etag>) -> Result<HeadObjectOutput, Fault> {
        let request = self.0.client.head_object().bucket(place.bucket).key(place.key);
        request.set_if_match(if_match.map(|etag| etag.0.clone())).send().await.map_err(fault)
    }

    async fn list_page(&self, place: Place<'_>, token: Option<&String>) -> Result<ListObjectsV2Output, Fault> {
        let request = self.0.client.list_objects_v2().bucket(place.bucket).prefix(place.key);
        // Without it a key with a control character makes the whole listing no XML.
        let request = request.encoding_type(EncodingType::Url).set_continuation_token(token.cloned());
        self.0.line.call(|| async { request.clone().send().await.map_err(fault) }).await
    }

    async fn list_all(&self, place: Place<'_>) -> Result<Vec<Object>, StoreError> {
        let mut objects: Vec<Object> = Vec::new();
        // A page that begins as an earlier one did, or a next page named twice, would go on for ever.
        let (mut token, mut tokens, mut beginnings) = (None, HashSet::new(), HashSet::new());
        loop {
            let page = self.list_page(place, token.as_ref()).await.map_err(|fault| fault.error(place.location))?;
            let listed = listed_objects(place, &page)?;
            if listed.first().is_some_and(|first| !beginnings.insert(first.location.clone())) {
                return Err(broken_listing(place, "a page comes again"));
            }
            objects.extend(listed);
            if page.is_truncated() != Some(true) {
                break;
            }
            let Some(next) = page.next_continuation_token else {
                return Err(broken_listing(place, "it is cut short and names no next page"));
            };
            if !tokens.insert(next.clone()) {
                return Err(broken_listing(place, "it names the same next page again"));
            }
            token = Some(next);
        }
        objects.sort_by(|a, b| a.location.cmp(&b.location));
        if objects.windows(2).any(|pair| pair[0].location == pair[1].location) {
            return Err(broken_listing(place, "it names an object twice"));
        }
        Ok(objects)
    }

    async fn get_body(
        &self,
        place: Place<'_>,
        pinned: Option<(&Object, Range<u64>)>,
    ) -> Result<(Object, Bytes), Fault> {
        let mut request = self.0.client.get_object().bucket(place.bucket).key(place.key);
        if let Some((object, range)) = &pinned {
            // Listings of current objects name no version; where one is named, no other will do.
            request = request.set_version_id(object.version_id.clone());
            request = request.if_match(&object.etag.0).range(format!("bytes={}-{}", range.start, range.end - 1));
        }
        let reply = request.send().await.map_err(fault)?;
        let Some(etag) = reply.e_tag().map(etag) else { return Err(Fault::Other(NO_ETAG.to_owned())) };
        let told_bytes = reply.content_length().and_then(|told| u64::try_from(told).ok());
        let wanted_bytes = match &pinned {
            // A server that ignores If-Match must not slip another object's bytes in.
            Some((listed, _)) if listed.etag != etag => return Err(Fault::Refused),
            // A server that ignores Range sends the whole.
            Some((_, range)) if told_bytes.is_some_and(|told| told != range.end - range.start) => {
                return Err(Fault::Other("the store's reply is another range than the one asked for".to_owned()));
            }
            Some((_, range)) => Some(range.end - range.start),
            None => told_bytes,
        };
        let version_id = reply.version_id().map(str::to_owned);
        let storage_class = class(reply.storage_class().map(|class| class.as_str()));
        let bytes = match tokio::time::timeout(BODY_TIMEOUT, reply.body.collect()).await {
            Ok(Ok(body)) => body.into_bytes(),
            Ok(Err(_)) => return Err(Fault::transient("the reply's body was cut short")),
            Err(_) => return Err(Fault::transient("the reply's body timed out")),
        };
        let came_bytes = bytes.len() as u64;
        if let Some(wanted_bytes) = wanted_bytes.filter(|wanted| *wanted != came_bytes) {
            return Err(Fault::transient(format!("{came_bytes} bytes came of {wanted_bytes}")));
        }
        let size_bytes = pinned.map_or(came_bytes, |(listed, _)| listed.size_bytes);
        let location = place.location.clone();
        Ok((Object { location, size_bytes, etag, version_id, storage_class }, bytes))
    }

    async fn delete_once(&self, place: Place<'_>, if_match: Option<&Etag>) -> Result<(), Fault> {
        let request = self.0.client.delete_object().bucket(place.bucket).key(place.key);
        request.set_if_match(if_match.map(|etag| etag.0.clone())).send().await.map(|_| ()).map_err(fault)
    }
}

fn listed_objects(place: Place<'_>, page: &ListObjectsV2Output) -> Result<Vec<Object>, StoreError> {
    let is_encoded = page.encoding_type() == Some(&EncodingType::Url);
    let object = |listed: &aws_sdk_s3::types::Object| {
        let key = if is_encoded { decode(listed.key()?)? } else { listed.key()?.to_owned() };
        Some(Object {
            location: Location::S3 { bucket: place.bucket.to_owned(), key },
            size_bytes: u64::try_from(listed.size()?).ok()?,
            etag: etag(listed.e_tag()?),
            version_id: None,
            storage_class: class(listed.storage_class().map(|class| class.as_str())),
        })
    };
    let objects: Option<Vec<Object>> = page.contents().iter().map(object).collect();
    objects.ok_or_else(|| broken_listing(place, "an entry has no readable key, size or ETag"))
}

pub(super) fn broken_listing(place: Place<'_>, reason: &str) -> StoreError {
    StoreError::Other { location: place.location.clone(), reason: format!("the listing is broken: {reason}") }
}

/// Undoes `encoding-type=url` as S3 means it: a space is `+`, a plus `%2B`.
pub(super) fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                (digit()? * 16 + digit()?) as u8
            }
            other => other,
        });
    }
    String::from_utf8(bytes).ok()
}

#[async_trait]
impl Store for S3Store {
    async fn list(&self, prefix: &Location) -> Result<Vec<Object>, StoreError> {
        self.list_all(place_of(prefix)?).await
    }

    async fn head(&self, location: &Location) -> Result<Object, StoreError> {
        let head = self.head_output(place_of(location)?, None).await.map_err(|fault| fault.error(location))?;
        object_of(location, &head)
            .ok_or_else(|| StoreError::Other { location: location.clone(), reason: NO_ETAG.to_owned() })
    }

    async fn get_range(&self, object: &Object, range: Range<u64>) -> Result<Bytes, StoreError> {
        let place = place_of(&object.location)?;
        if range.end > object.size_bytes || range.start > range.end {
            let reason = "a range past the end".to_owned();
            return Err(StoreError::Other { location: object.location.clone(), reason });
        }
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let read = self.0.line.call(|| self.get_body(place, Some((object, range.clone())))).await;
        read.map(|(_, bytes)| bytes).map_err(|fault| fault.error_on(object))
    }

    async fn get(&self, location: &Location) -> Result<(Object, Bytes), StoreError> {
        let place = place_of(location)?;
        self.0.line.call(|| self.get_body(place, None)).await.map_err(|fault| fault.error(location))
    }

    async fn put(&self, location: &Location, bytes: Bytes, when: Precondition) -> Result<Object, StoreError> {
        self.put_small(place_of(location)?, bytes, &when).await
    }

    /// On a versioned bucket this hides the object behind a delete marker; its versions stay.
    async fn delete(&self, object: &Object) -> Result<(), StoreError> {
        let place = place_of(&object.location)?;
        // Asked first because not every server knows a condition on DELETE, and some ignore it.
        match self.head_output(place, None).await {
            Err(Fault::Missing) => return Ok(()),
            Err(fault) => return Err(fault.error_on(object)),
            Ok(head) if head.e_tag().map(etag).as_ref() != Some(&object.etag) => {
                return Err(StoreError::Changed(object.location.clone()));
            }
            Ok(_) => {}
        }
        let line = &self.0.line;
        let outcome = match line.call(|| self.delete_once(place, Some(&object.etag))).await {
            Err(Fault::Unsupported) => line.call(|| self.delete_once(place, None)).await,
            other => other,
        };
        match outcome {
            Ok(()) | Err(Fault::Missing) => Ok(()),
            // The reply to a delete of ours may have been lost.
            Err(Fault::Refused) if matches!(self.head_output(place, None).await, Err(Fault::Missing)) => Ok(()),
            Err(fault) => Err(fault.error_on(object)),
        }
    }

    async fn replace(&self, object: &Object, write_id: &str) -> Result<Box<dyn Replacement>, StoreError> {
        Ok(Box::new(S3Replacement::begin(self, object, write_id).await?))
    }

    async fn probe(&self, prefix: &Location) -> Result<ConditionalWrites, StoreError> {
        self.verdict(place_of(prefix)?).await
    }

    async fn list_versions(&self, prefix: &Location) -> Result<Option<Vec<Version>>, StoreError> {
        self.list_all_versions(place_of(prefix)?).await
    }

    async fn delete_version(&self, version: &Object) -> Result<(), StoreError> {
        self.remove_version_for_good(place_of(&version.location)?, version).await
    }

    async fn list_uploads(&self, prefix: &Location) -> Result<Vec<UnfinishedUpload>, StoreError> {
        self.list_all_uploads(place_of(prefix)?).await
    }

    async fn abort_upload(&self, upload: &UnfinishedUpload) -> Result<(), StoreError> {
        self.abort_for_good(place_of(&upload.location)?, &upload.upload_id).await
    }

    async fn labels(&self, object: &Object) -> Result<Vec<String>, StoreError> {
        let place = place_of(&object.location)?;
        let version_id = object.version_id.clone();
        let head = self.0.client.head_object().bucket(place.bucket).key(place.key).if_match(&object.etag.0);
        let head = head.set_version_id(version_id.clone());
        let head = self.0.line.call(|| async { head.clone().send().await.map_err(fault) }).await;
        let head = head.map_err(|fault| fault.error_on(object))?;
        let metadata = head.metadata.into_iter().flatten().filter(|(name, _)| name != WRITE_ID);
        let tags = self.tags(place, version_id).await.map_err(|fault| fault.error_on(object))?;
        let tags = tags.into_iter().map(|tag| (tag.key, tag.value));
        Ok(metadata.chain(tags).flat_map(|(name, value)| [name, value]).collect())
    }

    async fn standing_rules(&self, prefix: &Location) -> Vec<String> {
        match place_of(prefix) {
            Ok(place) => self.rules_of_bucket(place).await,
            Err(_) => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listed_keys_are_decoded_exactly() {
        for (told, wanted) in [
            ("a//b/", Some("a//b/")),
            ("a+b%2Bc%2525", Some("a b+c%25")),
            ("day%3D1/%C3%A4%0A", Some("day=1/ä\n")),
            ("%C3", None),
            ("100%", None),
            ("%+1", None),
        ] {
            assert_eq!(decode(told).as_deref(), wanted, "{told}");
        }
    }

    #[test]
    fn an_etag_is_always_quoted() {
        assert_eq!(etag("abc"), etag("\"abc\""));
        assert_eq!(etag("\"abc-2\"").0, "\"abc-2\"");
    }
}
