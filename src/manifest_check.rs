//! `manifest check`: whether one run's manifest, or all of a state and their chain, is to be believed.
//!
//! Reads through [`Store`] and needs neither the data nor a network that the state does not lie on. Invariant: every byte under
//! a run's signed files, the head and the state's key is covered, so one flipped byte fails a check; what was not
//! looked at is said.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use serde::Serialize;

use crate::chain::{self, ENVELOPE_FILE, FIRST_KEY_FILE, HEAD_FILE, Head, STATEMENT_FILE, get_if_there, untrusted};
use crate::error::{Error, Result};
use crate::keys;
use crate::manifest::{
    self, GATE_TYPE, OBJECTS_FILE, ObjectsFile, PAYLOAD_TYPE, Previous, Statement, Verdict, sha256_hex,
};
use crate::merkle;
use crate::object_table::{self, ObjectRow};
use crate::signature::{Envelope, PublicKey, SignatureError};
use crate::store::{self, Location, Store, StoreError, Stores};

/// What was checked and held; what does not hold is an error with exit 8.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CheckReport {
    pub target: String,
    pub trusted: Trusted,
    /// In the order of the chain.
    pub runs: Vec<CheckedRun>,
    /// Plain sentences.
    pub checked: Vec<String>,
    pub not_checked: Vec<String>,
}

/// The keys that signatures were checked with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Trusted {
    pub keyids: Vec<String>,
    pub origin: KeyOrigin,
    #[serde(skip)]
    keys: Vec<PublicKey>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyOrigin {
    /// `--public-key`.
    Given,
    /// The copy in the state: whoever can write the state can exchange it.
    State,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckedRun {
    pub run_id: String,
    pub command: String,
    pub finished_at: Timestamp,
    pub verdict: Verdict,
    /// Hex SHA-256 of the signed statement.
    pub digest: String,
    pub keyid: String,
    /// Rows of `objects.parquet`.
    pub objects: u64,
    /// Rows whose inclusion under the signed root was proven.
    pub proofs: u64,
    pub previous: Option<Previous>,
}

/// A manifest that passed every check it can pass alone.
#[derive(Debug, Clone, PartialEq)]
pub struct CheckedManifest {
    pub run: CheckedRun,
    pub statement: Statement,
    pub rows: Vec<ObjectRow>,
}

/// Up to this many rows each is proven; of more, as many at even distances, and the report says so.
const PROOFS_MAX: u64 = 100_000;

/// Manifests that are read at the same time.
const RUNS_AT_A_TIME: usize = 4;

/// Checks a run's folder, or a state: all runs and their chain. `public_key` is a PEM file of one key or several; without it
/// the copy in the state is used.
pub async fn check(target: &Location, stores: &Stores, public_key: Option<&Path>) -> Result<CheckReport> {
    let store = stores.of(target);
    match find_target(&*store, target).await? {
        Target::Run(folder) => check_folder(&*store, &folder, public_key).await,
        Target::State(state) => check_state(&*store, &state, public_key).await,
        Target::Gates { files, state } => check_gates(&*store, target, (files, state), public_key).await,
    }
}

/// One run's manifest for a reader of it: checked alone, without its chain.
pub async fn checked_manifest(
    target: &Location,
    stores: &Stores,
    public_key: Option<&Path>,
) -> Result<CheckedManifest> {
    let store = stores.of(target);
    match find_target(&*store, target).await? {
        Target::Run(folder) => {
            let trusted = trusted_keys(&*store, state_of(&folder).as_ref(), public_key).await?;
            check_run(&*store, &folder, &trusted.keys).await
        }
        Target::State(state) => Err(Error::usage(format!("{state} is a state, not one run's folder"))
            .hint("name a folder below its manifests/")),
        Target::Gates { .. } => Err(Error::usage(format!("{target} is a gate's, not one run's folder"))),
    }
}

impl CheckReport {
    /// For people, a line each.
    pub fn lines(&self) -> Vec<String> {
        let runs = self.runs.iter().map(|run| {
            let (id, verdict) = (&run.run_id, run.verdict.name());
            format!("run {id}: {} at {}, {} objects, verdict {verdict}", run.command, run.finished_at, run.objects)
        });
        let checked = self.checked.iter().map(|sentence| format!("checked: {sentence}"));
        let not_checked = self.not_checked.iter().map(|sentence| format!("not checked: {sentence}"));
        runs.chain(checked).chain(not_checked).collect()
    }
}

enum Target {
    Run(Location),
    State(Location),
    /// What gates have signed, each one file by itself.
    Gates {
        files: Vec<Location>,
        state: Option<Location>,
    },
}

async fn find_target(store: &dyn Store, target: &Location) -> Result<Target> {
    let mut folder = without_slash(target);
    if folder.file_name().ends_with(GATE_ENDING) && folder.file_name() != ENVELOPE_FILE {
        let state = parent(&folder).as_ref().and_then(state_of_gates);
        return Ok(Target::Gates { files: vec![folder], state });
    }
    if [ENVELOPE_FILE, STATEMENT_FILE, OBJECTS_FILE].contains(&folder.file_name()) {
        folder = parent(&folder).unwrap_or(folder);
    }
    if exists(store, &folder.join(ENVELOPE_FILE)).await? {
        return Ok(Target::Run(folder));
    }
    if let Some(state) = state_of_gates(&folder) {
        return Ok(Target::Gates { files: gates_in(store, &folder).await?, state: Some(state) });
    }
    if exists(store, &chain::head_location(&folder)).await? || !chain::run_files(store, &folder).await?.is_empty() {
        return Ok(Target::State(folder));
    }
    if exists(store, &folder.join(HEAD_FILE)).await?
        && let Some(state) = parent(&folder)
    {
        return Ok(Target::State(state));
    }
    for file in [STATEMENT_FILE, OBJECTS_FILE] {
        if exists(store, &folder.join(file)).await? {
            return Err(untrusted(&folder.join(ENVELOPE_FILE), &format!("is missing beside {file}")));
        }
    }
    Err(Error::usage(format!("there is no manifest at {target}"))
        .hint("name the state of a job, or one run's folder below its manifests/"))
}

async fn check_folder(store: &dyn Store, folder: &Location, public_key: Option<&Path>) -> Result<CheckReport> {
    let state = state_of(folder);
    let trusted = trusted_keys(store, state.as_ref(), public_key).await?;
    let checked = check_run(store, folder, &trusted.keys).await?;
    let link = check_link(store, folder, &checked.run).await?;
    let mut report = report(folder, trusted, vec![checked.run]);
    match link {
        Link::Whole(sentence) => report.checked.push(sentence),
        Link::NotChecked(sentence) => report.not_checked.insert(0, sentence),
    }
    report.not_checked.insert(1.min(report.not_checked.len()), "the rest of the chain: needs the state".to_owned());
    Ok(report)
}

const GATE_ENDING: &str = ".dsse.json";

/// The state that a folder of gates' manifests lies in: `STATE/gate`.
fn state_of_gates(folder: &Location) -> Option<Location> {
    (folder.file_name() == "gate").then(|| parent(folder)).flatten()
}

async fn gates_in(store: &dyn Store, folder: &Location) -> Result<Vec<Location>> {
    let prefix = folder.join("");
    let listed = store::list(store, &prefix).await?.into_iter().map(|object| object.location);
    let is_of_gate = |name: &str| !name.contains('/') && name.ends_with(GATE_ENDING);
    Ok(listed.filter(|location| chain::below(&prefix, location).is_some_and(is_of_gate)).collect())
}

/// Each is signed by itself: no chain tells whether one is missing.
async fn check_gates(
    store: &dyn Store,
    target: &Location,
    (files, state): (Vec<Location>, Option<Location>),
    public_key: Option<&Path>,
) -> Result<CheckReport> {
    let trusted = trusted_keys(store, state.as_ref(), public_key).await?;
    let mut verdicts: BTreeMap<String, u64> = BTreeMap::new();
    for location in &files {
        let opened = Envelope::from_bytes(&required(store, location).await?)
            .and_then(|envelope| envelope.open(PAYLOAD_TYPE, &trusted.keys))
            .map_err(|error| not_opened(location, &error))?;
        let statement: serde_json::Value =
            serde_json::from_slice(&opened.payload).map_err(|_| untrusted(location, "is no statement"))?;
        let (run, verdict) = (&statement["predicate"]["run"], &statement["predicate"]["verdict"]);
        let name = run["id"].as_str().map(|id| format!("{id}{GATE_ENDING}"));
        if statement["predicateType"] != GATE_TYPE || name.as_deref() != Some(location.file_name()) {
            return Err(untrusted(location, "is not what a gate of that name has signed"));
        }
        *verdicts.entry(verdict.as_str().unwrap_or("unknown").to_owned()).or_default() += 1;
    }
    let verdicts: Vec<String> = verdicts.iter().map(|(verdict, count)| format!("{count} {verdict}")).collect();
    let mut report = report(target, trusted, Vec::new());
    let keys = report.trusted.keyids.join(", ");
    let signed = manifests(files.len());
    report.checked =
        vec![format!("the signature of {signed} of the gate ({}), with a key of {keys}", verdicts.join(", "))];
    report.not_checked.push("whether a gate's manifest is missing: they are in no chain".to_owned());
    Ok(report)
}

enum Link {
    Whole(String),
    NotChecked(String),
}

/// The link to the run before, as far as the neighbouring folders show it.
async fn check_link(store: &dyn Store, folder: &Location, run: &CheckedRun) -> Result<Link> {
    let Some(previous) = &run.previous else {
        return Ok(Link::Whole(format!("run {} says of itself that it is the first of its state", run.run_id)));
    };
    let not_checked = Link::NotChecked(format!("the link to run {}: needs the state", previous.run_id));
    let Some(runs) = parent(folder) else { return Ok(not_checked) };
    let location = runs.join(&previous.run_id).join(ENVELOPE_FILE);
    let Some((_, bytes)) = get_if_there(store, &location).await? else {
        return match exists(store, &runs.join(HEAD_FILE)).await? {
            true => Err(untrusted(&location, &format!("is missing, but run {} was chained to it", run.run_id))),
            false => Ok(not_checked),
        };
    };
    let payload = Envelope::from_bytes(&bytes).and_then(|envelope| envelope.payload_unchecked());
    let payload = payload.map_err(|error| untrusted(&location, &error.to_string()))?;
    if sha256_hex(&payload) != previous.digest {
        return Err(untrusted(&location, &format!("is not the manifest that run {} was chained to", run.run_id)));
    }
    Ok(Link::Whole(format!("run {} is chained to run {}, which is there", run.run_id, previous.run_id)))
}

async fn check_state(store: &dyn Store, state: &Location, public_key: Option<&Path>) -> Result<CheckReport> {
    let files = chain::run_files(store, state).await?;
    let (signed, unsigned): (Vec<_>, Vec<_>) =
        files.iter().partition(|(_, files)| files.iter().any(|file| file == ENVELOPE_FILE));
    let trusted = trusted_keys(store, Some(state), public_key).await?;
    let head = read_head(store, state, &trusted.keys).await?;
    if signed.is_empty() && head.length == 0 {
        return Err(Error::usage(format!("there is no manifest in {state} yet"))
            .hint("a manifest is written at the end of `scrub` and `verify`"));
    }
    let folders: Vec<Location> = signed.iter().map(|(run_id, _)| chain::run_folder(state, run_id)).collect();
    let runs: Vec<CheckedRun> = futures::stream::iter(folders)
        .map(|folder| {
            let keys = trusted.keys.clone();
            async move { check_run(store, &folder, &keys).await.map(|checked| checked.run) }
        })
        .buffered(RUNS_AT_A_TIME)
        .try_collect()
        .await?;
    let runs = in_chain_order(runs).map_err(|why| untrusted(&chain::manifests(state), &why))?;
    let behind = behind_head(&runs, &head).map_err(|why| untrusted(&chain::head_location(state), &why))?;

    let mut report = report(state, trusted, runs);
    report.checked.push(chain_sentence(&report.runs, behind));
    report.not_checked.extend(unsigned.into_iter().map(|(run_id, _)| {
        format!("run {run_id}: it was stopped before it signed a manifest, so there is nothing to believe in")
    }));
    report.not_checked.push(
        "whether the whole state was put back to an earlier moment: compare the last run and digest with a copy kept elsewhere"
            .to_owned(),
    );
    Ok(report)
}

async fn read_head(store: &dyn Store, state: &Location, trusted: &[PublicKey]) -> Result<Head> {
    let location = chain::head_location(state);
    match get_if_there(store, &location).await? {
        Some((_, bytes)) => Head::open(&bytes, trusted).map_err(|why| untrusted(&location, &why)),
        None => Err(untrusted(&location, "is missing, so the last runs could be missing unseen")),
    }
}

/// Every check that a run's folder allows by itself.
async fn check_run(store: &dyn Store, folder: &Location, trusted: &[PublicKey]) -> Result<CheckedManifest> {
    let location = folder.join(ENVELOPE_FILE);
    let envelope = required(store, &location).await?;
    let opened = Envelope::from_bytes(&envelope)
        .and_then(|envelope| envelope.open(PAYLOAD_TYPE, trusted))
        .map_err(|error| not_opened(&location, &error))?;
    let statement = Statement::from_bytes(&opened.payload).map_err(|why| untrusted(&location, &why))?;
    let run = &statement.predicate.run;
    if folder.file_name() != run.id {
        let why = format!("is the manifest of run {}, but lies in folder {}", run.id, folder.file_name());
        return Err(untrusted(&location, &why));
    }
    let decoded = folder.join(STATEMENT_FILE);
    if required(store, &decoded).await? != opened.payload {
        return Err(untrusted(&decoded, "is not the statement that was signed"));
    }
    let (rows, proofs) = check_table(store, folder, &statement).await?;
    let checked = CheckedRun {
        run_id: run.id.clone(),
        command: run.command.clone(),
        finished_at: run.finished_at,
        verdict: statement.predicate.verdict,
        digest: sha256_hex(&opened.payload),
        keyid: opened.keyid,
        objects: rows.len() as u64,
        proofs,
        previous: statement.predicate.previous.clone(),
    };
    Ok(CheckedManifest { run: checked, statement, rows })
}

/// The table against the statement: bytes, rows, proofs and counts. Returns the rows and how many were proven.
async fn check_table(store: &dyn Store, folder: &Location, statement: &Statement) -> Result<(Vec<ObjectRow>, u64)> {
    let predicate = &statement.predicate;
    let location = folder.join(OBJECTS_FILE);
    let fault = |why: &str| untrusted(&location, why);
    let bytes = required(store, &location).await?;
    let digest = sha256_hex(&bytes);
    let subject = statement.subject.iter().find(|subject| subject.name == OBJECTS_FILE);
    // Before anything decodes it: bytes that nobody signed do not reach a decoder.
    if predicate.objects.sha256 != digest || subject.and_then(|subject| subject.digest.get("sha256")) != Some(&digest) {
        return Err(fault("does not have the digest that was signed"));
    }
    let rows = object_table::decode(bytes).map_err(|why| fault(&why))?;
    if !rows.is_sorted_by(|a, b| a.key() < b.key()) {
        return Err(fault("does not hold its rows in order, each once"));
    }
    let proofs = check_inclusion(&predicate.objects, &rows).map_err(|why| fault(&why))?;
    manifest::agrees(&predicate.datasets, &predicate.verification, predicate.verdict, &rows)
        .map_err(|why| untrusted(&folder.join(STATEMENT_FILE), &why))?;
    Ok((rows, proofs))
}

fn check_inclusion(objects: &ObjectsFile, rows: &[ObjectRow]) -> Result<u64, String> {
    let count = rows.len() as u64;
    if objects.rows != count {
        return Err(format!("has {count} rows instead of the {} that were signed", objects.rows));
    }
    let tree = object_table::tree(rows);
    let signed = hex::decode(&objects.merkle_root).ok().and_then(|root| merkle::Hash::try_from(root).ok());
    let Some(signed) = signed.filter(|signed| *signed == tree.root()) else {
        return Err("has rows whose Merkle root is not the one that was signed".to_owned());
    };
    let has_strays = object_table::has_strays(rows);
    let step = count.div_ceil(PROOFS_MAX).max(1) as usize;
    let mut proofs = 0;
    for index in (0..count).step_by(step) {
        let leaf = rows[index as usize].canonical_json(has_strays);
        let proof = tree.inclusion_proof(index).unwrap_or_default();
        if !merkle::is_included(&leaf, index, count, &proof, &signed) {
            return Err(format!("has row {index}, which is not under the Merkle root that was signed"));
        }
        proofs += 1;
    }
    Ok(proofs)
}

/// The runs from the first to the last. Exactly one is the first, each other follows one that is there, no two the same.
fn in_chain_order(runs: Vec<CheckedRun>) -> Result<Vec<CheckedRun>, String> {
    let digests: HashMap<&str, &str> = runs.iter().map(|run| (run.run_id.as_str(), run.digest.as_str())).collect();
    for run in &runs {
        let Some(previous) = &run.previous else { continue };
        match digests.get(previous.run_id.as_str()) {
            None => return Err(format!("run {} is missing: run {} was chained to it", previous.run_id, run.run_id)),
            Some(digest) if **digest != previous.digest => {
                return Err(format!("run {} is not the one that run {} was chained to", previous.run_id, run.run_id));
            }
            Some(_) => {}
        }
    }
    let count = runs.len();
    let mut next: BTreeMap<Option<String>, CheckedRun> = BTreeMap::new();
    for run in runs {
        let after = run.previous.as_ref().map(|previous| previous.run_id.clone());
        let place = after.clone().map_or("are both the first".to_owned(), |after| format!("both follow run {after}"));
        let run_id = run.run_id.clone();
        if let Some(other) = next.insert(after, run) {
            return Err(format!("the chain forks: runs {} and {run_id} {place}", other.run_id));
        }
    }
    let mut ordered: Vec<CheckedRun> = Vec::with_capacity(count);
    while let Some(run) = next.remove(&ordered.last().map(|run| run.run_id.clone())) {
        ordered.push(run);
    }
    if ordered.len() == count { Ok(ordered) } else { Err("no run is the first of the chain".to_owned()) }
}

/// How many runs the head is behind: none, unless a run was stopped between its manifest and the head.
fn behind_head(runs: &[CheckedRun], head: &Head) -> Result<usize, String> {
    let Some(last) = &head.last else { return Ok(runs.len()) };
    let Some(place) = runs.iter().position(|run| run.run_id == last.run_id) else {
        return Err(format!("names run {} as the last, which is missing", last.run_id));
    };
    if runs[place].digest != last.digest {
        return Err(format!("names another manifest of run {} than the one that is there", last.run_id));
    }
    if head.length != place as u64 + 1 {
        return Err(format!("counts {} runs up to run {}, there are {}", head.length, last.run_id, place + 1));
    }
    Ok(runs.len() - place - 1)
}

async fn trusted_keys(store: &dyn Store, state: Option<&Location>, public_key: Option<&Path>) -> Result<Trusted> {
    let (keys, origin) = match (public_key, state) {
        (Some(path), _) => (keys::load_public_keys(path)?, KeyOrigin::Given),
        (None, Some(state)) => (keys_in_state(store, state).await?, KeyOrigin::State),
        (None, None) => (Vec::new(), KeyOrigin::State),
    };
    if keys.is_empty() {
        return Err(Error::usage("there is no public key to check the manifest with")
            .hint("name the key to trust with --public-key FILE"));
    }
    Ok(Trusted { keyids: keys.iter().map(PublicKey::keyid).collect(), origin, keys })
}

async fn keys_in_state(store: &dyn Store, state: &Location) -> Result<Vec<PublicKey>> {
    let prefix = state.join("keys/");
    let mut keys = Vec::new();
    for object in store::list(store, &prefix).await? {
        let name = chain::below(&prefix, &object.location).unwrap_or_default();
        let keyid = name.strip_suffix(".pub").filter(|keyid| keyid.len() == 64);
        if name != FIRST_KEY_FILE && keyid.is_none() {
            continue;
        }
        let (_, pem) = store::read_whole(store, &object.location).await?;
        let key = std::str::from_utf8(&pem).ok().and_then(|pem| PublicKey::from_pem(pem).ok());
        match key.filter(|key| key.to_pem() == pem && keyid.is_none_or(|keyid| keyid == key.keyid())) {
            Some(key) => keys.push(key),
            None => return Err(untrusted(&object.location, "is not the public key that was put there")),
        }
    }
    Ok(keys)
}

fn report(target: &Location, trusted: Trusted, runs: Vec<CheckedRun>) -> CheckReport {
    let objects: u64 = runs.iter().map(|run| run.objects).sum();
    let proofs: u64 = runs.iter().map(|run| run.proofs).sum();
    let mut used: Vec<&str> = runs.iter().map(|run| run.keyid.as_str()).collect();
    used.sort_unstable();
    used.dedup();
    let origin = match trusted.origin {
        KeyOrigin::Given => "the key given with --public-key",
        KeyOrigin::State => "the copy in the state; --public-key names one to trust instead",
    };
    let mut not_checked = Vec::new();
    if trusted.origin == KeyOrigin::State {
        not_checked
            .push("whether the key is the right one: whoever can write the state can exchange its copy".to_owned());
    }
    if proofs < objects {
        not_checked
            .push(format!("the inclusion proofs of {} objects: a sample of {proofs} was taken", objects - proofs));
    }
    not_checked.push("the data itself: `lakescrub verify` reads it".to_owned());
    let checked = vec![
        format!("the signature of {}, with key {} ({origin})", manifests(runs.len()), used.join(", ")),
        "each manifest.json is the signed statement, byte for byte".to_owned(),
        format!("each objects.parquet has the signed digest, and its rows ({objects} in all) the signed Merkle root"),
        format!("{proofs} inclusion proofs lead from an object to the signed root"),
        "rows before - removed = after for each object, and the totals are those of the objects".to_owned(),
    ];
    CheckReport { target: target.to_string(), trusted, runs, checked, not_checked }
}

fn manifests(count: usize) -> String {
    if count == 1 { "1 manifest".to_owned() } else { format!("{count} manifests") }
}

fn chain_sentence(runs: &[CheckedRun], behind: usize) -> String {
    let ends = match behind {
        0 => "HEAD.json names the last".to_owned(),
        behind => format!("HEAD.json is {behind} behind, a run was stopped there and the next one repairs it"),
    };
    match (runs.first(), runs.last()) {
        (Some(first), Some(last)) => format!(
            "the chain of {} from run {} to run {} is whole, and {ends}; the last digest is {}",
            manifests(runs.len()),
            first.run_id,
            last.run_id,
            last.digest
        ),
        (None, _) | (_, None) => format!("the chain is empty, and {ends}"),
    }
}

async fn required(store: &dyn Store, location: &Location) -> Result<bytes::Bytes> {
    let found = get_if_there(store, location).await?;
    found.map(|(_, bytes)| bytes).ok_or_else(|| untrusted(location, "is missing"))
}

fn not_opened(location: &Location, error: &SignatureError) -> Error {
    let told = untrusted(location, &error.to_string());
    match error {
        SignatureError::UnknownKey { .. } => told.hint(
            "if the signing key was changed on purpose, give the old and the new one in one file to --public-key",
        ),
        SignatureError::NotAPrivateKey
        | SignatureError::NotAPublicKey
        | SignatureError::NotATagKey
        | SignatureError::NotAnEnvelope
        | SignatureError::PayloadType { .. }
        | SignatureError::SignatureCount(_)
        | SignatureError::BadSignature { .. } => told,
    }
}

async fn exists(store: &dyn Store, location: &Location) -> Result<bool> {
    match store.head(location).await {
        Ok(_) => Ok(true),
        // `Other` is a name that cannot be one, as that of a file below a file.
        Err(StoreError::NotFound(_) | StoreError::Other { .. }) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The state that a run's folder lies in: `STATE/manifests/RUN_ID`.
fn state_of(folder: &Location) -> Option<Location> {
    let runs = parent(folder)?;
    (runs.file_name() == "manifests").then(|| parent(&runs))?
}

fn parent(location: &Location) -> Option<Location> {
    match location {
        Location::Local(path) => path.parent().map(|path| Location::Local(path.to_owned())),
        Location::S3 { bucket, key } if !key.is_empty() => {
            let key = key.rsplit_once('/').map_or("", |(parent, _)| parent);
            Some(Location::S3 { bucket: bucket.clone(), key: key.to_owned() })
        }
        Location::S3 { .. } => None,
    }
}

fn without_slash(location: &Location) -> Location {
    match location {
        Location::Local(path) => Location::Local(path.components().collect()),
        Location::S3 { bucket, key } => {
            Location::S3 { bucket: bucket.clone(), key: key.strip_suffix('/').unwrap_or(key).to_owned() }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(run_id: &str, previous: Option<(&str, &str)>) -> CheckedRun {
        CheckedRun {
            run_id: run_id.into(),
            command: "scrub".into(),
            finished_at: Timestamp::UNIX_EPOCH,
            verdict: Verdict::Clean,
            digest: format!("digest of {run_id}"),
            keyid: "key".into(),
            objects: 0,
            proofs: 0,
            previous: previous.map(|(run_id, digest)| Previous { run_id: run_id.into(), digest: digest.into() }),
        }
    }

    fn after(run_id: &str, previous: &str) -> CheckedRun {
        run(run_id, Some((previous, &format!("digest of {previous}"))))
    }

    #[test]
    fn a_chain_has_one_beginning_no_gap_and_no_fork() {
        let cases = [
            (vec![run("a", None)], Ok("a")),
            (vec![after("c", "b"), run("a", None), after("b", "a")], Ok("a b c")),
            (vec![run("a", None), after("c", "b")], Err("run b is missing")),
            (vec![run("a", None), run("b", Some(("a", "other")))], Err("is not the one")),
            (vec![run("a", None), run("b", None)], Err("are both the first")),
            (vec![run("a", None), after("b", "a"), after("c", "a")], Err("both follow run a")),
            (vec![after("a", "b"), after("b", "a")], Err("no run is the first")),
            (vec![after("a", "a")], Err("no run is the first")),
        ];
        for (runs, wish) in cases {
            let told = format!("{runs:?}");
            match (in_chain_order(runs), wish) {
                (Ok(runs), Ok(wish)) => {
                    assert_eq!(runs.iter().map(|run| run.run_id.as_str()).collect::<Vec<_>>().join(" "), wish);
                }
                (Err(why), Err(wish)) => assert!(why.contains(wish), "{why} should tell: {wish}"),
                (result, wish) => panic!("{result:?} instead of {wish:?} for {told}"),
            }
        }
    }

    #[test]
    fn the_head_stands_in_the_chain_where_it_says() {
        let runs = [run("a", None), after("b", "a")];
        let head = |run_id: &str, digest: &str, length| Head {
            last: Some(Previous { run_id: run_id.into(), digest: digest.into() }),
            length,
        };
        let cases = [
            (head("b", "digest of b", 2), Ok(0)),
            (head("a", "digest of a", 1), Ok(1)),
            (Head { last: None, length: 0 }, Ok(2)),
            (head("c", "digest of c", 3), Err("names run c as the last, which is missing")),
            (head("b", "other", 2), Err("names another manifest of run b")),
            (head("b", "digest of b", 3), Err("counts 3 runs up to run b, there are 2")),
        ];
        for (head, wish) in cases {
            match (behind_head(&runs, &head), wish) {
                (Ok(behind), Ok(wish)) => assert_eq!(behind, wish),
                (Err(why), Err(wish)) => assert!(why.contains(wish), "{why} should tell: {wish}"),
                (result, wish) => panic!("{result:?} instead of {wish:?} for {head:?}"),
            }
        }
    }

    #[test]
    fn the_state_of_a_folder_is_found_from_its_name() {
        let s3 = |key: &str| Location::S3 { bucket: "b".into(), key: key.into() };
        let local = |path: &str| Location::Local(path.into());
        let cases = [
            (local("/x/state/manifests/r1"), Some(local("/x/state"))),
            (local("/x/elsewhere/r1"), None),
            (local("/"), None),
            (s3("state/manifests/r1"), Some(s3("state"))),
            (s3("manifests/r1"), Some(s3(""))),
            (s3("r1"), None),
        ];
        for (folder, wish) in cases {
            assert_eq!(state_of(&folder), wish, "{folder}");
        }
    }
}
