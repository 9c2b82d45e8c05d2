//! A read-only store in memory for tests of stages that only read. It notes every range that is read, and can change an object
//! between the listing and the first read.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use lakescrub::store::{
    ConditionalWrites, Etag, Location, Object, Precondition, Replacement, Store, StoreError, Stores,
};

#[derive(Debug, Default)]
pub struct MemoryStore {
    objects: Mutex<BTreeMap<Location, (Bytes, u64)>>,
    changes_after_listing: Mutex<Vec<Location>>,
    unreachable: Mutex<Vec<Location>>,
    reads: Mutex<Vec<(Location, Range<u64>)>>,
}

impl MemoryStore {
    pub fn new<'a>(files: impl IntoIterator<Item = (&'a str, Vec<u8>)>) -> Arc<MemoryStore> {
        let store = MemoryStore::default();
        for (path, bytes) in files {
            store.objects.lock().unwrap().insert(location(path), (bytes.into(), 1));
        }
        Arc::new(store)
    }

    pub fn stores(self: &Arc<Self>) -> Stores {
        Stores::new(self.clone(), self.clone())
    }

    /// The next listing shows the object as it is, but by the first read another writer has replaced it.
    pub fn change_after_listing(&self, path: &str) {
        self.changes_after_listing.lock().unwrap().push(location(path));
    }

    /// Reads of the object fail from now on.
    pub fn cut_off(&self, path: &str) {
        self.unreachable.lock().unwrap().push(location(path));
    }

    pub fn reads(&self, path: &str) -> Vec<Range<u64>> {
        let wanted = location(path);
        self.reads.lock().unwrap().iter().filter(|(at, _)| *at == wanted).map(|(_, range)| range.clone()).collect()
    }

    fn object(&self, location: &Location) -> Result<(Object, Bytes), StoreError> {
        let objects = self.objects.lock().unwrap();
        let (bytes, generation) = objects.get(location).ok_or_else(|| StoreError::NotFound(location.clone()))?;
        let object = Object {
            location: location.clone(),
            size_bytes: bytes.len() as u64,
            etag: Etag(format!("\"{generation}\"")),
            version_id: None,
            storage_class: None,
        };
        Ok((object, bytes.clone()))
    }
}

pub fn location(path: &str) -> Location {
    Location::Local(Path::new(path).to_owned())
}

fn is_below(prefix: &Location, location: &Location) -> bool {
    match (prefix, location) {
        (Location::Local(prefix), Location::Local(path)) => path.starts_with(prefix),
        (Location::S3 { bucket, key: prefix }, Location::S3 { bucket: other, key }) => {
            bucket == other && key.starts_with(prefix)
        }
        (Location::Local(_), Location::S3 { .. }) | (Location::S3 { .. }, Location::Local(_)) => false,
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn list(&self, prefix: &Location) -> Result<Vec<Object>, StoreError> {
        let found: Vec<Location> = {
            let objects = self.objects.lock().unwrap();
            objects.keys().filter(|location| is_below(prefix, location)).cloned().collect()
        };
        let listed = found.iter().map(|location| self.object(location).map(|(object, _)| object)).collect();
        let mut objects = self.objects.lock().unwrap();
        for location in self.changes_after_listing.lock().unwrap().drain(..) {
            objects.get_mut(&location).unwrap().1 += 1;
        }
        listed
    }

    async fn head(&self, location: &Location) -> Result<Object, StoreError> {
        self.object(location).map(|(object, _)| object)
    }

    async fn get_range(&self, object: &Object, range: Range<u64>) -> Result<Bytes, StoreError> {
        let (now, bytes) = self.object(&object.location)?;
        if now.etag != object.etag {
            return Err(StoreError::Changed(object.location.clone()));
        }
        if self.unreachable.lock().unwrap().contains(&object.location) {
            let reason = "the connection was reset".to_owned();
            return Err(StoreError::Unavailable { location: object.location.clone(), reason });
        }
        self.reads.lock().unwrap().push((object.location.clone(), range.clone()));
        Ok(bytes.slice(range.start as usize..range.end as usize))
    }

    async fn get(&self, location: &Location) -> Result<(Object, Bytes), StoreError> {
        self.object(location)
    }

    async fn put(&self, location: &Location, _: Bytes, _: Precondition) -> Result<Object, StoreError> {
        Err(refused(location))
    }

    async fn delete(&self, object: &Object) -> Result<(), StoreError> {
        Err(refused(&object.location))
    }

    async fn replace(&self, object: &Object, _: &str) -> Result<Box<dyn Replacement>, StoreError> {
        Err(refused(&object.location))
    }

    async fn probe(&self, prefix: &Location) -> Result<ConditionalWrites, StoreError> {
        Err(refused(prefix))
    }
}

fn refused(location: &Location) -> StoreError {
    StoreError::Denied { location: location.clone(), reason: "this store is read-only".to_owned() }
}
