//! `objects.parquet`: one row per object and object version in scope, its bytes and its Merkle leaves.
//!
//! Knows the table's columns and nothing of the statement that binds it. Invariant: the same rows give the same bytes (no time
//! stamp, no thread, one order), and `decode(encode(rows)) == rows`.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::Int64Type;
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::merkle::MerkleTree;

/// One object, or one noncurrent version of it. A count that is `None` was not checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectRow {
    pub dataset: String,
    pub location: String,
    /// As it is now; of a dropped or purged one, as it was last.
    pub etag: Option<String>,
    pub version_id: Option<String>,
    /// False for a noncurrent version, which no total counts.
    pub is_current: bool,
    pub size_bytes: Option<u64>,
    /// Hex, where the object was read whole.
    pub sha256: Option<String>,
    /// Rows the verifying scan read.
    pub rows_scanned: Option<u64>,
    pub rows_matched: Option<u64>,
    pub rows_redacted: Option<u64>,
    /// Cells in which a stray identifier was replaced. The column is there when a dataset of the run redacts strays: without a count
    /// in any row, neither the table nor the Merkle leaves have it.
    #[serde(default)]
    pub strays_redacted: Option<u64>,
    /// Known together with `rows_removed` and `rows_after`, or not at all.
    pub rows_before: Option<u64>,
    pub rows_removed: Option<u64>,
    /// Counted from the store after the write.
    pub rows_after: Option<u64>,
    /// `delete`, `redact` or `none`.
    pub action: String,
    pub outcome: Outcome,
    /// The engine whose scan this row rests on, with its version; `None` if none read it.
    pub checked_by: Option<String>,
    /// Why the outcome is what it is, in words without an identifier.
    pub reason: Option<String>,
}

/// What became of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Read, nothing to change.
    Unchanged,
    Rewritten,
    /// The object was removed because none of its rows was left.
    Dropped,
    /// A noncurrent version was removed.
    Purged,
    /// Matches were found and left, as the command or the job says (`verify`, `noncurrent = "report"`).
    Reported,
    /// The verifying scan found a match after the run's own work.
    Residue,
    Unreadable,
    Unsupported,
    Archived,
    /// Left out by the job's own words, as with `missing_column = "skip"`.
    Skipped,
    /// An object lock, a legal hold or a permission stands in the way.
    Locked,
    /// Another writer changed it under the run.
    Changed,
    Failed,
}

impl ObjectRow {
    /// Whether the run gave the object new content: also where the verifying scan then found residue in it.
    pub fn is_rewritten(&self) -> bool {
        self.outcome == Outcome::Rewritten || (self.outcome != Outcome::Dropped && self.sha256.is_some())
    }
}

impl Outcome {
    pub const ALL: [Outcome; 13] = [
        Outcome::Unchanged,
        Outcome::Rewritten,
        Outcome::Dropped,
        Outcome::Purged,
        Outcome::Reported,
        Outcome::Residue,
        Outcome::Unreadable,
        Outcome::Unsupported,
        Outcome::Archived,
        Outcome::Skipped,
        Outcome::Locked,
        Outcome::Changed,
        Outcome::Failed,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Outcome::Unchanged => "unchanged",
            Outcome::Rewritten => "rewritten",
            Outcome::Dropped => "dropped",
            Outcome::Purged => "purged",
            Outcome::Reported => "reported",
            Outcome::Residue => "residue",
            Outcome::Unreadable => "unreadable",
            Outcome::Unsupported => "unsupported",
            Outcome::Archived => "archived",
            Outcome::Skipped => "skipped",
            Outcome::Locked => "locked",
            Outcome::Changed => "changed",
            Outcome::Failed => "failed",
        }
    }

    /// Whether an object of this outcome may stand in a manifest whose verdict is clean.
    pub fn is_clean(self) -> bool {
        match self {
            Outcome::Unchanged | Outcome::Rewritten | Outcome::Dropped | Outcome::Purged => true,
            Outcome::Reported
            | Outcome::Residue
            | Outcome::Unreadable
            | Outcome::Unsupported
            | Outcome::Archived
            | Outcome::Skipped
            | Outcome::Locked
            | Outcome::Changed
            | Outcome::Failed => false,
        }
    }

    /// Whether its rows could not be read.
    pub fn is_unread(self) -> bool {
        match self {
            Outcome::Unreadable | Outcome::Unsupported | Outcome::Archived => true,
            Outcome::Unchanged
            | Outcome::Rewritten
            | Outcome::Dropped
            | Outcome::Purged
            | Outcome::Reported
            | Outcome::Residue
            | Outcome::Skipped
            | Outcome::Locked
            | Outcome::Changed
            | Outcome::Failed => false,
        }
    }

    fn parse(name: &str) -> Option<Outcome> {
        Outcome::ALL.into_iter().find(|outcome| outcome.name() == name)
    }
}

impl ObjectRow {
    /// A current object of which nothing is known yet but that it was listed; the other fields are filled in by name.
    pub fn new(dataset: impl Into<String>, location: impl Into<String>) -> Self {
        ObjectRow {
            dataset: dataset.into(),
            location: location.into(),
            etag: None,
            version_id: None,
            is_current: true,
            size_bytes: None,
            sha256: None,
            rows_scanned: None,
            rows_matched: None,
            rows_redacted: None,
            strays_redacted: None,
            rows_before: None,
            rows_removed: None,
            rows_after: None,
            action: "none".to_owned(),
            outcome: Outcome::Unchanged,
            checked_by: None,
            reason: None,
        }
    }

    /// What makes a row the only one of its kind, and gives the table its order.
    pub fn key(&self) -> (&str, &str, bool, Option<&str>) {
        (&self.dataset, &self.location, !self.is_current, self.version_id.as_deref())
    }

    /// The Merkle leaf: JSON without white space, keys in byte order, every column of the table there (`null`: not checked).
    pub fn canonical_json(&self, has_strays: bool) -> Vec<u8> {
        let serde_json::Value::Object(fields) = serde_json::to_value(self).expect("a row has string keys only") else {
            unreachable!("a struct becomes an object");
        };
        let fields = fields.into_iter().filter(|(name, _)| has_strays || name != STRAYS_COLUMN);
        let sorted: std::collections::BTreeMap<_, _> = fields.collect();
        serde_json::to_vec(&sorted).expect("a row has string keys only")
    }
}

/// By dataset, location (current before noncurrent) and version.
pub fn sort(rows: &mut [ObjectRow]) {
    rows.sort_by(|a, b| a.key().cmp(&b.key()));
}

/// The column that only the tables of some runs have, and none of those before it was thought of.
const STRAYS_COLUMN: &str = "strays_redacted";

/// Whether a table of these rows has the column of redacted strays.
pub fn has_strays(rows: &[ObjectRow]) -> bool {
    rows.iter().any(|row| row.strays_redacted.is_some())
}

pub fn tree(rows: &[ObjectRow]) -> MerkleTree {
    let has_strays = has_strays(rows);
    MerkleTree::new(rows.iter().map(|row| row.canonical_json(has_strays)))
}

/// Rows that are held as Arrow arrays at a time.
const ROWS_A_BATCH: usize = 1 << 16;

/// The bytes of `objects.parquet`, rows as they come.
pub fn encode(rows: &[ObjectRow]) -> Result<Bytes> {
    let cannot = |error: &dyn std::fmt::Display| Error::internal(format!("cannot encode objects.parquet: {error}"));
    let properties = WriterProperties::builder()
        .set_created_by(concat!("lakescrub ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(3).expect("zstd has a level 3")))
        .set_statistics_enabled(EnabledStatistics::None)
        .build();
    let options = ArrowWriterOptions::new().with_properties(properties).with_skip_arrow_metadata(true);
    let has_strays = has_strays(rows);
    let schema = batch(&[], has_strays).map_err(|error| cannot(&error))?.schema();
    let mut writer = ArrowWriter::try_new_with_options(Vec::new(), schema, options).map_err(|error| cannot(&error))?;
    for rows in rows.chunks(ROWS_A_BATCH) {
        let batch = batch(rows, has_strays).map_err(|error| cannot(&error))?;
        writer.write(&batch).map_err(|error| cannot(&error))?;
    }
    writer.into_inner().map(Bytes::from).map_err(|error| cannot(&error))
}

/// The rows of `objects.parquet`. The error says what is wrong with it.
pub fn decode(bytes: Bytes) -> Result<Vec<ObjectRow>, String> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(bytes)
        .and_then(ParquetRecordBatchReaderBuilder::build)
        .map_err(|error| format!("is no Parquet file: {error}"))?;
    let mut rows = Vec::new();
    for batch in reader {
        let batch = batch.map_err(|error| format!("cannot be decoded: {error}"))?;
        decode_batch(&batch, &mut rows)?;
    }
    Ok(rows)
}

fn batch(rows: &[ObjectRow], has_strays: bool) -> Result<RecordBatch, arrow::error::ArrowError> {
    let text =
        |field: fn(&ObjectRow) -> &str| Arc::new(StringArray::from_iter_values(rows.iter().map(field))) as ArrayRef;
    let maybe =
        |field: fn(&ObjectRow) -> Option<&str>| Arc::new(StringArray::from_iter(rows.iter().map(field))) as ArrayRef;
    let count = |field: fn(&ObjectRow) -> Option<u64>| {
        // Signed, because that is what every reader of Parquet has; 2^63 rows or bytes do not occur.
        let counts = rows.iter().map(|row| field(row).map(|count| i64::try_from(count).unwrap_or(i64::MAX)));
        Arc::new(Int64Array::from_iter(counts)) as ArrayRef
    };
    let current = Arc::new(BooleanArray::from_iter(rows.iter().map(|row| Some(row.is_current)))) as ArrayRef;
    let mut columns = vec![
        ("dataset", text(|row| &row.dataset), false),
        ("location", text(|row| &row.location), false),
        ("etag", maybe(|row| row.etag.as_deref()), true),
        ("version_id", maybe(|row| row.version_id.as_deref()), true),
        ("is_current", current, false),
        ("size_bytes", count(|row| row.size_bytes), true),
        ("sha256", maybe(|row| row.sha256.as_deref()), true),
        ("rows_scanned", count(|row| row.rows_scanned), true),
        ("rows_matched", count(|row| row.rows_matched), true),
        ("rows_redacted", count(|row| row.rows_redacted), true),
        ("rows_before", count(|row| row.rows_before), true),
        ("rows_removed", count(|row| row.rows_removed), true),
        ("rows_after", count(|row| row.rows_after), true),
        ("action", text(|row| &row.action), false),
        ("outcome", text(|row| row.outcome.name()), false),
        ("checked_by", maybe(|row| row.checked_by.as_deref()), true),
        ("reason", maybe(|row| row.reason.as_deref()), true),
    ];
    if has_strays {
        columns.push((STRAYS_COLUMN, count(|row| row.strays_redacted), true));
    }
    RecordBatch::try_from_iter_with_nullable(columns)
}

fn decode_batch(batch: &RecordBatch, rows: &mut Vec<ObjectRow>) -> Result<(), String> {
    let column = |name: &str| batch.column_by_name(name).ok_or_else(|| format!("has no column {name}"));
    let text = |name: &str| column(name)?.as_string_opt::<i32>().ok_or_else(|| format!("column {name} holds no text"));
    let count = |name: &str| {
        column(name)?.as_primitive_opt::<Int64Type>().ok_or_else(|| format!("column {name} holds no counts"))
    };
    let current = column("is_current")?.as_boolean_opt().ok_or("column is_current holds no booleans")?;
    let texts = Texts {
        dataset: text("dataset")?,
        location: text("location")?,
        etag: text("etag")?,
        version_id: text("version_id")?,
        sha256: text("sha256")?,
        action: text("action")?,
        outcome: text("outcome")?,
        checked_by: text("checked_by")?,
        reason: text("reason")?,
    };
    let names =
        ["size_bytes", "rows_scanned", "rows_matched", "rows_redacted", "rows_before", "rows_removed", "rows_after"];
    let counts = names.iter().map(|name| count(name)).collect::<Result<Vec<_>, _>>()?;
    let strays = batch.column_by_name(STRAYS_COLUMN).is_some().then(|| count(STRAYS_COLUMN)).transpose()?;
    for i in 0..batch.num_rows() {
        let outcome = texts.outcome.value(i);
        let in_row = |counts: &Int64Array, name: &str| -> Result<Option<u64>, String> {
            let count = (!counts.is_null(i)).then(|| u64::try_from(counts.value(i)));
            count.transpose().map_err(|_| format!("column {name} holds a negative count"))
        };
        let count = |column: usize| in_row(counts[column], names[column]);
        rows.push(ObjectRow {
            dataset: texts.dataset.value(i).to_owned(),
            location: texts.location.value(i).to_owned(),
            etag: maybe(texts.etag, i),
            version_id: maybe(texts.version_id, i),
            is_current: current.value(i),
            size_bytes: count(0)?,
            sha256: maybe(texts.sha256, i),
            rows_scanned: count(1)?,
            rows_matched: count(2)?,
            rows_redacted: count(3)?,
            strays_redacted: strays.map_or(Ok(None), |strays| in_row(strays, STRAYS_COLUMN))?,
            rows_before: count(4)?,
            rows_removed: count(5)?,
            rows_after: count(6)?,
            action: texts.action.value(i).to_owned(),
            outcome: Outcome::parse(outcome).ok_or_else(|| format!("has the unknown outcome {outcome:?}"))?,
            checked_by: maybe(texts.checked_by, i),
            reason: maybe(texts.reason, i),
        });
    }
    Ok(())
}

struct Texts<'a> {
    dataset: &'a StringArray,
    location: &'a StringArray,
    etag: &'a StringArray,
    version_id: &'a StringArray,
    sha256: &'a StringArray,
    action: &'a StringArray,
    outcome: &'a StringArray,
    checked_by: &'a StringArray,
    reason: &'a StringArray,
}

fn maybe(texts: &StringArray, i: usize) -> Option<String> {
    (!texts.is_null(i)).then(|| texts.value(i).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<ObjectRow> {
        let mut rows: Vec<ObjectRow> = Outcome::ALL
            .into_iter()
            .enumerate()
            .map(|(i, outcome)| ObjectRow {
                outcome,
                etag: Some(format!("\"{i}\"")),
                rows_before: Some(i as u64),
                size_bytes: Some(u64::from(u32::MAX) + i as u64),
                ..ObjectRow::new("events", format!("s3://lake/events/{i}"))
            })
            .collect();
        rows.push(ObjectRow {
            version_id: Some("v".into()),
            is_current: false,
            sha256: Some("00".into()),
            rows_scanned: Some(1),
            rows_matched: Some(2),
            rows_redacted: Some(3),
            rows_removed: Some(4),
            rows_after: Some(5),
            action: "redact".into(),
            checked_by: Some("polars 0".into()),
            reason: Some("a \"reason\", with ü".into()),
            ..ObjectRow::new("users", "file:///lake/users")
        });
        rows
    }

    #[test]
    fn rows_come_back_as_they_were_and_the_bytes_are_always_the_same() {
        let mut strayed = rows();
        strayed[0].strays_redacted = Some(3);
        for rows in [vec![], rows(), strayed] {
            let bytes = encode(&rows).unwrap();
            assert_eq!(decode(bytes.clone()).unwrap(), rows);
            assert_eq!(encode(&rows).unwrap(), bytes);
        }
    }

    #[test]
    fn a_leaf_has_sorted_keys_no_white_space_and_every_key() {
        let row = ObjectRow { rows_after: Some(7), ..ObjectRow::new("events", "s3://lake/a b") };
        let wish = concat!(
            r#"{"action":"none","checked_by":null,"dataset":"events","etag":null,"is_current":true,"#,
            r#""location":"s3://lake/a b","outcome":"unchanged","reason":null,"rows_after":7,"rows_before":null,"#,
            r#""rows_matched":null,"rows_redacted":null,"rows_removed":null,"rows_scanned":null,"sha256":null,"#,
            r#""size_bytes":null,"version_id":null}"#
        );
        assert_eq!(
            String::from_utf8(row.canonical_json(false)).unwrap(),
            wish,
            "as it was before there was a count of strays"
        );
        let with_strays = wish.replace(r#""version_id"#, r#""strays_redacted":null,"version_id"#);
        assert_eq!(String::from_utf8(row.canonical_json(true)).unwrap(), with_strays);
    }

    #[test]
    fn every_field_reaches_the_leaf() {
        let base = rows().pop().unwrap();
        let changes: [fn(&mut ObjectRow); 7] = [
            |row| row.strays_redacted = Some(1),
            |row| row.etag = Some("x".into()),
            |row| row.is_current = true,
            |row| row.rows_after = None,
            |row| row.outcome = Outcome::Failed,
            |row| row.reason = None,
            |row| row.location.push('x'),
        ];
        for change in changes {
            let mut changed = base.clone();
            change(&mut changed);
            assert_ne!(changed.canonical_json(true), base.canonical_json(true), "{changed:?}");
        }
    }

    #[test]
    fn names_and_json_spellings_of_outcomes_are_the_same() {
        for outcome in Outcome::ALL {
            assert_eq!(serde_json::to_value(outcome).unwrap(), outcome.name());
            assert_eq!(Outcome::parse(outcome.name()), Some(outcome));
        }
    }

    #[test]
    fn what_is_no_such_table_is_told_and_does_not_panic() {
        let mut cut = encode(&rows()).unwrap().to_vec();
        cut.truncate(cut.len() / 2);
        let other = RecordBatch::try_from_iter([("dataset", Arc::new(Int64Array::from(vec![1])) as ArrayRef)]).unwrap();
        let mut writer = ArrowWriter::try_new(Vec::new(), other.schema(), None).unwrap();
        writer.write(&other).unwrap();
        for bytes in [vec![], cut, writer.into_inner().unwrap()] {
            assert!(decode(Bytes::from(bytes)).is_err());
        }
    }
}
