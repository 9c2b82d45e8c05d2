//! Counts of work done, written by the stages and read by whoever shows progress.

use std::sync::atomic::{AtomicU64, Ordering};

/// Objects, rows and bytes of one stage so far, and how many there will be.
#[derive(Debug, Default)]
pub struct Meter {
    objects: AtomicU64,
    rows: AtomicU64,
    bytes: AtomicU64,
    objects_expected: AtomicU64,
    bytes_expected: AtomicU64,
}

impl Meter {
    /// Adds work that is known to lie ahead, as soon as a listing shows it.
    pub fn expect(&self, objects: u64, bytes: u64) {
        self.objects_expected.fetch_add(objects, Ordering::Relaxed);
        self.bytes_expected.fetch_add(bytes, Ordering::Relaxed);
    }

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

    /// Zero until a listing showed what lies ahead.
    pub fn objects_expected(&self) -> u64 {
        self.objects_expected.load(Ordering::Relaxed)
    }

    pub fn bytes_expected(&self) -> u64 {
        self.bytes_expected.load(Ordering::Relaxed)
    }
}
