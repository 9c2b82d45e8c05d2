//! The way of new content to its [`Replacement`]: blocking writes, and word of which bytes are the old object's own.
//!
//! Such word is given before the bytes, by their place in the output, so that it stays true whatever buffers lie between. Nothing
//! hangs on it but what has to travel: the bytes are written all the same.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::{Replacement, StoreError};

/// Where a rewrite writes to.
pub trait Sink: io::Write + Send {
    /// What will be written from the output's byte `at` on are the old object's bytes `source`. Told in the order of the output.
    fn taken_over(&mut self, at: u64, source: Range<u64>) {
        let _ = (at, source);
    }
}

/// What was written, kept in memory, and what was told of it.
#[derive(Debug, Default)]
pub struct InMemory {
    pub bytes: Vec<u8>,
    pub taken: Vec<(u64, Range<u64>)>,
}

impl io::Write for InMemory {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Sink for InMemory {
    fn taken_over(&mut self, at: u64, source: Range<u64>) {
        debug_assert!(at >= self.bytes.len() as u64, "told too late");
        self.taken.push((at, source));
    }
}

impl Sink for Vec<u8> {}
impl Sink for io::Sink {}

impl<S: Sink + ?Sized> Sink for &mut S {
    fn taken_over(&mut self, at: u64, source: Range<u64>) {
        (**self).taken_over(at, source);
    }
}

/// Blocking writes to a [`Replacement`], the way back over the bridge. `finish` gives it back for the swap.
pub struct ReplacementWriter {
    replacement: Box<dyn Replacement>,
    digest: DigestThread,
    buffer: Vec<u8>,
    /// Where in the output the buffer begins.
    sent_bytes: u64,
    taken: VecDeque<Taken>,
    runtime: tokio::runtime::Handle,
}

/// Bytes of the output, from `at` on, that stand in the old object as well.
struct Taken {
    at: u64,
    source: Range<u64>,
}

impl Taken {
    fn end(&self) -> u64 {
        self.at + (self.source.end - self.source.start)
    }
}

/// What was written in all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    pub size_bytes: u64,
    pub sha256: [u8; 32],
}

/// A digest that is made on a thread of its own: SHA-256 takes longer than all else that is done with a byte that is only copied.
struct DigestThread {
    pieces: SyncSender<Bytes>,
    thread: JoinHandle<[u8; 32]>,
}

impl DigestThread {
    fn begin() -> DigestThread {
        let (pieces, waiting) = sync_channel::<Bytes>(PIECES_WAITING);
        let digest = move || {
            let mut sha256 = Sha256::new();
            waiting.into_iter().for_each(|piece| sha256.update(&piece));
            sha256.finalize().into()
        };
        DigestThread { pieces, thread: std::thread::spawn(digest) }
    }

    fn update(&self, piece: &Bytes) -> io::Result<()> {
        self.pieces.send(piece.clone()).map_err(|_| broken())
    }

    fn finish(self) -> io::Result<[u8; 32]> {
        drop(self.pieces);
        self.thread.join().map_err(|_| broken())
    }
}

fn broken() -> io::Error {
    io::Error::other("the digesting thread ended")
}

/// So many buffers are written and not yet digested, at most.
const PIECES_WAITING: usize = 4;
const WRITE_BUFFER_BYTES: usize = 1 << 20;
/// A run that is shorter is not worth a call of its own.
const RUN_BYTES_MIN: u64 = 256 << 10;

impl ReplacementWriter {
    /// Takes the current runtime, as [`super::ObjectReader::new`] does.
    pub fn new(replacement: Box<dyn Replacement>) -> Self {
        ReplacementWriter {
            replacement,
            digest: DigestThread::begin(),
            buffer: Vec::with_capacity(WRITE_BUFFER_BYTES),
            sent_bytes: 0,
            taken: VecDeque::new(),
            runtime: tokio::runtime::Handle::current(),
        }
    }

    /// The replacement comes back in any case: after a failure it is to be aborted.
    pub fn finish(mut self) -> (Box<dyn Replacement>, io::Result<Written>) {
        let (sent, sha256) = (self.send(), self.digest.finish());
        let written = sent.and_then(|()| Ok(Written { size_bytes: self.sent_bytes, sha256: sha256? }));
        (self.replacement, written)
    }

    fn send(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let full = std::mem::replace(&mut self.buffer, Vec::with_capacity(WRITE_BUFFER_BYTES));
        let mut rest = Bytes::from(full);
        self.digest.update(&rest)?;
        while !rest.is_empty() {
            let (source_at, length) = self.next_piece(rest.len() as u64);
            let piece = rest.split_to(length as usize);
            self.sent_bytes += length;
            self.send_piece(source_at, piece).map_err(io::Error::other)?;
        }
        Ok(())
    }

    fn send_piece(&mut self, source_at: Option<u64>, piece: Bytes) -> Result<(), StoreError> {
        match source_at {
            Some(at) => self.runtime.block_on(self.replacement.take_over(at, piece)),
            None => self.runtime.block_on(self.replacement.write(piece)),
        }
    }

    /// How many of the next `most` bytes are of one origin, and where in the old object they begin, if there.
    fn next_piece(&mut self, most: u64) -> (Option<u64>, u64) {
        let at = self.sent_bytes;
        let is_over = |run: &Taken| run.end() <= at || run.at > at && run.end() - run.at < RUN_BYTES_MIN;
        while self.taken.front().is_some_and(is_over) {
            self.taken.pop_front();
        }
        match self.taken.front() {
            Some(run) if run.at <= at => (Some(run.source.start + (at - run.at)), most.min(run.end() - at)),
            Some(run) => (None, most.min(run.at - at)),
            None => (None, most),
        }
    }
}

impl io::Write for ReplacementWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= WRITE_BUFFER_BYTES {
            self.send()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send()
    }
}

impl Sink for ReplacementWriter {
    fn taken_over(&mut self, at: u64, source: Range<u64>) {
        match self.taken.back_mut() {
            Some(last) if last.end() == at && last.source.end == source.start => last.source.end = source.end,
            _ => self.taken.push_back(Taken { at, source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use async_trait::async_trait;

    use super::*;
    use crate::store::Object;

    /// What came: `w` and a length, `c`, where from and a length.
    #[derive(Clone, Default)]
    struct Came(Arc<Mutex<(Vec<String>, Vec<u8>)>>);

    #[async_trait]
    impl Replacement for Came {
        async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
            let mut came = self.0.lock().unwrap();
            came.0.push(format!("w{}", bytes.len()));
            came.1.extend_from_slice(&bytes);
            Ok(())
        }

        async fn take_over(&mut self, at: u64, bytes: Bytes) -> Result<(), StoreError> {
            let mut came = self.0.lock().unwrap();
            came.0.push(format!("c{at}+{}", bytes.len()));
            came.1.extend_from_slice(&bytes);
            Ok(())
        }

        async fn stage(&mut self) -> Result<Option<Object>, StoreError> {
            unreachable!()
        }

        async fn commit(self: Box<Self>) -> Result<Object, StoreError> {
            unreachable!()
        }

        async fn abort(self: Box<Self>) -> Result<(), StoreError> {
            unreachable!()
        }
    }

    /// Tells the runs, then writes 3 MiB in pieces of `piece` bytes.
    async fn check(runs: &[(u64, Range<u64>)], piece: usize, wanted: &str) {
        let came = Came::default();
        let mut writer = ReplacementWriter::new(Box::new(came.clone()));
        let runs = runs.to_vec();
        let content: Vec<u8> = (0..3 << 20).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let written = content.clone();
        let digested = tokio::task::spawn_blocking(move || {
            runs.into_iter().for_each(|(at, source)| writer.taken_over(at, source));
            written.chunks(piece).for_each(|piece| writer.write_all(piece).unwrap());
            writer.finish().1.unwrap()
        });
        let digested = digested.await.unwrap();
        let came = came.0.lock().unwrap();
        assert_eq!(came.0.join(" "), wanted);
        assert!(came.1 == content);
        let sha256 = Sha256::digest(&content).into();
        assert_eq!(digested, Written { size_bytes: content.len() as u64, sha256 });
    }

    #[tokio::test]
    async fn runs_are_cut_out_of_what_is_written() {
        let (mib, kib) = (1u64 << 20, 1u64 << 10);
        check(&[], 3 << 20, "w3145728").await;
        check(&[(0, 7..7 + 3 * mib)], 3 << 20, "c7+3145728").await;
        check(&[(0, 7..7 + 3 * mib)], 1 << 20, "c7+1048576 c1048583+1048576 c2097159+1048576").await;
        check(&[(100, 50..50 + mib)], 3 << 20, "w100 c50+1048576 w2097052").await;
        // Told in pieces that go on in both places.
        let pieces: Vec<_> = (0..3 * kib).map(|i| (i * kib, 9 + i * kib..9 + (i + 1) * kib)).collect();
        check(&pieces, 3 << 20, "c9+3145728").await;
        // Too short for a call; and a run that is cut by the end of the buffer.
        check(&[(100, 50..50 + kib), (2 * kib, 0..256 * kib)], 3 << 20, "w2048 c0+262144 w2881536").await;
        check(&[(mib - 10, 0..mib)], 1 << 20, "w1048566 c0+10 c10+1048566 w10 w1048576").await;
    }
}
