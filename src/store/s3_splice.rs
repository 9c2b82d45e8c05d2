//! Which bytes of new content become parts that are sent and which parts that S3 copies from the old object. Pure: it takes the
//! bytes as they come and gives back parts, in order.
//!
//! Invariant: the parts, one after the other, are the content; each but the last has S3's least size, so that a run is copied
//! only when it is long enough and what stands before it makes a part as well, topped up from its head if need be.

use std::collections::VecDeque;
use std::ops::Range;

use bytes::{Bytes, BytesMut};
use crc_fast::CrcAlgorithm;
use md5::{Digest, Md5};

use super::s3_upload::PARTS_MAX;

/// S3's least size of a part that is not the last, and its largest.
const LEAST_BYTES: u64 = 5 << 20;
const MOST_BYTES: u64 = 5 << 30;

/// How large parts are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    /// Of any part that is not the last.
    least: usize,
    /// Of a part that is sent, where nothing makes it shorter.
    sent: usize,
    /// Of a part that is copied.
    most: u64,
}

impl Sizes {
    /// `sent` is such that the parts of a source of this size suffice, and so must the shortest ones be.
    pub(super) fn of(source_bytes: u64, sent: usize) -> Sizes {
        let least = LEAST_BYTES.max(source_bytes.div_ceil(PARTS_MAX as u64 * 9 / 10));
        Sizes { least: sent.min(least as usize), sent, most: MOST_BYTES }
    }
}

pub(super) enum Part {
    Sent(Bytes),
    Copied(Copied),
}

/// Bytes of the old object that are to be a part of the new one.
pub(super) struct Copied {
    pub(super) range: Range<u64>,
    pub(super) digests: Digests,
}

/// What the bytes of a part are known by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Digests {
    /// CRC-64/NVME, big-endian, as S3 tells it.
    pub(super) crc64: [u8; 8],
    pub(super) md5: [u8; 16],
}

pub(super) struct Digesting {
    crc64: crc_fast::Digest,
    md5: Md5,
}

impl Default for Digesting {
    fn default() -> Digesting {
        Digesting { crc64: crc_fast::Digest::new(CrcAlgorithm::Crc64Nvme), md5: Md5::new() }
    }
}

impl Digesting {
    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.crc64.update(bytes);
        self.md5.update(bytes);
    }

    pub(super) fn finish(self) -> Digests {
        Digests { crc64: self.crc64.finalize().to_be_bytes(), md5: self.md5.finalize().into() }
    }
}

/// A run that will be copied, as far as it came.
struct Long {
    range: Range<u64>,
    digesting: Digesting,
}

impl Long {
    fn bytes(&self) -> u64 {
        self.range.end - self.range.start
    }

    fn extend(&mut self, bytes: &[u8]) {
        self.range.end += bytes.len() as u64;
        self.digesting.update(bytes);
    }
}

/// What the content's last bytes are of the old object.
enum Run {
    None,
    /// The buffer's bytes after the first `before` are the old object's from `at` on; as yet too few to be copied.
    Short {
        before: usize,
        at: u64,
    },
    /// The buffer is empty.
    Long(Box<Long>),
}

/// Content on its way into parts.
pub(super) struct Parts {
    sizes: Sizes,
    /// What is in no part yet.
    buffer: BytesMut,
    run: Run,
    ready: VecDeque<Part>,
}

impl Parts {
    pub(super) fn new(sizes: Sizes) -> Parts {
        Parts { sizes, buffer: BytesMut::new(), run: Run::None, ready: VecDeque::new() }
    }

    /// Appends bytes that are to be sent.
    pub(super) fn write(&mut self, bytes: &[u8]) {
        self.end_run();
        self.buffer.extend_from_slice(bytes);
        self.cut();
    }

    /// Appends bytes that are the old object's from `at` on.
    pub(super) fn take_over(&mut self, mut at: u64, mut bytes: Bytes) {
        while !bytes.is_empty() {
            match &mut self.run {
                Run::Long(run) if run.range.end == at && run.bytes() < self.sizes.most => {
                    let room = (self.sizes.most - run.bytes()).min(bytes.len() as u64);
                    run.extend(&bytes.split_to(room as usize));
                    at += room;
                }
                Run::Short { before, at: start } if *start + (self.buffer.len() - *before) as u64 == at => {
                    let wanted = copied_from(*before, self.sizes.least) + self.sizes.least - self.buffer.len();
                    let taken = bytes.split_to(wanted.min(bytes.len()));
                    at += taken.len() as u64;
                    self.buffer.extend_from_slice(&taken);
                    self.lengthen();
                }
                Run::None | Run::Short { .. } | Run::Long(_) => {
                    self.end_run();
                    self.cut();
                    self.run = Run::Short { before: self.buffer.len(), at };
                }
            }
        }
    }

    /// Nothing comes any more. Content that made no part is left in the buffer, and of other content the last part.
    pub(super) fn end(&mut self) {
        self.end_run();
        self.cut();
    }

    /// The next part; each is given once.
    pub(super) fn pop(&mut self) -> Option<Part> {
        self.ready.pop_front()
    }

    /// What is in no part, after [`Parts::end`].
    pub(super) fn take_rest(&mut self) -> Bytes {
        self.buffer.split().freeze()
    }

    fn end_run(&mut self) {
        if let Run::Long(run) = std::mem::replace(&mut self.run, Run::None) {
            let Long { range, digesting } = *run;
            self.ready.push_back(Part::Copied(Copied { range, digests: digesting.finish() }));
        }
    }

    fn cut(&mut self) {
        while self.buffer.len() > self.sizes.sent {
            self.ready.push_back(Part::Sent(self.buffer.split_to(self.sizes.sent).freeze()));
        }
    }

    /// Copies the run if there is enough of it.
    fn lengthen(&mut self) {
        let Run::Short { before, at } = self.run else { return };
        let from = copied_from(before, self.sizes.least);
        if self.buffer.len() < from + self.sizes.least {
            return;
        }
        if from > 0 {
            self.ready.push_back(Part::Sent(self.buffer.split_to(from).freeze()));
        }
        let start = at + (from - before) as u64;
        let mut run = Box::new(Long { range: start..start, digesting: Digesting::default() });
        run.extend(&self.buffer.split());
        self.run = Run::Long(run);
    }
}

/// Where in the buffer the copied part of a run begins that has `before` other bytes before it.
fn copied_from(before: usize, least: usize) -> usize {
    if before == 0 { 0 } else { before.max(least) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A mebibyte is one byte here.
    const SIZES: Sizes = Sizes { least: 5, sent: 8, most: 5 << 10 };

    /// Content in words: `w3` three bytes to be sent, `c10+7` seven that are the old object's from its tenth on.
    fn pieces(text: &str) -> Vec<(Option<u64>, usize)> {
        let piece = |word: &str| match word.split_at(1) {
            ("w", count) => (None, count.parse().unwrap()),
            (_, span) => {
                let (at, count) = span.split_once('+').unwrap();
                (Some(at.parse().unwrap()), count.parse().unwrap())
            }
        };
        text.split_whitespace().map(piece).collect()
    }

    struct Planned {
        /// `s5` a part of five bytes that is sent, `c10..17` one that is copied; the rest after a `|`.
        parts: Vec<String>,
        sizes: Vec<u64>,
        content: Vec<u8>,
        wanted: Vec<u8>,
        held_bytes_max: usize,
    }

    /// The old object's bytes tell their place, the new ones are all 255.
    fn planned(sizes: Sizes, pieces: &[(Option<u64>, usize)]) -> Planned {
        let old = |range: Range<u64>| range.map(|at| (at % 251) as u8).collect::<Vec<u8>>();
        let mut parts = Parts::new(sizes);
        let mut out = Planned { parts: vec![], sizes: vec![], content: vec![], wanted: vec![], held_bytes_max: 0 };
        let take = |parts: &mut Parts, out: &mut Planned| {
            while let Some(part) = parts.pop() {
                match part {
                    Part::Sent(bytes) => {
                        out.parts.push(format!("s{}", bytes.len()));
                        out.sizes.push(bytes.len() as u64);
                        out.content.extend_from_slice(&bytes);
                    }
                    Part::Copied(copied) => {
                        let range = copied.range.clone();
                        out.parts.push(format!("c{}..{}", range.start, range.end));
                        out.sizes.push(range.end - range.start);
                        let bytes = old(range);
                        assert_eq!(copied.digests.md5, <[u8; 16]>::from(Md5::digest(&bytes)));
                        out.content.extend(bytes);
                    }
                }
            }
            out.held_bytes_max = out.held_bytes_max.max(parts.buffer.len());
        };
        for (at, count) in pieces {
            match at {
                Some(at) => {
                    let bytes = old(*at..*at + *count as u64);
                    out.wanted.extend_from_slice(&bytes);
                    parts.take_over(*at, bytes.into());
                }
                None => {
                    out.wanted.extend(vec![255; *count]);
                    parts.write(&vec![255; *count]);
                }
            }
            take(&mut parts, &mut out);
        }
        parts.end();
        take(&mut parts, &mut out);
        let rest = parts.take_rest();
        out.content.extend_from_slice(&rest);
        out.parts.push(format!("|{}", rest.len()));
        out
    }

    #[test]
    fn a_run_is_copied_when_it_and_what_stands_before_it_make_parts() {
        for (content, wanted) in [
            // Around the least size.
            ("c0+4", "|4"),
            ("c0+5", "c0..5 |0"),
            ("c0+4 w1", "|5"),
            ("c0+5 w1", "c0..5 |1"),
            ("w5 c10+4", "s8 |1"),
            ("w5 c10+5", "s5 c10..15 |0"),
            // Topped up from the head of the run.
            ("w1 c10+8", "s8 |1"),
            ("w1 c10+9", "s5 c14..19 |0"),
            ("w4 c10+100 w3", "s5 c11..110 |3"),
            ("w7 c10+5", "s7 c10..15 |0"),
            ("w8 c10+5", "s8 c10..15 |0"),
            ("w9 c10+5", "s8 |6"),
            ("w9 c10+9", "s8 s5 c14..19 |0"),
            // In pieces, whole ones and not.
            ("w2 c10+2 c12+2 c14+9", "s5 c13..23 |0"),
            ("c0+3 c3+3 w1 c6+30", "c0..6 s5 c10..36 |0"),
            // Two runs: what was skipped in the old object, what goes back in it.
            ("c0+10 c20+10", "c0..10 c20..30 |0"),
            ("c20+10 c0+10", "c20..30 c0..10 |0"),
            ("c0+3 c20+10", "s5 c22..30 |0"),
            ("c0+10 c20+2 w1 c30+10", "c0..10 s5 c32..40 |0"),
            // Nothing but short runs.
            ("w1 c0+4 w1 c9+4 w1 c20+4 w1 c30+4", "s8 s8 |4"),
            // At the end.
            ("w6 c10+6", "s6 c10..16 |0"),
            ("w20", "s8 s8 |4"),
            ("w8", "|8"),
            ("", "|0"),
        ] {
            let planned = planned(SIZES, &pieces(content));
            assert_eq!(planned.parts.join(" "), wanted, "{content}");
            assert!(planned.content == planned.wanted, "{content}");
        }
    }

    #[test]
    fn a_run_larger_than_a_part_may_be_becomes_several() {
        let most = 5 << 10;
        for (count, wanted) in [
            (most, "c0..5120 |0"),
            (most + 4, "c0..5120 |4"),
            (most + 5, "c0..5120 c5120..5125 |0"),
            (2 * most + 1, "c0..5120 c5120..10240 |1"),
        ] {
            assert_eq!(planned(SIZES, &[(Some(0), count)]).parts.join(" "), wanted);
            let small: Vec<_> = (0..count).map(|at| (Some(at as u64), 1)).collect();
            assert_eq!(planned(SIZES, &small).parts.join(" "), wanted);
        }
    }

    #[test]
    fn the_shortest_parts_of_the_largest_object_are_not_too_many() {
        for (source_bytes, sent) in [(0, 8 << 20), (45_000 << 20, 8 << 20), (80 << 30, 10 << 20), (5 << 40, 583 << 20)]
        {
            let sizes = Sizes::of(source_bytes, sent);
            assert!(sizes.least as u64 >= LEAST_BYTES && sizes.least <= sizes.sent);
            assert!((source_bytes + source_bytes / 20) / sizes.least as u64 <= PARTS_MAX as u64, "{source_bytes}");
        }
        assert_eq!(Sizes::of(1 << 30, 8 << 20).least, 5 << 20);
    }

    proptest! {
        #[test]
        fn parts_are_the_content_and_large_enough(
            pieces in proptest::collection::vec((proptest::option::of(0u64..60), 1usize..14, any::<bool>()), 0..40)
        ) {
            // Every other piece goes on where the one before it ended.
            let mut end = 0;
            let pieces: Vec<_> = pieces.into_iter().map(|(at, count, goes_on)| {
                let at = if goes_on { at.map(|_| end) } else { at };
                end = at.map_or(end, |at| at + count as u64);
                (at, count)
            }).collect();
            let sizes = Sizes { most: 21, ..SIZES };
            let planned = planned(sizes, &pieces);
            prop_assert_eq!(&planned.content, &planned.wanted);
            let (_, but_the_last) = planned.sizes.split_last().unwrap_or((&0, &[]));
            prop_assert!(but_the_last.iter().all(|size| (5..=21).contains(size)), "{:?}", planned.parts);
            prop_assert!(planned.parts.last().unwrap() == "|0" || planned.sizes.iter().all(|size| *size >= 5));
            prop_assert!(planned.held_bytes_max < sizes.sent + sizes.least + 14);
        }
    }
}
