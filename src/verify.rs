//! The independent proof: every object of a fresh listing is read again, with Polars and a second normaliser, and whatever still
//! matches is counted.
//!
//! No line of `find`, `match_index`, `request`, `format`, `rewrite` or of their libraries runs here, and no rule of `identifier`: a fault
//! there must show here (invariant 3). Nothing is skipped by statistics, bloom filter or page index (invariant 10). Reads only.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};

use futures::StreamExt;
use jiff::Timestamp;
use sha2::{Digest, Sha256};

use crate::dataset::listing;
use crate::error::{Error, Exit, Result};
use crate::format::{Compression, CsvDialect, Format};
use crate::identifier::{ColumnPath, Kind};
use crate::job::{DatasetSpec, Job, ListFormat, ListSpec, MissingColumn, Search, Stray};
use crate::keys;
use crate::meter::Meter;
use crate::residue::{ChunkId, Named, Place, Residues, SeenChunks};
use crate::store::{self, Location, Object, ObjectReader, Store, StoreError, Stores};
use crate::verify_batch::{CutBound, Fault, Look, Scanned, Tally, Work};
use crate::verify_bytes::{Heads, Listed};
use crate::verify_entries::{LetGo, add};
use crate::verify_gates::Gates;
use crate::verify_ledger::{self, Tagged};
use crate::verify_list::{Asked, Suppressed};
use crate::verify_names;
use crate::verify_normalise;
use crate::verify_parquet::{scan_parquet, scan_summary};
use crate::verify_records::{Layout, Promised, held_bytes, scan_records};
use crate::verify_rules::Rules;
use crate::verify_tokens::Around;

/// What the verifier saw.
#[derive(Debug, Clone)]
pub struct Verified {
    pub engine: &'static str,
    pub engine_version: &'static str,
    pub lists: Vec<VerifiedList>,
    pub datasets: Vec<VerifiedDataset>,
}

/// One list as it was read anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedList {
    pub name: String,
    /// SHA-256 in hex: of the one file's stored bytes, or of the sorted lines `sha256  location\n` of several.
    pub digest: String,
    pub read_at: Timestamp,
    pub rows: u64,
}

#[derive(Debug, Clone)]
pub struct VerifiedDataset {
    pub name: String,
    pub listed_at: Timestamp,
    /// Set when the objects are the live files of a table: their rows are checked all the same.
    pub table_format: Option<&'static str>,
    /// In the order of the listing.
    pub objects: Vec<VerifiedObject>,
    pub not_in_scope: Vec<Object>,
    /// Values that hold something which is no identifier of their column's kind, by column; columns without any are left out.
    pub not_comparable: BTreeMap<String, u64>,
    /// `None` where the store keeps no versions.
    pub versions: Option<VerifiedVersions>,
    /// Unfinished uploads to keys of the dataset.
    pub uploads: u64,
    /// What the place does with objects by itself, in plain sentences.
    pub standing_rules: Vec<String>,
    /// It could not be listed, so that nothing of it was looked at.
    pub unlisted: Option<Error>,
}

impl VerifiedDataset {
    fn unlisted(dataset: &DatasetSpec, listed_at: Timestamp, error: Error) -> VerifiedDataset {
        VerifiedDataset {
            name: dataset.name.clone(),
            listed_at,
            table_format: None,
            objects: Vec::new(),
            not_in_scope: Vec::new(),
            not_comparable: BTreeMap::new(),
            versions: None,
            uploads: 0,
            standing_rules: Vec::new(),
            unlisted: Some(error),
        }
    }
}

/// What lies behind the current objects, as a fresh listing showed it.
#[derive(Debug, Clone, Default)]
pub struct VerifiedVersions {
    /// Noncurrent versions, in the order of the listing.
    pub objects: Vec<VerifiedObject>,
    pub delete_markers: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedObject {
    pub object: Object,
    /// Counted while reading. Of an object that failed: 0, unless only a column was missing.
    pub rows: u64,
    /// Rows that still match, by whichever of the rules could be checked.
    pub rows_matched: u64,
    /// What the object holds beside its rows.
    pub residues: Residues,
    pub outcome: VerifyOutcome,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VerifyOutcome {
    /// Every row was compared by every rule.
    Checked,
    /// A match column is missing, and the job says `missing_column = "skip"`; the other rules were checked.
    Skipped {
        reason: String,
    },
    Failed {
        exit: Exit,
        reason: String,
    },
}

/// The lists of a job as the verifier read them, ready to be asked.
#[derive(Clone)]
pub struct Lists {
    suppressed: Arc<Suppressed>,
    read: Vec<VerifiedList>,
}

/// How much of the request ledger is read: up to which segment, and which exemptions have ended.
pub struct LedgerEnd {
    pub sequence: u64,
    pub at: Timestamp,
    /// Requests that are left out, by id.
    pub withheld: BTreeSet<Arc<str>>,
    /// What [`read_ledger`] read, at the same moment and without the same requests, before it was known where the ledger ends.
    pub ahead: Option<Tagged>,
}

impl Lists {
    /// What was read of each list, in the order of the job.
    pub fn read(&self) -> &[VerifiedList] {
        &self.read
    }

    /// How many different identifiers the ledger asks for, where it is a list of the job.
    pub fn tags(&self) -> Option<u64> {
        self.suppressed.tagged.as_ref().map(|tagged| tagged.len() as u64)
    }

    /// Replaces the listed identifiers of distinctive kinds in a text, see [`Suppressed::without_strays`].
    pub fn without_strays(&self, text: &[u8]) -> Option<Vec<u8>> {
        // What cannot be evaluated stays, and the verifying scan tells.
        self.suppressed.without_strays(text).ok().flatten()
    }

    /// The listed identifiers in an object's name. A name that cannot be looked into is hidden whole.
    pub fn named(&self, dataset: &DatasetSpec, location: &Location) -> Vec<Named> {
        let rules = Arc::new(self.suppressed.rules(dataset));
        let asked = Asked { suppressed: self.suppressed.clone(), rules };
        let whole = || Named { range: 0..location.to_string().len(), kind: "text", digest: [0; 32], is_certain: false };
        verify_names::named(dataset.scope.root(), location, &asked).unwrap_or_else(|_| vec![whole()])
    }
}

/// Reads the lists anew. Errors: one that cannot be read ([`Exit::Usage`], or what the store says).
pub async fn read_lists(job: &Job, stores: &Stores, clock: &(dyn Fn() -> Timestamp + Sync)) -> Result<Lists> {
    read_lists_up_to(job, stores, clock, None).await
}

/// Reads the ledger of the job, if it has one, up to wherever it ends, for [`LedgerEnd::ahead`].
pub async fn read_ledger(
    job: &Job,
    stores: &Stores,
    at: Timestamp,
    withheld: &BTreeSet<Arc<str>>,
) -> Result<Option<Tagged>> {
    if job.ledger.is_none() {
        return Ok(None);
    }
    let (state, key) = (&job.state.location, Arc::new(keys::load_tag_key(&job.state.tag_key)?));
    verify_ledger::read(&stores.of(state), state, key, None, at, withheld).await.map(Some)
}

/// [`read_lists`] with a ledger that others may be writing to: only what was there when it ended at `end`.
pub async fn read_lists_up_to(
    job: &Job,
    stores: &Stores,
    clock: &(dyn Fn() -> Timestamp + Sync),
    end: Option<LedgerEnd>,
) -> Result<Lists> {
    let tagged = match &job.ledger {
        None => None,
        Some(_) => {
            let (state, key) = (&job.state.location, Arc::new(keys::load_tag_key(&job.state.tag_key)?));
            let (sequence, at, withheld, ahead) = match end {
                None => (None, clock(), BTreeSet::new(), None),
                Some(end) => (Some(end.sequence), end.at, end.withheld, end.ahead),
            };
            // What others wrote in the meantime is none of this run's.
            match ahead.filter(|ahead| Some(ahead.last) == sequence) {
                Some(ahead) => Some(ahead),
                None => Some(verify_ledger::read(&stores.of(state), state, key, sequence, at, &withheld).await?),
            }
        }
    };
    let gates = Gates::new(&job.resources);
    let mut seed = [0; 16];
    getrandom::fill(&mut seed).map_err(|error| Error::internal(format!("cannot draw a random key: {error}")))?;
    let suppressed = Arc::new(Mutex::new(Suppressed::new(job, seed, tagged)));
    let mut read = Vec::with_capacity(job.lists.len());
    for list in &job.lists {
        read.push(read_list(list, stores, clock(), &gates, &suppressed).await?);
    }
    let suppressed = Arc::into_inner(suppressed).expect("the readers of the lists are gone");
    let suppressed = Arc::new(suppressed.into_inner().unwrap_or_else(|broken| broken.into_inner()));
    Ok(Lists { suppressed, read })
}

/// Reads the lists and checks all datasets of the job, see [`verify_with`].
pub async fn verify(
    job: &Job,
    stores: &Stores,
    clock: &(dyn Fn() -> Timestamp + Sync),
    meter: &Meter,
) -> Result<Verified> {
    let lists = read_lists(job, stores, clock).await?;
    verify_with(&lists, job, stores, clock, meter).await
}

/// Checks all datasets of the job. An object that cannot be checked is an outcome of its own and the others go on.
///
/// Errors: a dataset that cannot be listed.
pub async fn verify_with(
    lists: &Lists,
    job: &Job,
    stores: &Stores,
    clock: &(dyn Fn() -> Timestamp + Sync),
    meter: &Meter,
) -> Result<Verified> {
    let gates = Gates::new(&job.resources);
    let mut datasets = Vec::with_capacity(job.datasets.len());
    for dataset in &job.datasets {
        let source = Source { job, stores, gates: &gates };
        let listed_at = clock();
        datasets.push(match verify_dataset(dataset, &source, listed_at, &lists.suppressed, meter).await {
            Err(error) if error.is_of_one_dataset() => VerifiedDataset::unlisted(dataset, listed_at, error),
            other => other?,
        });
    }
    Ok(Verified { engine: "polars", engine_version: polars::VERSION, lists: lists.read.clone(), datasets })
}

/// What objects hold beside their rows, in the order they are given: for the plan, before anything is written. Pages that the find
/// stage saw are read again, and rows decoded, only where the other bytes cannot be judged alone.
pub async fn inspect(
    lists: &Lists,
    job: &Job,
    stores: &Stores,
    dataset: &DatasetSpec,
    objects: Vec<(Object, SeenChunks)>,
) -> Result<Vec<Result<Residues, Fault>>> {
    let (gates, store) = (Gates::new(&job.resources), stores.of(dataset.scope.root()));
    let rules = Arc::new(lists.suppressed.rules(dataset));
    let asked = Arc::new(Asked { suppressed: lists.suppressed.clone(), rules: rules.clone() });
    let inspected = objects.into_iter().map(|(object, seen)| {
        let (store, gates, rules, asked) = (&store, &gates, &rules, &asked);
        async move { inspect_object(dataset, store, &object, seen, gates, rules, asked).await }
    });
    let inspected: Vec<_> = futures::stream::iter(inspected).buffered(gates.objects_ahead()).collect().await;
    let (mut found, mut cut) = (Vec::with_capacity(inspected.len()), Vec::new());
    for (number, inspected) in inspected.into_iter().enumerate() {
        found.push(inspected.map(|(residues, bounds)| {
            cut.extend(bounds.into_iter().map(|cut| (number, cut)));
            residues
        }));
    }
    let source = Source { job, stores, gates: &gates };
    add_heads(&source, &asked, cut, &mut |number: usize, chunk| {
        if let Some(Ok(residues)) = found.get_mut(number) {
            residues.add(Place::Statistics, Some(chunk), 1);
        }
    })
    .await?;
    Ok(found)
}

async fn inspect_object(
    dataset: &DatasetSpec,
    store: &Arc<dyn Store>,
    object: &Object,
    seen: SeenChunks,
    gates: &Gates,
    rules: &Arc<Rules>,
    asked: &Arc<Asked>,
) -> Result<(Residues, Vec<CutBound>), Fault> {
    let mut found = names(dataset, object, asked).await?;
    if is_summary(object) {
        found.merge(&scan_summary(&**store, object, &rules.columns, gates, asked.clone()).await?);
        return Ok((found, Vec::new()));
    }
    let shared = asked.clone();
    let search: Work = Arc::new(move |batch| {
        let mut tally = Tally { rows: batch.rows as u64, ..Tally::default() };
        shared.suppressed.search(batch, &mut tally.residues)?;
        Ok(tally)
    });
    let others = dataset.stray == Stray::Redact;
    let look = Look { rows: others.then_some(search), bytes: Some(asked.clone()), others, seen: Some(Arc::new(seen)) };
    let scanned = scan(store, object, &object_shape(dataset, object)?, &rules.columns, gates, &look).await?;
    found.merge(&scanned.tally.residues);
    Ok((found, scanned.tally.cut))
}

/// Asking may take a Polars expression, which must not run on a thread of the runtime.
async fn names(dataset: &DatasetSpec, object: &Object, asked: &Arc<Asked>) -> Result<Residues, Fault> {
    let (root, location, asked) = (dataset.scope.root().clone(), object.location.clone(), asked.clone());
    let named = tokio::task::spawn_blocking(move || verify_names::named(&root, &location, asked.as_ref())).await;
    let named = named.map_err(|error| Fault::from_join(&error))??;
    // The others are hidden where the name is shown, and no reason to act.
    Ok(Residues::of_name(named.into_iter().filter(|named| named.is_certain).collect()))
}

/// Identifiers in the user metadata and the tags that the store keeps with an object. No rewrite takes them out: they are told.
async fn labels(store: &Arc<dyn Store>, object: &Object, asked: &Arc<Asked>) -> Result<Residues, Fault> {
    if !asked.suppressed.knows_words() {
        return Ok(Residues::default());
    }
    let mut residues = Residues::default();
    let labels = match store.labels(object).await {
        Ok(labels) if labels.is_empty() => return Ok(residues),
        Ok(labels) => labels,
        // Some servers find no tags of an old version whose key is deleted.
        Err(StoreError::Denied { .. } | StoreError::NotFound(_)) => {
            residues.unread_labels = 1;
            return Ok(residues);
        }
        Err(error) => return Err(error.into()),
    };
    let asked = asked.clone();
    let found = tokio::task::spawn_blocking(move || {
        let texts: Vec<&[u8]> = labels.iter().map(String::as_bytes).collect();
        asked.texts(&texts, Around::Text).map(|found| found.len() as u64)
    });
    residues.add(Place::Labels, None, found.await.map_err(|error| Fault::from_join(&error))??);
    Ok(residues)
}

/// Rows that hold the same identifiers of the ledger.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sighting {
    pub rows: u64,
    /// Tell consumers apart, where rows name one; keyed anew for every run.
    pub consumers: BTreeSet<u64>,
}

/// Rows by the first 16 bytes of the tags that they hold, as numbers in their order: as many entries as there are people in an
/// object, not as many as there are rows of them.
pub type Sightings = HashMap<Vec<u128>, Sighting>;

/// What an object holds of the ledger's requests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sighted {
    pub sightings: Sightings,
    /// The column that was to tell consumers apart is not there.
    pub lacks_consumer_key: bool,
}

/// Tells which requests of the ledger the rows of each object mean, object by object in the order in which they are given.
/// `consumer_key` is the column that tells one person from several behind an identifier. Reads every match column of the objects.
pub async fn attribute(
    lists: &Lists,
    job: &Job,
    stores: &Stores,
    dataset: &DatasetSpec,
    consumer_key: Option<&ColumnPath>,
    objects: Vec<Object>,
    each: &mut (dyn FnMut(Object, Result<Sighted, Fault>) + Send),
) {
    let (gates, store) = (Gates::new(&job.resources), stores.of(dataset.scope.root()));
    let rules = Arc::new(lists.suppressed.rules(dataset));
    let asked = Arc::new(Asked { suppressed: lists.suppressed.clone(), rules });
    let attributed = objects.into_iter().map(|object| {
        let (store, gates, asked) = (&store, &gates, &asked);
        async move {
            let sighted = attribute_object(dataset, store, &object, consumer_key, gates, asked).await;
            (object, sighted)
        }
    });
    let mut attributed = futures::stream::iter(attributed).buffered(gates.objects_ahead());
    while let Some((object, sighted)) = attributed.next().await {
        each(object, sighted);
    }
}

async fn attribute_object(
    dataset: &DatasetSpec,
    store: &Arc<dyn Store>,
    object: &Object,
    consumer_key: Option<&ColumnPath>,
    gates: &Gates,
    asked: &Arc<Asked>,
) -> Result<Sighted, Fault> {
    // An identifier in the name is that of every row.
    let named = names(dataset, object, asked).await?.named;
    let named: BTreeSet<u128> =
        named.iter().filter_map(|named| asked.suppressed.tag_of(named.kind, &named.digest)).collect();
    let sightings: Arc<Mutex<Sightings>> = Arc::default();
    let (shared, seen) = (asked.clone(), sightings.clone());
    let work: Work = Arc::new(move |batch| {
        let found = shared.suppressed.sightings(&shared.rules, batch, &named)?;
        let mut held = seen.lock().unwrap_or_else(|broken| broken.into_inner());
        for (tags, sighting) in found {
            let sum = held.entry(tags).or_default();
            sum.rows += sighting.rows;
            sum.consumers.extend(sighting.consumers);
        }
        Ok(Tally { rows: batch.rows as u64, ..Tally::default() })
    });
    let look = Look { rows: Some(work), ..Look::default() };
    let columns: Vec<ColumnPath> = asked.rules.columns.iter().chain(consumer_key).cloned().collect();
    let scanned = scan(store, object, &object_shape(dataset, object)?, &columns, gates, &look).await?;
    let lacks_consumer_key = consumer_key.is_some() && scanned.missing.contains(&asked.rules.columns.len());
    let sightings = std::mem::take(&mut *sightings.lock().unwrap_or_else(|broken| broken.into_inner()));
    Ok(Sighted { sightings, lacks_consumer_key })
}

/// The footers of other objects, gathered in one file by some writers.
pub fn is_summary(object: &Object) -> bool {
    matches!(object.location.file_name(), "_metadata" | "_common_metadata")
}

/// Known answers through the verifier's own normaliser, to be run before every job. The error names the kind that failed.
pub fn self_test() -> Result<(), String> {
    verify_normalise::self_test()
}

async fn read_list(
    list: &ListSpec,
    stores: &Stores,
    read_at: Timestamp,
    gates: &Gates,
    suppressed: &Arc<Mutex<Suppressed>>,
) -> Result<VerifiedList> {
    let (shared, sets) = (list.clone(), suppressed.clone());
    let work: Work = Arc::new(move |batch| {
        add(&sets, &shared, batch)?;
        Ok(Tally { rows: batch.rows as u64, ..Default::default() })
    });
    let store = stores.of(list.scope.root());
    let (mut rows, mut file_digests) = (0, Vec::new());
    for (file, scanned) in scan_list(list, &store, gates, work).await? {
        rows += scanned.tally.rows;
        let digest = stored_digest(&store, &file).await.map_err(|fault| unusable_list(list, &file.location, fault))?;
        file_digests.push((digest, file.location.to_string()));
    }
    Ok(VerifiedList { name: list.name.clone(), digest: list_digest(file_digests), read_at, rows })
}

/// Gives all batches of a list to `work`, with the columns in the order of `list.columns`.
async fn scan_list(
    list: &ListSpec,
    store: &Arc<dyn Store>,
    gates: &Gates,
    work: Work,
) -> Result<Vec<(Object, Scanned)>> {
    let files = listing::list(&**store, &list.scope, &|_| true).await.map_err(|error| list_error(list, error))?;
    let files: Vec<Object> = files.in_scope.into_iter().filter(|file| !file.location.file_name().is_empty()).collect();
    if files.is_empty() {
        return Err(Error::usage(format!("list {} is missing: {} matches no file", list.name, list.uri)));
    }
    let columns: Vec<ColumnPath> = list.columns.iter().map(|column| ColumnPath(vec![column.column.clone()])).collect();
    let look = Look { rows: Some(work), ..Look::default() };
    let mut all = Vec::with_capacity(files.len());
    for file in files {
        let unusable = |fault: Fault| unusable_list(list, &file.location, fault);
        let shape = list_shape(list, &file.location).map_err(unusable)?;
        let scanned = scan(store, &file, &shape, &columns, gates, &look).await.map_err(unusable)?;
        if let Some(missing) = scanned.missing.first() {
            return Err(unusable(Fault::unreadable(format!("lacks column {}", columns[*missing]))));
        }
        all.push((file, scanned));
    }
    Ok(all)
}

/// Looks through the lists once more for the identifiers that cut bounds are the heads of; the numbers of those bounds.
async fn listed_heads(source: &Source<'_>, asked: &Arc<Asked>, cut: Vec<CutBound>) -> Result<Vec<usize>> {
    let cut = Arc::new(cut);
    let bounds = cut.iter().map(|cut| {
        let as_it_is = asked.rules.kinds(cut.column).any(|(kind, _)| *kind == Kind::Text);
        let mut bound = cut.bound.clone();
        if !as_it_is {
            bound.bytes.make_ascii_lowercase();
        }
        bound
    });
    let heads = Arc::new(Mutex::new((Heads::new(bounds.collect()), Vec::new())));
    for list in &source.job.lists {
        let (heads, cut, asked, columns) = (heads.clone(), cut.clone(), asked.clone(), list.columns.clone());
        let let_go = LetGo::of(asked.suppressed.tagged.as_ref(), list);
        let work: Work = Arc::new(move |batch| {
            let mut held = heads.lock().unwrap_or_else(|broken| broken.into_inner());
            let (heads, found) = &mut *held;
            for (place, column, leaf) in columns
                .iter()
                .zip(&batch.columns)
                .enumerate()
                .flat_map(|(place, (column, leaves))| leaves.iter().map(move |leaf| (place, column, leaf)))
            {
                if column.hashed.is_some() {
                    continue;
                }
                verify_normalise::canonicals(&column.kind, &leaf.values, &mut |_, _, canonical| {
                    heads.take(canonical, &mut |number, _| {
                        let is_ours = asked.compares(cut[number].column, column) && !let_go.has(place, canonical);
                        if is_ours {
                            found.push(number);
                        }
                        is_ours
                    });
                })?;
            }
            Ok(Tally { rows: batch.rows as u64, ..Tally::default() })
        });
        scan_list(list, &source.stores.of(list.scope.root()), source.gates, work).await?;
    }
    let mut held = heads.lock().unwrap_or_else(|broken| broken.into_inner());
    Ok(std::mem::take(&mut held.1))
}

/// Where the lists are, when they have to be looked through once more.
struct Source<'a> {
    job: &'a Job,
    stores: &'a Stores,
    gates: &'a Gates,
}

/// Adds to each object's residues the cut bounds that are heads of listed identifiers; `cut[i]` belongs to the object `cut[i].0`.
async fn add_heads(
    source: &Source<'_>,
    asked: &Arc<Asked>,
    cut: Vec<(usize, CutBound)>,
    add: &mut (dyn FnMut(usize, ChunkId) + Send),
) -> Result<()> {
    if cut.is_empty() {
        return Ok(());
    }
    let (objects, bounds): (Vec<usize>, Vec<CutBound>) = cut.into_iter().unzip();
    let chunks: Vec<ChunkId> = bounds.iter().map(|cut| cut.chunk.clone()).collect();
    for number in listed_heads(source, asked, bounds).await? {
        add(objects[number], chunks[number].clone());
    }
    Ok(())
}

/// A list that is not there is the job file's fault; a store that cannot be reached is not.
fn list_error(list: &ListSpec, error: StoreError) -> Error {
    let mut out = Error::from(error);
    out.exit = if out.exit == Exit::Incomplete { Exit::Usage } else { out.exit };
    out.message = format!("list {} cannot be read: {}", list.name, out.message);
    out
}

fn unusable_list(list: &ListSpec, file: &Location, fault: Fault) -> Error {
    let exit = if fault.exit == Exit::Incomplete { Exit::Usage } else { fault.exit };
    Error::new(exit, format!("list {} cannot be read: {file} {}", list.name, fault.reason))
}

async fn stored_digest(store: &Arc<dyn Store>, file: &Object) -> Result<String, Fault> {
    const PIECE_BYTES: u64 = 4 << 20;
    let (mut digest, mut at) = (Sha256::new(), 0);
    while at < file.size_bytes {
        let end = file.size_bytes.min(at + PIECE_BYTES);
        digest.update(store::read(store.as_ref(), file, at..end).await?);
        at = end;
    }
    Ok(hex::encode(digest.finalize()))
}

fn list_digest(mut files: Vec<(String, String)>) -> String {
    if files.len() == 1 {
        return files.swap_remove(0).0;
    }
    let mut lines: Vec<String> =
        files.into_iter().map(|(digest, location)| format!("{digest}  {location}\n")).collect();
    lines.sort_unstable();
    hex::encode(Sha256::digest(lines.concat()))
}

/// How an object's bytes are to be read.
enum Shape {
    Parquet,
    Records { layout: Layout, promised: Promised },
}

fn shape(format: Format, promised: Promised, dialect: &CsvDialect) -> Result<Shape, Fault> {
    let delimited =
        |delimiter| Layout::Delimited { delimiter: dialect.delimiter.unwrap_or(delimiter), dialect: dialect.clone() };
    Ok(match format {
        Format::Parquet if promised != Promised::Nothing => {
            return Err(Fault::unreadable("is a compressed Parquet file, which cannot be read in part"));
        }
        Format::Parquet => Shape::Parquet,
        Format::Csv => Shape::Records { layout: delimited(b','), promised },
        Format::Tsv => Shape::Records { layout: delimited(b'\t'), promised },
        Format::Ndjson => Shape::Records { layout: Layout::Ndjson, promised },
    })
}

fn promised(compression: Compression) -> Promised {
    match compression {
        Compression::None => Promised::Nothing,
        Compression::Gzip => Promised::Gzip,
        Compression::Zstd => Promised::Zstd,
    }
}

fn list_shape(list: &ListSpec, file: &Location) -> Result<Shape, Fault> {
    let (inferred, compression) = listing::infer(file.file_name());
    let promised = promised(compression);
    let declared = match list.format {
        Some(ListFormat::Txt) => None,
        Some(ListFormat::Csv) => Some(Format::Csv),
        Some(ListFormat::Tsv) => Some(Format::Tsv),
        Some(ListFormat::Parquet) => Some(Format::Parquet),
        Some(ListFormat::Ndjson) => Some(Format::Ndjson),
        None => inferred,
    };
    let lower = file.file_name().to_ascii_lowercase();
    let is_txt = list.format == Some(ListFormat::Txt) || lower.ends_with(".txt") || lower.contains(".txt.");
    match declared {
        Some(format) => shape(format, promised, &list.csv),
        None if is_txt => Ok(Shape::Records { layout: Layout::Lines, promised }),
        None => Err(Fault::unreadable("tells no format by its name")),
    }
}

async fn verify_dataset(
    dataset: &DatasetSpec,
    source: &Source<'_>,
    listed_at: Timestamp,
    suppressed: &Arc<Suppressed>,
    meter: &Meter,
) -> Result<VerifiedDataset> {
    let (store, gates) = (source.stores.of(dataset.scope.root()), source.gates);
    let belongs = |name: &str| listing::belongs(name, dataset.format);
    let listing = match listing::list_dataset(&*store, &dataset.scope, &belongs).await {
        Ok(listing) => listing,
        // An object named in the job that is not there is a dataset without objects.
        Err(error) if error.is_no_object() => listing::Listing::default(),
        Err(error) => return Err(error.not_listed("the objects", &dataset.name, &dataset.uri)),
    };
    listing.in_scope.iter().for_each(|object| meter.expect(1, object.size_bytes));
    let rules = Arc::new(suppressed.rules(dataset));
    let asked = Arc::new(Asked { suppressed: suppressed.clone(), rules: rules.clone() });
    let check = |objects: Vec<Object>| check_objects(dataset, &store, objects, source, &rules, &asked, meter);
    let (mut objects, counts) = check(listing.in_scope).await?;
    objects.extend(listing.linked.into_iter().map(|object| {
        let outcome = VerifyOutcome::Failed { exit: Exit::Incomplete, reason: listing::LINKED.to_owned() };
        VerifiedObject { object, rows: 0, rows_matched: 0, residues: Residues::default(), outcome }
    }));
    let named = rules.columns.iter().map(ToString::to_string).zip(counts);
    let not_comparable = named.filter(|(_, count)| *count > 0).collect();
    let mut not_in_scope = Vec::with_capacity(listing.not_in_scope.len());
    for object in listing.not_in_scope {
        match verify_summary(&store, &object, gates, &rules, &asked).await {
            Some(found) => objects.push(found),
            None => not_in_scope.push(object),
        }
    }
    let versions = match list_versions(dataset, &*store).await? {
        None => None,
        Some((noncurrent, delete_markers)) => {
            noncurrent.iter().for_each(|object| meter.expect(1, object.size_bytes));
            Some(VerifiedVersions { objects: check(noncurrent).await?.0, delete_markers })
        }
    };
    let uploads = store.list_uploads(dataset.scope.root()).await;
    let uploads = uploads.map_err(|error| error.not_listed("the uploads", &dataset.name, &dataset.uri))?;
    let uploads = uploads.iter().filter(|upload| listing::is_in_scope(&dataset.scope, &upload.location, &belongs));
    Ok(VerifiedDataset {
        name: dataset.name.clone(),
        listed_at,
        table_format: listing.table_format,
        objects,
        not_in_scope,
        not_comparable,
        versions,
        uploads: uploads.count() as u64,
        standing_rules: store.standing_rules(dataset.scope.root()).await,
        unlisted: None,
    })
}

/// The noncurrent versions in scope, and how many delete markers; `None` where the store keeps no versions.
async fn list_versions(dataset: &DatasetSpec, store: &dyn Store) -> Result<Option<(Vec<Object>, u64)>> {
    let listed = store.list_versions(dataset.scope.root()).await;
    let listed = listed.map_err(|error| error.not_listed("the object versions", &dataset.name, &dataset.uri))?;
    let Some(versions) = listed else { return Ok(None) };
    let belongs = |name: &str| listing::belongs(name, dataset.format);
    let ours =
        versions.into_iter().filter(|version| listing::is_in_scope(&dataset.scope, &version.object.location, &belongs));
    let (markers, data): (Vec<_>, Vec<_>) = ours.partition(|version| version.is_delete_marker);
    let noncurrent = data.into_iter().filter(|version| !version.is_current).map(|version| version.object);
    Ok(Some((noncurrent.collect(), markers.len() as u64)))
}

/// Checks objects side by side, in their order; and what was not comparable by column of `rules`, over all of them.
async fn check_objects(
    dataset: &DatasetSpec,
    store: &Arc<dyn Store>,
    objects: Vec<Object>,
    source: &Source<'_>,
    rules: &Arc<Rules>,
    asked: &Arc<Asked>,
    meter: &Meter,
) -> Result<(Vec<VerifiedObject>, Vec<u64>)> {
    let gates = source.gates;
    let checked = objects.into_iter().map(|object| {
        let store = store.clone();
        async move { verify_object(dataset, store, object, gates, rules, asked, meter).await }
    });
    let checked: Vec<_> = futures::stream::iter(checked).buffered(gates.objects_ahead()).collect().await;
    let mut not_comparable = vec![0; rules.columns.len()];
    let (mut objects, mut cut) = (Vec::with_capacity(checked.len()), Vec::new());
    for (number, (object, tally)) in checked.into_iter().enumerate() {
        not_comparable.iter_mut().zip(tally.not_comparable).for_each(|(sum, count)| *sum += count);
        cut.extend(tally.cut.into_iter().map(|cut| (number, cut)));
        objects.push(object);
    }
    add_heads(source, asked, cut, &mut |number: usize, chunk| {
        let object: &mut VerifiedObject = &mut objects[number];
        object.residues.add(Place::Statistics, Some(chunk), 1);
    })
    .await?;
    Ok((objects, not_comparable))
}

/// A summary file is no object of the dataset until it holds an identifier or cannot be read.
async fn verify_summary(
    store: &Arc<dyn Store>,
    object: &Object,
    gates: &Gates,
    rules: &Arc<Rules>,
    asked: &Arc<Asked>,
) -> Option<VerifiedObject> {
    if !is_summary(object) {
        return None;
    }
    let seen =
        |residues, outcome| VerifiedObject { object: object.clone(), rows: 0, rows_matched: 0, residues, outcome };
    match scan_summary(&**store, object, &rules.columns, gates, asked.clone()).await {
        Ok(residues) => residues.in_bytes().then(|| seen(residues, VerifyOutcome::Checked)),
        Err(Fault { exit, reason }) => Some(seen(Residues::default(), VerifyOutcome::Failed { exit, reason })),
    }
}

/// The object's outcome, and what was counted in it.
async fn verify_object(
    dataset: &DatasetSpec,
    store: Arc<dyn Store>,
    object: Object,
    gates: &Gates,
    rules: &Arc<Rules>,
    asked: &Arc<Asked>,
    meter: &Meter,
) -> (VerifiedObject, Tally) {
    let shared = asked.clone();
    let work: Work = Arc::new(move |batch| {
        let mut tally = shared.suppressed.matches(&shared.rules, batch)?;
        shared.suppressed.search(batch, &mut tally.residues)?;
        Ok(tally)
    });
    let others = dataset.search != Search::Off;
    let look = Look { rows: Some(work), bytes: Some(asked.clone()), others, seen: None };
    let size_bytes = object.size_bytes;
    let named = names(dataset, &object, asked).await;
    let scanned = match object_shape(dataset, &object) {
        Ok(shape) => scan(&store, &object, &shape, &rules.columns, gates, &look).await,
        Err(fault) => Err(fault),
    };
    let labels = labels(&store, &object, asked).await;
    let mut residues = named.as_ref().cloned().unwrap_or_default();
    let of_labels = labels.as_ref().cloned().unwrap_or_default();
    residues.merge(&of_labels);
    let (verified, tally) = match scanned.and_then(|scanned| named.and(labels).map(|_| scanned)) {
        Err(Fault { exit, reason }) => {
            let outcome = VerifyOutcome::Failed { exit, reason };
            (VerifiedObject { object, rows: 0, rows_matched: 0, residues, outcome }, Tally::default())
        }
        Ok(scanned) => {
            let partitions = verify_names::partition_names(dataset.scope.root(), &object.location);
            let outcome = outcome(dataset, rules, &scanned, &partitions);
            residues.merge(&scanned.tally.residues);
            let (rows, rows_matched) = (scanned.tally.rows, scanned.tally.rows_matched);
            (VerifiedObject { object, rows, rows_matched, residues, outcome }, scanned.tally)
        }
    };
    meter.add(1, verified.rows, size_bytes);
    (verified, tally)
}

fn object_shape(dataset: &DatasetSpec, object: &Object) -> Result<Shape, Fault> {
    let (inferred, compression) = listing::infer(object.location.file_name());
    let format = dataset.format.or(inferred).ok_or_else(|| Fault::unreadable("tells no format by its name"))?;
    shape(format, promised(compression), &dataset.csv)
}

/// A column that the object lacks but its name has (`email=…/`) was compared there, unless it is part of a composite.
fn outcome(dataset: &DatasetSpec, rules: &Rules, scanned: &Scanned, partitions: &[String]) -> VerifyOutcome {
    let in_name = |column: &usize| rules.is_single(*column) && verify_names::names(partitions, &rules.columns[*column]);
    let missing: Vec<&usize> = scanned.missing.iter().filter(|column| !in_name(column)).collect();
    if missing.is_empty() {
        return VerifyOutcome::Checked;
    }
    let names: Vec<String> = missing.iter().map(|column| rules.columns[**column].to_string()).collect();
    let reason = format!("lacks match column {}", names.join(", "));
    match dataset.missing_column {
        MissingColumn::Error => VerifyOutcome::Failed { exit: Exit::Incomplete, reason },
        MissingColumn::Skip => VerifyOutcome::Skipped { reason },
    }
}

async fn scan(
    store: &Arc<dyn Store>,
    object: &Object,
    shape: &Shape,
    columns: &[ColumnPath],
    gates: &Gates,
    look: &Look,
) -> Result<Scanned, Fault> {
    match shape {
        Shape::Parquet => scan_parquet(&**store, object, columns, gates, look).await,
        Shape::Records { layout, promised } => {
            let Some(work) = look.rows.clone() else { return Ok(Scanned::default()) };
            let _held = gates.memory(held_bytes(object.size_bytes)).await;
            let _running = gates.cpu().await;
            let reader = ObjectReader::new(store.clone(), object.clone());
            let (layout, promised, columns) = (layout.clone(), *promised, columns.to_vec());
            let others = look.others;
            tokio::task::spawn_blocking(move || scan_records(&reader, promised, &layout, &columns, &work, others))
                .await
                .map_err(|error| Fault::from_join(&error))?
        }
    }
}
