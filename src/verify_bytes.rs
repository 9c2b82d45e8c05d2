//! The byte-level check of a Parquet object: what its bytes hold of listed identifiers that no row shows.
//!
//! Looked at are all four bounds of the footer's, the page headers' and the column index's statistics, every dictionary entry,
//! used or not, key-value metadata and other texts of the footer, and bytes that belong to no page, index or filter. The
//! structures are read by [`crate::thrift`], apart from the row decoders, whose blind spots these are. Nothing here
//! knows identifiers: what is found is put as a question to [`Listed`]. Invariant: a size that a file claims is never
//! allocated before its bytes make it credible.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::ops::Range;

use base64::Engine as _;
use polars::prelude::*;
use polars_parquet::parquet::compression::{Compression, DecompressionContext, decompress};
use polars_parquet::parquet::schema::types::PhysicalType;

use crate::identifier::ColumnPath;
use crate::page_bytes::{DICTIONARY_PAGE, Page, bounds, column_index_bounds, page};
use crate::residue::{Bound, ChunkId, Place, Residues, SeenChunk};
use crate::thrift::{Value, read};
use crate::verify_batch::Fault;
use crate::verify_filter::{FilterCheck, FilterVerdict};
use crate::verify_tokens::Around;

/// The questions that are put to values which are in no row.
pub trait Listed: Send + Sync {
    /// Which of the values a rule of its own (not part of a composite) on `column` matches, by index.
    fn values(&self, column: usize, values: &Series) -> PolarsResult<Vec<usize>>;

    /// Which of the texts hold a listed identifier of a distinctive kind, by index.
    fn texts(&self, texts: &[&[u8]], around: Around) -> PolarsResult<Vec<usize>>;

    /// Gives the hashes, as bloom filters take them, of what is listed for rules of their own on a column of text, as its canonical
    /// form or digest is spelled.
    fn filter_hashes(&self, column: usize, each: &mut dyn FnMut(u64));

    /// Whether [`Listed::filter_hashes`] gives all that is listed: of keyed tags nobody knows how they were spelled.
    fn is_spelled(&self, _column: usize) -> bool {
        true
    }

    /// Whether a rule of its own compares the column as it is, not by hashes.
    fn is_plain(&self, column: usize) -> bool;
}

/// How the values of a leaf are stored, and what the row decoder makes of them.
#[derive(Debug, Clone)]
pub struct LeafType {
    pub physical: PhysicalType,
    pub dtype: ArrowDataType,
}

/// What the footer says of one column chunk, as far as the check needs it.
#[derive(Debug)]
pub struct ChunkNotes {
    pub bounds: Vec<Bound>,
    pub column_index: Option<Range<u64>>,
    offset_index: Option<Range<u64>>,
    pub filter_start: Option<u64>,
    pub filter_length: Option<u64>,
    /// Where writers of old leave a second copy of the chunk's metadata.
    file_offset: u64,
    span: Range<u64>,
    codec: i64,
    values: i64,
    texts: Vec<Vec<u8>>,
}

/// What the footer says of a file.
#[derive(Debug)]
pub struct FooterNotes {
    /// By row group, by leaf.
    pub groups: Vec<Vec<ChunkNotes>>,
    key_values: Vec<Vec<Vec<u8>>>,
    /// Names of columns and of the writer: no rewrite changes them.
    fixed_texts: Vec<Vec<u8>>,
}

impl FooterNotes {
    /// Reads the footer's structure.
    pub fn read(footer: &[u8], size_bytes: u64) -> Result<FooterNotes, Fault> {
        FooterNotes::read_within(footer, size_bytes)
    }

    /// Reads a footer that describes other files: its chunks are nowhere in this one.
    pub fn of_others(footer: &[u8]) -> Result<FooterNotes, Fault> {
        FooterNotes::read_within(footer, u64::MAX)
    }

    fn read_within(footer: &[u8], size_bytes: u64) -> Result<FooterNotes, Fault> {
        let (file, _) = read(footer).map_err(|_| Fault::unreadable("its footer is malformed"))?;
        let text = |range: Range<usize>| footer[range].to_vec();
        let mut fixed_texts: Vec<Vec<u8>> = file.fields(6).filter_map(Value::as_bytes).map(text).collect();
        fixed_texts.extend(file.list(2).iter().filter_map(|element| element.bytes(4)).map(text));
        let groups = file.list(4).iter().map(|group| {
            let chunks = group.list(1).iter().map(|chunk| ChunkNotes::read(chunk, footer, size_bytes));
            chunks.collect::<Result<Vec<_>, Fault>>()
        });
        Ok(FooterNotes {
            groups: groups.collect::<Result<_, _>>()?,
            key_values: file.list(5).iter().map(|entry| key_value_texts(entry, footer)).collect(),
            fixed_texts,
        })
    }

    /// The parts of the file that nothing in the footer accounts for; the file's end is at `footer_start`.
    pub fn gaps(&self, footer_start: u64) -> Vec<Range<u64>> {
        let mut known = vec![0..4, footer_start..footer_start];
        for chunk in self.groups.iter().flatten() {
            known.push(chunk.span.clone());
            known.extend(chunk.column_index.clone());
            known.extend(chunk.offset_index.clone());
            known.extend(chunk.filter_start.zip(chunk.filter_length).map(|(start, length)| start..start + length));
        }
        known.sort_by_key(|range| range.start);
        let (mut gaps, mut end) = (Vec::new(), 0);
        for range in known {
            if range.start > end {
                gaps.push(end..range.start.min(footer_start));
            }
            end = end.max(range.end);
        }
        gaps.retain(|gap| gap.start < gap.end);
        gaps
    }

    /// What the texts of the footer hold.
    pub fn texts(&self, listed: &dyn Listed) -> PolarsResult<Residues> {
        let mut found = Residues::default();
        let holds = |texts: &[Vec<u8>]| -> PolarsResult<bool> {
            let texts: Vec<&[u8]> = texts.iter().map(Vec::as_slice).collect();
            Ok(!listed.texts(&texts, Around::Text)?.is_empty())
        };
        for (number, texts) in self.key_values.iter().enumerate() {
            if holds(texts)? || holds_binary(texts, listed)? {
                found.key_values.insert(number);
                found.add(Place::Metadata, None, 1);
            }
        }
        let in_columns: Vec<Vec<u8>> = self.groups.iter().flatten().flat_map(|chunk| chunk.texts.clone()).collect();
        let texts: Vec<&[u8]> = in_columns.iter().map(Vec::as_slice).collect();
        found.add(Place::Metadata, None, listed.texts(&texts, Around::Text)?.len() as u64);
        let texts: Vec<&[u8]> = self.fixed_texts.iter().map(Vec::as_slice).collect();
        found.fixed = listed.texts(&texts, Around::Text)?.len() as u64;
        found.add(Place::Metadata, None, found.fixed);
        Ok(found)
    }
}

/// Arrow's schema is a flatbuffer in Base64; what else looks like Base64 is looked into as well.
fn holds_binary(texts: &[Vec<u8>], listed: &dyn Listed) -> PolarsResult<bool> {
    let decode = |text: &Vec<u8>| base64::engine::general_purpose::STANDARD.decode(text.trim_ascii()).ok();
    let decoded: Vec<Vec<u8>> = texts.iter().filter(|text| text.len() >= 16).filter_map(decode).collect();
    let decoded: Vec<&[u8]> = decoded.iter().map(Vec::as_slice).collect();
    Ok(!listed.texts(&decoded, Around::Binary)?.is_empty())
}

fn key_value_texts(entry: &Value, footer: &[u8]) -> Vec<Vec<u8>> {
    entry.fields(1).chain(entry.fields(2)).filter_map(Value::as_bytes).map(|range| footer[range].to_vec()).collect()
}

impl ChunkNotes {
    fn read(chunk: &Value, footer: &[u8], size_bytes: u64) -> Result<ChunkNotes, Fault> {
        let outside = || Fault::unreadable("a column chunk reaches past the end of the file");
        let meta =
            chunk.field(3).ok_or_else(|| Fault::unreadable("a column chunk has no metadata, or is encrypted"))?;
        let range = |start: Option<i64>, length: Option<i64>| -> Result<Option<Range<u64>>, Fault> {
            let Some((start, length)) = start.zip(length) else { return Ok(None) };
            let start = u64::try_from(start).map_err(|_| outside())?;
            let end = u64::try_from(length).ok().and_then(|length| start.checked_add(length)).ok_or_else(outside)?;
            if end > size_bytes { Err(outside()) } else { Ok(Some(start..end)) }
        };
        let start = meta.integer(11).or(meta.integer(9));
        let filter_start = meta.integer(14).and_then(|start| u64::try_from(start).ok());
        let filter = range(meta.integer(14), meta.integer(15))?;
        Ok(ChunkNotes {
            bounds: meta.fields(12).flat_map(|statistics| bounds(statistics, footer)).collect(),
            column_index: range(chunk.integer(6), chunk.integer(7))?,
            offset_index: range(chunk.integer(4), chunk.integer(5))?,
            filter_start: filter_start.filter(|start| *start < size_bytes),
            filter_length: filter.map(|filter| filter.end - filter.start),
            file_offset: chunk.integer(2).and_then(|offset| u64::try_from(offset).ok()).unwrap_or(0),
            span: range(start, meta.integer(7))?.ok_or_else(outside)?,
            codec: meta.integer(4).unwrap_or(0),
            values: meta.integer(5).unwrap_or(0),
            texts: meta.list(8).iter().flat_map(|entry| key_value_texts(entry, footer)).collect(),
        })
    }
}

fn plain_body<'a>(page: &Page<'a>, codec: i64) -> Result<Cow<'a, [u8]>, Fault> {
    let codec = match codec {
        0 => return Ok(Cow::Borrowed(page.body)),
        1 => Compression::Snappy,
        2 => Compression::Gzip,
        4 => Compression::Brotli,
        5 => Compression::Lz4,
        6 => Compression::Zstd,
        7 => Compression::Lz4Raw,
        _ => return Err(Fault::unreadable("a codec that is not known")),
    };
    let mut plain = vec![0; page.uncompressed_bytes];
    decompress(codec, page.body, &mut plain, &mut DecompressionContext::Unset)
        .map_err(|_| Fault::unreadable("a page cannot be decompressed"))?;
    Ok(Cow::Owned(plain))
}

/// The values of a body in PLAIN encoding.
fn plain_values(body: &[u8], physical: PhysicalType) -> Vec<&[u8]> {
    let width = match physical {
        PhysicalType::Int32 | PhysicalType::Float => 4,
        PhysicalType::Int64 | PhysicalType::Double => 8,
        PhysicalType::Int96 => 12,
        PhysicalType::FixedLenByteArray(length) => length.max(1),
        PhysicalType::Boolean => return Vec::new(),
        PhysicalType::ByteArray => {
            let (mut values, mut rest) = (Vec::new(), body);
            while let Some((length, after)) = rest.split_first_chunk::<4>() {
                let Some((value, after)) = after.split_at_checked(u32::from_le_bytes(*length) as usize) else { break };
                values.push(value);
                rest = after;
            }
            return values;
        }
    };
    body.chunks_exact(width).collect()
}

impl LeafType {
    /// Whether a value may be longer than a bound of it.
    fn may_be_cut(&self) -> bool {
        matches!(self.physical, PhysicalType::ByteArray | PhysicalType::FixedLenByteArray(_))
            && !matches!(self.dtype, ArrowDataType::Decimal(..) | ArrowDataType::Decimal256(..))
    }

    /// Raw values as the row decoder would type them; `None` for types that no identifier has.
    fn series(&self, values: &[&[u8]]) -> Option<Series> {
        use ArrowDataType as T;
        let name: PlSmallStr = "v".into();
        let integer = |bytes: &&[u8], signed: bool| match (**bytes).try_into().map(i32::from_le_bytes) {
            Ok(narrow) => Some(if signed { i128::from(narrow) } else { i128::from(narrow as u32) }),
            Err(_) => {
                let wide = (**bytes).try_into().map(i64::from_le_bytes).ok()?;
                Some(if signed { i128::from(wide) } else { i128::from(wide as u64) })
            }
        };
        Some(match &self.dtype {
            T::Utf8 | T::LargeUtf8 | T::Utf8View => {
                // What is no UTF-8 cannot be a text value.
                StringChunked::from_iter_options(name, values.iter().map(|bytes| std::str::from_utf8(bytes).ok()))
                    .into_series()
            }
            T::Binary | T::LargeBinary | T::BinaryView | T::FixedSizeBinary(_) => {
                BinaryChunked::from_iter_values(name, values.iter()).into_series()
            }
            T::Int8 | T::Int16 | T::Int32 | T::Int64 => {
                Int128Chunked::from_iter_options(name, values.iter().map(|bytes| integer(bytes, true))).into_series()
            }
            T::UInt8 | T::UInt16 | T::UInt32 | T::UInt64 => {
                Int128Chunked::from_iter_options(name, values.iter().map(|bytes| integer(bytes, false))).into_series()
            }
            T::Float32 => {
                let float = |bytes: &&[u8]| (**bytes).try_into().map(f32::from_le_bytes).ok();
                Float32Chunked::from_iter_options(name, values.iter().map(float)).into_series()
            }
            T::Float64 => {
                let float = |bytes: &&[u8]| (**bytes).try_into().map(f64::from_le_bytes).ok();
                Float64Chunked::from_iter_options(name, values.iter().map(float)).into_series()
            }
            T::Decimal(precision, scale) => {
                let little = matches!(self.physical, PhysicalType::Int32 | PhysicalType::Int64);
                let unscaled = |bytes: &&[u8]| if little { integer(bytes, true) } else { big_endian(bytes) };
                let unscaled = Int128Chunked::from_iter_options(name, values.iter().map(unscaled));
                unscaled.into_decimal_unchecked(*precision, *scale).into_series()
            }
            _ => return None,
        })
    }
}

fn big_endian(bytes: &[u8]) -> Option<i128> {
    let sign = if bytes.first()? & 0x80 == 0 { 0 } else { 0xff };
    let (head, tail) = bytes.split_at(bytes.len().saturating_sub(16));
    let mut wide = [sign; 16];
    wide[16 - tail.len()..].copy_from_slice(tail);
    head.iter().all(|byte| *byte == sign).then(|| i128::from_be_bytes(wide))
}

/// What the values of the chunk alone can judge.
#[derive(Debug, Default)]
pub struct Suspicions {
    /// Bounds that are listed but may be no more than the head of a longer value that is there.
    bounds: Vec<Bound>,
    filter: Option<FilterCheck>,
    /// Bounds that were cut: of a value that is there, or of one that is gone.
    cut: Heads,
}

impl Suspicions {
    pub fn is_empty(&self) -> bool {
        self.bounds.is_empty() && self.filter.is_none() && self.cut.is_empty()
    }

    /// The cut bounds that no value explains: heads of values that are gone.
    pub fn unexplained(&mut self) -> Vec<Bound> {
        std::mem::take(&mut self.cut).left()
    }

    /// Drops what a longer value of the chunk explains: its bound was cut, and by chance reads like an identifier.
    pub fn explain(&mut self, values: &Series) {
        if let Some(filter) = &mut self.filter {
            filter.insert(values);
        }
        if self.bounds.is_empty() && self.cut.is_empty() {
            return;
        }
        let mut explain = |value: &[u8]| {
            self.bounds.retain(|bound| !is_head(bound, value));
            self.cut.take(value, &mut |_, _| true);
        };
        match values.dtype() {
            DataType::String => values
                .str()
                .into_iter()
                .flat_map(|texts| texts.iter().flatten())
                .for_each(|text| explain(text.as_bytes())),
            DataType::Binary => values.binary().into_iter().flat_map(|bytes| bytes.iter().flatten()).for_each(explain),
            _ => {}
        }
    }

    /// What is left once all values were seen.
    pub fn settle(self, column: usize, chunk: ChunkId, listed: Option<&dyn Listed>) -> Residues {
        let mut found = Residues::default();
        found.add(Place::Statistics, Some(chunk.clone()), self.bounds.len() as u64);
        if let (Some(filter), Some(listed)) = (self.filter, listed) {
            match filter.verdict(&|each| listed.filter_hashes(column, each), listed.is_spelled(column)) {
                FilterVerdict::Explained => {}
                FilterVerdict::Residue => found.add(Place::Filters, Some(chunk), 1),
                FilterVerdict::CannotTell => found.unread_filters = 1,
            }
        }
        found
    }
}

/// Whether the bound is what a writer that cuts makes of the longer `value`: its head, for a maximum with the last byte raised.
fn is_head(bound: &Bound, value: &[u8]) -> bool {
    let Some((last, head)) = bound.bytes.split_last() else { return false };
    if value.len() <= bound.bytes.len() || !value.starts_with(head) {
        return false;
    }
    value[head.len()] == *last || (bound.is_max && value[head.len()].checked_add(1) == Some(*last))
}

/// Writers that do not say which bounds they cut do so at 64 bytes; shorter ones are whole.
const UNMARKED_CUT_BYTES: usize = 32;

/// The bounds that are cut, as the writer says or, in a column index, as their length does: all cut ones have the longest.
fn cut_bounds(bounds: &[Bound]) -> Vec<Bound> {
    let unmarked = bounds.iter().filter(|bound| bound.exact.is_none()).map(|bound| bound.bytes.len());
    let longest = unmarked.max().unwrap_or(0).max(UNMARKED_CUT_BYTES);
    let is_cut = |bound: &&Bound| match bound.exact {
        Some(exact) => !exact && bound.bytes.len() >= HEAD_BYTES_MIN,
        None => bound.bytes.len() >= longest,
    };
    bounds.iter().filter(is_cut).cloned().collect()
}

/// Shorter heads than this say nothing of whose they are.
const HEAD_BYTES_MIN: usize = 4;

/// Bounds by what a value begins with that they were cut from.
#[derive(Default)]
pub struct Heads {
    bounds: Vec<Option<Bound>>,
    by_head: HashMap<Vec<u8>, Vec<usize>>,
    lengths: BTreeSet<usize>,
    starts: Starts,
}

/// With which two bytes any of the heads begins: most values begin with others. Empty: not even that is known.
#[derive(Default)]
struct Starts(Vec<u64>);

impl Starts {
    fn of<'h>(heads: impl Iterator<Item = &'h Vec<u8>>) -> Starts {
        let mut bits = vec![0; 1 << 10];
        for head in heads {
            let Some(start) = head.first_chunk::<2>() else { return Starts::default() };
            let start = u16::from_le_bytes(*start);
            bits[usize::from(start >> 6)] |= 1 << (start & 63);
        }
        Starts(bits)
    }

    /// Whether a head may begin as `value` does.
    #[inline]
    fn hold(&self, value: &[u8]) -> bool {
        let Some(start) = value.first_chunk::<2>().map(|start| u16::from_le_bytes(*start)) else { return true };
        self.0.get(usize::from(start >> 6)).is_none_or(|bits| bits >> (start & 63) & 1 != 0)
    }
}

/// Bounds may be heads of identifiers.
impl std::fmt::Debug for Heads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Heads({})", self.bounds.len())
    }
}

impl Heads {
    pub fn new(bounds: Vec<Bound>) -> Heads {
        let mut heads = Heads::default();
        for (number, bound) in bounds.iter().enumerate() {
            heads.lengths.insert(bound.bytes.len());
            for head in heads_of(bound) {
                heads.by_head.entry(head).or_default().push(number);
            }
        }
        heads.starts = Starts::of(heads.by_head.keys());
        heads.bounds = bounds.into_iter().map(Some).collect();
        heads
    }

    pub fn is_empty(&self) -> bool {
        self.by_head.is_empty()
    }

    /// Gives the bounds that `value` may have been cut to, by number; those that `wanted` accepts are done with.
    pub fn take(&mut self, value: &[u8], wanted: &mut dyn FnMut(usize, &Bound) -> bool) {
        if !self.starts.hold(value) {
            return;
        }
        for length in self.lengths.iter().take_while(|length| **length <= value.len()) {
            let Some(numbers) = self.by_head.get_mut(&value[..*length]) else { continue };
            numbers.retain(|number| match &self.bounds[*number] {
                Some(bound) if wanted(*number, bound) => {
                    self.bounds[*number] = None;
                    false
                }
                Some(_) => true,
                None => false,
            });
            if numbers.is_empty() {
                self.by_head.remove(&value[..*length]);
            }
        }
    }

    /// Drops the bounds that are whole values: such a one hides no more than the value shows, which is asked where it stands.
    fn drop_whole(&mut self, values: &[&[u8]]) {
        if self.is_empty() {
            return;
        }
        let values: PlHashSet<&[u8]> =
            values.iter().filter(|value| self.lengths.contains(&value.len())).copied().collect();
        for bound in &mut self.bounds {
            bound.take_if(|bound| values.contains(bound.bytes.as_slice()));
        }
        self.by_head.retain(|_, numbers| numbers.iter().any(|number| self.bounds[*number].is_some()));
    }

    fn left(self) -> Vec<Bound> {
        self.bounds.into_iter().flatten().collect()
    }
}

/// What the value began with: a maximum may have had its last character raised (as UTF-8, or as a byte).
fn heads_of(bound: &Bound) -> Vec<Vec<u8>> {
    let mut heads = vec![bound.bytes.clone()];
    if bound.is_max {
        if let Ok(text) = std::str::from_utf8(&bound.bytes)
            && let Some(last) = text.chars().next_back()
            && let Some(lower) = u32::from(last).checked_sub(1).and_then(char::from_u32)
        {
            heads.push([&text.as_bytes()[..text.len() - last.len_utf8()], lower.to_string().as_bytes()].concat());
        }
        if let Some((last, head)) = bound.bytes.split_last() {
            heads.push([head, &[last.wrapping_sub(1)]].concat());
        }
    }
    heads.retain(|head| head.len() == bound.bytes.len());
    heads.sort_unstable();
    heads.dedup();
    heads
}

/// One column chunk under the check.
pub struct ChunkBytes<'a> {
    pub notes: &'a ChunkNotes,
    pub group: usize,
    pub column: usize,
    pub path: &'a ColumnPath,
    pub leaf: &'a LeafType,
    /// Empty when the chunk was `seen`.
    pub bytes: &'a [u8],
    pub seen: Option<&'a SeenChunk>,
    pub column_index: Option<&'a [u8]>,
    pub filter: Option<&'a [u8]>,
}

impl ChunkBytes<'_> {
    fn id(&self) -> ChunkId {
        (self.group, self.path.clone())
    }

    /// Walks the pages and asks for every bound and dictionary entry. Bytes after the last page are searched like a gap.
    pub fn inspect(&self, listed: &dyn Listed) -> Result<(Residues, Suspicions), Fault> {
        let mut found = Residues::default();
        let mut bounds = self.notes.bounds.clone();
        if let Some(index) = self.column_index {
            bounds.extend(column_index_bounds(index)?.into_iter().flatten());
        }
        let mut dictionaries = Vec::new();
        if let Some(seen) = self.seen {
            found.add(Place::Dictionaries, Some(self.id()), seen.unused_entries);
            found.set_apart(self.id());
            bounds.extend(seen.bounds.iter().cloned());
        }
        let (mut at, mut values) = (0, 0i64);
        while at < self.bytes.len() && (values < self.notes.values || self.notes.values == 0) {
            let Some(page) = page(self.bytes, at)? else { break };
            if page.kind == DICTIONARY_PAGE {
                let body = plain_body(&page, self.notes.codec)?;
                let entries = plain_values(&body, self.leaf.physical);
                found.add(Place::Dictionaries, Some(self.id()), self.ask(&entries, listed)?.len() as u64);
                dictionaries.push(body);
            }
            bounds.extend(page.bounds);
            values = values.saturating_add(page.values.max(0));
            at = page.end;
        }
        if at < self.bytes.len() {
            let rest = Gap { start: 0, bytes: &self.bytes[at..] };
            found.merge(&rest.search(&[self.notes.codec], listed)?);
            // A copied chunk would keep them.
            if found.count(Place::Gaps) > 0 {
                found.encode_anew(self.id());
            }
        }
        if let Some(seen) = self.seen {
            // The values that they are were asked.
            bounds.retain(|bound| !seen.whole.contains(&bound.bytes));
        }
        let mut suspicions = self.ask_bounds(bounds, listed, &mut found)?;
        for body in &dictionaries {
            suspicions.cut.drop_whole(&plain_values(body, self.leaf.physical));
        }
        if let Some(filter) = self.filter {
            suspicions.filter = FilterCheck::new(filter, self.leaf.physical)?;
            found.unread_filters = u64::from(suspicions.filter.is_none());
        }
        Ok((found, suspicions))
    }

    fn ask(&self, values: &[&[u8]], listed: &dyn Listed) -> PolarsResult<Vec<usize>> {
        match self.leaf.series(values) {
            Some(series) if !values.is_empty() => listed.values(self.column, &series),
            Some(_) | None => Ok(Vec::new()),
        }
    }

    fn ask_bounds(
        &self,
        mut bounds: Vec<Bound>,
        listed: &dyn Listed,
        found: &mut Residues,
    ) -> PolarsResult<Suspicions> {
        bounds.sort_by(|a, b| (&a.bytes, a.is_max).cmp(&(&b.bytes, b.is_max)));
        let values: Vec<&[u8]> = bounds.iter().map(|bound| bound.bytes.as_slice()).collect();
        let mut suspicions = Suspicions::default();
        if self.leaf.may_be_cut() && listed.is_plain(self.column) {
            suspicions.cut = Heads::new(cut_bounds(&bounds));
        }
        for index in self.ask(&values, listed)? {
            if self.leaf.may_be_cut() && bounds[index].exact != Some(true) {
                suspicions.bounds.push(bounds[index].clone());
            } else {
                found.add(Place::Statistics, Some(self.id()), 1);
            }
        }
        Ok(suspicions)
    }
}

/// Bytes that nothing in the footer accounts for.
pub struct Gap<'a> {
    /// Where in the file they stand.
    pub start: u64,
    pub bytes: &'a [u8],
}

impl Gap<'_> {
    /// What the gap holds beside the copies of metadata and the filters that are known to start in it.
    pub fn inspect(
        &self,
        footer: &FooterNotes,
        leaves: &GapLeaves<'_>,
        listed: &dyn Listed,
    ) -> Result<Residues, Fault> {
        let mut found = Residues::default();
        let mut known: Vec<Range<usize>> = Vec::new();
        let codecs: Vec<i64> = {
            let mut codecs: Vec<i64> = footer.groups.iter().flatten().map(|chunk| chunk.codec).collect();
            codecs.sort_unstable();
            codecs.dedup();
            codecs
        };
        for (number, group) in footer.groups.iter().enumerate() {
            for (leaf, chunk) in group.iter().enumerate() {
                if let Some(at) = chunk.filter_start.and_then(|start| self.offset(start)) {
                    known.extend(filter_range(self.bytes, at));
                }
                // Older writers of the C++ library leave a copy of the chunk's metadata behind it.
                let Some(at) = self.offset(chunk.file_offset) else { continue };
                let Ok((copy, length)) = read(&self.bytes[at..]) else { continue };
                if copy.integer(1).is_none() || copy.integer(7).is_none() {
                    continue;
                }
                known.push(at..at + length);
                let bytes = &self.bytes[at..at + length];
                found.merge(&leaves.copy((number, leaf), chunk, &copy, bytes, listed)?);
            }
        }
        known.sort_by_key(|range| range.start);
        let mut from = 0;
        for range in known.into_iter().chain(std::iter::once(self.bytes.len()..self.bytes.len())) {
            if range.start > from {
                let rest = Gap { start: self.start + from as u64, bytes: &self.bytes[from..range.start] };
                found.merge(&rest.search(&codecs, listed)?);
            }
            from = from.max(range.end);
        }
        Ok(found)
    }

    fn offset(&self, position: u64) -> Option<usize> {
        let offset = position.checked_sub(self.start)?;
        (offset < self.bytes.len() as u64).then_some(offset as usize)
    }

    /// Searches as plain bytes, and as pages where the bytes begin like one.
    fn search(&self, codecs: &[i64], listed: &dyn Listed) -> Result<Residues, Fault> {
        let mut found = Residues::default();
        let Some(first) = self.bytes.iter().position(|byte| *byte != 0) else { return Ok(found) };
        let mut read_all = false;
        let mut holds = !listed.texts(&[self.bytes], Around::Binary)?.is_empty();
        for codec in codecs {
            let mut at = first;
            while let Ok(Some(page)) = page(self.bytes, at).map(|page| page.filter(|page| page.end > at)) {
                let Ok(body) = plain_body(&page, *codec) else { break };
                holds |= !listed.texts(&[&body], Around::Binary)?.is_empty();
                at = page.end;
            }
            read_all |= at > first && self.bytes[at..].iter().all(|byte| *byte == 0);
        }
        found.add(Place::Gaps, None, u64::from(holds));
        if !read_all {
            let is_text = std::str::from_utf8(self.bytes).is_ok();
            found.unread_bytes = if is_text { 0 } else { self.bytes.iter().filter(|byte| **byte != 0).count() as u64 };
        }
        Ok(found)
    }
}

/// The match columns by leaf, for copies of chunk metadata in gaps.
pub struct GapLeaves<'a> {
    /// By leaf of the file: the column and its type, of match columns.
    pub by_leaf: Vec<Option<(usize, &'a ColumnPath, &'a LeafType)>>,
}

impl GapLeaves<'_> {
    fn copy(
        &self,
        (group, leaf): (usize, usize),
        chunk: &ChunkNotes,
        copy: &Value,
        bytes: &[u8],
        listed: &dyn Listed,
    ) -> Result<Residues, Fault> {
        let mut found = Residues::default();
        let texts: Vec<Vec<u8>> = copy.list(8).iter().flat_map(|entry| key_value_texts(entry, bytes)).collect();
        let texts: Vec<&[u8]> = texts.iter().map(Vec::as_slice).collect();
        found.add(Place::Metadata, None, listed.texts(&texts, Around::Text)?.len() as u64);
        let Some(Some((column, path, leaf))) = self.by_leaf.get(leaf) else { return Ok(found) };
        // A bound that the footer has as well is counted there, once a longer value is known not to explain it.
        let all: Vec<Bound> = copy.fields(12).flat_map(|statistics| bounds(statistics, bytes)).collect();
        let alone = all.into_iter().filter(|bound| !chunk.bounds.contains(bound)).collect();
        let check = ChunkBytes {
            notes: chunk,
            group,
            column: *column,
            path,
            leaf,
            bytes: &[],
            seen: None,
            column_index: None,
            filter: None,
        };
        let suspicions = check.ask_bounds(alone, listed, &mut found)?;
        found.merge(&suspicions.settle(*column, check.id(), None));
        Ok(found)
    }
}

/// A bloom filter that stands at `at`: header and bits.
fn filter_range(bytes: &[u8], at: usize) -> Option<Range<usize>> {
    let (header, length) = read(&bytes[at..]).ok()?;
    let bits = usize::try_from(header.integer(1)?).ok()?;
    let end = at.checked_add(length)?.checked_add(bits)?;
    (end <= bytes.len()).then_some(at..end)
}
