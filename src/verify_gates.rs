//! Bounds what the verifier runs, holds and asks of the store at a time.
//!
//! Invariant: whoever waits gets in at last, for what is larger than all there is gets all there is.

use std::ops::Range;

use bytes::Bytes;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::job::Resources;
use crate::store::{self, Object, Store, StoreError};

/// Bounds what runs and what is held at a time.
pub struct Gates {
    cpu: Semaphore,
    memory_mib: Semaphore,
    memory_total_mib: u32,
    requests: Semaphore,
    threads: usize,
    requests_in_flight: usize,
}

impl Gates {
    pub fn new(resources: &Resources) -> Self {
        let memory_total_mib = u32::try_from(resources.memory_mib).unwrap_or(u32::MAX).max(1);
        Gates {
            cpu: Semaphore::new(resources.threads),
            memory_mib: Semaphore::new(memory_total_mib as usize),
            memory_total_mib,
            requests: Semaphore::new(resources.requests_in_flight),
            threads: resources.threads,
            requests_in_flight: resources.requests_in_flight,
        }
    }

    pub fn threads(&self) -> usize {
        self.threads
    }

    /// How many objects may be under way: enough to keep both the threads and the store busy.
    pub fn objects_ahead(&self) -> usize {
        self.requests_in_flight.max(2 * self.threads)
    }

    pub async fn cpu(&self) -> SemaphorePermit<'_> {
        self.cpu.acquire().await.expect("the gates are never closed")
    }

    /// Waits for room. Something larger than all there is gets all there is, alone.
    pub async fn memory(&self, bytes: u64) -> SemaphorePermit<'_> {
        let wanted = u32::try_from(bytes >> 20).unwrap_or(u32::MAX).saturating_add(1).min(self.memory_total_mib);
        self.memory_mib.acquire_many(wanted).await.expect("the gates are never closed")
    }

    pub(crate) async fn get_range(
        &self,
        store: &dyn Store,
        object: &Object,
        range: Range<u64>,
    ) -> Result<Bytes, StoreError> {
        let _one = self.requests.acquire().await.expect("the gates are never closed");
        store::read(store, object, range).await
    }

    /// What one of the tasks that run side by side should hold at most.
    pub fn share_bytes(&self) -> u64 {
        (u64::from(self.memory_total_mib) << 20) / (2 * self.threads as u64 + 1)
    }
}
