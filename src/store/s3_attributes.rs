//! What an object of S3 is beside its bytes, to be carried over to its new content.

use std::collections::HashMap;

use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use aws_sdk_s3::types::{ServerSideEncryption, StorageClass, Tag};

use super::s3_copy::encode;
use super::s3_write::WRITE_ID;

/// What an object is beside its bytes.
#[derive(Debug, Clone, Default)]
pub(super) struct Attributes {
    pub(super) content_type: Option<String>,
    pub(super) content_encoding: Option<String>,
    pub(super) content_language: Option<String>,
    pub(super) content_disposition: Option<String>,
    pub(super) cache_control: Option<String>,
    /// As spelled, since S3 takes any text here.
    pub(super) expires: Option<String>,
    pub(super) website_redirect: Option<String>,
    pub(super) metadata: HashMap<String, String>,
    pub(super) tags: Vec<Tag>,
    pub(super) storage_class: Option<StorageClass>,
    pub(super) encryption: Option<ServerSideEncryption>,
    pub(super) kms_key_id: Option<String>,
    pub(super) bucket_key: Option<bool>,
}

impl Attributes {
    pub(super) fn of(head: &HeadObjectOutput, tags: Vec<Tag>, write_id: &str) -> Attributes {
        let mut metadata = head.metadata().cloned().unwrap_or_default();
        // The one thing of ours: it says afterwards whose write this was. An older write's id makes way.
        metadata.insert(WRITE_ID.to_owned(), write_id.to_owned());
        Attributes {
            content_type: head.content_type().map(str::to_owned),
            content_encoding: head.content_encoding().and_then(stored_encoding),
            content_language: head.content_language().map(str::to_owned),
            content_disposition: head.content_disposition().map(str::to_owned),
            cache_control: head.cache_control().map(str::to_owned),
            expires: head.expires_string().map(str::to_owned),
            website_redirect: head.website_redirect_location().map(str::to_owned),
            metadata,
            tags,
            storage_class: head.storage_class().cloned(),
            encryption: head.server_side_encryption().cloned(),
            kms_key_id: head.ssekms_key_id().map(str::to_owned),
            bucket_key: head.bucket_key_enabled(),
        }
    }

    /// As the header of a write wants them.
    pub(super) fn tagging(&self) -> Option<String> {
        let pairs = self.tags.iter().map(|tag| format!("{}={}", encode(tag.key()), encode(tag.value())));
        (!self.tags.is_empty()).then(|| pairs.collect::<Vec<_>>().join("&"))
    }
}

/// The two builders have these setters in common but no trait.
macro_rules! carry_over {
    ($request:expr, $attributes:expr) => {
        $request
            .set_content_type($attributes.content_type.clone())
            .set_content_encoding($attributes.content_encoding.clone())
            .set_content_language($attributes.content_language.clone())
            .set_content_disposition($attributes.content_disposition.clone())
            .set_cache_control($attributes.cache_control.clone())
            .set_website_redirect_location($attributes.website_redirect.clone())
            .set_metadata(Some($attributes.metadata.clone()))
            .set_tagging($attributes.tagging())
            .set_storage_class($attributes.storage_class.clone())
            .set_server_side_encryption($attributes.encryption.clone())
            .set_ssekms_key_id($attributes.kms_key_id.clone())
            .set_bucket_key_enabled($attributes.bucket_key)
    };
}
pub(super) use carry_over;

/// `aws-chunked` is how bytes travelled, not what they are; some servers keep it all the same.
fn stored_encoding(told: &str) -> Option<String> {
    let kept: Vec<&str> =
        told.split(',').map(str::trim).filter(|encoding| !encoding.is_empty() && *encoding != "aws-chunked").collect();
    (!kept.is_empty()).then(|| kept.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_spelled_for_a_header() {
        let tag = |key: &str, value: &str| Tag::builder().key(key).value(value).build().unwrap();
        let attributes = Attributes { tags: vec![tag("a b", "c&d=e"), tag("ü", "")], ..Attributes::default() };
        assert_eq!(attributes.tagging().as_deref(), Some("a%20b=c%26d%3De&%C3%BC="));
        assert_eq!(Attributes::default().tagging(), None);
    }

    #[test]
    fn the_encoding_of_the_transport_is_not_carried_over() {
        assert_eq!(stored_encoding("gzip,aws-chunked").as_deref(), Some("gzip"));
        assert_eq!(stored_encoding("aws-chunked"), None);
    }
}
