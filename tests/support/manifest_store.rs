//! A store in memory for the tests of manifests: files can be changed behind its back, and a put can be the last one before
//! the run is killed, or lose its reply.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard};

use async_trait::async_trait;
use bytes::Bytes;
use lakescrub::store::{ConditionalWrites, Etag, Location, Object, Precondition, Replacement, Store, StoreError};

#[derive(Debug, Default)]
pub struct ManifestStore {
    files: Mutex<BTreeMap<Location, Bytes>>,
    fault: Mutex<Fault>,
}

/// What goes wrong at a put, counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fault {
    #[default]
    None,
    /// This put and all after it do not happen.
    KilledBefore(usize),
    /// This put happens; to the caller it looks like a conflict, because its retry met what it had written.
    ReplyLost(usize),
}

impl ManifestStore {
    pub fn with_fault(&self, fault: Fault) {
        *self.fault.lock().unwrap() = fault;
    }

    pub fn files(&self) -> MutexGuard<'_, BTreeMap<Location, Bytes>> {
        self.files.lock().unwrap()
    }

    pub fn read(&self, location: &Location) -> Bytes {
        self.files()[location].clone()
    }

    pub fn write(&self, location: &Location, bytes: impl Into<Bytes>) {
        self.files().insert(location.clone(), bytes.into());
    }

    pub fn remove(&self, location: &Location) {
        self.files().remove(location).expect("only what is there is removed");
    }

    pub fn copy(&self) -> ManifestStore {
        ManifestStore { files: Mutex::new(self.files().clone()), fault: Mutex::default() }
    }
}

fn object(location: &Location, bytes: &[u8]) -> Object {
    Object {
        location: location.clone(),
        size_bytes: bytes.len() as u64,
        etag: Etag(lakescrub::manifest::sha256_hex(bytes)),
        version_id: None,
        storage_class: None,
    }
}

fn is_below(prefix: &Location, location: &Location) -> bool {
    match (prefix, location) {
        (Location::Local(prefix), Location::Local(path)) => path.starts_with(prefix),
        (Location::S3 { bucket: a, key: prefix }, Location::S3 { bucket: b, key }) => a == b && key.starts_with(prefix),
        (Location::Local(_) | Location::S3 { .. }, Location::Local(_) | Location::S3 { .. }) => false,
    }
}

fn only_manifests<T>(location: &Location) -> Result<T, StoreError> {
    Err(StoreError::Other { location: location.clone(), reason: "this store holds manifests only".into() })
}

#[async_trait]
impl Store for ManifestStore {
    async fn list(&self, prefix: &Location) -> Result<Vec<Object>, StoreError> {
        let files = self.files();
        let below = files.iter().filter(|(location, _)| is_below(prefix, location));
        Ok(below.map(|(location, bytes)| object(location, bytes)).collect())
    }

    async fn head(&self, location: &Location) -> Result<Object, StoreError> {
        self.get(location).await.map(|(object, _)| object)
    }

    async fn get_range(&self, wish: &Object, range: Range<u64>) -> Result<Bytes, StoreError> {
        let (now, bytes) = self.get(&wish.location).await?;
        if now.etag != wish.etag {
            return Err(StoreError::Changed(wish.location.clone()));
        }
        Ok(bytes.slice(range.start as usize..range.end as usize))
    }

    async fn get(&self, location: &Location) -> Result<(Object, Bytes), StoreError> {
        let bytes = self.files().get(location).cloned().ok_or_else(|| StoreError::NotFound(location.clone()))?;
        Ok((object(location, &bytes), bytes))
    }

    async fn put(&self, location: &Location, bytes: Bytes, when: Precondition) -> Result<Object, StoreError> {
        let mut fault = self.fault.lock().unwrap();
        let reply_lost = *fault == Fault::ReplyLost(0);
        *fault = match *fault {
            Fault::None => Fault::None,
            Fault::KilledBefore(0) => {
                return Err(StoreError::Unavailable { location: location.clone(), reason: "killed".into() });
            }
            Fault::KilledBefore(puts) => Fault::KilledBefore(puts - 1),
            Fault::ReplyLost(0) => Fault::None,
            Fault::ReplyLost(puts) => Fault::ReplyLost(puts - 1),
        };
        let mut files = self.files();
        let etag = files.get(location).map(|there| object(location, there).etag);
        let holds = match when {
            Precondition::Absent => etag.is_none(),
            Precondition::Unchanged(wish) => etag == Some(wish),
            Precondition::None => true,
        };
        if !holds {
            return Err(StoreError::Changed(location.clone()));
        }
        files.insert(location.clone(), bytes.clone());
        if reply_lost { Err(StoreError::Changed(location.clone())) } else { Ok(object(location, &bytes)) }
    }

    async fn delete(&self, object: &Object) -> Result<(), StoreError> {
        only_manifests(&object.location)
    }

    async fn replace(&self, object: &Object, _write_id: &str) -> Result<Box<dyn Replacement>, StoreError> {
        only_manifests(&object.location)
    }

    async fn probe(&self, prefix: &Location) -> Result<ConditionalWrites, StoreError> {
        only_manifests(prefix)
    }
}
