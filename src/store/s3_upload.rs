//! A multipart upload to S3, from its creation to its one conditional completion or its abort.

use std::time::Duration;

use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::operation::create_multipart_upload::builders::CreateMultipartUploadFluentBuilder;
use aws_sdk_s3::operation::upload_part::UploadPartOutput;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use bytes::Bytes;

use super::s3::{Place, S3Store, place_of};
use super::s3_call::{Fault, fault};
use super::s3_write::{Told, WRITE_ID, Write};
use super::{Location, Object, Precondition, StoreError};

/// S3's bound on the parts of an upload.
pub(super) const PARTS_MAX: usize = 10_000;

/// A multipart upload under way; aborted when dropped before its end.
#[derive(Debug)]
pub(super) struct Upload {
    pub(super) store: S3Store,
    location: Location,
    pub(super) upload_id: String,
    write_id: String,
    parts: Vec<CompletedPart>,
    size_bytes: u64,
    is_open: bool,
    runtime: tokio::runtime::Handle,
}

impl Upload {
    /// One that carries nothing over.
    pub(super) async fn create_plain(store: &S3Store, place: Place<'_>, write_id: &str) -> Result<Upload, Fault> {
        let request = store.0.client.create_multipart_upload().metadata(WRITE_ID, write_id);
        Upload::create(store, place, write_id, request, None).await
    }

    pub(super) async fn create(
        store: &S3Store,
        place: Place<'_>,
        write_id: &str,
        request: CreateMultipartUploadFluentBuilder,
        expires: Option<String>,
    ) -> Result<Upload, Fault> {
        let request = request.bucket(place.bucket).key(place.key);
        let send = || async {
            let (request, expires) = (request.clone().customize(), expires.clone());
            request.mutate_request(move |request| set_expires(request, expires.as_deref())).send().await.map_err(fault)
        };
        let upload_id = store.0.line.call(send).await?.upload_id;
        let upload_id = upload_id.ok_or_else(|| Fault::Other("the store's reply names no upload".to_owned()))?;
        Ok(Upload {
            store: store.clone(),
            location: place.location.clone(),
            upload_id,
            write_id: write_id.to_owned(),
            parts: Vec::new(),
            size_bytes: 0,
            is_open: true,
            runtime: tokio::runtime::Handle::current(),
        })
    }

    pub(super) async fn send(&mut self, part: Bytes) -> Result<(), StoreError> {
        let place = place_of(&self.location)?;
        let (number, size_bytes) = (self.next_number()?, part.len() as u64);
        let send = || async {
            let request = self.store.0.client.upload_part().bucket(place.bucket).key(place.key);
            let request = request.upload_id(&self.upload_id).part_number(number);
            let request = request.body(ByteStream::from(part.clone())).customize();
            request.config_override(patience(size_bytes)).send().await.map_err(fault)
        };
        let reply = self.store.0.line.call(send).await.map_err(|fault| fault.error(&self.location))?;
        self.push(completed(number, reply), size_bytes);
        Ok(())
    }

    pub(super) fn next_number(&self) -> Result<i32, StoreError> {
        if self.parts.len() == PARTS_MAX {
            let reason = format!("its new content is larger than {PARTS_MAX} parts");
            return Err(StoreError::Other { location: self.location.clone(), reason });
        }
        Ok(self.parts.len() as i32 + 1)
    }

    /// The part with the next number is there.
    pub(super) fn push(&mut self, part: CompletedPart, size_bytes: u64) {
        self.parts.push(part);
        self.size_bytes += size_bytes;
    }

    pub(super) async fn complete(&mut self, when: &Precondition, look_first: bool) -> Result<Object, StoreError> {
        let place = place_of(&self.location)?;
        let parts = CompletedMultipartUpload::builder().set_parts(Some(self.parts.clone())).build();
        let request = self.store.0.client.complete_multipart_upload().bucket(place.bucket).key(place.key);
        let request = request.upload_id(&self.upload_id).multipart_upload(parts);
        let write = Write { place, when, id: &self.write_id, size_bytes: self.size_bytes, look_first };
        let outcome = self
            .store
            .write(write, |conditions| {
                let request = request.clone().set_if_match(conditions.if_match);
                let request = request.set_if_none_match(conditions.if_none_match);
                async move { request.send().await.map(Told::from).map_err(fault) }
            })
            .await;
        self.is_open &= outcome.is_err();
        outcome
    }

    pub(super) async fn abort(mut self) -> Result<(), StoreError> {
        self.is_open = false;
        abort(&self.store, &self.location, &self.upload_id).await
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if self.is_open {
            let (store, location) = (self.store.clone(), self.location.clone());
            let upload_id = std::mem::take(&mut self.upload_id);
            self.runtime.spawn(async move {
                if let Err(error) = abort(&store, &location, &upload_id).await {
                    tracing::warn!(object = %location, %error, "upload not aborted; its parts stay until it is");
                }
            });
        }
    }
}

async fn abort(store: &S3Store, location: &Location, upload_id: &str) -> Result<(), StoreError> {
    let place = place_of(location)?;
    let request = store.0.client.abort_multipart_upload().bucket(place.bucket).key(place.key).upload_id(upload_id);
    match store.0.line.call(|| async { request.clone().send().await.map_err(fault) }).await {
        Ok(_) | Err(Fault::Missing | Fault::MissingUpload) => Ok(()),
        Err(fault) => Err(fault.error(location)),
    }
}

/// A part with the checksums that its reply told, which the completion must repeat.
fn completed(number: i32, reply: UploadPartOutput) -> CompletedPart {
    CompletedPart::builder()
        .part_number(number)
        .set_e_tag(reply.e_tag)
        .set_checksum_crc32(reply.checksum_crc32)
        .set_checksum_crc32_c(reply.checksum_crc32_c)
        .set_checksum_crc64_nvme(reply.checksum_crc64_nvme)
        .set_checksum_sha1(reply.checksum_sha1)
        .set_checksum_sha256(reply.checksum_sha256)
        .build()
}

/// Large bodies get more time than the client's settings give, all of them the same: each other setting is a connection pool.
const LARGE_BODY_BYTES: u64 = 64 << 20;
const LARGE_BODY_TIMEOUT: Duration = Duration::from_secs(3600);

pub(super) fn patience(size_bytes: u64) -> aws_sdk_s3::config::Builder {
    let config = aws_sdk_s3::Config::builder();
    if size_bytes <= LARGE_BODY_BYTES {
        return config;
    }
    config.timeout_config(TimeoutConfig::builder().read_timeout(LARGE_BODY_TIMEOUT).build())
}

pub(super) fn set_expires(request: &mut aws_sdk_s3::config::http::HttpRequest, expires: Option<&str>) {
    if let Some(expires) = expires {
        // A value that came in a header goes into one.
        let _ = request.headers_mut().try_insert("expires", expires.to_owned());
    }
}
