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

/// An event as a row: every field that any fact has. `texts[i]` stands in the column `TEXTS[i]`, and so on.
#[derive(Default)]
struct Row {
    texts: [Option<Text>; TEXTS.len()],
    times: [Option<Timestamp>; TIMES.len()],
    counts: [Option<u64>; COUNTS.len()],
    tag: Option<[u8; 32]>,
    due_at: Option<Date>,
}

fn at(names: &[&str], name: &str) -> usize {
    names.iter().position(|known| *known == name).expect("a column of the table")
}

impl Row {
    fn text(&mut self, name: &str, text: &Text) -> &mut Row {
        self.texts[at(&TEXTS, name)] = Some(text.clone());
        self
    }

    fn maybe(&mut self, name: &str, text: &Option<Text>) -> &mut Row {
        self.texts[at(&TEXTS, name)] = text.clone();
        self
    }

    fn time(&mut self, name: &str, time: Option<Timestamp>) -> &mut Row {
        self.times[at(&TIMES, name)] = time;
        self
    }

    fn count(&mut self, name: &str, count: Option<u64>) -> &mut Row {
        self.counts[at(&COUNTS, name)] = count;
        self
    }

    fn of(fact: &Fact) -> Row {
        let mut row = Row::default();
        match fact {
            Fact::Received { identifier, source, received_at, regime, due, list_digest } => {
                row.text("kind", &identifier.kind).text("source", source).time("received_at", *received_at);
                row.maybe("regime", regime).maybe("list_digest", list_digest);
                row.maybe("due_how", &due.as_ref().map(|due| due.how.clone()));
                (row.tag, row.due_at) = (Some(identifier.tag), due.as_ref().map(|due| due.at));
            }
            Fact::Rekeyed { identifier, old_tag } => {
                row.text("kind", &identifier.kind).text("source", &hex::encode(old_tag).into());
                row.tag = Some(identifier.tag);
            }
            Fact::Planned { dataset, run_id, rows, consumers } => {
                row.text("dataset", dataset).text("run_id", run_id).count("rows", Some(*rows));
                row.count("consumers", *consumers);
            }
            Fact::Removed { dataset, run_id, rows, consumers, manifest_digest } => {
                row.text("dataset", dataset).text("run_id", run_id).count("rows", Some(*rows));
                row.count("consumers", *consumers).text("manifest_digest", manifest_digest);
            }
            Fact::VerifiedClean { run_id, manifest_digest } => {
                row.text("run_id", run_id).text("manifest_digest", manifest_digest);
            }
            Fact::Reappeared { dataset, run_id, object, rows, since, written_by } => {
                row.text("dataset", dataset).text("run_id", run_id).text("object", object);
                row.count("rows", Some(*rows)).time("since", *since).maybe("written_by", written_by);
            }
            Fact::Found { dataset, run_id, object, rows } => {
                row.text("dataset", dataset).text("run_id", run_id).text("object", object).count("rows", Some(*rows));
            }
            Fact::Exempted { ground, until } => {
                row.text("ground", ground).time("until", *until);
            }
            // A column of its own would give every older segment another digest.
            Fact::Withdrawn { source, at } => {
                row.text("source", source).time("received_at", *at);
            }
            Fact::Answered { status, source } => {
                row.count("status", Some(*status)).text("source", source);
            }
        }
        row
    }

    fn fact(&self, name: &str) -> Result<Fact, String> {
        let maybe = |column: &str| self.texts[at(&TEXTS, column)].clone();
        let text = |column: &str| maybe(column).ok_or_else(|| format!("an event {name} has no {column}"));
        let time = |column: &str| self.times[at(&TIMES, column)];
        let maybe_count = |column: &str| self.counts[at(&COUNTS, column)];
        let count = |column: &str| maybe_count(column).ok_or_else(|| format!("an event {name} has no {column}"));
        let identifier = || -> Result<Tagged, String> {
            let tag = self.tag.ok_or_else(|| format!("an event {name} has no tag"))?;
            Ok(Tagged { kind: text("kind")?, tag })
        };
        Ok(match name {
            "received" => Fact::Received {
                identifier: identifier()?,
                source: text("source")?,
                received_at: time("received_at"),
                regime: maybe("regime"),
                due: self
                    .due_at
                    .map(|at| Ok(DueDate { at, how: text("due_how")? }))
                    .transpose()
                    .map_err(|e: String| e)?,
                list_digest: maybe("list_digest"),
            },
            "rekeyed" => {
                let (mut old_tag, source) = ([0; 32], text("source")?);
                hex::decode_to_slice(&*source, &mut old_tag).map_err(|_| "holds a tag that is none".to_owned())?;
                Fact::Rekeyed { identifier: identifier()?, old_tag }
            }
            "planned" => Fact::Planned {
                dataset: text("dataset")?,
                run_id: text("run_id")?,
                rows: count("rows")?,
                consumers: maybe_count("consumers"),
            },
            "removed" => Fact::Removed {
                dataset: text("dataset")?,
                run_id: text("run_id")?,
                rows: count("rows")?,
                consumers: maybe_count("consumers"),
                manifest_digest: text("manifest_digest")?,
            },
            "verified-clean" => {
                Fact::VerifiedClean { run_id: text("run_id")?, manifest_digest: text("manifest_digest")? }
            }
            "re-appeared" => Fact::Reappeared {
                dataset: text("dataset")?,
                run_id: text("run_id")?,
                object: text("object")?,
                rows: count("rows")?,
                since: time("since"),
                written_by: maybe("written_by"),
            },
            "found" => Fact::Found {
                dataset: text("dataset")?,
                run_id: text("run_id")?,
                object: text("object")?,
                rows: count("rows")?,
            },
            "exempted" => Fact::Exempted { ground: text("ground")?, until: time("until") },
            "withdrawn" => Fact::Withdrawn { source: text("source")?, at: time("received_at") },
            "answered" => Fact::Answered { status: count("status")?, source: text("source")? },
            other => return Err(format!("an event is called \"{other}\", which this version does not know")),
        })
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
            row.texts.iter().for_each(|text| push(&mut bytes, text.as_ref().map(|text| text.as_bytes())));
            let times = row.times.iter().map(|time| time.map(|time| time.as_microsecond().to_le_bytes()));
            times.for_each(|time| push(&mut bytes, time.as_ref().map(|time| &time[..])));
            let counts = row.counts.iter().map(|count| count.map(u64::to_le_bytes));
            counts.for_each(|count| push(&mut bytes, count.as_ref().map(|count| &count[..])));
            push(&mut bytes, row.tag.as_ref().map(|tag| &tag[..]));
            let due_at = row.due_at.map(|due_at| days(due_at).to_le_bytes());
            push(&mut bytes, due_at.as_ref().map(|days| &days[..]));
            sha.update(&bytes);
            bytes.clear();
        }
        sha.finalize().into()
    }
}

/// The length keeps a field's end apart from the next one's start, and a missing field from an empty one.
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
    let rows: Vec<Row> = events.iter().map(|(_, (_, event))| Row::of(&event.fact)).collect();
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
        let texts = StringArray::from_iter(rows.iter().map(|row| row.texts[i].as_deref()));
        columns.push((name, Arc::new(texts), true));
    }
    for (i, name) in TIMES.iter().enumerate() {
        columns.push((name, utc(rows.iter().map(|row| row.times[i].map(Timestamp::as_microsecond)).collect()), true));
    }
    for (i, name) in COUNTS.iter().enumerate() {
        // Signed, because that is what every reader of Parquet has.
        let counts = rows.iter().map(|row| row.counts[i].map(|count| i64::try_from(count).unwrap_or(i64::MAX)));
        columns.push((name, Arc::new(Int64Array::from_iter(counts)), true));
    }
    RecordBatch::try_from_iter_with_nullable(columns)
}

/// What a file of segments holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decoded {
    /// The digest of the chain before its first segment, as the file has it.
    pub previous: ChainDigest,
    pub segments: Vec<Segment>,
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
    let mut segments: Vec<Segment> = Vec::new();
    for batch in builder.build().map_err(|error| format!("cannot be decoded: {error}"))? {
        let batch = batch.map_err(|error| format!("cannot be decoded: {error}"))?;
        decode_batch(&batch, &mut segments, texts)?;
    }
    if segments.iter().fold(previous, |before, segment| segment.digest(&before)) != last {
        return Err("has events that do not fit its digest".to_owned());
    }
    Ok(Decoded { previous, segments })
}

fn decode_batch(batch: &RecordBatch, segments: &mut Vec<Segment>, texts: &mut Interner) -> Result<(), String> {
    let column = |name: &str| batch.column_by_name(name).ok_or_else(|| format!("has no column {name}"));
    let text = |name: &str| column(name)?.as_string_opt::<i32>().ok_or_else(|| format!("column {name} holds no text"));
    let time = |name: &str| {
        let times = column(name)?.as_primitive_opt::<TimestampMicrosecondType>();
        times.ok_or_else(|| format!("column {name} holds no times"))
    };
    let count = |name: &str| {
        column(name)?.as_primitive_opt::<Int64Type>().ok_or_else(|| format!("column {name} holds no counts"))
    };
    let (sequence, number, key, event) = (count("sequence")?, count("number")?, text("key")?, text("event")?);
    let (recorded_at, request_id, tag) = (time("recorded_at")?, text("request_id")?, text("tag")?);
    let due_at = column("due_at")?.as_primitive_opt::<Date32Type>().ok_or("column due_at holds no dates")?;
    let text_columns = TEXTS.iter().map(|name| text(name)).collect::<Result<Vec<_>, _>>()?;
    let time_columns = TIMES.iter().map(|name| time(name)).collect::<Result<Vec<_>, _>>()?;
    let count_columns = COUNTS.iter().map(|name| count(name)).collect::<Result<Vec<_>, _>>()?;
    let moment = |micros: i64| Timestamp::from_microsecond(micros).map_err(|_| "holds a time out of range".to_owned());
    for i in 0..batch.num_rows() {
        let mut row = Row::default();
        for (field, column) in row.texts.iter_mut().zip(&text_columns) {
            *field = (!column.is_null(i)).then(|| texts.text(column.value(i)));
        }
        for (field, column) in row.times.iter_mut().zip(&time_columns) {
            *field = (!column.is_null(i)).then(|| moment(column.value(i))).transpose()?;
        }
        for (field, column) in row.counts.iter_mut().zip(&count_columns) {
            let value = (!column.is_null(i)).then(|| u64::try_from(column.value(i)));
            *field = value.transpose().map_err(|_| "holds a negative count".to_owned())?;
        }
        if !tag.is_null(i) {
            let mut raw = [0; 32];
            hex::decode_to_slice(tag.value(i), &mut raw).map_err(|_| "holds a tag that is none".to_owned())?;
            row.tag = Some(raw);
        }
        if !due_at.is_null(i) {
            row.due_at = Some(of_days(due_at.value(i)).ok_or("holds a date out of range")?);
        }
        let event = Event {
            recorded_at: moment(recorded_at.value(i))?,
            request_id: request_id.value(i).into(),
            fact: row.fact(event.value(i))?,
        };
        let (sequence, key) = (sequence.value(i) as u64, key.value(i));
        let begins = segments.last().is_none_or(|last| last.sequence != sequence);
        let expected = segments.last().filter(|_| !begins).map_or(0, |last| last.events.len());
        if number.value(i) != expected as i64 {
            return Err(format!("has an event missing in segment {sequence}"));
        }
        if begins {
            segments.push(Segment { sequence, key_id: texts.text(key), events: Vec::new() });
        }
        let segment = segments.last_mut().expect("one was pushed");
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
        assert_eq!(decoded, Decoded { previous: [9; 32], segments: segments() });
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
