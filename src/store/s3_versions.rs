//! What a listing of objects does not show: noncurrent versions, delete markers, locks, unfinished uploads, and what a bucket does
//! with objects by itself.
//!
//! A lock is never bypassed. Invariant: what could not be read is an error or a sentence that says so, never an empty answer.

use std::collections::HashSet;

use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use aws_sdk_s3::operation::list_multipart_uploads::ListMultipartUploadsOutput;
use aws_sdk_s3::operation::list_object_versions::ListObjectVersionsOutput;
use aws_sdk_s3::primitives::DateTime;
use aws_sdk_s3::types::{
    BucketVersioningStatus, EncodingType, ExpirationStatus, LifecycleRule, MfaDeleteStatus, ObjectLockLegalHoldStatus,
};
use jiff::Timestamp;

use super::s3::{Place, S3Store, broken_listing, class, decode, etag};
use super::s3_call::{Fault, fault};
use super::{Etag, Location, Object, StoreError, UnfinishedUpload, Version};

impl S3Store {
    pub(super) async fn list_all_versions(&self, place: Place<'_>) -> Result<Option<Vec<Version>>, StoreError> {
        match self.versioning(place).await {
            Ok(Versioning::Never) | Err(Fault::Unsupported) => return Ok(None),
            Err(fault @ (Fault::Transient(_) | Fault::Throttled(_) | Fault::MissingBucket)) => {
                return Err(fault.error(place.location));
            }
            // Who may not ask may still be allowed to list, and moto's answer is not S3's.
            Ok(Versioning::Kept { .. }) | Err(_) => {}
        }
        let mut versions: Vec<Version> = Vec::new();
        let (mut marker, mut seen) = (None, HashSet::new());
        loop {
            let page = match self.versions_page(place, marker.as_ref()).await {
                Err(Fault::Unsupported) => {
                    let reason = "its bucket may keep versions and the store cannot list them".to_owned();
                    return Err(StoreError::Other { location: place.location.clone(), reason });
                }
                other => other.map_err(|fault| fault.error(place.location))?,
            };
            versions.extend(listed_versions(place, &page)?);
            if page.is_truncated() != Some(true) {
                break;
            }
            let is_encoded = page.encoding_type() == Some(&EncodingType::Url);
            let next =
                page.next_key_marker().and_then(|key| if is_encoded { decode(key) } else { Some(key.to_owned()) });
            let next = next.map(|key| (key, page.next_version_id_marker().map(str::to_owned)));
            match next {
                Some(next) if seen.insert(next.clone()) => marker = Some(next),
                Some(_) => return Err(broken_listing(place, "it names the same next page of versions again")),
                None => return Err(broken_listing(place, "it is cut short and names no next page of versions")),
            }
        }
        // The reply keeps versions and delete markers apart; within a key the store's order stands.
        versions.sort_by(|a, b| a.object.location.cmp(&b.object.location).then(b.is_current.cmp(&a.is_current)));
        Ok(Some(versions))
    }

    async fn versions_page(
        &self,
        place: Place<'_>,
        marker: Option<&(String, Option<String>)>,
    ) -> Result<ListObjectVersionsOutput, Fault> {
        let request = self.0.client.list_object_versions().bucket(place.bucket).prefix(place.key);
        let request = request.encoding_type(EncodingType::Url);
        let request = match marker {
            Some((key, version)) => request.key_marker(key).set_version_id_marker(version.clone()),
            None => request,
        };
        self.0.line.call(|| async { request.clone().send().await.map_err(fault) }).await
    }

    async fn versioning(&self, place: Place<'_>) -> Result<Versioning, Fault> {
        let request = self.0.client.get_bucket_versioning().bucket(place.bucket);
        let reply = self.0.line.call(|| async { request.clone().send().await.map_err(fault) }).await?;
        Ok(match reply.status() {
            // A bucket whose versioning is suspended keeps the versions it has.
            Some(BucketVersioningStatus::Enabled | BucketVersioningStatus::Suspended) => {
                Versioning::Kept { needs_mfa: reply.mfa_delete() == Some(&MfaDeleteStatus::Enabled) }
            }
            _ => Versioning::Never,
        })
    }

    pub(super) async fn remove_version_for_good(&self, place: Place<'_>, version: &Object) -> Result<(), StoreError> {
        let Some(id) = &version.version_id else {
            let reason = "no version of it is named".to_owned();
            return Err(StoreError::Other { location: version.location.clone(), reason });
        };
        match self.remove_version(place, Some(id)).await {
            Ok(()) => Ok(()),
            Err(Fault::Denied(reason)) => Err(self.what_stands_in_the_way(place, version, reason).await),
            Err(fault) => Err(fault.error_on(version)),
        }
    }

    /// S3 says "access denied" of a lock, a missing permission and a missing second factor alike.
    async fn what_stands_in_the_way(&self, place: Place<'_>, version: &Object, denied: String) -> StoreError {
        let location = version.location.clone();
        let request = self.0.client.head_object().bucket(place.bucket).key(place.key);
        let request = request.set_version_id(version.version_id.clone());
        let head = self.0.line.call(|| async { request.clone().send().await.map_err(fault) }).await;
        if let Some((reason, until)) = head.as_ref().ok().and_then(lock_of) {
            return StoreError::Locked { location, reason, until };
        }
        let needs_mfa = matches!(self.versioning(place).await, Ok(Versioning::Kept { needs_mfa: true }));
        let reason = if needs_mfa { "the bucket asks for a second factor (MFA delete)".to_owned() } else { denied };
        StoreError::Denied { location, reason }
    }

    pub(super) async fn list_all_uploads(&self, place: Place<'_>) -> Result<Vec<UnfinishedUpload>, StoreError> {
        let mut uploads = Vec::new();
        let (mut marker, mut seen): (Option<(String, String)>, _) = (None, HashSet::new());
        loop {
            let page = match self.uploads_page(place, marker.as_ref()).await {
                Err(Fault::Unsupported) => return Ok(Vec::new()),
                other => other.map_err(|fault| fault.error(place.location))?,
            };
            uploads.extend(listed_uploads(place, &page)?);
            if page.is_truncated() != Some(true) {
                return Ok(uploads);
            }
            let is_encoded = page.encoding_type() == Some(&EncodingType::Url);
            let key =
                page.next_key_marker().and_then(|key| if is_encoded { decode(key) } else { Some(key.to_owned()) });
            match key.zip(page.next_upload_id_marker().map(str::to_owned)) {
                Some(next) if seen.insert(next.clone()) => marker = Some(next),
                _ => return Err(broken_listing(place, "it names no new next page of uploads")),
            }
        }
    }

    async fn uploads_page(
        &self,
        place: Place<'_>,
        marker: Option<&(String, String)>,
    ) -> Result<ListMultipartUploadsOutput, Fault> {
        let request = self.0.client.list_multipart_uploads().bucket(place.bucket).prefix(place.key);
        let request = request.encoding_type(EncodingType::Url);
        let request = match marker {
            Some((key, upload)) => request.key_marker(key).upload_id_marker(upload),
            None => request,
        };
        self.0.line.call(|| async { request.clone().send().await.map_err(fault) }).await
    }

    /// Parts that were under way when the upload was aborted may land after it: the parts are listed until there are none.
    pub(super) async fn abort_for_good(&self, place: Place<'_>, upload_id: &str) -> Result<(), StoreError> {
        const ROUNDS: usize = 3;
        let client = &self.0.client;
        for _ in 0..ROUNDS {
            let abort = client.abort_multipart_upload().bucket(place.bucket).key(place.key).upload_id(upload_id);
            match self.0.line.call(|| async { abort.clone().send().await.map_err(fault) }).await {
                Ok(_) | Err(Fault::Missing | Fault::MissingUpload) => {}
                Err(fault) => return Err(fault.error(place.location)),
            }
            let parts = client.list_parts().bucket(place.bucket).key(place.key).upload_id(upload_id);
            match self.0.line.call(|| async { parts.clone().send().await.map_err(fault) }).await {
                Err(Fault::Missing | Fault::MissingUpload | Fault::Unsupported) => return Ok(()),
                Ok(reply) if reply.parts().is_empty() => return Ok(()),
                Ok(_) => {}
                Err(fault) => return Err(fault.error(place.location)),
            }
        }
        let reason = "its upload was aborted, but parts of it keep coming".to_owned();
        Err(StoreError::Other { location: place.location.clone(), reason })
    }

    pub(super) async fn rules_of_bucket(&self, place: Place<'_>) -> Vec<String> {
        let mut sentences = Vec::new();
        let bucket = place.bucket;
        let replication = self.0.client.get_bucket_replication().bucket(bucket);
        match self.0.line.call(|| async { replication.clone().send().await.map_err(fault) }).await {
            Ok(reply) => {
                let rules = reply.replication_configuration().map_or(0, |configuration| configuration.rules().len());
                sentences.push(format!(
                    "Bucket {bucket} replicates objects by {rules} rules; the replicas were not looked at."
                ));
            }
            Err(Fault::Missing | Fault::Unsupported) => {}
            Err(_) => sentences.push(format!("Whether bucket {bucket} replicates its objects could not be read.")),
        }
        let lifecycle = self.0.client.get_bucket_lifecycle_configuration().bucket(bucket);
        match self.0.line.call(|| async { lifecycle.clone().send().await.map_err(fault) }).await {
            Ok(reply) => sentences.extend(reply.rules().iter().filter_map(|rule| lifecycle_rule(bucket, rule))),
            Err(Fault::Missing | Fault::Unsupported) => {}
            Err(_) => sentences.push(format!("The lifecycle rules of bucket {bucket} could not be read.")),
        }
        sentences
    }
}

/// Whether a bucket keeps what is overwritten or deleted.
enum Versioning {
    Never,
    Kept { needs_mfa: bool },
}

fn timestamp(told: &DateTime) -> Option<Timestamp> {
    Timestamp::new(told.secs(), i32::try_from(told.subsec_nanos()).ok()?).ok()
}

/// The lock that a version's HEAD shows, in words, and until when it holds.
fn lock_of(head: &HeadObjectOutput) -> Option<(String, Option<Timestamp>)> {
    if head.object_lock_legal_hold_status() == Some(&ObjectLockLegalHoldStatus::On) {
        return Some(("a legal hold is on it".to_owned(), None));
    }
    let mode = head.object_lock_mode()?.as_str().to_ascii_lowercase();
    let until = head.object_lock_retain_until_date().and_then(timestamp);
    let end = until.map_or_else(String::new, |until| format!(" until {until}"));
    Some((format!("an object lock in {mode} mode holds it{end}"), until))
}

fn listed_versions(place: Place<'_>, page: &ListObjectVersionsOutput) -> Result<Vec<Version>, StoreError> {
    let is_encoded = page.encoding_type() == Some(&EncodingType::Url);
    let location = |key: Option<&str>| {
        let key = if is_encoded { decode(key?)? } else { key?.to_owned() };
        Some(Location::S3 { bucket: place.bucket.to_owned(), key })
    };
    let versions = page.versions().iter().map(|listed| {
        Some(Version {
            object: Object {
                location: location(listed.key())?,
                size_bytes: u64::try_from(listed.size()?).ok()?,
                etag: etag(listed.e_tag()?),
                version_id: Some(listed.version_id()?.to_owned()),
                storage_class: class(listed.storage_class().map(|class| class.as_str())),
            },
            is_current: listed.is_latest()?,
            is_delete_marker: false,
        })
    });
    let markers = page.delete_markers().iter().map(|listed| {
        Some(Version {
            object: Object {
                location: location(listed.key())?,
                size_bytes: 0,
                etag: Etag(String::new()),
                version_id: Some(listed.version_id()?.to_owned()),
                storage_class: None,
            },
            is_current: listed.is_latest()?,
            is_delete_marker: true,
        })
    });
    let all: Option<Vec<Version>> = versions.chain(markers).collect();
    all.ok_or_else(|| broken_listing(place, "a version has no readable key, id, size or ETag"))
}

fn listed_uploads(place: Place<'_>, page: &ListMultipartUploadsOutput) -> Result<Vec<UnfinishedUpload>, StoreError> {
    let is_encoded = page.encoding_type() == Some(&EncodingType::Url);
    let uploads = page.uploads().iter().map(|listed| {
        let key = if is_encoded { decode(listed.key()?)? } else { listed.key()?.to_owned() };
        Some(UnfinishedUpload {
            location: Location::S3 { bucket: place.bucket.to_owned(), key },
            upload_id: listed.upload_id()?.to_owned(),
            begun_at: listed.initiated().and_then(timestamp),
        })
    });
    let all: Option<Vec<UnfinishedUpload>> = uploads.collect();
    all.ok_or_else(|| broken_listing(place, "an upload has no readable key or id"))
}

/// What an enabled lifecycle rule means for what a run leaves or removes; nothing for rules that only clean up.
fn lifecycle_rule(bucket: &str, rule: &LifecycleRule) -> Option<String> {
    if rule.status() != &ExpirationStatus::Enabled {
        return None;
    }
    let archives = !rule.transitions().is_empty() || !rule.noncurrent_version_transitions().is_empty();
    archives.then(|| {
        format!("A lifecycle rule of bucket {bucket} moves objects to other storage classes, where they may not be readable.")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_told_with_its_end() {
        use aws_sdk_s3::types::ObjectLockMode;
        let head = HeadObjectOutput::builder()
            .object_lock_mode(ObjectLockMode::Compliance)
            .object_lock_retain_until_date(DateTime::from_secs(1_800_000_000))
            .build();
        let (reason, until) = lock_of(&head).unwrap();
        assert_eq!(reason, "an object lock in compliance mode holds it until 2027-01-15T08:00:00Z");
        assert_eq!(until, Some("2027-01-15T08:00:00Z".parse().unwrap()));
        let held = HeadObjectOutput::builder().object_lock_legal_hold_status(ObjectLockLegalHoldStatus::On).build();
        assert_eq!(lock_of(&held), Some(("a legal hold is on it".to_owned(), None)));
        assert_eq!(lock_of(&HeadObjectOutput::builder().build()), None);
    }
}
