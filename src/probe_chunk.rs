//! Asks every value of a Parquet column chunk whether it is listed, without making arrays of the values.
//!
//! Works on decompressed pages: an entry of a dictionary is asked once, a plain value where it stands in the page. Encodings
//! that this does not know go through the crate's own column reader. Statistics are never looked at: every value of the chunk is
//! asked, and the rows are counted.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use parquet::basic::{Encoding, Type as PhysicalType};
use parquet::column::page::{Page, PageReader};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl, get_column_reader};
use parquet::data_type::{AsBytes, DataType};
use parquet::errors::Result;
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::reader::ChunkReader;
use parquet::file::serialized_reader::SerializedPageReader;
use parquet::schema::types::ColumnDescPtr;

use crate::format::parquet_chunk::{CheckedPages, Window};
use crate::format::parquet_filled::FilledPages;
use crate::format::parquet_packed::{Hybrid, Plain, corrupt, decode_levels, is_dictionary, parts};
use crate::match_index::Check;

/// What the rules that look at one column say of one value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Verdict {
    pub is_listed: bool,
    /// How many of the rules could not read it.
    pub not_comparable: u32,
}

impl Verdict {
    pub fn add(&mut self, check: Check) {
        match check {
            Check::Match => self.is_listed = true,
            Check::NoMatch => {}
            Check::NotComparable => self.not_comparable += 1,
        }
    }

    fn is_remarkable(self) -> bool {
        self != Verdict::default()
    }
}

/// What a chunk answered.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Answer {
    /// Rows of the row group that hold a listed value, in order; one that holds several may come several times.
    pub matched: Vec<u64>,
    pub not_comparable: u64,
    pub rows: u64,
    /// What stands in the chunk beside values; `None` when a decoder of values did not show it.
    pub beside: Option<Beside>,
}

impl Answer {
    fn note(&mut self, row: u64, verdict: Verdict) {
        self.not_comparable += u64::from(verdict.not_comparable);
        if verdict.is_listed {
            self.matched.push(row);
        }
    }
}

/// What a chunk holds, or is said to hold, that is none of its values.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Beside {
    /// Listed entries of the dictionary that no value uses.
    pub unused_entries: u64,
    /// Which of the bounds that were looked for are no value of the chunk, in order.
    pub unseen_bounds: Vec<Vec<u8>>,
}

/// Is told of plain values some time before they are asked, so that what is looked up far away can be on its way. What it gives is
/// handed on when the value is asked.
pub type Soon<'s> = Option<&'s dyn Fn(&[u8]) -> u128>;

/// Asks each value of `column`, which `reader` holds; `rows` is what its row group claims. Bounds that are told of the chunk and of
/// each of its data pages are looked for among the values.
pub fn probe_chunk<R, F>(
    reader: R,
    column: &ColumnChunkMetaData,
    rows: u64,
    chunk_bounds: Vec<Vec<u8>>,
    page_bounds: Vec<Vec<Vec<u8>>>,
    soon: Soon<'_>,
    ask: F,
) -> Result<Answer>
where
    R: ChunkReader + 'static,
    F: FnMut(&[u8], Option<u128>) -> Verdict,
{
    let pages = SerializedPageReader::new(Arc::new(Window::new(reader, column)), column, rows as usize, None)?;
    let mut probe = Probe::new(column, Bounds::new(chunk_bounds, page_bounds), soon, ask);
    if is_known(column) {
        probe.pages(pages)?;
        probe.answer.beside = Some(probe.beside()?);
    } else {
        probe.values(Box::new(FilledPages(CheckedPages::new(pages, column))), column.column_descr_ptr())?;
    }
    let answer = probe.answer;
    if answer.rows == rows { Ok(answer) } else { Err(corrupt("a column holds fewer or more rows than its row group")) }
}

/// Whether all pages can be walked without a decoder of values.
fn is_known(column: &ColumnChunkMetaData) -> bool {
    column.encodings().all(|encoding| match encoding {
        Encoding::PLAIN | Encoding::RLE => true,
        // Levels of encoding BIT_PACKED stand without their length; values of the others need a decoder.
        other => is_dictionary(other),
    })
}

struct Probe<'s, F> {
    soon: Soon<'s>,
    max_definition: u16,
    max_repetition: u16,
    /// Bytes of a value of fixed length; `None`: each value tells its own.
    fixed_bytes: Option<usize>,
    ask: F,
    answer: Answer,
    dictionary: Vec<Verdict>,
    dictionary_bytes: Bytes,
    /// By entry of a remarkable dictionary: whether a value uses it.
    used: Vec<bool>,
    /// Whether any entry of the dictionary is worth a look at who uses it.
    is_dictionary_remarkable: bool,
    levels: Levels,
    bounds: Bounds,
}

/// Bounds that are looked for among the values: a chunk's on all of its pages, a page's on that page.
#[derive(Default)]
struct Bounds {
    of_chunk: Vec<Vec<u8>>,
    of_page: Vec<Vec<u8>>,
    of_next: std::vec::IntoIter<Vec<Vec<u8>>>,
    /// Of pages that are done with.
    left: Vec<Vec<u8>>,
}

impl Bounds {
    fn new(of_chunk: Vec<Vec<u8>>, of_pages: Vec<Vec<Vec<u8>>>) -> Self {
        Bounds { of_chunk, of_next: of_pages.into_iter(), ..Bounds::default() }
    }

    fn next_page(&mut self) {
        let done = std::mem::replace(&mut self.of_page, self.of_next.next().unwrap_or_default());
        self.left.extend(done);
    }

    /// Most values are no bound.
    #[inline]
    fn see(&mut self, value: &[u8]) {
        for waiting in [&mut self.of_chunk, &mut self.of_page] {
            if waiting.iter().any(|bound| is_same(bound, value)) {
                waiting.retain(|bound| bound != value);
            }
        }
    }

    fn unseen(&mut self) -> Vec<Vec<u8>> {
        let Bounds { of_chunk, of_page, of_next, left } = std::mem::take(self);
        let mut unseen: Vec<_> = [of_chunk, of_page, left].into_iter().flatten().chain(of_next.flatten()).collect();
        unseen.sort_unstable();
        unseen.dedup();
        unseen
    }
}

/// Looks at the heads before it compares the whole: most values differ there.
#[inline]
fn is_same(bound: &[u8], value: &[u8]) -> bool {
    bound.len() == value.len() && bound.first_chunk::<8>() == value.first_chunk::<8>() && bound == value
}

/// The levels of one page. Empty where the column has none of the kind.
#[derive(Default)]
struct Levels {
    definition: Vec<u16>,
    repetition: Vec<u16>,
}

/// So many values lie between the telling of a value and the asking.
const VALUES_AHEAD: usize = 16;

impl<'s, F: FnMut(&[u8], Option<u128>) -> Verdict> Probe<'s, F> {
    fn new(column: &ColumnChunkMetaData, bounds: Bounds, soon: Soon<'s>, ask: F) -> Self {
        let descr = column.column_descr();
        let is_fixed = descr.physical_type() == PhysicalType::FIXED_LEN_BYTE_ARRAY;
        Probe {
            soon,
            max_definition: descr.max_def_level().unsigned_abs(),
            max_repetition: descr.max_rep_level().unsigned_abs(),
            fixed_bytes: is_fixed.then(|| descr.type_length().max(0) as usize),
            ask,
            answer: Answer::default(),
            dictionary: Vec::new(),
            dictionary_bytes: Bytes::new(),
            used: Vec::new(),
            is_dictionary_remarkable: false,
            levels: Levels::default(),
            bounds,
        }
    }

    fn pages(&mut self, mut pages: impl PageReader) -> Result<()> {
        while let Some(page) = pages.get_next_page()? {
            match page {
                Page::DictionaryPage { buf, num_values, .. } => self.take_dictionary(&buf, num_values as usize)?,
                data @ (Page::DataPage { .. } | Page::DataPageV2 { .. }) => {
                    let parts = parts(&data, self.max_repetition, self.max_definition)?;
                    self.data_page(parts, data.num_values() as usize, data.encoding())?;
                }
            }
        }
        Ok(())
    }

    fn take_dictionary(&mut self, buf: &Bytes, entries: usize) -> Result<()> {
        let mut verdicts = Vec::new();
        let mut plain = Plain::new(buf, self.fixed_bytes);
        for _ in 0..entries {
            verdicts.push((self.ask)(plain.read()?, None));
        }
        self.is_dictionary_remarkable = verdicts.iter().any(|verdict| verdict.is_remarkable());
        self.used = vec![false; if self.is_dictionary_remarkable { entries } else { 0 }];
        (self.dictionary, self.dictionary_bytes) = (verdicts, buf.clone());
        Ok(())
    }

    /// Once all pages are walked. An entry of the dictionary shows what a bound shows, whether or not a value uses it.
    fn beside(&mut self) -> Result<Beside> {
        let mut unseen = self.bounds.unseen();
        let mut plain = Plain::new(&self.dictionary_bytes, self.fixed_bytes);
        for _ in 0..self.dictionary.len() {
            if unseen.is_empty() {
                break;
            }
            let entry = plain.read()?;
            if let Ok(seen) = unseen.binary_search_by(|bound| bound.as_slice().cmp(entry)) {
                unseen.remove(seen);
            }
        }
        let unused = self.dictionary.iter().zip(&self.used).filter(|(verdict, used)| verdict.is_listed && !**used);
        Ok(Beside { unused_entries: unused.count() as u64, unseen_bounds: unseen })
    }

    /// `parts` are the repetition levels, the definition levels and the values.
    fn data_page(&mut self, parts: [&[u8]; 3], levels: usize, encoding: Encoding) -> Result<()> {
        let [repetition, definition, data] = parts;
        decode_levels(repetition, self.max_repetition, levels, &mut self.levels.repetition)?;
        decode_levels(definition, self.max_definition, levels, &mut self.levels.definition)?;
        self.bounds.next_page();
        match encoding {
            Encoding::PLAIN => {
                let mut plain = Plain::new(data, self.fixed_bytes);
                let (soon, mut ahead) = (self.soon, Plain::new(data, self.fixed_bytes));
                // What is wrong with a value is said when it is read itself.
                let mut told = VecDeque::with_capacity(VALUES_AHEAD + 1);
                let mut tell = |values: usize, told: &mut VecDeque<u128>| {
                    if let Some(soon) = soon {
                        told.extend((0..values).map_while(|_| ahead.read().ok()).map(soon));
                    }
                };
                tell(VALUES_AHEAD, &mut told);
                let mut bounds = std::mem::take(&mut self.bounds);
                let outcome = self.each_value(levels, |ask| {
                    tell(1, &mut told);
                    let value = plain.read()?;
                    bounds.see(value);
                    Ok(ask(value, told.pop_front()))
                });
                self.bounds = bounds;
                outcome
            }
            coded if is_dictionary(coded) && self.dictionary.is_empty() && self.has_values(levels) => {
                Err(corrupt("a chunk without its dictionary"))
            }
            coded if is_dictionary(coded) && !self.is_dictionary_remarkable => {
                self.answer.rows += self.rows_begun(levels);
                Ok(())
            }
            coded if is_dictionary(coded) => self.coded_page(data, levels),
            _ => Err(corrupt("a page of an encoding that its chunk does not name")),
        }
    }

    fn has_values(&self, levels: usize) -> bool {
        match self.max_definition {
            0 => levels > 0,
            max => self.levels.definition.contains(&max),
        }
    }

    fn coded_page(&mut self, data: &[u8], levels: usize) -> Result<()> {
        let (width, packed) = data.split_first().map_or((0, data), |(width, packed)| (*width, packed));
        let mut indexes = Hybrid::new(packed, u32::from(width))?;
        let (dictionary, mut used) = (std::mem::take(&mut self.dictionary), std::mem::take(&mut self.used));
        let outcome = self.each_value(levels, |_| {
            let index = indexes.read()? as usize;
            let verdict = dictionary.get(index).copied().ok_or_else(|| corrupt("an index past its dictionary"))?;
            if verdict.is_listed {
                used[index] = true;
            }
            Ok(verdict)
        });
        (self.dictionary, self.used) = (dictionary, used);
        outcome
    }

    /// Rows that begin on the page: a value that repeats belongs to the row before.
    fn rows_begun(&self, levels: usize) -> u64 {
        if self.max_repetition == 0 {
            return levels as u64;
        }
        self.levels.repetition.iter().filter(|level| **level == 0).count() as u64
    }

    /// Calls `next` for each value that is there, and notes what it says under the value's row.
    fn each_value(&mut self, levels: usize, mut next: impl FnMut(&mut F) -> Result<Verdict>) -> Result<()> {
        let Levels { definition, repetition } = &self.levels;
        if repetition.is_empty() && definition.iter().all(|level| *level == self.max_definition) {
            let first_row = self.answer.rows;
            self.answer.rows += levels as u64;
            for row in first_row..self.answer.rows {
                let verdict = next(&mut self.ask)?;
                if verdict.is_remarkable() {
                    self.answer.note(row, verdict);
                }
            }
            return Ok(());
        }
        for i in 0..levels {
            if self.levels.repetition.get(i).is_none_or(|level| *level == 0) {
                self.answer.rows += 1;
            }
            if self.levels.definition.get(i).is_some_and(|level| *level != self.max_definition) {
                continue;
            }
            let verdict = next(&mut self.ask)?;
            if verdict.is_remarkable() {
                let row = self.answer.rows.checked_sub(1).ok_or_else(|| corrupt("a value before the first row"))?;
                self.answer.note(row, verdict);
            }
        }
        Ok(())
    }

    /// The way of any encoding: through the crate's decoders.
    fn values(&mut self, pages: Box<dyn PageReader>, descr: ColumnDescPtr) -> Result<()> {
        match get_column_reader(descr, pages) {
            ColumnReader::ByteArrayColumnReader(reader) => self.decoded(reader),
            ColumnReader::FixedLenByteArrayColumnReader(reader) => self.decoded(reader),
            _ => Err(corrupt("a column that holds no bytes")),
        }
    }

    fn decoded<T: DataType>(&mut self, mut reader: ColumnReaderImpl<T>) -> Result<()> {
        const RECORDS: usize = 8192;
        let (mut definition, mut repetition, mut decoded) = (Vec::<i16>::new(), Vec::<i16>::new(), Vec::new());
        loop {
            definition.clear();
            repetition.clear();
            decoded.clear();
            let (records, _, levels) = reader.read_records(
                RECORDS,
                (self.max_definition > 0).then_some(&mut definition),
                (self.max_repetition > 0).then_some(&mut repetition),
                &mut decoded,
            )?;
            if records == 0 {
                return Ok(());
            }
            self.levels.definition = definition.iter().map(|level| level.unsigned_abs()).collect();
            self.levels.repetition = repetition.iter().map(|level| level.unsigned_abs()).collect();
            let mut values = decoded.iter();
            self.each_value(levels, |ask| {
                let value = values.next().ok_or_else(|| corrupt("fewer values than levels"))?;
                Ok(ask(value.as_bytes(), None))
            })?;
        }
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, RecordBatch, StringArray};
    use bytes::Bytes;
    use parquet::arrow::ArrowWriter;
    use parquet::column::page::PageMetadata;
    use parquet::file::reader::FileReader;
    use parquet::file::serialized_reader::SerializedFileReader;

    use super::*;

    /// The pages of a chunk but for its dictionary.
    struct WithoutDictionary(SerializedPageReader<Bytes>);

    impl Iterator for WithoutDictionary {
        type Item = Result<Page>;

        fn next(&mut self) -> Option<Result<Page>> {
            self.get_next_page().transpose()
        }
    }

    impl PageReader for WithoutDictionary {
        fn get_next_page(&mut self) -> Result<Option<Page>> {
            loop {
                match self.0.get_next_page()? {
                    Some(Page::DictionaryPage { .. }) => {}
                    other => return Ok(other),
                }
            }
        }

        fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
            self.0.peek_next_page()
        }

        fn skip_next_page(&mut self) -> Result<()> {
            self.0.skip_next_page()
        }
    }

    #[test]
    fn a_chunk_that_lacks_its_dictionary_is_none_without_a_match() {
        for (values, is_whole) in [(vec![Some("a"), Some("a")], false), (vec![None, None], true)] {
            let column: ArrayRef = Arc::new(StringArray::from(values));
            let batch = RecordBatch::try_from_iter_with_nullable([("v", column, true)]).unwrap();
            let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), None).unwrap();
            writer.write(&batch).unwrap();
            let file = Bytes::from(writer.into_inner().unwrap());
            let reader = SerializedFileReader::new(file.clone()).unwrap();
            let column = reader.metadata().row_group(0).column(0);
            let pages = SerializedPageReader::new(Arc::new(file), column, 2, None).unwrap();
            let mut probe = Probe::new(column, Bounds::default(), None, |_: &[u8], _| Verdict::default());
            let outcome = probe.pages(WithoutDictionary(pages)).map_err(|error| error.to_string());
            match is_whole {
                true => assert_eq!((outcome, probe.answer.rows), (Ok(()), 2)),
                false => assert!(outcome.unwrap_err().contains("a chunk without its dictionary")),
            }
        }
    }
}
