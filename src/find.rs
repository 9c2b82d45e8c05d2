//! The find stage: lists a dataset and compares every row of every object with the match index.
//!
//! An object that cannot be read is a finding of its own, never a silence (invariant 9). Nothing is written here.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use futures::StreamExt;
use roaring::RoaringTreemap;

use crate::column_values::NoRoute;
use crate::dataset::listing;
use crate::error::{Error, Exit, Result};
use crate::find_parquet::{self, CannotOpen, Opened, Shape, by_column};
use crate::find_records::{self, Scanned};
use crate::format::{Compression, Format, FormatError};
use crate::identifier::{ColumnPath, Value};
use crate::job::{DatasetSpec, MissingColumn, Resources};
use crate::match_index::Matcher;
use crate::meter::Meter;
use crate::plan::{Finding, Found, Seen};
use crate::store::{Location, Object, ObjectReader, Store, StoreError};

/// How many objects have their footers open at a time.
const WAVE_OBJECTS: usize = 128;

/// Everything one dataset's find needs.
pub struct Find<'a> {
    pub spec: &'a DatasetSpec,
    pub store: Arc<dyn Store>,
    pub matcher: Arc<Matcher>,
    pub resources: &'a Resources,
    pub meter: Arc<Meter>,
    /// When the run looks again: what it has looked at already and now passes over. Noncurrent versions are looked at the first
    /// time only.
    pub known: Option<HashSet<Location>>,
}

/// Lists and scans one dataset. An `Err` is about the dataset as a whole: it could not be listed.
pub async fn find(find: &Find<'_>, now: jiff::Timestamp) -> Result<Found> {
    let belongs = |name: &str| listing::belongs(name, find.spec.format);
    let mut listing = match listing::list_dataset(find.store.as_ref(), &find.spec.scope, &belongs).await {
        Ok(listing) => listing,
        Err(StoreError::NotFound(_)) => listing::Listing::default(),
        Err(error) => {
            let mut error = Error::from(error);
            error.message = format!("cannot list dataset {} ({}): {}", find.spec.name, find.spec.uri, error.message);
            return Err(error);
        }
    };
    if let Some(known) = &find.known {
        listing.in_scope.retain(|object| !known.contains(&object.location));
    }
    let mut found = Found { listed_at: now, not_in_scope: listing.not_in_scope, ..Found::default() };
    let linked = listing
        .linked
        .into_iter()
        .filter(|object| find.known.as_ref().is_none_or(|known| !known.contains(&object.location)));
    found.findings = linked.map(|object| refused(find.spec, object, Exit::Incomplete, listing::LINKED)).collect();
    if let Some(table) = listing.table_format {
        let reason = listing::table_reason(table);
        let of_table = listing.in_scope.into_iter();
        found.findings.extend(of_table.map(|object| refused(find.spec, object, Exit::Incomplete, &reason)));
        return Ok(found);
    }
    scan(find, listing.in_scope, &mut found).await;
    for finding in &mut found.findings {
        finding.has_other_names = listing.hard_linked.contains(&finding.object.location);
    }
    if find.known.is_none() {
        found.versions = find_versions(find).await?;
    }
    Ok(found)
}

/// The noncurrent versions of the dataset's objects, compared like current ones; `None` where the store keeps none.
async fn find_versions(find: &Find<'_>) -> Result<Option<Vec<Finding>>> {
    let versions = find.store.list_versions(find.spec.scope.root()).await.map_err(|error| {
        let mut error = Error::from(error);
        error.message = format!("cannot list the object versions of dataset {}: {}", find.spec.name, error.message);
        error
    })?;
    let Some(versions) = versions else { return Ok(None) };
    let belongs = |name: &str| listing::belongs(name, find.spec.format);
    let old = versions.into_iter().filter(|version| !version.is_current && !version.is_delete_marker);
    let old = old
        .map(|version| version.object)
        .filter(|object| listing::is_in_scope(&find.spec.scope, &object.location, &belongs));
    let mut found = Found::default();
    scan(find, old.collect(), &mut found).await;
    Ok(Some(found.findings))
}

/// Looks at these objects alone, whether or not the dataset's listing has them.
pub async fn look(find: &Find<'_>, objects: Vec<Object>) -> Found {
    let mut found = Found::default();
    scan(find, objects, &mut found).await;
    found
}

/// Compares every row of the objects; what came of each is added to `found`.
async fn scan(find: &Find<'_>, objects: Vec<Object>, found: &mut Found) {
    let (mut parquet, mut records) = (Vec::new(), Vec::new());
    for object in objects {
        find.meter.expect(1, object.size_bytes);
        let (format, compression) = formats(find.spec, &object);
        match format {
            Some(Format::Parquet) => parquet.push(object),
            Some(format @ (Format::Csv | Format::Tsv | Format::Ndjson)) => records.push((object, format, compression)),
            None => found.findings.push(refused(
                find.spec,
                object,
                Exit::Incomplete,
                "has no format that its name tells; set format",
            )),
        }
    }
    for wave in parquet.chunks(WAVE_OBJECTS) {
        find_wave(find, wave.to_vec(), found).await;
    }
    find_records(find, records, found).await;
    for finding in &mut found.findings {
        let asked = finding.lacks.iter().fold(find.matcher.as_ref().clone(), |rest, column| rest.without(column));
        if !finding.lacks.is_empty() && asked.rules.is_empty() && matches!(finding.seen, Seen::Rows { .. }) {
            finding.seen = Seen::Skipped;
        }
        take_name(find, finding);
    }
}

/// The match columns that the name of the object gives a value of (`email=…/`). It is that of every row, also where the object itself
/// has such a column: so do Spark, DuckDB and Polars read it.
fn in_name(find: &Find<'_>, object: &Object) -> Vec<(ColumnPath, String)> {
    let partitions = listing::partitions(find.spec.scope.root(), &object.location);
    let value = |column: &ColumnPath| {
        let [name] = column.0.as_slice() else { return None };
        let found = partitions.iter().find(|(known, _)| known.to_lowercase() == name.to_lowercase())?;
        find.matcher.is_single(column).then(|| (column.clone(), found.1.clone()))
    };
    find.matcher.columns.iter().filter_map(value).collect()
}

fn is_in_name(find: &Find<'_>, object: &Object, column: &ColumnPath) -> bool {
    in_name(find, object).iter().any(|(known, _)| known == column)
}

/// When a value in the name is listed, every row of the object matches.
fn take_name(find: &Find<'_>, finding: &mut Finding) {
    let Seen::Rows { rows, matched } = &mut finding.seen else { return };
    let listed = |(column, value): &(ColumnPath, String)| find.matcher.matches(column, Value::Text(value));
    if in_name(find, &finding.object).iter().any(listed) {
        matched.insert_range(0..*rows);
    }
}

/// How many objects a dataset has in scope; reads no row.
pub async fn reach(spec: &DatasetSpec, store: &dyn Store) -> Result<usize> {
    match listing::list(store, &spec.scope, &|name| listing::belongs(name, spec.format)).await {
        Ok(listing) => Ok(listing.in_scope.len()),
        Err(StoreError::NotFound(_)) => Ok(0),
        Err(error) => Err(error.into()),
    }
}

/// The declared format, or the one the name tells; compression always by name.
fn formats(spec: &DatasetSpec, object: &Object) -> (Option<Format>, Compression) {
    let (inferred, compression) = listing::infer(object.location.file_name());
    (spec.format.or(inferred), compression)
}

fn refused(spec: &DatasetSpec, object: Object, exit: Exit, reason: &str) -> Finding {
    let (format, compression) = formats(spec, &object);
    Finding::new(object, format, compression, Seen::Failed { exit, reason: reason.to_owned() })
}

fn format_exit(error: &FormatError) -> Exit {
    match error {
        FormatError::Store(error) => error.exit(),
        FormatError::Corrupt(_) | FormatError::Unsupported(_) | FormatError::Mismatch(_) => Exit::Incomplete,
    }
}

async fn find_wave(find: &Find<'_>, wave: Vec<Object>, found: &mut Found) {
    let opening = wave.into_iter().map(|object| async {
        let outcome = find_parquet::open(&find.store, object.clone(), &find.matcher.columns).await;
        (object, outcome)
    });
    let opened: Vec<_> = futures::stream::iter(opening).buffered(find.resources.requests_in_flight).collect().await;
    let mut groups: Vec<(Shape, Vec<Opened>)> = Vec::new();
    let mut without: Vec<(ColumnPath, Vec<Object>)> = Vec::new();
    for (object, outcome) in opened {
        match outcome {
            Err(CannotOpen::Column(NoRoute::Missing(column)))
                if find.spec.missing_column == MissingColumn::Skip || is_in_name(find, &object, &column) =>
            {
                match without.iter_mut().find(|(known, _)| *known == column) {
                    Some((_, objects)) => objects.push(object),
                    None => without.push((column, vec![object])),
                }
            }
            Ok((opened, shape)) => match groups.iter_mut().find(|(known, _)| known.same(&shape)) {
                Some((_, group)) => group.push(opened),
                None => groups.push((shape, vec![opened])),
            },
            Err(error) => found.findings.push(not_opened(object, error)),
        }
    }
    for (shape, group) in &groups {
        scan_group(find, shape, group, found).await;
    }
    for (column, objects) in without {
        let matcher = Arc::new(find.matcher.without(&column));
        let (store, meter) = (find.store.clone(), find.meter.clone());
        let rest = Find { spec: find.spec, store, matcher, resources: find.resources, meter, known: None };
        let before = found.findings.len();
        Box::pin(find_wave(&rest, objects, found)).await;
        for finding in &mut found.findings[before..] {
            if !is_in_name(find, &finding.object, &column) {
                finding.lacks.insert(0, column.clone());
            }
        }
    }
}

fn not_opened(object: Object, error: CannotOpen) -> Finding {
    let reason = error.to_string();
    let seen = match error {
        CannotOpen::Column(NoRoute::Missing(_) | NoRoute::Ambiguous(_) | NoRoute::Struct(_)) => {
            Seen::Failed { exit: Exit::Incomplete, reason }
        }
        CannotOpen::Format(error) => Seen::Failed { exit: format_exit(&error), reason },
    };
    Finding::new(object, Some(Format::Parquet), Compression::None, seen)
}

/// Scans a group in one plan; when that fails, one object after the other, to learn which one it was.
async fn scan_group(find: &Find<'_>, shape: &Shape, group: &[Opened], found: &mut Found) {
    if find.matcher.rules.is_empty() {
        // Every rule is about the name, or on a column that is skipped.
        for opened in group {
            find.meter.add(1, opened.rows, opened.object.size_bytes);
            let seen = Seen::Rows { rows: opened.rows, matched: RoaringTreemap::new() };
            found.findings.push(parquet_finding(opened, seen));
        }
        return;
    }
    let all: Vec<&Opened> = group.iter().collect();
    match find_parquet::scan(&find.store, shape, &all, &find.matcher, find.resources, &find.meter).await {
        Ok(scanned) => {
            add_counts(&mut found.not_comparable, by_column(&find.matcher.columns, &scanned.not_comparable));
            for ((opened, matched), chunks) in group.iter().zip(scanned.matched).zip(scanned.chunks) {
                find.meter.add(1, 0, opened.object.size_bytes);
                let seen = Seen::Rows { rows: opened.rows, matched };
                found.findings.push(Finding { chunks, ..parquet_finding(opened, seen) });
            }
        }
        Err(error) if group.len() == 1 => {
            let seen = Seen::Failed { exit: format_exit(&error), reason: error.to_string() };
            found.findings.push(parquet_finding(&group[0], seen));
        }
        Err(_) => {
            for opened in group {
                Box::pin(scan_group(find, shape, std::slice::from_ref(opened), found)).await;
            }
        }
    }
}

fn parquet_finding(opened: &Opened, seen: Seen) -> Finding {
    Finding::new(opened.object.clone(), Some(Format::Parquet), Compression::None, seen)
}

fn add_counts(all: &mut BTreeMap<String, u64>, more: BTreeMap<String, u64>) {
    for (column, count) in more {
        *all.entry(column).or_default() += count;
    }
}

async fn find_records(find: &Find<'_>, objects: Vec<(Object, Format, Compression)>, found: &mut Found) {
    // Few large objects are each scanned by several threads.
    let threads = find.resources.threads.div_ceil(objects.len().max(1));
    let scans = objects.into_iter().map(|(object, format, compression)| {
        let reader = ObjectReader::new(find.store.clone(), object.clone());
        let (spec, matcher) = (find.spec.clone(), find.matcher.clone());
        let meter = find.meter.clone();
        let in_name: Vec<ColumnPath> = in_name(find, &object).into_iter().map(|(column, _)| column).collect();
        async move {
            let scan = tokio::task::spawn_blocking(move || {
                find_records::scan(&spec, &matcher, &in_name, (format, compression), &reader, threads)
            });
            let outcome = scan.await.unwrap_or_else(|_| Err(FormatError::Corrupt("the decoder panicked".to_owned())));
            if let Ok(Scanned { seen: Seen::Rows { rows, .. }, .. }) = &outcome {
                meter.add(1, *rows, object.size_bytes);
            }
            (object, format, compression, outcome)
        }
    });
    let mut scans = futures::stream::iter(scans).buffered(find.resources.threads);
    while let Some((object, format, compression, outcome)) = scans.next().await {
        let (seen, lacks) = match outcome {
            Ok(scanned) => {
                add_counts(&mut found.not_comparable, by_column(&find.matcher.columns, &scanned.not_comparable));
                (scanned.seen, scanned.lacks)
            }
            Err(error) => (Seen::Failed { exit: format_exit(&error), reason: error.to_string() }, Vec::new()),
        };
        found.findings.push(Finding { lacks, ..Finding::new(object, Some(format), compression, seen) });
    }
}
