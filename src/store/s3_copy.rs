//! A part of an upload that S3 copies from the object that is to be replaced, so that its bytes need not be sent.
//!
//! Invariant: a copied part counts only when the reply proves that it is the bytes that were read here, by a checksum or by an
//! ETag that is their MD5. A server that takes another range, or another object's, must not be found out only after the swap.

use aws_sdk_s3::types::{CompletedPart, CopyPartResult};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::s3::{Place, S3Store, etag, place_of};
use super::s3_call::{Fault, fault};
use super::s3_splice::{Copied, Digests};
use super::s3_upload::{Upload, patience};
use super::{Object, StoreError};

/// What came of the wish to have a part copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Copied,
    /// There is no such part: its bytes are to be sent.
    NotCopied,
}

/// Why a part is not copied.
#[derive(Debug, PartialEq, Eq)]
enum Refusal {
    /// Because the object changed, or for a reason that sending would meet, too.
    Final(Fault),
    /// Of this object only.
    Here(String),
    /// Other objects of the bucket will fare alike.
    Everywhere(String),
}

impl Refusal {
    fn of(fault: Fault) -> Refusal {
        match fault {
            Fault::Refused | Fault::Busy | Fault::MissingUpload => Refusal::Final(fault),
            // What it is that is missing, or cannot be read, the next read of it tells.
            Fault::Missing | Fault::MissingBucket => Refusal::Here("the source is missing".to_owned()),
            Fault::Archived => Refusal::Here("the source is archived".to_owned()),
            Fault::Unsupported => Refusal::Everywhere("the store does not know this request".to_owned()),
            // Patience has ended. If it is not this request alone that fails, the next one tells.
            Fault::Transient(reason) | Fault::Throttled(reason) => Refusal::Everywhere(reason),
            Fault::Denied(reason) | Fault::Other(reason) => Refusal::Everywhere(reason),
        }
    }
}

impl S3Store {
    pub(super) fn copies_parts(&self, place: Place<'_>) -> bool {
        let buckets = self.0.copies_no_parts.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        !buckets.contains(place.bucket)
    }

    async fn is_still(&self, object: &Object) -> bool {
        let Ok(place) = place_of(&object.location) else { return false };
        let head = self.head_output(place, None).await;
        head.is_ok_and(|head| head.e_tag().map(etag).as_ref() == Some(&object.etag))
    }

    fn copies_no_parts(&self, place: Place<'_>) {
        let mut buckets = self.0.copies_no_parts.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        buckets.insert(place.bucket.to_owned());
    }
}

impl Upload {
    /// Makes the next part from the source's own bytes, if the source is still the object that was scanned.
    pub(super) async fn copy(&mut self, source: &Object, copied: &Copied) -> Result<Outcome, StoreError> {
        let place = place_of(&source.location)?;
        let (number, bytes) = (self.next_number()?, copied.range.end - copied.range.start);
        let request = self.store.0.client.upload_part_copy().bucket(place.bucket).key(place.key);
        let request = request.upload_id(&self.upload_id).part_number(number);
        let request = request.copy_source(source_header(place, source.version_id.as_deref()));
        let request = request.copy_source_if_match(&source.etag.0);
        let request = request.copy_source_range(format!("bytes={}-{}", copied.range.start, copied.range.end - 1));
        let send =
            || async { request.clone().customize().config_override(patience(bytes)).send().await.map_err(fault) };
        let refusal = match self.store.0.line.call(send).await {
            Ok(reply) => match reply.copy_part_result.filter(|result| is_proven(result, copied.digests)) {
                Some(result) => {
                    self.push(completed(number, result), bytes);
                    return Ok(Outcome::Copied);
                }
                // The part is there and of no use: what is sent in its place takes its number.
                None => Refusal::Everywhere("the reply does not prove the part's bytes".to_owned()),
            },
            Err(Fault::Refused) if self.store.is_still(source).await => {
                Refusal::Everywhere("the store refuses a copy on the etag that it tells itself".to_owned())
            }
            Err(fault) => Refusal::of(fault),
        };
        match refusal {
            Refusal::Final(fault) => return Err(fault.error_on(source)),
            Refusal::Here(reason) => tracing::debug!(bucket = place.bucket, reason, "part not copied but sent"),
            Refusal::Everywhere(reason) => {
                tracing::debug!(bucket = place.bucket, reason, "parts are not copied but sent from here on");
                self.store.copies_no_parts(place);
            }
        }
        Ok(Outcome::NotCopied)
    }
}

/// The header is a path and a query: a key's own `?`, `%` or letter beyond ASCII must not be taken for more than it is.
fn source_header(place: Place<'_>, version_id: Option<&str>) -> String {
    let mut header = format!("{}/", place.bucket);
    for segment in place.key.split_inclusive('/') {
        let (name, slash) = segment.strip_suffix('/').map_or((segment, ""), |name| (name, "/"));
        header = header + &encode(name) + slash;
    }
    match version_id {
        Some(id) => header + "?versionId=" + &encode(id),
        None => header,
    }
}

pub(super) fn encode(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
        out
    })
}

/// The ETag of a part is its MD5 unless a key service encrypts it; checksums are told by the servers that know them.
fn is_proven(result: &CopyPartResult, digests: Digests) -> bool {
    let Digests { crc64, md5 } = digests;
    match result.checksum_crc64_nvme() {
        Some(told) => told == BASE64.encode(crc64),
        None => result.e_tag().is_some_and(|told| told.trim_matches('"').eq_ignore_ascii_case(&hex::encode(md5))),
    }
}

/// With the checksums that the reply told, which the completion must repeat.
fn completed(number: i32, result: CopyPartResult) -> CompletedPart {
    CompletedPart::builder()
        .part_number(number)
        .set_e_tag(result.e_tag)
        .set_checksum_crc32(result.checksum_crc32)
        .set_checksum_crc32_c(result.checksum_crc32_c)
        .set_checksum_crc64_nvme(result.checksum_crc64_nvme)
        .set_checksum_sha1(result.checksum_sha1)
        .set_checksum_sha256(result.checksum_sha256)
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Location;
    use crate::store::s3_splice::Digesting;

    #[test]
    fn a_key_is_spelled_for_the_header_of_its_source() {
        for (key, version_id, wanted) in [
            ("a/b.parquet", None, "lake/a/b.parquet"),
            ("a b+c%20?x=1&y/ä", None, "lake/a%20b%2Bc%2520%3Fx%3D1%26y/%C3%A4"),
            ("a//b/", Some("3/L4k+"), "lake/a//b/?versionId=3%2FL4k%2B"),
        ] {
            let location = Location::S3 { bucket: "lake".into(), key: key.into() };
            assert_eq!(source_header(place_of(&location).unwrap(), version_id), wanted);
        }
    }

    #[test]
    fn a_part_is_proven_by_what_the_reply_tells_of_its_bytes() {
        let mut digesting = Digesting::default();
        digesting.update(b"123456789");
        let digests = digesting.finish();
        // The check value of the CRC's definition.
        assert_eq!(hex::encode(digests.crc64), "ae8b14860a799888");
        let (crc64, md5) = (BASE64.encode(digests.crc64), hex::encode(digests.md5));
        for (told_crc64, told_etag, wanted) in [
            (None, Some(format!("\"{md5}\"")), true),
            (None, Some(md5.to_uppercase()), true),
            (None, Some("\"0123456789abcdef0123456789abcdef\"".to_owned()), false),
            (None, None, false),
            (Some(crc64), Some("\"of a key service\"".to_owned()), true),
            // A checksum that is another's outweighs whatever else is told.
            (Some("AAAAAAAAAAA=".to_owned()), Some(md5), false),
        ] {
            let told = format!("{told_crc64:?} {told_etag:?}");
            let result = CopyPartResult::builder().set_checksum_crc64_nvme(told_crc64).set_e_tag(told_etag).build();
            assert_eq!(is_proven(&result, digests), wanted, "{told}");
        }
    }

    #[test]
    fn what_does_not_concern_the_condition_is_sent_instead() {
        let told = || "InvalidRequest".to_owned();
        for (fault, wanted) in [
            (Fault::Refused, Refusal::Final(Fault::Refused)),
            (Fault::MissingUpload, Refusal::Final(Fault::MissingUpload)),
            (Fault::Transient(told()), Refusal::Everywhere(told())),
            (Fault::Missing, Refusal::Here("the source is missing".into())),
            (Fault::Unsupported, Refusal::Everywhere("the store does not know this request".into())),
            (Fault::Denied(told()), Refusal::Everywhere(told())),
            (Fault::Other(told()), Refusal::Everywhere(told())),
        ] {
            assert_eq!(Refusal::of(fault), wanted);
        }
    }
}
