//! What the structures around Parquet pages tell of values: the bounds in page headers, in statistics and in the column index.
//!
//! Read with [`crate::thrift`], apart from every decoder of rows, for the byte-level check and for what the find stage notes on
//! its behalf. Invariant: a size that a header claims is refused before its bytes make it credible.

use crate::residue::Bound;
use crate::thrift::{Value, read};

/// What is wrong with the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

/// The four fields of a statistics structure.
pub fn bounds(statistics: &Value, bytes: &[u8]) -> Vec<Bound> {
    let mut found = Vec::new();
    for (field, is_max, flag) in [(1, true, None), (2, false, None), (5, true, Some(7)), (6, false, Some(8))] {
        let exact = flag.and_then(|flag| statistics.boolean(flag));
        let each = statistics.fields(field).filter_map(Value::as_bytes);
        found.extend(each.map(|range| Bound { bytes: bytes[range].to_vec(), is_max, exact }));
    }
    found
}

/// The bounds of each page of a chunk.
pub fn column_index_bounds(index: &[u8]) -> Result<Vec<Vec<Bound>>, Malformed> {
    let malformed = || Malformed("a column index is malformed");
    let (index_value, _) = read(index).map_err(|_| malformed())?;
    let (least, most) = (index_value.list(2), index_value.list(3));
    if least.len() != most.len() {
        return Err(malformed());
    }
    let bound = |value: &Value, is_max: bool| {
        let bytes = index[value.as_bytes()?].to_vec();
        // Pages of nulls alone have an empty text for a bound.
        (!bytes.is_empty()).then_some(Bound { bytes, is_max, exact: None })
    };
    let of_page = |(least, most): (&Value, &Value)| [bound(least, false), bound(most, true)];
    Ok(least.iter().zip(most).map(|page| of_page(page).into_iter().flatten().collect()).collect())
}

/// The bounds that page headers and column index tell, by data page. `None`: the pages do not make up the chunk or are not those of
/// the index, or something is malformed.
pub fn page_bounds(chunk: &[u8], column_index: Option<&[u8]>) -> Option<Vec<Vec<Bound>>> {
    let (mut found, mut at) = (Vec::new(), 0);
    while at < chunk.len() {
        let page = page(chunk, at).ok()??;
        match page.kind {
            DATA_PAGE | DATA_PAGE_V2 => found.push(page.bounds),
            DICTIONARY_PAGE if page.bounds.is_empty() => {}
            _ => return None,
        }
        at = page.end;
    }
    if let Some(index) = column_index {
        let by_page = column_index_bounds(index).ok().filter(|by_page| by_page.len() == found.len())?;
        found.iter_mut().zip(by_page).for_each(|(bounds, more)| bounds.extend(more));
    }
    Some(found)
}

/// A page of a chunk, as its header describes it.
pub struct Page<'a> {
    pub kind: i64,
    pub values: i64,
    pub bounds: Vec<Bound>,
    pub body: &'a [u8],
    pub uncompressed_bytes: usize,
    /// Where the next one starts.
    pub end: usize,
}

const DATA_PAGE: i64 = 0;
pub const DICTIONARY_PAGE: i64 = 2;
const DATA_PAGE_V2: i64 = 3;

/// The page at `at`. `Ok(None)`: there is none.
pub fn page(bytes: &[u8], at: usize) -> Result<Option<Page<'_>>, Malformed> {
    let Ok((header, header_bytes)) = read(&bytes[at..]) else { return Ok(None) };
    let (Some(kind), Some(uncompressed), Some(compressed)) = (header.integer(1), header.integer(2), header.integer(3))
    else {
        return Ok(None);
    };
    let start = at + header_bytes;
    let end = usize::try_from(compressed).ok().and_then(|length| start.checked_add(length));
    let Some(end) = end.filter(|end| *end <= bytes.len()) else { return Ok(None) };
    let body = &bytes[start..end];
    let uncompressed_bytes = usize::try_from(uncompressed).map_err(|_| incredible())?;
    credible(uncompressed_bytes, body.len())?;
    let of = |number: i16, statistics: i16| {
        let header_of = header.field(number);
        let bounds = header_of.into_iter().flat_map(|of| of.fields(statistics)).flat_map(|of| bounds(of, &bytes[at..]));
        (header_of.and_then(|of| of.integer(1)).unwrap_or(0), bounds.collect::<Vec<_>>())
    };
    let (first, mut all) = of(5, 5);
    let (second, more) = of(8, 8);
    all.extend(more);
    Ok(Some(Page { kind, values: first.max(second), bounds: all, body, uncompressed_bytes, end }))
}

fn incredible() -> Malformed {
    Malformed("a page claims a size that its bytes cannot hold")
}

/// Best known ratio of the codecs in use, on constant input (zstd and brotli; the others are far below).
const RATIO_MAX: usize = 1 << 15;
const PAGE_BYTES_MAX: usize = 1 << 30;

/// No memory for what a header merely claims: a thousand bytes cannot hold two thousand million.
fn credible(uncompressed: usize, stored: usize) -> Result<(), Malformed> {
    let most = stored.saturating_add(2).saturating_mul(RATIO_MAX).min(PAGE_BYTES_MAX);
    if uncompressed > most { Err(incredible()) } else { Ok(()) }
}
