//! `requests export`: what the ledger amounts to, or its events, as CSV, NDJSON or Parquet.
//!
//! One table, encoded three ways; decides nothing. Invariant: what a column says is what `requests list` says.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::DataType;
use arrow::util::display::array_value_to_string;
use jiff::Timestamp;
use parquet::arrow::ArrowWriter;
use serde_json::{Value, json};

use crate::cli::{Common, ExportFormat, print_result};
use crate::error::{Error, Exit, Result};
use crate::ledger_event::{Tagged, table};
use crate::ledger_fold::Request;
use crate::request_deadlines::due_of;
use crate::requests::{Desk, holders};
use crate::run::{exit_json, print_json, print_lines};

/// Writes the export to `out`, or to stdout.
pub async fn export(
    common: &Common,
    desk: &Desk,
    out: Option<&Path>,
    events: bool,
    format: Option<ExportFormat>,
) -> Result<Exit> {
    let of_name = |path: &Path| match path.extension().and_then(|ending| ending.to_str()) {
        Some("csv") => Ok(ExportFormat::Csv),
        Some("ndjson" | "jsonl" | "json") => Ok(ExportFormat::Ndjson),
        Some("parquet") => Ok(ExportFormat::Parquet),
        _ => Err(Error::usage(format!("the name {} tells no format", path.display()))
            .hint("end it in .csv, .ndjson or .parquet, or say --format")),
    };
    let format = match (format, out) {
        (Some(format), _) => format,
        (None, Some(path)) => of_name(path)?,
        (None, None) => ExportFormat::Csv,
    };
    let batch = if events { table(&desk.ledger.segments().await?)? } else { requests_table(desk)? };
    if common.json && out.is_none() {
        print_json(&json!({
            "command": "requests export",
            "exit": exit_json(Exit::Clean),
            "rows": records(&batch)?,
            "ledger": desk.ledger_json(),
        }))?;
        return Ok(Exit::Clean);
    }
    let bytes = match format {
        ExportFormat::Csv => csv(&batch)?,
        ExportFormat::Ndjson => ndjson(&batch)?,
        ExportFormat::Parquet => parquet(&batch)?,
    };
    match out {
        Some(path) => {
            std::fs::write(path, bytes)
                .map_err(|error| Error::usage(format!("cannot write {}: {error}", path.display())))?;
            if common.json {
                print_json(&json!({
                    "command": "requests export",
                    "exit": exit_json(Exit::Clean),
                    "rows": batch.num_rows(),
                    "out": path,
                    "ledger": desk.ledger_json(),
                }))?;
            } else {
                print_lines(&[format!("{} rows written to {}", batch.num_rows(), path.display())])?;
            }
        }
        None if format == ExportFormat::Parquet => {
            return Err(Error::usage("Parquet is not written to stdout").hint("say --out FILE.parquet"));
        }
        None => print_result(&String::from_utf8_lossy(&bytes))?,
    }
    Ok(Exit::Clean)
}

/// One row a request.
fn requests_table(desk: &Desk) -> Result<RecordBatch> {
    let (requests, now) = (desk.ledger.requests(), desk.now);
    let all: Vec<&Request> = requests.iter().collect();
    let text = |field: &dyn Fn(&Request) -> Option<String>| {
        Arc::new(StringArray::from_iter(all.iter().map(|request| field(request)))) as ArrayRef
    };
    let time = |field: &dyn Fn(&Request) -> Option<Timestamp>| {
        let micros = all.iter().map(|request| field(request).map(Timestamp::as_microsecond)).collect::<Vec<_>>();
        Arc::new(TimestampMicrosecondArray::from(micros).with_timezone("UTC")) as ArrayRef
    };
    let count = |field: &dyn Fn(&Request) -> Option<u64>| {
        let counts = all.iter().map(|request| field(request).map(|count| count as i64));
        Arc::new(Int64Array::from_iter(counts)) as ArrayRef
    };
    let joined = |request: &Request, field: &dyn Fn(&Tagged) -> String| {
        Some(requests.identifiers(request).map(field).collect::<Vec<_>>().join(" "))
    };
    let removed_in = |request: &Request| {
        let datasets = request.datasets.iter().filter(|(_, facts)| facts.rows_removed > 0);
        Some(datasets.map(|(name, _)| name.to_string()).collect::<Vec<_>>().join(" "))
    };
    let verified = |request: &Request| request.verified.clone();
    let due = |request: &Request| due_of(&desk.job.regimes, request, now);
    let holds = requests.holds(now);
    let batch = RecordBatch::try_from_iter_with_nullable([
        ("request_id", text(&|request| Some(request.id.to_string())), false),
        ("state", text(&|request| Some(request.state(now).name().to_owned())), false),
        ("source", text(&|request| Some(request.source.to_string())), false),
        ("kinds", text(&|request| joined(request, &|tagged| tagged.kind.to_string())), false),
        ("tags", text(&|request| joined(request, &|tagged| hex::encode(tagged.tag))), false),
        ("received_at", time(&|request| request.received_at), true),
        ("recorded_at", time(&|request| Some(request.recorded_at)), false),
        ("regime", text(&|request| request.regime.as_ref().map(ToString::to_string)), true),
        ("due_at", text(&|request| due(request).map(|due| due.at.to_string())), true),
        ("due_how", text(&|request| due(request).map(|due| due.how.to_string())), true),
        ("rows_removed", count(&|request| Some(request.rows_removed())), false),
        ("removed_in", text(&removed_in), false),
        ("verified_at", time(&|request| verified(request).map(|it| it.at)), true),
        ("run_id", text(&|request| verified(request).map(|it| it.run_id.to_string())), true),
        ("manifest_digest", text(&|request| verified(request).map(|it| it.manifest_digest.to_string())), true),
        ("reappearances", count(&|request| Some(u64::from(request.reappearances))), false),
        ("withdrawn_at", time(&|request| request.withdrawn_at), true),
        ("exempt_ground", text(&|request| request.exempted.as_ref().map(|it| it.ground.to_string())), true),
        ("held_by", text(&|request| Some(holders(requests, request, &holds).join(" "))), false),
        ("exempt_until", time(&|request| request.exempted.as_ref().and_then(|it| it.until)), true),
        ("answered_status", count(&|request| request.answered.as_ref().map(|it| it.status)), true),
        ("answered_at", time(&|request| request.answered.as_ref().map(|it| it.at)), true),
    ]);
    batch.map_err(|error| Error::internal(format!("cannot show the requests: {error}")))
}

fn cell(batch: &RecordBatch, column: usize, row: usize) -> Result<Option<String>> {
    let array = batch.column(column);
    if array.is_null(row) {
        return Ok(None);
    }
    let shown = array_value_to_string(array, row);
    shown.map(Some).map_err(|error| Error::internal(format!("cannot show a cell: {error}")))
}

fn csv(batch: &RecordBatch) -> Result<Vec<u8>> {
    let quoted = |text: String| {
        if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text }
    };
    let names: Vec<String> = batch.schema().fields().iter().map(|field| field.name().clone()).collect();
    let mut out = format!("{}\n", names.join(","));
    for row in 0..batch.num_rows() {
        let cells = (0..batch.num_columns()).map(|column| Ok(quoted(cell(batch, column, row)?.unwrap_or_default())));
        out.push_str(&cells.collect::<Result<Vec<_>>>()?.join(","));
        out.push('\n');
    }
    Ok(out.into_bytes())
}

fn ndjson(batch: &RecordBatch) -> Result<Vec<u8>> {
    let lines = records(batch)?.into_iter().map(|record| format!("{record}\n"));
    Ok(lines.collect::<String>().into_bytes())
}

fn records(batch: &RecordBatch) -> Result<Vec<Value>> {
    let record = |row: usize| {
        let mut record = serde_json::Map::new();
        for (column, field) in batch.schema().fields().iter().enumerate() {
            let value = match cell(batch, column, row)? {
                None => Value::Null,
                Some(text) if *field.data_type() == DataType::Int64 => {
                    text.parse::<i64>().map_or(Value::Null, Value::from)
                }
                Some(text) => Value::from(text),
            };
            record.insert(field.name().clone(), value);
        }
        Ok(Value::from(record))
    };
    (0..batch.num_rows()).map(record).collect()
}

fn parquet(batch: &RecordBatch) -> Result<Vec<u8>> {
    let cannot = |error: parquet::errors::ParquetError| Error::internal(format!("cannot encode the export: {error}"));
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), None).map_err(cannot)?;
    writer.write(batch).map_err(cannot)?;
    writer.into_inner().map_err(cannot)
}
