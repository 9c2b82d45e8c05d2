//! Counts of work done, written by the stages and read by whoever shows progress.

use std::sync::atomic::{AtomicU64, Ordering};

/// Objects, rows and bytes of one stage so far.
#[derive(Debug, Default)]
pub struct Meter {
    objects: AtomicU64,
    rows: AtomicU64,
    bytes: AtomicU64,
}

impl Meter {
    pub fn add(&self, objects: u64, rows: u64, bytes: u64) {
        self.objects.fetch_add(objects, Ordering::Relaxed);
        self.rows.fetch_add(rows, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub fn objects(&self) -> u64 {
        self.objects.load(Ordering::Relaxed)
    }

    pub fn rows(&self) -> u64 {
        self.rows.load(Ordering::Relaxed)
    }

    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}
