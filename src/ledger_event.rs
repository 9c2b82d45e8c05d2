//! The facts of the request ledger, one event each, and the Parquet segments that hold them.
//!
//! Knows how an event is written and chained, and nothing of what events amount to ([`crate::ledger_fold`]) or where segments
//! are ([`crate::ledger`]). Invariants: `decode(encode(segments)) == segments`, and no field can hold an identifier: a person is
//! named by keyed tags and by a request id alone.
//!
//! ```text
//! sequence  number  key  event  recorded_at  request_id  tag  (texts)  (times)  (numbers)     one row an event
//! ```
//! `sequence` counts segments from 1 on, `number` the events of one. A segment's digest is SHA-256 over the digest before it (32
//! zero bytes before the first), the key's id and every field of every event, so that a chain survives the files it was written in:
//! several segments may be gathered in one file, and their digests are the same.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, Date32Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{Date32Type, Int64Type, TimestampMicrosecondType};
use bytes::Bytes;
use jiff::Timestamp;
use jiff::civil::Date;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::signature::tag_of_hex;

/// Shared: the same few sources, datasets and runs stand in millions of events.
pub type Text = Arc<str>;

/// SHA-256 of a segment and of all before it.
pub type ChainDigest = [u8; 32];

/// One fact about one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// When the ledger learnt it; whole microseconds.
    pub recorded_at: Timestamp,
    pub request_id: Text,
    pub fact: Fact,
}

/// A person as the ledger may know one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tagged {
    /// The kind's name, which the tag is bound to.
    pub kind: Text,
    /// HMAC-SHA-256(tag key, kind, SHA-256 of the canonical form), see [`crate::signature::TagKey`].
    pub tag: [u8; 32],
}

/// When an answer is due, and how that was computed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DueDate {
    pub at: Date,
    /// In words.
    pub how: Text,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fact {
    /// Somebody asked. A request with several identifiers has one such event for each.
    Received {
        identifier: Tagged,
        /// The list, the file or the person it came from.
        source: Text,
        received_at: Option<Timestamp>,
        regime: Option<Text>,
        due: Option<DueDate>,
        /// Hex SHA-256 of the list it stood in.
        list_digest: Option<Text>,
    },
    /// An identifier of the request that had this tag under another key has this one now: whoever had both keys compared them.
    Rekeyed { identifier: Tagged, old_tag: [u8; 32] },
    /// A run is about to remove these rows: written before it does.
    Planned { dataset: Text, run_id: Text, rows: u64, consumers: Option<u64> },
    /// The rows are gone and a manifest says so; no rows: the run has ended, and all that it planned is still there.
    Removed { dataset: Text, run_id: Text, rows: u64, consumers: Option<u64>, manifest_digest: Text },
    /// A run scanned everything in scope and nothing of the request was left.
    VerifiedClean { run_id: Text, manifest_digest: Text },
    /// It was removed and verified clean before, and matches again. Written by the first run that sees it.
    Reappeared {
        dataset: Text,
        run_id: Text,
        /// As it may be shown.
        object: Text,
        rows: u64,
        /// When it was last known to be gone.
        since: Option<Timestamp>,
        /// The job that wrote the object, if its metadata says so.
        written_by: Option<Text>,
    },
    /// A run that removes nothing, or is about to, has seen the first rows of a request that nothing was found of before.
    Found { dataset: Text, run_id: Text, object: Text, rows: u64 },
    /// Its data stay, for this reason, until then (or for good).
    Exempted { ground: Text, until: Option<Timestamp> },
    /// The person opted in again, or the request was a mistake. `at`: when, where a download tells; else when it was recorded.
    Withdrawn { source: Text, at: Option<Timestamp> },
    /// Whoever asked was told; `status` is a code of theirs (DROP: 2 to 5).
    Answered { status: u64, source: Text },
    /// A list without anybody was the first to be imported: there is a ledger, and nobody in it. Of no request.
    Imported { source: Text, list_digest: Text },
}

impl Fact {
    pub fn name(&self) -> &'static str {
        match self {
            Fact::Received { .. } => "received",
            Fact::Rekeyed { .. } => "rekeyed",
            Fact::Planned { .. } => "planned",
            Fact::Removed { .. } => "removed",
            Fact::VerifiedClean { .. } => "verified-clean",
            Fact::Reappeared { .. } => "re-appeared",
            Fact::Found { .. } => "found",
            Fact::Exempted { .. } => "exempted",
            Fact::Withdrawn { .. } => "withdrawn",
            Fact::Answered { .. } => "answered",
            Fact::Imported { .. } => "imported",
        }
    }
}

/// Events that were written in one step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// From 1 on.
    pub sequence: u64,
    /// Of the tag key its tags were made with.
    pub key_id: Text,
    pub events: Vec<Event>,
}

const TEXTS: [&str; 11] = [
    "kind",
    "source",
    "regime",
    "due_how",
    "list_digest",
    "dataset",
    "run_id",
    "manifest_digest",
    "object",
    "written_by",
    "ground",
];
const TIMES: [&str; 3] = ["received_at", "since", "until"];
const COUNTS: [&str; 3] = ["rows", "consumers", "status"];

/// An event as a row: every field that any fact has.
#[derive(Default)]
struct Row<'a> {
    kind: Option<&'a Text>,
    /// Of one that was rekeyed the old tag in hexadecimal digits.
    source: Option<Cow<'a, str>>,
    regime: Option<&'a Text>,
    due_how: Option<&'a Text>,
    list_digest: Option<&'a Text>,
    dataset: Option<&'a Text>,
    run_id: Option<&'a Text>,
    manifest_digest: Option<&'a Text>,
    object: Option<&'a Text>,
    written_by: Option<&'a Text>,
    ground: Option<&'a Text>,
    received_at: Option<Timestamp>,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    rows: Option<u64>,
    consumers: Option<u64>,
    status: Option<u64>,
    tag: Option<&'a [u8; 32]>,
    due_at: Option<Date>,
}

impl<'a> Row<'a> {
    fn of(fact: &'a Fact) -> Row<'a> {
        let row = Row::default();
        match fact {
            Fact::Received { identifier, source, received_at, regime, due, list_digest } => Row {
                kind: Some(&identifier.kind),
                tag: Some(&identifier.tag),
                source: Some(Cow::Borrowed(source)),
                received_at: *received_at,
                regime: regime.as_ref(),
                due_how: due.as_ref().map(|due| &due.how),
                due_at: due.as_ref().map(|due| due.at),
                list_digest: list_digest.as_ref(),
                ..row
            },
            Fact::Rekeyed { identifier, old_tag } => Row {
                kind: Some(&identifier.kind),
                tag: Some(&identifier.tag),
                source: Some(Cow::Owned(hex::encode(old_tag))),
                ..row
            },
            Fact::Planned { dataset, run_id, rows, consumers } => {
                Row { dataset: Some(dataset), run_id: Some(run_id), rows: Some(*rows), consumers: *consumers, ..row }
            }
            Fact::Removed { dataset, run_id, rows, consumers, manifest_digest } => Row {
                dataset: Some(dataset),
                run_id: Some(run_id),
                rows: Some(*rows),
                consumers: *consumers,
                manifest_digest: Some(manifest_digest),
                ..row
            },
            Fact::VerifiedClean { run_id, manifest_digest } => {
                Row { run_id: Some(run_id), manifest_digest: Some(manifest_digest), ..row }
            }
            Fact::Reappeared { dataset, run_id, object, rows, since, written_by } => Row {
                dataset: Some(dataset),
                run_id: Some(run_id),
                object: Some(object),
                rows: Some(*rows),
                since: *since,
                written_by: written_by.as_ref(),
                ..row
            },
            Fact::Found { dataset, run_id, object, rows } => {
                Row { dataset: Some(dataset), run_id: Some(run_id), object: Some(object), rows: Some(*rows), ..row }
            }
            Fact::Exempted { ground, until } => Row { ground: Some(ground), until: *until, ..row },
            // A column of its own would give every older segment another digest.
            Fact::Withdrawn { source, at } => Row { source: Some(Cow::Borrowed(source)), received_at: *at, ..row },
            Fact::Answered { status, source } => {
                Row { status: Some(*status), source: Some(Cow::Borrowed(source)), ..row }
            }
            Fact::Imported { source, list_digest } => {
                Row { source: Some(Cow::Borrowed(source)), list_digest: Some(list_digest), ..row }
            }
        }
    }

    /// In the order of [`TEXTS`].
    fn texts(&self) -> [Option<&str>; TEXTS.len()] {
        let Row { kind, regime, due_how, list_digest, dataset, run_id, manifest_digest, .. } = *self;
        let Row { object, written_by, ground, .. } = *self;
        let text = |text: Option<&'a Text>| text.map(|text| &**text);
        [
            text(kind),
            self.source.as_deref(),
            text(regime),
            text(due_how),
            text(list_digest),
            text(dataset),
            text(run_id),
            text(manifest_digest),
            text(object),
            text(written_by),
            text(ground),
        ]
    }

    /// In the order of [`TIMES`].
    fn times(&self) -> [Option<Timestamp>; TIMES.len()] {
        [self.received_at, self.since, self.until]
    }

    /// In the order of [`COUNTS`].
    fn counts(&self) -> [Option<u64>; COUNTS.len()] {
        [self.rows, self.consumers, self.status]
    }
}

impl Segment {
    /// The digest of the chain up to this segment.
    pub fn digest(&self, previous: &ChainDigest) -> ChainDigest {
        let mut sha = Sha256::new_with_prefix(previous);
        sha.update(self.sequence.to_le_bytes());
        sha.update((self.events.len() as u64).to_le_bytes());
        let mut bytes = Vec::with_capacity(512);
        push(&mut bytes, Some(self.key_id.as_bytes()));
        for event in &self.events {
            let row = Row::of(&event.fact);
            push(&mut bytes, Some(event.fact.name().as_bytes()));
            push(&mut bytes, Some(event.request_id.as_bytes()));
            push(&mut bytes, Some(&event.recorded_at.as_microsecond().to_le_bytes()));
            for text in row.texts() {
                push(&mut bytes, text.map(|text| text.as_bytes()));
            }
            for time in row.times() {
                push(
                    &mut bytes,
                    time.map(|time| time.as_microsecond().to_le_bytes()).as_ref().map(<[u8; 8]>::as_slice),
                );
            }
            for count in row.counts() {
                push(&mut bytes, count.map(u64::to_le_bytes).as_ref().map(<[u8; 8]>::as_slice));
            }
            push(&mut bytes, row.tag.map(<[u8; 32]>::as_slice));
            push(&mut bytes, row.due_at.map(|at| days(at).to_le_bytes()).as_ref().map(<[u8; 4]>::as_slice));
            sha.update(&bytes);
            bytes.clear();
        }
        sha.finalize().into()
    }
}

/// The length keeps a field's end apart from the next one's start, and a missing field from an empty one.
#[inline]
fn push(out: &mut Vec<u8>, field: Option<&[u8]>) {
    let length = field.map_or(u32::MAX, |field| field.len() as u32);
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(field.unwrap_or_default());
}

fn days(date: Date) -> i32 {
    let epoch = jiff::civil::date(1970, 1, 1);
    (date - epoch).get_days()
}

fn of_days(days: i32) -> Option<Date> {
    jiff::civil::date(1970, 1, 1).checked_add(jiff::Span::new().try_days(days).ok()?).ok()
}

/// Events that are held as Arrow arrays at a time.
const ROWS_A_BATCH: usize = 1 << 16;

/// Metadata of a file: the digest before its first segment, and that of its last.
const PREVIOUS: &str = "lakescrub.ledger.previous";
const DIGEST: &str = "lakescrub.ledger.digest";

/// The bytes of a file that holds these segments, one after the other.
pub fn encode(segments: &[Segment], previous: &ChainDigest) -> Result<Bytes> {
    let cannot = |error: &dyn std::fmt::Display| Error::internal(format!("cannot encode the ledger: {error}"));
    let last = segments.iter().fold(*previous, |before, segment| segment.digest(&before));
    let pair = |name: &str, digest: &ChainDigest| KeyValue::new(name.to_owned(), hex::encode(digest));
    let properties = WriterProperties::builder()
        .set_created_by(concat!("lakescrub ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(1).expect("zstd has a level 1")))
        .set_statistics_enabled(EnabledStatistics::None)
        .set_column_dictionary_enabled("tag".into(), false)
        .set_column_dictionary_enabled("request_id".into(), false)
        .set_key_value_metadata(Some(vec![pair(PREVIOUS, previous), pair(DIGEST, &last)]))
        .build();
    let schema = batch(&[]).map_err(|error| cannot(&error))?.schema();
    let mut writer = ArrowWriter::try_new(Vec::new(), schema, Some(properties)).map_err(|error| cannot(&error))?;
    let rows = segments.iter().flat_map(|segment| segment.events.iter().enumerate().map(move |row| (segment, row)));
    let rows: Vec<(&Segment, (usize, &Event))> = rows.collect();
    for rows in rows.chunks(ROWS_A_BATCH) {
        writer.write(&batch(rows).map_err(|error| cannot(&error))?).map_err(|error| cannot(&error))?;
    }
    writer.into_inner().map(Bytes::from).map_err(|error| cannot(&error))
}

/// The events as one table, as it stands in a file of the ledger.
pub fn table(segments: &[Segment]) -> Result<RecordBatch> {
    let rows = segments.iter().flat_map(|segment| segment.events.iter().enumerate().map(move |row| (segment, row)));
    let rows: Vec<(&Segment, (usize, &Event))> = rows.collect();
    batch(&rows).map_err(|error| Error::internal(format!("cannot show the ledger: {error}")))
}

fn batch(events: &[(&Segment, (usize, &Event))]) -> Result<RecordBatch, arrow::error::ArrowError> {
    let rows: Vec<Row<'_>> = events.iter().map(|(_, (_, event))| Row::of(&event.fact)).collect();
    let utc =
        |times: Vec<Option<i64>>| Arc::new(TimestampMicrosecondArray::from(times).with_timezone("UTC")) as ArrayRef;
    let known = |texts: Vec<&str>| Arc::new(StringArray::from(texts)) as ArrayRef;
    let mut columns: Vec<(&str, ArrayRef, bool)> = vec![
        ("sequence", Arc::new(Int64Array::from_iter_values(events.iter().map(|(s, _)| s.sequence as i64))), false),
        ("number", Arc::new(Int64Array::from_iter_values(events.iter().map(|(_, (n, _))| *n as i64))), false),
        ("key", known(events.iter().map(|(segment, _)| &*segment.key_id).collect()), false),
        ("event", known(events.iter().map(|(_, (_, event))| event.fact.name()).collect()), false),
        ("recorded_at", utc(events.iter().map(|(_, (_, e))| Some(e.recorded_at.as_microsecond())).collect()), false),
        ("request_id", known(events.iter().map(|(_, (_, event))| &*event.request_id).collect()), false),
        ("tag", Arc::new(StringArray::from_iter(rows.iter().map(|row| row.tag.map(hex::encode)))), true),
        ("due_at", Arc::new(Date32Array::from_iter(rows.iter().map(|row| row.due_at.map(days)))), true),
    ];
    for (i, name) in TEXTS.iter().enumerate() {
        let texts = StringArray::from_iter(rows.iter().map(|row| row.texts()[i]));
        columns.push((name, Arc::new(texts), true));
    }
    for (i, name) in TIMES.iter().enumerate() {
        columns.push((name, utc(rows.iter().map(|row| row.times()[i].map(Timestamp::as_microsecond)).collect()), true));
    }
    for (i, name) in COUNTS.iter().enumerate() {
        // Signed, because that is what every reader of Parquet has.
        let counts = rows.iter().map(|row| row.counts()[i].map(|count| i64::try_from(count).unwrap_or(i64::MAX)));
        columns.push((name, Arc::new(Int64Array::from_iter(counts)), true));
    }
    RecordBatch::try_from_iter_with_nullable(columns)
}

/// What a file of segments holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decoded {
    /// The digest of the chain before its first segment, as the file has it.
    pub previous: ChainDigest,
    /// And after its last, as its content has it.
    pub last: ChainDigest,
    pub segments: Vec<Segment>,
}

/// A segment of a file, with the digest of the chain before it and after it as they follow from the file.
pub struct Chained {
    pub segment: Segment,
    pub before: ChainDigest,
    pub after: ChainDigest,
}

/// Texts that come again are held once.
#[derive(Debug, Default)]
pub struct Interner(HashSet<Text>);

impl Interner {
    pub fn text(&mut self, text: &str) -> Text {
        match self.0.get(text) {
            Some(known) => known.clone(),
            None => {
                let new: Text = text.into();
                self.0.insert(new.clone());
                new
            }
        }
    }
}

/// The segments of a file. The error says what is wrong with it, a digest that does not fit its content included.
pub fn decode(bytes: Bytes, texts: &mut Interner) -> Result<Decoded, String> {
    let mut segments = Vec::new();
    let (previous, last) = read(bytes, texts, &mut |chained| segments.push(chained.segment))?;
    Ok(Decoded { previous, last, segments })
}

/// Gives the segments of a file away one by one, so that no more than one is held; and returns the digests of the chain before the first
/// and after the last. The error is [`decode`]'s, and comes when segments that nobody may believe were given away already.
pub fn read(
    bytes: Bytes,
    texts: &mut Interner,
    each: &mut dyn FnMut(Chained),
) -> Result<(ChainDigest, ChainDigest), String> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(bytes)
        .map_err(|error| format!("is no Parquet file: {error}"))?
        .with_batch_size(ROWS_A_BATCH);
    let pairs = builder.metadata().file_metadata().key_value_metadata().cloned().unwrap_or_default();
    let digest = |name: &str| -> Result<ChainDigest, String> {
        let value = pairs.iter().find(|pair| pair.key == name).and_then(|pair| pair.value.as_deref());
        let raw = value.and_then(|value| hex::decode(value).ok()).and_then(|raw| raw.try_into().ok());
        raw.ok_or_else(|| format!("is no part of a ledger: it has no {name}"))
    };
    let (previous, last) = (digest(PREVIOUS)?, digest(DIGEST)?);
    let mut so_far = previous;
    let mut give = |segment: Segment| {
        let (before, after) = (so_far, segment.digest(&so_far));
        so_far = after;
        each(Chained { segment, before, after });
    };
    let mut open: Option<Segment> = None;
    for batch in builder.build().map_err(|error| format!("cannot be decoded: {error}"))? {
        let batch = batch.map_err(|error| format!("cannot be decoded: {error}"))?;
        decode_batch(&batch, &mut open, texts, &mut give)?;
    }
    open.into_iter().for_each(&mut give);
    if so_far == last { Ok((previous, last)) } else { Err("has events that do not fit its digest".to_owned()) }
}

/// A column of texts, most of which are the one before again.
struct TextColumn<'a> {
    column: &'a StringArray,
    before: Option<Text>,
}

impl TextColumn<'_> {
    fn maybe(&mut self, row: usize, texts: &mut Interner) -> Option<Text> {
        if self.column.is_null(row) {
            return None;
        }
        let text = self.column.value(row);
        if self.before.as_deref() != Some(text) {
            self.before = Some(texts.text(text));
        }
        self.before.clone()
    }
}

/// The columns that facts are made of.
struct Columns<'a> {
    texts: [TextColumn<'a>; TEXTS.len()],
    times: [&'a TimestampMicrosecondArray; TIMES.len()],
    counts: [&'a Int64Array; COUNTS.len()],
    tag: &'a StringArray,
    due_at: &'a Date32Array,
}

/// The place of a column among those of its type.
const fn at(names: &[&str], name: &str) -> usize {
    let mut place = 0;
    while !is_same(names[place].as_bytes(), name.as_bytes()) {
        place += 1;
    }
    place
}

const fn is_same(a: &[u8], b: &[u8]) -> bool {
    let mut at = 0;
    while at < a.len() && at < b.len() && a[at] == b[at] {
        at += 1;
    }
    at == a.len() && at == b.len()
}

impl<'a> Columns<'a> {
    fn of(batch: &'a RecordBatch) -> Result<Columns<'a>, String> {
        let text = |name: &str| Ok(TextColumn { column: text_column(batch, name)?, before: None });
        let times = TIMES.iter().map(|name| time_column(batch, name)).collect::<Result<Vec<_>, String>>()?;
        let counts = COUNTS.iter().map(|name| count_column(batch, name)).collect::<Result<Vec<_>, String>>()?;
        let texts = TEXTS.iter().map(|name| text(name)).collect::<Result<Vec<_>, String>>()?;
        let due_at = column(batch, "due_at")?.as_primitive_opt::<Date32Type>().ok_or("column due_at holds no dates")?;
        Ok(Columns {
            texts: texts.try_into().map_err(|_| "has too few columns")?,
            times: times.try_into().map_err(|_| "has too few columns")?,
            counts: counts.try_into().map_err(|_| "has too few columns")?,
            tag: text_column(batch, "tag")?,
            due_at,
        })
    }

    /// The fact of one row, which is an event `name`.
    fn fact(&mut self, row: usize, name: &str, known: &mut Interner) -> Result<Fact, String> {
        let Columns { texts, times, counts, tag, due_at } = self;
        let sources = texts[const { at(&TEXTS, "source") }].column;
        let mut maybe = |column: usize| texts[column].maybe(row, known);
        let lacks = |column: &str| format!("an event {name} has no {column}");
        let time = |column: usize| {
            let micros = (!times[column].is_null(row)).then(|| times[column].value(row));
            micros.map(moment).transpose()
        };
        let count = |column: usize| {
            let count = (!counts[column].is_null(row)).then(|| u64::try_from(counts[column].value(row)));
            count.transpose().map_err(|_| "holds a negative count".to_owned())
        };
        /// A field that every such event has.
        macro_rules! text {
            ($column:literal) => {
                maybe(const { at(&TEXTS, $column) }).ok_or_else(|| lacks($column))?
            };
        }
        macro_rules! rows {
            () => {
                count(const { at(&COUNTS, "rows") })?.ok_or_else(|| lacks("rows"))?
            };
        }
        macro_rules! identifier {
            () => {{
                if tag.is_null(row) {
                    return Err(lacks("tag"));
                }
                let tag = tag_of_hex(tag.value(row)).ok_or("holds a tag that is none")?;
                Tagged { kind: text!("kind"), tag }
            }};
        }
        Ok(match name {
            "received" => {
                let day = (!due_at.is_null(row)).then(|| of_days(due_at.value(row)).ok_or("holds a date out of range"));
                Fact::Received {
                    identifier: identifier!(),
                    source: text!("source"),
                    received_at: time(const { at(&TIMES, "received_at") })?,
                    regime: maybe(const { at(&TEXTS, "regime") }),
                    due: match day.transpose()? {
                        Some(at) => Some(DueDate { at, how: text!("due_how") }),
                        None => None,
                    },
                    list_digest: maybe(const { at(&TEXTS, "list_digest") }),
                }
            }
            "rekeyed" => {
                // Each is another one: nothing of it is kept.
                let old_tag = (!sources.is_null(row)).then(|| tag_of_hex(sources.value(row)));
                Fact::Rekeyed {
                    identifier: identifier!(),
                    old_tag: old_tag.ok_or_else(|| lacks("source"))?.ok_or("holds a tag that is none")?,
                }
            }
            "planned" => Fact::Planned {
                dataset: text!("dataset"),
                run_id: text!("run_id"),
                rows: rows!(),
                consumers: count(const { at(&COUNTS, "consumers") })?,
            },
            "removed" => Fact::Removed {
                dataset: text!("dataset"),
                run_id: text!("run_id"),
                rows: rows!(),
                consumers: count(const { at(&COUNTS, "consumers") })?,
                manifest_digest: text!("manifest_digest"),
            },
            "verified-clean" => {
                Fact::VerifiedClean { run_id: text!("run_id"), manifest_digest: text!("manifest_digest") }
            }
            "re-appeared" => Fact::Reappeared {
                dataset: text!("dataset"),
                run_id: text!("run_id"),
                object: text!("object"),
                rows: rows!(),
                since: time(const { at(&TIMES, "since") })?,
                written_by: maybe(const { at(&TEXTS, "written_by") }),
            },
            "found" => Fact::Found {
                dataset: text!("dataset"),
                run_id: text!("run_id"),
                object: text!("object"),
                rows: rows!(),
            },
            "exempted" => Fact::Exempted { ground: text!("ground"), until: time(const { at(&TIMES, "until") })? },
            "withdrawn" => Fact::Withdrawn { source: text!("source"), at: time(const { at(&TIMES, "received_at") })? },
            "imported" => Fact::Imported { source: text!("source"), list_digest: text!("list_digest") },
            "answered" => Fact::Answered {
                status: count(const { at(&COUNTS, "status") })?.ok_or_else(|| lacks("status"))?,
                source: text!("source"),
            },
            other => return Err(format!("an event is called \"{other}\", which this version does not know")),
        })
    }
}

fn column<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a ArrayRef, String> {
    batch.column_by_name(name).ok_or_else(|| format!("has no column {name}"))
}

fn text_column<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a StringArray, String> {
    column(batch, name)?.as_string_opt::<i32>().ok_or_else(|| format!("column {name} holds no text"))
}

fn time_column<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a TimestampMicrosecondArray, String> {
    let times = column(batch, name)?.as_primitive_opt::<TimestampMicrosecondType>();
    times.ok_or_else(|| format!("column {name} holds no times"))
}

fn count_column<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a Int64Array, String> {
    column(batch, name)?.as_primitive_opt::<Int64Type>().ok_or_else(|| format!("column {name} holds no counts"))
}

/// Earlier versions wrote fractions of the calendar's last second, which count as out of range but for a constructor of two parts.
fn moment(micros: i64) -> Result<Timestamp, String> {
    let (second, rest) = (micros.div_euclid(1_000_000), micros.rem_euclid(1_000_000));
    let in_last = |_| Timestamp::new(second, (rest * 1000) as i32);
    Timestamp::from_microsecond(micros).or_else(in_last).map_err(|_| "holds a time out of range".to_owned())
}

/// The last time that every reader of the ledger knows; a date behind it means for ever.
pub fn last_moment() -> Timestamp {
    Timestamp::from_second(Timestamp::MAX.as_second()).expect("a second of the calendar")
}

/// Takes the events of a batch behind those of the segment that is `open`, and gives away each segment that has ended.
fn decode_batch(
    batch: &RecordBatch,
    open: &mut Option<Segment>,
    texts: &mut Interner,
    give: &mut dyn FnMut(Segment),
) -> Result<(), String> {
    let (sequence, number) = (count_column(batch, "sequence")?, count_column(batch, "number")?);
    let (key, event) = (text_column(batch, "key")?, text_column(batch, "event")?);
    let (recorded_at, request_id) = (time_column(batch, "recorded_at")?, text_column(batch, "request_id")?);
    let mut columns = Columns::of(batch)?;
    for row in 0..batch.num_rows() {
        let event = Event {
            recorded_at: moment(recorded_at.value(row))?,
            request_id: request_id.value(row).into(),
            fact: columns.fact(row, event.value(row), texts)?,
        };
        let (sequence, key) = (sequence.value(row) as u64, key.value(row));
        if open.as_ref().is_none_or(|open| open.sequence != sequence) {
            open.take().into_iter().for_each(&mut *give);
            *open = Some(Segment { sequence, key_id: texts.text(key), events: Vec::new() });
        }
        let segment = open.as_mut().expect("opened above");
        if number.value(row) != segment.events.len() as i64 {
            return Err(format!("has an event missing in segment {sequence}"));
        }
        if *segment.key_id != *key {
            return Err(format!("has two keys in segment {sequence}"));
        }
        segment.events.push(event);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Text {
        text.into()
    }

    fn every_fact() -> Vec<Event> {
        let moment = |second| Timestamp::from_second(second).unwrap();
        let (dataset, run_id, manifest_digest) = (text("events"), text("run-1"), text("ab12"));
        let facts = [
            Fact::Received {
                identifier: Tagged { kind: text("email"), tag: [7; 32] },
                source: text("crm"),
                received_at: Some(moment(1_700_000_000)),
                regime: Some(text("us-ca-drop")),
                due: Some(DueDate { at: jiff::civil::date(2026, 9, 14), how: text("45 calendar days") }),
                list_digest: Some(text("cd")),
            },
            Fact::Received {
                identifier: Tagged { kind: text("phone"), tag: [0; 32] },
                source: text(""),
                received_at: None,
                regime: None,
                due: None,
                list_digest: None,
            },
            Fact::Rekeyed { identifier: Tagged { kind: text("email"), tag: [8; 32] }, old_tag: [7; 32] },
            Fact::Planned { dataset: dataset.clone(), run_id: run_id.clone(), rows: 3, consumers: None },
            Fact::Removed {
                dataset: dataset.clone(),
                run_id: run_id.clone(),
                rows: 3,
                consumers: Some(2),
                manifest_digest: manifest_digest.clone(),
            },
            Fact::VerifiedClean { run_id: run_id.clone(), manifest_digest },
            Fact::Reappeared {
                dataset,
                run_id,
                object: text("lake/a.csv"),
                rows: 1,
                since: Some(moment(-5)),
                written_by: Some(text("loader")),
            },
            Fact::Exempted { ground: text("tax law"), until: Some(moment(1_800_000_000)) },
            Fact::Withdrawn { source: text("desk"), at: None },
            Fact::Withdrawn { source: text("download"), at: Some(moment(1_790_000_000)) },
            Fact::Answered { status: 3, source: text("drop") },
            Fact::Imported { source: text("crm"), list_digest: text("cd") },
        ];
        let event = |(i, fact)| Event { recorded_at: moment(i as i64), request_id: text(&format!("r{i}")), fact };
        facts.into_iter().enumerate().map(event).collect()
    }

    fn segments() -> Vec<Segment> {
        let first = Segment { sequence: 4, key_id: text("k1"), events: every_fact() };
        let second = Segment { sequence: 5, key_id: text("k2"), events: every_fact()[..1].to_vec() };
        vec![first, second]
    }

    #[test]
    fn what_was_written_is_read_again() {
        let bytes = encode(&segments(), &[9; 32]).unwrap();
        let decoded = decode(bytes, &mut Interner::default()).unwrap();
        let last = segments().iter().fold([9; 32], |before, segment| segment.digest(&before));
        assert_eq!(decoded, Decoded { previous: [9; 32], last, segments: segments() });
    }

    /// Earlier versions wrote the last moment of the calendar with its fraction.
    #[test]
    fn a_fraction_of_the_last_second_is_read_again() {
        let last = Timestamp::new(Timestamp::MAX.as_second(), 999_999_000).unwrap();
        let fact = Fact::Exempted { ground: text("tax"), until: Some(last) };
        let segment = Segment {
            sequence: 1,
            key_id: text("k1"),
            events: vec![Event { recorded_at: last, request_id: text("r"), fact }],
        };
        let decoded = decode(encode(std::slice::from_ref(&segment), &[0; 32]).unwrap(), &mut Interner::default());
        assert_eq!(decoded.unwrap().segments, [segment]);
    }

    #[test]
    fn segments_have_one_digest_whatever_file_they_stand_in() {
        let [first, second] = &segments()[..] else { panic!("two") };
        let apart = second.digest(&first.digest(&[0; 32]));
        let together = decode(encode(&segments(), &[0; 32]).unwrap(), &mut Interner::default()).unwrap();
        assert_eq!(together.segments.iter().fold([0; 32], |before, segment| segment.digest(&before)), apart);
    }

    #[test]
    fn every_field_is_in_the_digest() {
        let whole = segments().remove(0);
        let digest = whole.digest(&[0; 32]);
        assert_ne!(whole.digest(&[1; 32]), digest);
        for change in [
            (&|s: &mut Segment| s.sequence = 5) as &dyn Fn(&mut Segment),
            &|s| s.key_id = text("k2"),
            &|s| drop(s.events.pop()),
            &|s| s.events[0].request_id = text("r9"),
            &|s| s.events.swap(0, 1),
            &|s| {
                let Fact::Planned { rows, .. } = &mut s.events[3].fact else { panic!("planned") };
                *rows += 1;
            },
            &|s| {
                let Fact::Received { received_at, .. } = &mut s.events[1].fact else { panic!("received") };
                *received_at = Some(Timestamp::UNIX_EPOCH);
            },
        ] {
            let mut changed = whole.clone();
            change(&mut changed);
            assert_ne!(changed.digest(&[0; 32]), digest);
        }
    }
}
