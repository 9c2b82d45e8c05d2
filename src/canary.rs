//! Canaries: synthetic identifiers in scratch objects under the state, taken through the whole of a run before it touches a dataset.
//!
//! Lists, rules, actions and stores are the job's own; only the people are invented. They have lists and an index of their own, so
//! that no row of a real dataset can ever match one, and their objects lie under the state, never in a dataset's prefix, where an
//! analyst would read them. Invariant: when this returns, nothing of them is left.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringArray, StructArray};
use arrow::datatypes::Field;
use base64::Engine as _;
use bytes::Bytes;
use jiff::Timestamp;
use parquet::arrow::ArrowWriter;
use sha2::{Digest, Sha256};

use crate::action::Action;
use crate::error::{Error, Result};
use crate::find::{self, Find};
use crate::format::csv::quoted;
use crate::format::{CsvDialect, Format};
use crate::identifier::{ColumnPath, Hashed, Kind, join_part};
use crate::job::{DatasetSpec, Job, ListColumn, ListFormat, ListSpec, MatchPart, MatchRule, Scope};
use crate::journal::{Journal, Lock};
use crate::match_index::Builder;
use crate::meter::Meter;
use crate::plan;
use crate::request;
use crate::rewrite::{self, Rewrite};
use crate::signature::TagKey;
use crate::store::{Location, Precondition, Store, Stores};
use crate::tag::DatasetTagger;
use crate::verify;

/// What became of the canaries of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    pub planted: u64,
    /// Seen by the find stage.
    pub found: u64,
    /// Removed or redacted, and not seen again by the verifier.
    pub removed: u64,
}

/// Plants `job.canaries` identifiers for every rule of every dataset, scrubs and verifies them, and takes all of it away.
pub async fn run(
    job: &Job,
    stores: &Stores,
    lock: &Lock,
    run_id: &str,
    now: Timestamp,
    seed: [u8; 16],
) -> Result<Counts> {
    let state = &job.state.location;
    let store = stores.of(state);
    outside_of_datasets(job)?;
    // Also what a killed run left.
    sweep(&store, state).await?;
    let scratch = state.join("canaries").join(run_id);
    let counts = through_the_run(job, stores, lock, &scratch, now, seed).await;
    sweep(&store, state).await?;
    counts
}

fn outside_of_datasets(job: &Job) -> Result<()> {
    let state = format!("{}/", job.state.location.to_string().trim_end_matches('/'));
    for spec in &job.datasets {
        let root = spec.scope.root().to_string();
        // A file beside the state is no prefix of it.
        let above = root.ends_with('/') || matches!(spec.scope.root(), Location::Local(_));
        let root = if above { format!("{}/", root.trim_end_matches('/')) } else { root };
        if state.starts_with(&root) {
            return Err(Error::usage(format!(
                "the state lies within dataset {}, where canaries must not be planted",
                spec.name
            ))
            .hint("set [state] uri to another place, or [canary] count = 0"));
        }
    }
    Ok(())
}

async fn sweep(store: &Arc<dyn Store>, state: &Location) -> Result<()> {
    for object in store.list(&state.join("canaries").join("")).await? {
        store.delete(&object).await?;
    }
    Ok(())
}

async fn through_the_run(
    job: &Job,
    stores: &Stores,
    lock: &Lock,
    scratch: &Location,
    now: Timestamp,
    seed: [u8; 16],
) -> Result<Counts> {
    let store = stores.of(&job.state.location);
    let (job, mut counts) = plant(job, &store, scratch, &Invented { seed }).await?;
    let (meter, clock) = (Arc::new(Meter::default()), || now);
    let mut builder = Builder::new(&job.lists, &job.datasets, seed);
    request::read_lists(&job, stores, &clock, &meter, &mut |entry| builder.add(entry)).await?;
    let index = Arc::new(builder.finish().0);
    let mut found = Vec::new();
    for (number, spec) in job.datasets.iter().enumerate() {
        let matcher = Arc::new(index.matcher(number, spec));
        let (store, resources, meter) = (store.clone(), &job.resources, meter.clone());
        let find = Find { spec, store, matcher, resources, meter, known: None };
        found.push(find::find(&find, now).await?);
    }
    let plan = plan::build(&job.datasets, found, &|_, location| location.to_string());
    counts.found = plan.datasets.iter().map(plan::DatasetPlan::rows_matched).sum();
    let journal = Journal::begin(store.clone(), scratch, "canaries", now, &job.name).await?;
    let mut changed = BTreeMap::new();
    for (spec, plan) in job.datasets.iter().zip(&plan.datasets) {
        let rewrite = Rewrite {
            spec,
            store: store.clone(),
            journal: &journal,
            lock,
            tagger: Arc::new(DatasetTagger::new(Arc::new(TagKey::new(Sha256::digest(seed).into())), spec, None)),
            resources: &job.resources,
            meter: meter.clone(),
            name_tag: &Location::to_string,
            stop: &|| false,
        };
        for (step, outcome) in plan.steps.iter().zip(rewrite::rewrite(&rewrite, plan).await) {
            let rows = outcome.map_or(0, |outcome| outcome.rows_removed + outcome.rows_redacted);
            changed.insert(step.object.location.clone(), rows);
        }
    }
    let verified = verify::verify(&job, stores, &clock, &meter).await?;
    for object in verified.datasets.iter().flat_map(|dataset| &dataset.objects) {
        let gone =
            object.outcome == verify::VerifyOutcome::Checked && object.rows_matched == 0 && !object.residues.in_bytes();
        counts.removed += changed.remove(&object.object.location).filter(|_| gone).unwrap_or(0);
    }
    // Objects that were dropped because all their rows were canaries.
    for (location, rows) in changed {
        let gone = matches!(store.head(&location).await, Err(crate::store::StoreError::NotFound(_)));
        counts.removed += if gone { rows } else { 0 };
    }
    Ok(counts)
}

/// Writes the lists and objects, and gives the job that has them in place of its own.
async fn plant(job: &Job, store: &Arc<dyn Store>, scratch: &Location, invented: &Invented) -> Result<(Job, Counts)> {
    let (mut job, mut counts) = (job.clone(), Counts::default());
    // Nobody who does not exist is ever written into the ledger: it forgets nothing.
    job.ledger = None;
    for (number, list) in job.lists.iter_mut().enumerate() {
        let location = scratch.join(&format!("list-{number}.csv"));
        store.put(&location, invented.list(number, list, job.canaries).into(), Precondition::Absent).await?;
        list.scope = Scope::Object(location);
        (list.format, list.csv) = (Some(ListFormat::Csv), CsvDialect::default());
        (list.request_id, list.received_at) = (None, None);
    }
    for (number, spec) in job.datasets.iter_mut().enumerate() {
        let root = scratch.join(&format!("dataset-{number}"));
        let table = Table::of(spec, &job.lists, invented, job.canaries);
        let formats = spec.format.map_or(vec![Format::Parquet, Format::Csv, Format::Ndjson], |format| vec![format]);
        for format in formats {
            let Some(bytes) = table.encode(format, &spec.csv) else { continue };
            let name = format!("canary.{}", format.name());
            store.put(&root.join(&name), bytes, Precondition::Absent).await?;
            counts.planted += table.planted;
        }
        spec.scope = Scope::Prefix(root.join(""));
    }
    Ok((job, counts))
}

/// People that do not exist, as many as are asked for, the same for the same place.
struct Invented {
    seed: [u8; 16],
}

impl Invented {
    /// Of list `list`, row `row`, the column of this number: a canonical form that nobody can take for a person's.
    fn value(&self, kind: &Kind, place: (usize, u64, usize)) -> String {
        let (list, row, column) = place;
        let digest = Sha256::new().chain_update(self.seed).chain_update(format!("{list} {row} {column}")).finalize();
        let hex = hex::encode(digest);
        let number = u64::from_be_bytes(digest[..8].try_into().expect("eight bytes"));
        match kind {
            // RFC 2606: no address can end in `.invalid`.
            Kind::Email => format!("canary-{}@lakescrub.invalid", &hex[..16]),
            // No area code begins with a zero.
            Kind::Phone => format!("000{:07}", number % 10_000_000),
            // Kept free for fiction.
            Kind::PhoneE164 { .. } => format!("+120155501{:02}", number % 100),
            Kind::Maid => format!("00000000{}", &hex[..24]),
            Kind::Uuid => format!("00000000-0000-4000-8000-{}", &hex[..12]),
            // RFC 5737: for documentation.
            Kind::Ip => format!("192.0.2.{}", 1 + number % 254),
            Kind::Integer => (900_000_000_000_000_000 + number % 100_000_000_000_000).to_string(),
            Kind::Text => format!("lakescrub-canary-{}", &hex[..16]),
            // A VIN has no letter I, O or Q.
            Kind::Vin => format!("ioq{}", &hex[..14]),
            Kind::Zip => format!("z{}", &hex[..4]),
            Kind::Name => format!("lakescrubcanary{}", &hex[..16]),
            // Before there was a person to be born.
            Kind::Date { .. } => {
                format!("{:04}{:02}{:02}", number % 1000, 1 + number / 1000 % 12, 1 + number / 12_000 % 28)
            }
            Kind::Ctvid => format!("canary{}", &hex[..16]),
            Kind::Ndz | Kind::NameVin => {
                let mut joined = Vec::new();
                for part in 0..kind.parts().len() {
                    join_part(self.part(kind, place, part).as_bytes(), &mut joined);
                }
                String::from_utf8(joined).expect("Base64 is ASCII")
            }
        }
    }

    /// A part of what is made of several columns.
    fn part(&self, kind: &Kind, (list, row, column): (usize, u64, usize), part: usize) -> String {
        self.value(&kind.parts()[part], (list, row, (column + 1) * 1000 + part))
    }

    /// A list as CSV.
    fn list(&self, number: usize, list: &ListSpec, rows: u64) -> Vec<u8> {
        let line = |cells: Vec<Vec<u8>>| [cells.join(&b','), b"\n".to_vec()].concat();
        let header = line(list.columns.iter().map(|column| quoted(&column.column, b',', b'"')).collect());
        let row = |row: u64| {
            let cells = list.columns.iter().enumerate();
            let value = |(at, column): (usize, &ListColumn)| {
                spelled(column.hashed, &column.kind, &self.value(&column.kind, (number, row, at)))
            };
            line(cells.map(value).map(|cell| quoted(&cell, b',', b'"')).collect())
        };
        std::iter::once(header).chain((0..rows).map(row)).collect::<Vec<_>>().concat()
    }

    /// What a rule's part would read in the data of the person in a list's row; `None` if that list does not feed it.
    fn cell(&self, part: &MatchPart, number: usize, list: &ListSpec, row: u64) -> Option<String> {
        let feeds = |column: &ListColumn| {
            part.kind.same_family(&column.kind) && part.list_column.as_ref().is_none_or(|name| *name == column.column)
        };
        let at = list.columns.iter().position(feeds)?;
        Some(spelled(part.hashed, &part.kind, &self.value(&list.columns[at].kind, (number, row, at))))
    }

    /// What the columns of a rule read in the data of the person in a list's row; `None` if that list does not feed it.
    fn cells(&self, rule: &MatchRule, number: usize, list: &ListSpec, row: u64) -> Option<Vec<String>> {
        match rule {
            MatchRule::Single(part) => Some(vec![self.cell(part, number, list, row)?]),
            MatchRule::All(parts) => parts.iter().map(|part| self.cell(part, number, list, row)).collect(),
            MatchRule::Joined { parts, whole } => {
                let feeds = |column: &ListColumn| {
                    whole.kind.same_family(&column.kind)
                        && whole.list_column.as_ref().is_none_or(|name| *name == column.column)
                };
                let at = list.columns.iter().position(feeds)?;
                let cell =
                    |(i, part): (usize, &MatchPart)| part.kind.written(&self.part(&whole.kind, (number, row, at), i));
                Some(parts.iter().enumerate().map(cell).collect())
            }
        }
    }
}

/// A canonical form as it stands in a column, plain or where hashes are kept.
fn spelled(hashed: Option<Hashed>, kind: &Kind, canonical: &str) -> String {
    let Some(hashed) = hashed else { return kind.written(canonical) };
    let mut digest = Vec::new();
    hashed.function().digest(canonical.as_bytes(), &mut digest);
    match hashed {
        Hashed::Sha256Base64 => base64::engine::general_purpose::STANDARD.encode(digest),
        Hashed::Sha256Hex | Hashed::Md5Hex | Hashed::Sha1Hex => hex::encode(digest),
    }
}

/// A row that no rule matches: it must survive.
const BYSTANDER: &str = "lakescrub-bystander";

/// The rows of one dataset's scratch objects.
struct Table {
    columns: Vec<ColumnPath>,
    rows: Vec<Vec<Option<String>>>,
    planted: u64,
}

impl Table {
    fn of(spec: &DatasetSpec, lists: &[ListSpec], invented: &Invented, count: u64) -> Table {
        let redacted = match &spec.action {
            Action::Delete => Vec::new(),
            Action::Redact(columns) => columns.iter().map(|redact| redact.column.clone()).collect(),
        };
        let matched = spec.rules.iter().flat_map(MatchRule::parts).map(|part| part.column.clone());
        let mut columns: Vec<ColumnPath> = matched.chain(redacted).collect();
        columns.sort();
        columns.dedup();
        let mut table = Table { columns, rows: Vec::new(), planted: 0 };
        for (number, list) in lists.iter().enumerate() {
            for rule in &spec.rules {
                for row in 0..count {
                    table.planted += u64::from(table.add(rule, invented.cells(rule, number, list, row)));
                }
            }
        }
        table.rows.push(vec![Some(BYSTANDER.to_owned()); table.columns.len()]);
        table
    }

    /// Whether the list feeds every part of the rule: then there is a row that it matches.
    fn add(&mut self, rule: &MatchRule, cells: Option<Vec<String>>) -> bool {
        let Some(cells) = cells else { return false };
        let mut row = vec![None; self.columns.len()];
        for (part, cell) in rule.parts().iter().zip(cells) {
            let at = self.columns.iter().position(|column| *column == part.column);
            row[at.expect("every rule's columns are the table's")] = Some(cell);
        }
        self.rows.push(row);
        true
    }

    /// `None`: the format has no such columns, so the dataset's own objects have not either.
    fn encode(&self, format: Format, dialect: &CsvDialect) -> Option<Bytes> {
        match format {
            Format::Parquet => self.parquet(),
            Format::Csv => self.csv(dialect, dialect.delimiter.unwrap_or(b',')),
            Format::Tsv => self.csv(dialect, dialect.delimiter.unwrap_or(b'\t')),
            Format::Ndjson => Some(self.ndjson()),
        }
    }

    fn csv(&self, dialect: &CsvDialect, delimiter: u8) -> Option<Bytes> {
        let names: Vec<&String> = self
            .columns
            .iter()
            .map(|column| column.0.first().filter(|_| column.0.len() == 1))
            .collect::<Option<_>>()?;
        // Without a header a column's name is its number.
        let places: Vec<usize> = match dialect.header {
            true => (0..names.len()).collect(),
            false => names.iter().map(|name| name.parse::<usize>().ok()?.checked_sub(1)).collect::<Option<_>>()?,
        };
        let width = places.iter().max().map_or(0, |last| last + 1);
        let line = |cells: &dyn Fn(usize) -> String| {
            let mut fields = vec![quoted(BYSTANDER, delimiter, dialect.quote); width];
            places
                .iter()
                .enumerate()
                .for_each(|(column, place)| fields[*place] = quoted(&cells(column), delimiter, dialect.quote));
            [fields.join(&delimiter), b"\n".to_vec()].concat()
        };
        let header = dialect.header.then(|| line(&|column| names[column].clone()));
        // A cell of one space is no identifier, and a row of nothing else is no blank line.
        let rows = self.rows.iter().map(|row| line(&|column| row[column].clone().unwrap_or_else(|| " ".to_owned())));
        Some(header.into_iter().chain(rows).collect::<Vec<_>>().concat().into())
    }

    fn ndjson(&self) -> Bytes {
        let line = |row: &Vec<Option<String>>| {
            let mut object = serde_json::Map::new();
            for (column, cell) in self.columns.iter().zip(row) {
                let (last, folders) = column.0.split_last().expect("a column path has a name");
                let mut here = &mut object;
                for name in folders {
                    let inner = here.entry(name.clone()).or_insert_with(|| serde_json::json!({}));
                    let serde_json::Value::Object(inner) = inner else { return Vec::new() };
                    here = inner;
                }
                here.insert(last.clone(), cell.clone().map_or(serde_json::Value::Null, serde_json::Value::from));
            }
            [serde_json::to_vec(&object).unwrap_or_default(), b"\n".to_vec()].concat()
        };
        self.rows.iter().map(line).collect::<Vec<_>>().concat().into()
    }

    fn parquet(&self) -> Option<Bytes> {
        let all: Vec<usize> = (0..self.columns.len()).collect();
        let columns = self.fields(&all, 0)?;
        let batch = RecordBatch::from(StructArray::from(columns));
        let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), None).ok()?;
        writer.write(&batch).ok()?;
        writer.into_inner().ok().map(Bytes::from)
    }

    /// The columns below one name, as a tree: a name is a column or a struct, never both.
    fn fields(&self, of: &[usize], depth: usize) -> Option<Vec<(Arc<Field>, ArrayRef)>> {
        let mut groups: BTreeMap<&String, Vec<usize>> = BTreeMap::new();
        for column in of {
            groups.entry(self.columns[*column].0.get(depth)?).or_default().push(*column);
        }
        let field = |(name, columns): (&String, Vec<usize>)| {
            let array: ArrayRef = match columns.as_slice() {
                [one] if self.columns[*one].0.len() == depth + 1 => {
                    Arc::new(self.rows.iter().map(|row| row[*one].as_deref()).collect::<StringArray>())
                }
                _ => Arc::new(StructArray::from(self.fields(&columns, depth + 1)?)),
            };
            Some((Arc::new(Field::new(name, array.data_type().clone(), true)), array))
        };
        groups.into_iter().map(field).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identifier::{Canonical, Value};

    #[test]
    fn what_is_invented_is_canonical_and_never_twice_the_same() {
        let invented = Invented { seed: [3; 16] };
        for name in Kind::NAMES {
            let kind = Kind::parse(name, None).unwrap();
            let mut seen = std::collections::BTreeSet::new();
            for row in 0..20 {
                let value = invented.value(&kind, (0, row, 0));
                let mut canonical = Vec::new();
                assert_eq!(kind.canonicalise(Value::Text(&value), &mut canonical), Canonical::Text, "{name} {value}");
                assert_eq!(String::from_utf8(canonical).unwrap(), value, "{name}");
                seen.insert(value);
            }
            assert!(seen.len() > 10, "{name}");
        }
    }
}
