//! A read-only store in memory, with faults by name: what the list reader needs of a store and no more.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use lakescrub::store::{
    ConditionalWrites, Etag, Location, Object, Precondition, Replacement, Store, StoreError, Stores,
};

#[derive(Debug, Default, Clone)]
pub struct ListStore {
    objects: BTreeMap<PathBuf, Bytes>,
    /// What a read of an object's bytes answers instead.
    faults: BTreeMap<PathBuf, StoreError>,
    /// How often it was asked what it has.
    pub listings: Arc<AtomicUsize>,
}

impl ListStore {
    pub fn with(mut self, path: &str, bytes: impl Into<Vec<u8>>) -> Self {
        self.objects.insert(path.into(), Bytes::from(bytes.into()));
        self
    }

    pub fn with_fault(mut self, path: &str, fault: impl Fn(Location) -> StoreError) -> Self {
        self.faults.insert(path.into(), fault(Location::Local(path.into())));
        self.with(path, "never seen")
    }

    pub fn stores(self) -> Stores {
        let store = Arc::new(self);
        Stores::new(store.clone(), store)
    }

    fn object(&self, path: &Path) -> Option<Object> {
        let bytes = self.objects.get(path)?;
        Some(Object {
            location: Location::Local(path.to_owned()),
            size_bytes: bytes.len() as u64,
            etag: Etag("\"1\"".to_owned()),
            version_id: None,
            storage_class: None,
        })
    }
}

fn path(location: &Location) -> &Path {
    match location {
        Location::Local(path) => path,
        Location::S3 { .. } => panic!("these tests name local files only"),
    }
}

#[async_trait]
impl Store for ListStore {
    async fn list(&self, prefix: &Location) -> Result<Vec<Object>, StoreError> {
        self.listings.fetch_add(1, Ordering::Relaxed);
        Ok(self.objects.keys().filter(|key| key.starts_with(path(prefix))).filter_map(|key| self.object(key)).collect())
    }

    async fn head(&self, location: &Location) -> Result<Object, StoreError> {
        self.object(path(location)).ok_or_else(|| StoreError::NotFound(location.clone()))
    }

    async fn get_range(&self, object: &Object, range: Range<u64>) -> Result<Bytes, StoreError> {
        match self.faults.get(path(&object.location)) {
            Some(fault) => Err(fault.clone()),
            None => Ok(self.objects[path(&object.location)].slice(range.start as usize..range.end as usize)),
        }
    }

    async fn get(&self, location: &Location) -> Result<(Object, Bytes), StoreError> {
        let object = self.head(location).await?;
        match self.faults.get(path(location)) {
            Some(fault) => Err(fault.clone()),
            None => Ok((object, self.objects[path(location)].clone())),
        }
    }

    async fn put(&self, _: &Location, _: Bytes, _: Precondition) -> Result<Object, StoreError> {
        panic!("lists are never written")
    }

    async fn delete(&self, _: &Object) -> Result<(), StoreError> {
        panic!("lists are never deleted")
    }

    async fn replace(&self, _: &Object, _: &str) -> Result<Box<dyn Replacement>, StoreError> {
        panic!("lists are never rewritten")
    }

    async fn probe(&self, _: &Location) -> Result<ConditionalWrites, StoreError> {
        panic!("lists are never written")
    }
}
