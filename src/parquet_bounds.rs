//! Whether the Thrift structures of a Parquet file keep within the bytes they stand in: looked at before a decoder reserves memory,
//! or goes into recursion, by what they claim.
//!
//! Pure, and only ever refuses. Decoders take counts at their word: a footer of a kilobyte that names two thousand million columns
//! ends the process, which no error handling survives. Meant for every reader of footers, the verifier's too: it decodes nothing.

use std::ops::Range;

use polars_parquet::parquet::compression::Compression;

/// Structs and lists within one another. The format itself needs fewer than ten.
const NESTING_MAX: usize = 32;

/// Groups of a schema within one another: decoders walk a schema by recursion.
const SCHEMA_DEPTH_MAX: usize = 128;

/// What does not fit; for messages.
pub type OutOfBounds = &'static str;

/// The length of the footer that the last 8 bytes of a file tell, those 8 included.
pub fn footer_bytes(last_eight: &[u8]) -> u64 {
    let length = last_eight.get(..4).and_then(|length| length.try_into().ok()).map_or(0, u32::from_le_bytes);
    u64::from(length) + 8
}

/// Looks over a footer (`FileMetaData`).
pub fn check_footer(footer: &[u8]) -> Result<(), OutOfBounds> {
    let mut walk = Walk { bytes: footer, at: 0 };
    walk.fields(0, &mut |walk, field, kind| {
        if (field, kind) != (SCHEMA, LIST) {
            return walk.skip(kind, 1);
        }
        let (count, _) = walk.list()?;
        let mut open = Vec::new();
        for _ in 0..count {
            let mut children = 0;
            walk.fields(2, &mut |walk, field, kind| match (field, kind) {
                (NUM_CHILDREN, I32) => {
                    children = walk.number()?;
                    Ok(())
                }
                _ => walk.skip(kind, 3),
            })?;
            if !(0..=count as i64).contains(&children) {
                return Err("a group of the schema claims more children than there are elements");
            }
            // This element is one of its group's; then come its own.
            if let Some(left) = open.last_mut() {
                *left -= 1;
            }
            open.push(children);
            while open.last() == Some(&0) {
                open.pop();
            }
            if open.len() > SCHEMA_DEPTH_MAX {
                return Err("the schema is nested too deep");
            }
        }
        Ok(())
    })
}

/// Where the list of the schema's elements stands in a footer (`FileMetaData`), without the head of its field.
pub fn schema_span(footer: &[u8]) -> Result<Range<usize>, OutOfBounds> {
    let (mut walk, mut span) = (Walk { bytes: footer, at: 0 }, None);
    walk.fields(0, &mut |walk, field, kind| {
        let start = walk.at;
        walk.skip(kind, 1)?;
        if (field, kind) == (SCHEMA, LIST) {
            span = Some(start..walk.at);
        }
        Ok(())
    })?;
    span.ok_or("a footer without a schema")
}

/// How many bytes a byte of a page can at most become. What the formats of the codecs allow, rounded up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Expansion(u64);

impl Expansion {
    pub const NONE: Expansion = Expansion(1);
    pub const SNAPPY: Expansion = Expansion(64);
    pub const LZ4: Expansion = Expansion(256);
    pub const GZIP: Expansion = Expansion(1100);
    /// Blocks of one repeated byte: 128 KiB in 4 bytes.
    pub const OTHER: Expansion = Expansion(1 << 15);
}

impl From<Compression> for Expansion {
    fn from(compression: Compression) -> Expansion {
        match compression {
            Compression::Uncompressed => Expansion::NONE,
            Compression::Snappy => Expansion::SNAPPY,
            Compression::Lz4 | Compression::Lz4Raw => Expansion::LZ4,
            Compression::Gzip => Expansion::GZIP,
            Compression::Brotli | Compression::Zstd | Compression::Lzo => Expansion::OTHER,
        }
    }
}

/// Looks over the headers of a column chunk's pages, one after the other; how many values its data pages tell in all.
pub fn check_pages(chunk: &[u8], expansion: Expansion) -> Result<u64, OutOfBounds> {
    let (mut at, mut values) = (0, 0u64);
    while at < chunk.len() {
        let left = (chunk.len() - at) as u64;
        let page = check_page(&chunk[at..], left, expansion)?;
        at += page.bytes as usize;
        values = values.saturating_add(page.values);
    }
    Ok(values)
}

/// What a page header tells.
pub struct PageBounds {
    pub header_bytes: u64,
    /// Header and all.
    pub bytes: u64,
    /// Nulls included; a dictionary has none.
    pub values: u64,
}

/// Looks over the page header (`PageHeader`) at the start of `bytes`; `left` is what the chunk has from there on.
pub fn check_page(bytes: &[u8], left: u64, expansion: Expansion) -> Result<PageBounds, OutOfBounds> {
    let mut walk = Walk { bytes, at: 0 };
    let (mut stored, mut decoded, mut entries, mut values) = (None, None, 0, 0);
    walk.fields(0, &mut |walk, field, kind| match (field, kind) {
        (UNCOMPRESSED_SIZE, I32) => walk.number().map(|size| decoded = Some(size)),
        (COMPRESSED_SIZE, I32) => walk.number().map(|size| stored = Some(size)),
        (DICTIONARY_PAGE, STRUCT) => walk.fields(1, &mut |walk, field, kind| match (field, kind) {
            (NUM_VALUES, I32) => walk.number().map(|count| entries = count),
            _ => walk.skip(kind, 2),
        }),
        (DATA_PAGE | DATA_PAGE_V2, STRUCT) => walk.fields(1, &mut |walk, field, kind| match (field, kind) {
            (NUM_VALUES, I32) => walk.number().map(|count| values = count),
            _ => walk.skip(kind, 2),
        }),
        _ => walk.skip(kind, 1),
    })?;
    let size = |size: Option<i64>| size.and_then(|size| u64::try_from(size).ok()).ok_or("a page without a size");
    let (stored, decoded) = (size(stored)?, size(decoded)?);
    let header_bytes = walk.at as u64;
    let whole = header_bytes + stored;
    if whole > left {
        return Err("a page reaches past its column chunk");
    }
    // A page of nothing but nulls may have no byte of values and still a few of head and tail in the codec's frame.
    if decoded > stored.saturating_mul(expansion.0).saturating_add(64) {
        return Err("a page claims to become larger than its codec can make it");
    }
    if u64::try_from(entries).map_or(true, |entries| entries > decoded) {
        return Err("a dictionary claims more entries than it has bytes");
    }
    let values = u64::try_from(values).map_err(|_| "a page of fewer than no values")?;
    Ok(PageBounds { header_bytes, bytes: whole, values })
}

/// Whether a sequence of encoding DELTA_BINARY_PACKED is whole and claims no more than `values_max` values; where it ends.
pub fn delta_end(bytes: &[u8], values_max: u64) -> Result<usize, OutOfBounds> {
    let mut walk = Walk { bytes, at: 0 };
    let (block_values, miniblocks, values) = (walk.varint()?, walk.varint()?, walk.varint()?);
    if values > values_max {
        return Err("a page claims more lengths than it has values");
    }
    // The first value, and then blocks: the least delta, a bit width for each mini-block, the mini-blocks.
    walk.number()?;
    let per_miniblock = block_values.checked_div(miniblocks).filter(|count| *count > 0).ok_or("an empty block")?;
    let mut left = values.saturating_sub(1);
    while left > 0 {
        walk.number()?;
        let widths = walk.at;
        walk.past(miniblocks)?;
        for width in &bytes[widths..walk.at] {
            if left > 0 {
                walk.past(per_miniblock.saturating_mul(u64::from(*width)) / 8)?;
                left = left.saturating_sub(per_miniblock);
            }
        }
    }
    Ok(walk.at)
}

/// `FileMetaData.schema` and `SchemaElement.num_children`.
const SCHEMA: i16 = 2;
const NUM_CHILDREN: i16 = 5;

// Of `PageHeader`, and of the three sorts of headers in it.
const UNCOMPRESSED_SIZE: i16 = 2;
const COMPRESSED_SIZE: i16 = 3;
const DATA_PAGE: i16 = 5;
const DICTIONARY_PAGE: i16 = 7;
const DATA_PAGE_V2: i16 = 8;
const NUM_VALUES: i16 = 1;

// Types of Thrift's compact protocol.
const I32: u8 = 5;
const LIST: u8 = 9;
const STRUCT: u8 = 12;

/// A walk over Thrift's compact protocol.
struct Walk<'a> {
    bytes: &'a [u8],
    at: usize,
}

type Each<'f, 'a> = &'f mut dyn FnMut(&mut Walk<'a>, i16, u8) -> Result<(), OutOfBounds>;

impl<'a> Walk<'a> {
    fn byte(&mut self) -> Result<u8, OutOfBounds> {
        let byte = self.bytes.get(self.at).copied().ok_or("it ends too early")?;
        self.at += 1;
        Ok(byte)
    }

    fn varint(&mut self) -> Result<u64, OutOfBounds> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err("a number does not end")
    }

    fn number(&mut self) -> Result<i64, OutOfBounds> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    fn past(&mut self, count: u64) -> Result<(), OutOfBounds> {
        if count > (self.bytes.len() - self.at) as u64 {
            return Err("a length reaches past its end");
        }
        self.at += count as usize;
        Ok(())
    }

    /// The head of a list: how many elements, of which type. Each takes a byte at least.
    fn list(&mut self) -> Result<(u64, u8), OutOfBounds> {
        let head = self.byte()?;
        let count = if head >> 4 == 15 { self.varint()? } else { u64::from(head >> 4) };
        if count > (self.bytes.len() - self.at) as u64 {
            return Err("a list claims more elements than there are bytes");
        }
        Ok((count, head & 0x0f))
    }

    /// Every field of a struct, which `each` reads or skips.
    fn fields(&mut self, nesting: usize, each: Each<'_, 'a>) -> Result<(), OutOfBounds> {
        if nesting > NESTING_MAX {
            return Err("it is nested too deep");
        }
        let mut field = 0i16;
        loop {
            let head = self.byte()?;
            if head & 0x0f == 0 {
                return Ok(());
            }
            field = match head >> 4 {
                0 => self.number()? as i16,
                delta => field.wrapping_add(i16::from(delta)),
            };
            each(self, field, head & 0x0f)?;
        }
    }

    fn skip(&mut self, kind: u8, nesting: usize) -> Result<(), OutOfBounds> {
        match kind {
            // True and false, as fields: the type is the value.
            1 | 2 => Ok(()),
            3 => self.past(1),
            4..=6 => self.varint().map(drop),
            7 => self.past(8),
            8 => {
                let length = self.varint()?;
                self.past(length)
            }
            9 | 10 => {
                let (count, element) = self.list()?;
                if nesting > NESTING_MAX {
                    return Err("it is nested too deep");
                }
                for _ in 0..count {
                    // In a list, a boolean is a byte.
                    if element <= 2 { self.past(1)? } else { self.skip(element, nesting + 1)? }
                }
                Ok(())
            }
            12 => self.fields(nesting, &mut |walk, _, kind| walk.skip(kind, nesting + 1)),
            _ => Err("it holds a type that the format does not use"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A footer with the fields `version` and `schema`, whose elements have these numbers of children.
    fn footer(children: &[u8]) -> Vec<u8> {
        let elements = children.iter().flat_map(|children| [0x35, 0x02, 0x18, 0x01, b'a', 0x15, children * 2, 0x00]);
        let head = [0x15, 0x02, 0x19, 0xfc, children.len() as u8];
        head.into_iter().chain(elements).chain([0x00]).collect()
    }

    /// A page header with these sizes, of a dictionary when it has `entries`.
    fn page(decoded: u8, stored: u8, entries: Option<u8>) -> Vec<u8> {
        // The first size as a varint of two bytes, to have room above 63.
        let mut page = vec![0x15, 0x00, 0x15, decoded << 1 | 0x80, decoded >> 6, 0x15, stored * 2];
        page.extend(entries.iter().flat_map(|entries| [0x4c, 0x15, entries * 2, 0x00]));
        page.push(0x00);
        page.extend(vec![0; stored.into()]);
        page
    }

    #[test]
    fn what_a_page_claims_must_fit_its_chunk() {
        for (chunk, expansion, wish) in [
            (page(5, 5, None), Expansion::NONE, Ok(0)),
            ([page(60, 1, None), page(5, 5, Some(5))].concat(), Expansion::SNAPPY, Ok(0)),
            (vec![0x15, 0x00, 0x15, 0x00, 0x15, 0x00, 0x2c, 0x15, 0x0e, 0x00, 0x00], Expansion::NONE, Ok(7)),
            (page(120, 5, None), Expansion::NONE, Err("a page claims to become larger than its codec can make it")),
            (page(5, 5, Some(6)), Expansion::NONE, Err("a dictionary claims more entries than it has bytes")),
            (page(5, 5, None)[..10].to_vec(), Expansion::NONE, Err("a page reaches past its column chunk")),
            (vec![0x15, 0x00, 0x00], Expansion::NONE, Err("a page without a size")),
            (vec![0x15, 0x00, 0x15, 0x01, 0x15, 0x01, 0x00], Expansion::NONE, Err("a page without a size")),
        ] {
            assert_eq!(check_pages(&chunk, expansion), wish, "{chunk:02x?}");
        }
    }

    #[test]
    fn a_sequence_of_deltas_ends_where_its_blocks_do() {
        // 128 values a block in 4 mini-blocks: the counts, the first value, a least delta, four widths, 8 bytes of width 2.
        let packed = |values: u8| [vec![0x80, 0x01, 4, values, 0, 0, 2, 0, 0, 0], vec![0; 8], vec![9, 9]].concat();
        for (bytes, values_max, wish) in [
            (packed(1), 5, Ok(5)),
            (packed(20), 20, Ok(18)),
            (packed(100), 100, Ok(18)),
            (packed(21), 20, Err("a page claims more lengths than it has values")),
            (packed(20)[..12].to_vec(), 20, Err("a length reaches past its end")),
            (vec![0x80, 0x01, 0, 20, 0], 20, Err("an empty block")),
        ] {
            assert_eq!(delta_end(&bytes, values_max), wish, "{bytes:?}");
        }
    }

    #[test]
    fn what_a_footer_claims_must_fit_its_bytes() {
        let deep = |levels: usize| {
            let mut children = vec![1; levels];
            children.push(0);
            footer(&children[..])
        };
        for (footer, wish) in [
            (footer(&[2, 0, 0]), Ok(())),
            (footer(&[1, 2, 0, 0]), Ok(())),
            (deep(100), Ok(())),
            (footer(&[9, 0]), Err("a group of the schema claims more children than there are elements")),
            (deep(126), Ok(())),
            (
                vec![0x15, 0x02, 0x19, 0xfc, 0xff, 0xff, 0xff, 0xff, 0x0f],
                Err("a list claims more elements than there are bytes"),
            ),
            (vec![0x18, 0xff, 0xff, 0x03, b'a', 0x00], Err("a length reaches past its end")),
            ([vec![0x1c; 40], vec![0; 41]].concat(), Err("it is nested too deep")),
            ([vec![0x19; 1], vec![0x19; 40]].concat(), Err("it is nested too deep")),
            (vec![0x15, 0x80], Err("it ends too early")),
            (Vec::new(), Err("it ends too early")),
        ] {
            assert_eq!(check_footer(&footer), wish, "{footer:02x?}");
        }
    }
}
