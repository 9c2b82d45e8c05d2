//! The stages of a scrub put together by hand, with a fault planted between two of them: what the program itself can show only
//! by chance. The order of the stages is `run`'s.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use lakescrub::account::{Account, RunFacts, Settlement};
use lakescrub::canary;
use lakescrub::error::Exit;
use lakescrub::find::{self, Find};
use lakescrub::job::Job;
use lakescrub::journal::{Journal, Lock};
use lakescrub::manifest::Observed;
use lakescrub::match_index::Builder;
use lakescrub::meter::Meter;
use lakescrub::object_table::{ObjectRow, Outcome};
use lakescrub::plan::{self, Found, Seen};
use lakescrub::rewrite::{self, Rewrite};
use lakescrub::signature::TagKey;
use lakescrub::store::local::LocalStore;
use lakescrub::store::{ConditionalWrites, Location, Object, Precondition, Replacement, Store, StoreError, Stores};
use lakescrub::tag::DatasetTagger;
use lakescrub::{request, verify};

use crate::lakescrub_runner::Lake;

/// A scrub of the lake's job over `store`; `fault` may change what find found, or the lake.
fn scrub(lake: &Lake, store: Arc<dyn Store>, fault: impl FnOnce(&mut Vec<Found>)) -> Settlement {
    let job = Job::read(&lake.path().join("job.toml"), &[]).unwrap();
    let stores = Stores::new(store.clone(), store.clone());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let now = jiff::Timestamp::UNIX_EPOCH;
        let meter = Arc::new(Meter::default());
        let mut builder = Builder::new(&job.lists, &job.datasets, [7; 16]);
        let mut each = |entry: request::Entry<'_>| builder.add(entry);
        let reports = request::read_lists(&job, &stores, &|| now, &meter, &mut each).await.unwrap();
        let (index, added) = builder.finish();
        let index = Arc::new(index);
        let lists: Vec<_> = reports.into_iter().zip(added).collect();

        let mut found = Vec::new();
        for (number, spec) in job.datasets.iter().enumerate() {
            let matcher = Arc::new(index.matcher(number, spec));
            let find = Find {
                spec,
                store: store.clone(),
                matcher,
                resources: &job.resources,
                meter: meter.clone(),
                known: None,
            };
            found.push(find::find(&find, now).await.unwrap());
        }
        fault(&mut found);
        let plan = plan::build(&job.datasets, found, &|_, location| location.to_string());

        let state = &job.state.location;
        let lock = Lock::take(store.clone(), state, "run").await.unwrap();
        let journal = Journal::begin(store.clone(), state, "run", now, &job.name).await.unwrap();
        let mut outcomes = Vec::new();
        for (spec, dataset) in job.datasets.iter().zip(&plan.datasets) {
            let rewrite = Rewrite {
                spec,
                store: store.clone(),
                journal: &journal,
                lock: &lock,
                tagger: Arc::new(DatasetTagger::new(Arc::new(TagKey::new([1; 32])), spec, None)),
                resources: &job.resources,
                meter: meter.clone(),
                name_tag: &Location::to_string,
                stop: &|| false,
            };
            outcomes.push(rewrite::rewrite(&rewrite, dataset).await);
        }
        lock.release().await.unwrap();
        let verified = verify::verify(&job, &stores, &|| now, &meter).await.unwrap();
        let account = Account {
            job: &job,
            lists: &lists,
            plan: Some(&plan),
            outcomes: &outcomes,
            purged: &[],
            recovered: &[],
            verified: &verified,
            left_open: None,
            unconditional_writes: &[],
            is_clock_set: false,
            shown: &|_, location| location.to_string(),
            ledger: None,
            undecided: 0,
            canaries: None,
        };
        account.settle(RunFacts {
            id: "run".to_owned(),
            command: "scrub",
            started_at: now,
            finished_at: now,
            resumed: false,
            tool_digest: Observed::NotChecked,
            stages: Vec::new(),
        })
    })
}

fn row<'a>(settled: &'a Settlement, file: &str) -> &'a ObjectRow {
    settled.rows.iter().find(|row| row.location.ends_with(file)).unwrap()
}

fn lake() -> Lake {
    let lake = Lake::of_customers(&["ada@example.com", "bob@example.org"]);
    lake.write("lake/a.csv", "id,email\n1,ada@example.com\n2,eve@example.com\n3,bob@example.org\n");
    lake.write("lake/b.csv", "id,email\n4,ada@example.com\n");
    lake
}

#[test]
fn without_a_fault_the_run_is_clean() {
    let settled = scrub(&lake(), Arc::new(LocalStore), |_| {});
    assert_eq!(settled.exit, Exit::Clean);
    assert_eq!(row(&settled, "a.csv").outcome, Outcome::Rewritten);
}

#[test]
fn a_row_that_find_skips_is_residue_with_its_object_and_count() {
    let lake = lake();
    let skip = |found: &mut Vec<Found>| {
        let finding = found[0].findings.iter_mut().find(|finding| finding.object.location.file_name() == "a.csv");
        let Seen::Rows { matched, .. } = &mut finding.unwrap().seen else { panic!("every row was read") };
        assert!(matched.remove(2), "the third row matched");
    };
    let settled = scrub(&lake, Arc::new(LocalStore), skip);
    assert_eq!(settled.exit, Exit::Residue);
    let missed = row(&settled, "a.csv");
    assert_eq!(missed.outcome, Outcome::Residue);
    assert_eq!(missed.reason.as_deref(), Some("1 of 2 rows hold a listed identifier"));
    assert_eq!((missed.rows_before, missed.rows_removed, missed.rows_after), (Some(3), Some(1), Some(2)));
    assert_eq!(row(&settled, "b.csv").outcome, Outcome::Rewritten);
    assert_eq!(settled.observations.verification.residue.rows, Observed::Seen(1));
}

#[test]
fn an_object_that_find_skips_is_residue_too() {
    let lake = lake();
    let settled = scrub(&lake, Arc::new(LocalStore), |found| {
        found[0].findings.retain(|finding| finding.object.location.file_name() != "b.csv");
    });
    assert_eq!(settled.exit, Exit::Residue);
    assert_eq!(row(&settled, "b.csv").reason.as_deref(), Some("1 of 1 rows hold a listed identifier"));
}

const THEIRS: &str = "id,email\n9,another@example.com\n";

#[test]
fn an_object_changed_between_find_and_rewrite_keeps_its_new_bytes() {
    let lake = lake();
    let settled = scrub(&lake, Arc::new(LocalStore), |_| lake.write("lake/a.csv", THEIRS));
    assert_conflict(&lake, &settled);
}

#[test]
fn an_object_changed_just_before_the_swap_keeps_its_new_bytes() {
    let lake = lake();
    let path = lake.path().join("lake/a.csv");
    let store =
        Meddling { before_commit: Box::new(move || std::fs::write(&path, THEIRS).unwrap()), ..Meddling::new("a.csv") };
    let settled = scrub(&lake, Arc::new(store), |_| {});
    assert_conflict(&lake, &settled);
}

#[track_caller]
fn assert_conflict(lake: &Lake, settled: &Settlement) {
    assert_eq!(settled.exit, Exit::Conflict);
    assert_eq!(lake.text("lake/a.csv"), THEIRS);
    assert_eq!(lake.text("lake/b.csv"), "id,email\n", "the others are done");
    let lost = row(settled, "a.csv");
    assert_eq!(lost.outcome, Outcome::Changed);
    assert_eq!((lost.rows_before, lost.rows_removed, lost.rows_after), (None, None, None), "their rows, not ours");
    assert_eq!(lake.temporary_files(), [""; 0]);
}

#[test]
fn what_differs_when_it_is_read_back_never_replaces_the_object() {
    let lake = lake();
    let before = lake.read("lake/a.csv");
    let store = Meddling { flips_a_byte: true, ..Meddling::new("a.csv") };
    let settled = scrub(&lake, Arc::new(store), |_| {});
    assert_eq!(lake.read("lake/a.csv"), before);
    assert_eq!(lake.temporary_files(), [""; 0]);
    // The old rows are still there, so the verifier finds them: graver than the failure alone.
    assert_eq!(settled.exit, Exit::Residue);
    let reason = row(&settled, "a.csv").reason.clone().unwrap();
    assert!(reason.starts_with("2 of 3 rows hold a listed identifier; differs after the rewrite"), "{reason}");
}

#[test]
fn an_object_that_may_not_be_read_blocks_and_the_others_are_done() {
    let lake = lake();
    let before = lake.read("lake/a.csv");
    let settled = scrub(&lake, Arc::new(Meddling { denies: true, ..Meddling::new("a.csv") }), |_| {});
    assert_eq!(settled.exit, Exit::Blocked);
    assert_eq!(row(&settled, "a.csv").outcome, Outcome::Locked);
    assert_eq!(lake.read("lake/a.csv"), before);
    assert_eq!(row(&settled, "b.csv").outcome, Outcome::Rewritten);
}

#[test]
fn a_canary_that_is_not_seen_or_not_removed_is_counted() {
    let lake = lake();
    let job = Job::read(&lake.path().join("job.toml"), &["canary.count=2".to_owned()]).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let counts = |store: Meddling| {
        let store: Arc<dyn Store> = Arc::new(store);
        let stores = Stores::new(store.clone(), store.clone());
        runtime.block_on(async {
            let state = &job.state.location;
            let lock = Lock::take(store.clone(), state, "run").await.unwrap();
            let counts = canary::run(&job, &stores, &lock, "run", jiff::Timestamp::UNIX_EPOCH, [5; 16]).await.unwrap();
            lock.release().await.unwrap();
            assert_eq!(store.list(&state.join("canaries")).await.unwrap(), []);
            (counts.planted, counts.found, counts.removed)
        })
    };
    let (planted, found, removed) = counts(Meddling::new("no such file"));
    assert!(planted > 0 && found == planted && removed == planted, "{planted} {found} {removed}");
    let in_one = planted / job.datasets[0].format.map_or(3, |_| 1);
    let unread = Meddling { denies: true, ..Meddling::new("canary.csv") };
    assert_eq!(counts(unread), (planted, planted - in_one, planted - in_one));
    let unwritten = Meddling { flips_a_byte: true, ..Meddling::new("canary.csv") };
    assert_eq!(counts(unwritten), (planted, planted, planted - in_one));
}

/// The local disk with a fault at one object.
struct Meddling {
    file: &'static str,
    before_commit: Box<dyn Fn() + Send + Sync>,
    flips_a_byte: bool,
    denies: bool,
}

impl Meddling {
    fn new(file: &'static str) -> Self {
        Meddling { file, before_commit: Box::new(|| {}), flips_a_byte: false, denies: false }
    }
}

impl std::fmt::Debug for Meddling {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Meddling")
    }
}

#[async_trait]
impl Store for Meddling {
    async fn list(&self, prefix: &Location) -> Result<Vec<Object>, StoreError> {
        LocalStore.list(prefix).await
    }

    async fn head(&self, location: &Location) -> Result<Object, StoreError> {
        LocalStore.head(location).await
    }

    async fn get_range(&self, object: &Object, range: Range<u64>) -> Result<Bytes, StoreError> {
        if self.denies && object.location.file_name() == self.file {
            let reason = "no permission".to_owned();
            return Err(StoreError::Denied { location: object.location.clone(), reason });
        }
        LocalStore.get_range(object, range).await
    }

    async fn get(&self, location: &Location) -> Result<(Object, Bytes), StoreError> {
        LocalStore.get(location).await
    }

    async fn put(&self, location: &Location, bytes: Bytes, when: Precondition) -> Result<Object, StoreError> {
        // The swap is announced in the journal just before it happens.
        if bytes.windows(self.file.len()).any(|part| part == self.file.as_bytes()) {
            (self.before_commit)();
        }
        LocalStore.put(location, bytes, when).await
    }

    async fn delete(&self, object: &Object) -> Result<(), StoreError> {
        LocalStore.delete(object).await
    }

    async fn replace(&self, object: &Object, write_id: &str) -> Result<Box<dyn Replacement>, StoreError> {
        let inner = LocalStore.replace(object, write_id).await?;
        let flips_a_byte = self.flips_a_byte && object.location.file_name() == self.file;
        Ok(Box::new(Flipping { inner, flips_a_byte }))
    }

    async fn probe(&self, prefix: &Location) -> Result<ConditionalWrites, StoreError> {
        LocalStore.probe(prefix).await
    }
}

struct Flipping {
    inner: Box<dyn Replacement>,
    flips_a_byte: bool,
}

#[async_trait]
impl Replacement for Flipping {
    async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        self.inner.write(bytes).await
    }

    async fn stage(&mut self) -> Result<Option<Object>, StoreError> {
        let staged = self.inner.stage().await?;
        let Some(object) = staged.filter(|_| self.flips_a_byte) else { return self.inner.stage().await };
        let path = Path::new(&object.location.to_string()).to_owned();
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.iter_mut().rev().nth(3).unwrap() ^= 1;
        std::fs::write(path, bytes).unwrap();
        LocalStore.head(&object.location).await.map(Some)
    }

    async fn commit(self: Box<Self>) -> Result<Object, StoreError> {
        self.inner.commit().await
    }

    async fn abort(self: Box<Self>) -> Result<(), StoreError> {
        self.inner.abort().await
    }
}
