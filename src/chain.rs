//! Manifests in the state: written once, each naming the one before, with `HEAD.json` naming the last.
//!
//! ```text
//! STATE/keys/signing.pub                      the first key that signed here; a later one as KEYID.pub
//! STATE/manifests/HEAD.json                   the last run, signed
//! STATE/manifests/RUN_ID/objects.parquet      written first
//! STATE/manifests/RUN_ID/manifest.json        the statement, decoded
//! STATE/manifests/RUN_ID/manifest.dsse.json   written last: with it the run's manifest exists
//! ```
//! What a manifest says lives in [`crate::manifest`], whether one is to be believed in [`crate::manifest_check`]. Invariant: a
//! signed manifest is never overwritten, and a stop between any two writes leaves a state that the next run repairs.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Exit, Result};
use crate::manifest::{self, OBJECTS_FILE, Observations, PAYLOAD_TYPE, Previous, Statement, sha256_hex};
use crate::object_table::ObjectRow;
use crate::signature::{Envelope, PublicKey, SigningKey};
use crate::store::{self, Location, Object, Precondition, Store, StoreError};

pub const STATEMENT_FILE: &str = "manifest.json";
pub const ENVELOPE_FILE: &str = "manifest.dsse.json";
pub const HEAD_FILE: &str = "HEAD.json";
pub const FIRST_KEY_FILE: &str = "signing.pub";

/// A run's manifest in the state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// The run's folder.
    pub location: Location,
    /// Hex SHA-256 of the signed statement.
    pub digest: String,
    pub previous: Option<Previous>,
    /// The run had its manifest already: it was stopped after the last write. Nothing was written now.
    pub existed: bool,
}

/// The end of the chain as `HEAD.json` tells it. Without a run, the chain has begun and holds none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    pub last: Option<Previous>,
    /// Runs in the chain up to `last`.
    pub length: u64,
}

/// The folder that holds one folder per run, as a prefix.
pub fn manifests(state: &Location) -> Location {
    state.join("manifests/")
}

pub fn run_folder(state: &Location, run_id: &str) -> Location {
    state.join("manifests").join(run_id)
}

/// Writes the manifest of a run, chained to the last one, and moves the head. `observed.run.id` names its folder. When the
/// run has a manifest already, that one stays.
pub async fn publish(
    store: &dyn Store,
    state: &Location,
    observed: Observations,
    rows: Vec<ObjectRow>,
    key: &SigningKey,
) -> Result<Published> {
    let location = run_folder(state, &observed.run.id);
    keep_public_key(store, state, &key.public_key()).await?;
    let (head_object, head) = repaired_head(store, state, key).await?;
    if let Some(statement) = read_statement(store, &location).await? {
        return Ok(Published {
            location,
            digest: sha256_hex(&statement.1),
            previous: statement.0.predicate.previous,
            existed: true,
        });
    }
    let run_id = observed.run.id.clone();
    let sealed = manifest::seal(observed, rows, head.last.clone())?;
    let envelope = key.seal(PAYLOAD_TYPE, &sealed.payload).to_bytes();
    let digest = sha256_hex(&sealed.payload);
    write_or_replace(store, &location.join(OBJECTS_FILE), sealed.table).await?;
    write_or_replace(store, &location.join(STATEMENT_FILE), Bytes::from(sealed.payload)).await?;
    // Last, because its presence says that the other two are whole.
    write_once(store, &location.join(ENVELOPE_FILE), Bytes::from(envelope), Precondition::Absent).await?;

    let moved = Head { last: Some(Previous { run_id, digest: digest.clone() }), length: head.length + 1 };
    write_once(store, &head_location(state), moved.to_bytes(key), Precondition::Unchanged(head_object.etag)).await?;
    Ok(Published { location, digest, previous: head.last, existed: false })
}

/// Whether the run has a signed manifest.
pub async fn has_manifest(store: &dyn Store, state: &Location, run_id: &str) -> Result<bool> {
    Ok(get_if_there(store, &run_folder(state, run_id).join(ENVELOPE_FILE)).await?.is_some())
}

/// The last run that has a manifest, be the head one behind or not. `None` in a state without any. Call it before a run
/// changes anything: a chain that cannot be continued is better known then.
pub async fn latest(store: &dyn Store, state: &Location) -> Result<Option<Previous>> {
    Ok(end_of_chain(store, state).await?.and_then(|(_, _, end)| end.last))
}

/// So many manifests are looked through at most.
const RUNS_LOOKED_THROUGH: usize = 100;

/// The run id and the predicate of the newest manifest whose predicate `is_wanted`, among the last [`RUNS_LOOKED_THROUGH`]. Signatures
/// are not checked here; that each manifest is the one that the head, or the manifest after it, names by its digest is.
pub async fn newest(
    store: &dyn Store,
    state: &Location,
    is_wanted: impl Fn(&Value) -> bool,
) -> Result<Option<(String, Value)>> {
    let mut next = latest(store, state).await?.map(|last| (last.run_id, last.digest));
    for number in 0..RUNS_LOOKED_THROUGH {
        let Some((run_id, digest)) = next else { break };
        let location = run_folder(state, &run_id).join(ENVELOPE_FILE);
        let Some((_, bytes)) = get_if_there(store, &location).await? else {
            // Old runs may have been taken away.
            if number > 0 {
                break;
            }
            return Err(untrusted(&location, "is missing, but the head of the chain names it"));
        };
        let payload = Envelope::from_bytes(&bytes).and_then(|envelope| envelope.payload_unchecked());
        let payload = payload.map_err(|error| untrusted(&location, &error.to_string()))?;
        if sha256_hex(&payload) != digest {
            return Err(untrusted(&location, "is not the manifest that the chain names"));
        }
        let mut statement: Value =
            serde_json::from_slice(&payload).map_err(|_| untrusted(&location, "it is no statement of a run"))?;
        let predicate = statement["predicate"].take();
        if is_wanted(&predicate) {
            return Ok(Some((run_id, predicate)));
        }
        let text = |name: &str| predicate["previous"][name].as_str().map(str::to_owned);
        next = text("run_id").zip(text("digest"));
    }
    Ok(None)
}

/// Refuses a chain whose end does not check: a run would put its name under what somebody else has changed. The head and the last
/// manifest must be signed with `own` or a key that has signed here before; another one than `own` is returned by its id.
pub async fn check_end(store: &dyn Store, state: &Location, own: &PublicKey) -> Result<Option<String>> {
    let location = head_location(state);
    let Some((_, bytes)) = get_if_there(store, &location).await? else { return Ok(None) };
    let mut trusted = vec![own.clone()];
    for object in store::list(store, &state.join("keys/")).await? {
        let (_, pem) = store::read_whole(store, &object.location).await?;
        trusted.extend(std::str::from_utf8(&pem).ok().and_then(|pem| PublicKey::from_pem(pem).ok()));
    }
    let (_, file) = Head::from_bytes(&bytes).map_err(|why| untrusted(&location, &why))?;
    let head = Head::open(&bytes, &trusted).map_err(|why| untrusted(&location, &why))?;
    if let Some(last) = head.last {
        let location = run_folder(state, &last.run_id).join(ENVELOPE_FILE);
        let Some((_, bytes)) = get_if_there(store, &location).await? else {
            return Err(untrusted(&location, "is missing, but the head of the chain names it"));
        };
        let opened = Envelope::from_bytes(&bytes).and_then(|envelope| envelope.open(PAYLOAD_TYPE, &trusted));
        let opened = opened.map_err(|error| untrusted(&location, &error.to_string()))?;
        if sha256_hex(&opened.payload) != last.digest {
            return Err(untrusted(&location, "is not the manifest that the head of the chain names"));
        }
    }
    Ok((file.keyid != own.keyid()).then_some(file.keyid))
}

/// The names of the files in each run's folder, by run id.
pub async fn run_files(store: &dyn Store, state: &Location) -> Result<BTreeMap<String, Vec<String>>> {
    let prefix = manifests(state);
    let mut runs: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for object in store::list(store, &prefix).await? {
        if let Some((run_id, file)) = below(&prefix, &object.location).and_then(|name| name.split_once('/')) {
            runs.entry(run_id.to_owned()).or_default().push(file.to_owned());
        }
    }
    Ok(runs)
}

pub fn head_location(state: &Location) -> Location {
    state.join("manifests").join(HEAD_FILE)
}

/// The object, or `None` where there is none.
pub async fn get_if_there(store: &dyn Store, location: &Location) -> Result<Option<(Object, Bytes)>, StoreError> {
    match store::read_whole(store, location).await {
        Ok(found) => Ok(Some(found)),
        Err(StoreError::NotFound(_)) => Ok(None),
        Err(other) => Err(other),
    }
}

/// The part of `location`'s name after `prefix`.
pub fn below<'a>(prefix: &Location, location: &'a Location) -> Option<&'a str> {
    match (prefix, location) {
        (Location::Local(prefix), Location::Local(path)) => path.strip_prefix(prefix).ok()?.to_str(),
        (Location::S3 { bucket, key: prefix }, Location::S3 { bucket: of, key }) if bucket == of => {
            key.strip_prefix(prefix.as_str())
        }
        (Location::Local(_) | Location::S3 { .. }, Location::Local(_) | Location::S3 { .. }) => None,
    }
}

const HEAD_TYPE: &str = "application/vnd.lakescrub.head+json";

#[derive(Serialize, Deserialize)]
struct HeadFile {
    run_id: Option<String>,
    digest: Option<String>,
    length: u64,
    keyid: String,
    sig: String,
}

#[derive(Serialize)]
struct SignedHead<'a> {
    run_id: Option<&'a str>,
    digest: Option<&'a str>,
    length: u64,
}

impl Head {
    fn signed(&self) -> Vec<u8> {
        let last = self.last.as_ref();
        let signed = SignedHead {
            run_id: last.map(|last| last.run_id.as_str()),
            digest: last.map(|last| last.digest.as_str()),
            length: self.length,
        };
        serde_json::to_vec(&signed).expect("a head has string keys only")
    }

    fn to_bytes(&self, key: &SigningKey) -> Bytes {
        Bytes::from(self.file(key.public_key().keyid(), key.sign(HEAD_TYPE, &self.signed())))
    }

    fn file(&self, keyid: String, sig: String) -> Vec<u8> {
        let (run_id, digest) = self.last.clone().map(|last| (last.run_id, last.digest)).unzip();
        let file = HeadFile { run_id, digest, length: self.length, keyid, sig };
        let mut bytes = serde_json::to_vec_pretty(&file).expect("a head has string keys only");
        bytes.push(b'\n');
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Result<(Head, HeadFile), String> {
        let file: HeadFile = serde_json::from_slice(bytes).map_err(|error| format!("is not a chain head: {error}"))?;
        let last = match (&file.run_id, &file.digest) {
            (Some(run_id), Some(digest)) => Some(Previous { run_id: run_id.clone(), digest: digest.clone() }),
            (None, None) => None,
            (Some(_), None) | (None, Some(_)) => return Err("is not a chain head: names half a run".to_owned()),
        };
        if last.is_none() != (file.length == 0) {
            return Err(format!("is not a chain head: length {} does not fit its run", file.length));
        }
        Ok((Head { last, length: file.length }, file))
    }

    /// The head after its signature was checked. Strict in its spelling, as [`Envelope::from_bytes`] is.
    pub fn open(bytes: &[u8], trusted: &[PublicKey]) -> Result<Head, String> {
        let (head, file) = Head::from_bytes(bytes)?;
        if head.file(file.keyid.clone(), file.sig.clone()) != bytes {
            return Err("is not spelled as it was written".to_owned());
        }
        let Some(key) = trusted.iter().find(|key| key.keyid() == file.keyid) else {
            return Err(format!("is signed with key {}, which is not trusted", file.keyid));
        };
        if !key.has_signed(HEAD_TYPE, &head.signed(), &file.sig) {
            return Err(format!("has a signature that does not fit its content and key {}", file.keyid));
        }
        Ok(head)
    }
}

/// The head object, what it says, and where the chain really ends.
async fn end_of_chain(store: &dyn Store, state: &Location) -> Result<Option<(Object, Head, Head)>> {
    let location = head_location(state);
    let runs = run_files(store, state).await?;
    let signed: Vec<&String> =
        runs.iter().filter(|(_, files)| files.iter().any(|file| file == ENVELOPE_FILE)).map(|(id, _)| id).collect();
    let Some((object, bytes)) = get_if_there(store, &location).await? else {
        return match signed.last() {
            None => Ok(None),
            Some(run_id) => Err(untrusted(&location, &format!("is missing, but there is a manifest of run {run_id}"))),
        };
    };
    let (head, _) = Head::from_bytes(&bytes).map_err(|why| untrusted(&location, &why))?;
    if signed.len() as u64 == head.length {
        return Ok(Some((object, head.clone(), head)));
    }
    // A run was stopped between its manifest and the head: follow the chain from where the head stands.
    let mut next: HashMap<Option<Previous>, Previous> = HashMap::new();
    for run_id in signed {
        let folder = run_folder(state, run_id);
        if let Some((statement, payload)) = read_statement(store, &folder).await? {
            let this = Previous { run_id: run_id.clone(), digest: sha256_hex(&payload) };
            if let Some(other) = next.insert(statement.predicate.previous, this) {
                let why = format!("and run {} follow the same run", other.run_id);
                return Err(untrusted(&folder, &why));
            }
        }
    }
    let mut end = head.clone();
    while let Some(last) = next.remove(&end.last) {
        end = Head { last: Some(last), length: end.length + 1 };
    }
    Ok(Some((object, head, end)))
}

/// The head, begun if there is none, and moved to the last manifest if a stop kept it from there.
async fn repaired_head(store: &dyn Store, state: &Location, key: &SigningKey) -> Result<(Object, Head)> {
    let location = head_location(state);
    match end_of_chain(store, state).await? {
        None => {
            let begun = Head { last: None, length: 0 };
            let object = write_once(store, &location, begun.to_bytes(key), Precondition::Absent).await?;
            Ok((object, begun))
        }
        Some((object, head, end)) if head == end => Ok((object, head)),
        Some((object, _, end)) => {
            let when = Precondition::Unchanged(object.etag);
            Ok((write_once(store, &location, end.to_bytes(key), when).await?, end))
        }
    }
}

/// A run's statement and its bytes, without a look at the signature.
async fn read_statement(store: &dyn Store, folder: &Location) -> Result<Option<(Statement, Vec<u8>)>> {
    let location = folder.join(ENVELOPE_FILE);
    let Some((_, bytes)) = get_if_there(store, &location).await? else { return Ok(None) };
    let payload = Envelope::from_bytes(&bytes)
        .and_then(|envelope| envelope.payload_unchecked())
        .map_err(|error| untrusted(&location, &error.to_string()))?;
    let statement = Statement::from_bytes(&payload).map_err(|why| untrusted(&location, &why))?;
    Ok(Some((statement, payload)))
}

async fn keep_public_key(store: &dyn Store, state: &Location, key: &PublicKey) -> Result<()> {
    let keys = state.join("keys");
    let pem = Bytes::from(key.to_pem());
    let first = keys.join(FIRST_KEY_FILE);
    match get_if_there(store, &first).await? {
        Some((_, there)) if there == pem => Ok(()),
        Some(_) => {
            let later = keys.join(&format!("{}.pub", key.keyid()));
            write_once(store, &later, pem, Precondition::Absent).await?;
            Ok(store.open_to_readers(&later).await?)
        }
        None => {
            write_once(store, &first, pem, Precondition::Absent).await?;
            // Who is to check what it signed may be another user.
            Ok(store.open_to_readers(&first).await?)
        }
    }
}

/// One conditional write. That the very same bytes are there already is a success: the reply to our own write was lost, or
/// an earlier attempt of this run came this far.
async fn write_once(store: &dyn Store, location: &Location, bytes: Bytes, when: Precondition) -> Result<Object> {
    match store.put(location, bytes.clone(), when).await {
        Ok(object) => Ok(object),
        Err(StoreError::Changed(changed)) => match get_if_there(store, location).await? {
            Some((object, there)) if there == bytes => Ok(object),
            Some(_) | None => Err(Error::from(StoreError::Changed(changed))
                .hint("another run writes to the same state; run again when it has finished")),
        },
        Err(other) => Err(other.into()),
    }
}

/// For a file that an attempt of this run, stopped before it signed, may have left behind.
async fn write_or_replace(store: &dyn Store, location: &Location, bytes: Bytes) -> Result<()> {
    let when = match get_if_there(store, location).await? {
        Some((_, there)) if there == bytes => return Ok(()),
        Some((object, _)) => Precondition::Unchanged(object.etag),
        None => Precondition::Absent,
    };
    write_once(store, location, bytes, when).await.map(drop)
}

pub fn untrusted(location: &Location, why: &str) -> Error {
    Error::new(Exit::Untrusted, format!("cannot trust {location}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_opens_only_as_it_was_signed() {
        let key = SigningKey::from_seed(&[1; 32]);
        let other = SigningKey::from_seed(&[2; 32]);
        let head = Head { last: Some(Previous { run_id: "r2".into(), digest: "ab".into() }), length: 2 };
        let bytes = head.to_bytes(&key).to_vec();
        let text = String::from_utf8(bytes.clone()).unwrap();
        let cases = [
            (text.clone(), &key, None),
            (text.clone(), &other, Some("not trusted")),
            (text.replace("r2", "r1"), &key, Some("does not fit")),
            (text.replace("\"length\": 2", "\"length\": 3"), &key, Some("does not fit")),
            (text.replace("\"r2\"", "null"), &key, Some("half a run")),
            (text.replace("\"length\": 2", "\"length\": 0"), &key, Some("length 0")),
            (text.replace("  ", " "), &key, Some("spelled")),
            (String::new(), &key, Some("not a chain head")),
        ];
        for (text, trusted, fault) in cases {
            match (Head::open(text.as_bytes(), &[trusted.public_key()]), fault) {
                (Ok(opened), None) => assert_eq!(opened, head),
                (Err(why), Some(fault)) => assert!(why.contains(fault), "{why}"),
                (result, fault) => panic!("{result:?} instead of {fault:?} for {text}"),
            }
        }
    }

    #[test]
    fn a_name_below_a_prefix_is_spelled_as_the_store_spells_it() {
        let s3 = |key: &str| Location::S3 { bucket: "b".into(), key: key.into() };
        let local = |path: &str| Location::Local(path.into());
        let cases = [
            (manifests(&s3("state")), s3("state/manifests/r1/x"), Some("r1/x")),
            (manifests(&s3("")), s3("manifests/r1/x"), Some("r1/x")),
            (manifests(&s3("state")), s3("state/manifests2/r1/x"), None),
            (manifests(&local("/state")), local("/state/manifests/r1/x"), Some("r1/x")),
            (manifests(&local("/state")), s3("state/manifests/r1/x"), None),
        ];
        for (prefix, location, wish) in cases {
            assert_eq!(below(&prefix, &location), wish, "{location}");
        }
    }
}
