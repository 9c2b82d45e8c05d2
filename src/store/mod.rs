//! Where objects live: one trait over a local disk and S3-compatible storage.
//!
//! Every read is pinned to the ETag that was listed and every overwrite is conditional on it (invariant 1), so a changed
//! object is a [`StoreError::Changed`], never a mixture of two objects. Nothing here knows Parquet, rows or identifiers.

pub mod local;
pub mod s3;
mod s3_attributes;
mod s3_call;
mod s3_copy;
mod s3_open;
mod s3_replace;
mod s3_splice;
mod s3_upload;
mod s3_versions;
mod s3_write;
mod writer;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;

pub use self::writer::{InMemory, ReplacementWriter, Sink, Written};
use crate::error::{Error, Exit};

/// The name of one object, or of a prefix of objects, exactly as the store spells it: keys are never decoded,
/// normalised or split (`a//b`, `a%20b` and `a b` are three keys).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Location {
    /// An absolute path. A prefix is a folder.
    Local(PathBuf),
    /// A prefix is any leading part of a key.
    S3 { bucket: String, key: String },
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Location::Local(path) => write!(f, "{}", path.display()),
            Location::S3 { bucket, key } => write!(f, "s3://{bucket}/{key}"),
        }
    }
}

impl Location {
    /// The location that `Display` showed.
    pub fn shown(text: &str) -> Location {
        match text.strip_prefix("s3://").and_then(|rest| rest.split_once('/')) {
            Some((bucket, key)) => Location::S3 { bucket: bucket.to_owned(), key: key.to_owned() },
            None => Location::Local(PathBuf::from(text)),
        }
    }

    /// This prefix extended by `name`; `name` uses `/` on every store.
    pub fn join(&self, name: &str) -> Location {
        match self {
            Location::Local(path) => Location::Local(path.join(name)),
            Location::S3 { bucket, key } => {
                let slash = if key.is_empty() || key.ends_with('/') { "" } else { "/" };
                Location::S3 { bucket: bucket.clone(), key: format!("{key}{slash}{name}") }
            }
        }
    }

    /// The last segment, for messages and format inference.
    pub fn file_name(&self) -> &str {
        match self {
            Location::Local(path) => path.file_name().and_then(|name| name.to_str()).unwrap_or(""),
            Location::S3 { key, .. } => key.rsplit('/').next().unwrap_or(""),
        }
    }
}

/// The content's name at one moment: the store's own ETag (quoted as the store returned it), on a local disk one made of
/// size, modification time in nanoseconds and inode.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Etag(pub String);

/// One object as it was listed or written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    pub location: Location,
    pub size_bytes: u64,
    pub etag: Etag,
    /// On a versioned bucket, when the store told it.
    pub version_id: Option<String>,
    /// As S3 spells it (`GLACIER`, ...); `None` is the default class.
    pub storage_class: Option<String>,
}

/// How a name shares its bytes with another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Alias {
    /// A symbolic link, here or further up, leads from it to this name.
    LinkTo(Location),
    /// The file has other names (hard links), which keep its bytes when this one is given others.
    HardLinks,
}

/// One version of a key in a bucket that keeps them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// Its version id is always there. A delete marker has no bytes and an empty ETag.
    pub object: Object,
    pub is_current: bool,
    pub is_delete_marker: bool,
}

/// A multipart upload that was begun and neither completed nor aborted: its parts are stored, and no listing of objects shows them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnfinishedUpload {
    pub location: Location,
    pub upload_id: String,
    pub begun_at: Option<Timestamp>,
}

/// What must hold for a write to happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Precondition {
    /// No object has this name yet.
    Absent,
    /// The object still has this ETag.
    Unchanged(Etag),
    /// Only for names that a run alone uses.
    None,
}

/// Whether conditional writes do what they promise, as a probe saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConditionalWrites {
    Honoured,
    /// On single writes, but not on the completion of a multipart upload: no swap may be one.
    SingleWritesOnly,
    Ignored,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    #[error("{0} does not exist")]
    NotFound(Location),
    /// The object is not the one that was listed, or a put-if-absent found one.
    #[error("{0} changed since it was listed")]
    Changed(Location),
    #[error("access to {location} is denied: {reason}")]
    Denied { location: Location, reason: String },
    /// Its bytes cannot be removed before `until`, or for as long as a hold is on it.
    #[error("{location} is locked: {reason}")]
    Locked { location: Location, reason: String, until: Option<Timestamp> },
    #[error("{location} is archived in storage class {class}")]
    Archived { location: Location, class: String },
    #[error("{location} cannot be reached: {reason}")]
    Unavailable { location: Location, reason: String },
    #[error("{location}: {reason}")]
    Other { location: Location, reason: String },
}

impl StoreError {
    /// The exit code this error means for an object in scope.
    pub fn exit(&self) -> Exit {
        match self {
            StoreError::NotFound(_) | StoreError::Archived { .. } | StoreError::Other { .. } => Exit::Incomplete,
            StoreError::Changed(_) => Exit::Conflict,
            StoreError::Denied { .. } | StoreError::Locked { .. } => Exit::Blocked,
            StoreError::Unavailable { .. } => Exit::Unavailable,
        }
    }

    /// The same fault, told of another place.
    pub fn at(self, location: Location) -> StoreError {
        match self {
            StoreError::NotFound(_) => StoreError::NotFound(location),
            StoreError::Changed(_) => StoreError::Changed(location),
            StoreError::Denied { reason, .. } => StoreError::Denied { location, reason },
            StoreError::Locked { reason, until, .. } => StoreError::Locked { location, reason, until },
            StoreError::Archived { class, .. } => StoreError::Archived { location, class },
            StoreError::Unavailable { reason, .. } => StoreError::Unavailable { location, reason },
            StoreError::Other { reason, .. } => StoreError::Other { location, reason },
        }
    }

    /// Whether the answer to a listing is that there is no object: a bucket that does not exist is another matter.
    pub fn is_no_object(&self) -> bool {
        match self {
            StoreError::NotFound(Location::S3 { key, .. }) => !key.is_empty(),
            StoreError::NotFound(Location::Local(_)) => true,
            StoreError::Changed(_)
            | StoreError::Denied { .. }
            | StoreError::Locked { .. }
            | StoreError::Archived { .. }
            | StoreError::Unavailable { .. }
            | StoreError::Other { .. } => false,
        }
    }

    /// The error without the name of the object, which may hold an identifier.
    pub fn reason(&self) -> String {
        match self {
            // A bucket's name is the job's own word.
            StoreError::NotFound(Location::S3 { bucket, key }) if key.is_empty() => {
                format!("bucket {bucket} does not exist")
            }
            StoreError::NotFound(_) => "it does not exist".to_owned(),
            StoreError::Changed(_) => "it changed since it was listed".to_owned(),
            StoreError::Denied { reason, .. } => format!("access is denied: {reason}"),
            StoreError::Locked { reason, .. } => format!("it is locked: {reason}"),
            StoreError::Archived { class, .. } => format!("it is archived in storage class {class}"),
            StoreError::Unavailable { reason, .. } => format!("it cannot be reached: {reason}"),
            StoreError::Other { reason, .. } => reason.clone(),
        }
    }

    /// That `what` of dataset `name` could not be listed; `uri` is the job's.
    pub fn not_listed(&self, what: &str, name: &str, uri: &str) -> Error {
        let mut error =
            Error::new(self.exit(), format!("{what} of dataset {name} ({uri}) cannot be listed: {}", self.reason()));
        error.hint = self.hint().map(str::to_owned);
        error
    }

    /// What the person who runs the job can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            StoreError::NotFound(_) => None,
            StoreError::Changed(_) => Some("another writer is active; run again when it has finished"),
            StoreError::Denied { .. } => Some(
                "check the credentials (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, profile or role) and the bucket's policy",
            ),
            StoreError::Locked { .. } => {
                Some("run again when the lock has ended, or have the hold lifted by who set it")
            }
            StoreError::Archived { .. } => Some("restore the object to a readable storage class first"),
            StoreError::Unavailable { .. } => Some("check the endpoint and the network; it is safe to run again"),
            StoreError::Other { .. } => None,
        }
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Error {
        let mut out = Error::new(error.exit(), error.to_string());
        out.hint = error.hint().map(str::to_owned);
        out
    }
}

/// What the stages need of a store. Implementations retry what is safe to retry; a caller never does.
#[async_trait]
pub trait Store: Send + Sync + fmt::Debug {
    /// Every object whose name starts with `prefix` (S3) or that lies under the folder `prefix` at any depth (local; the
    /// file itself when `prefix` is one), in byte order of the names. A missing folder is an empty listing. Local: symbolic
    /// links are followed for files, our own temporary files are left out.
    async fn list(&self, prefix: &Location) -> Result<Vec<Object>, StoreError>;

    async fn head(&self, location: &Location) -> Result<Object, StoreError>;

    /// Bytes `range` of the object as it was listed; `Changed` when its ETag is another by now.
    async fn get_range(&self, object: &Object, range: Range<u64>) -> Result<Bytes, StoreError>;

    /// A small object whole.
    async fn get(&self, location: &Location) -> Result<(Object, Bytes), StoreError>;

    /// Writes a small object in one step; `Changed` when the precondition does not hold. Durable when it returns.
    async fn put(&self, location: &Location, bytes: Bytes, when: Precondition) -> Result<Object, StoreError>;

    /// Deletes the object if it still has this ETag; an object that is gone already is a success.
    async fn delete(&self, object: &Object) -> Result<(), StoreError>;

    /// Starts to replace `object` with new content, carrying over its metadata (S3: content type, encoding, language,
    /// disposition, cache control, user metadata, tags, storage class, encryption; local: owner and permissions).
    /// `write_id` tells our own write from another's when the reply is lost.
    async fn replace(&self, object: &Object, write_id: &str) -> Result<Box<dyn Replacement>, StoreError>;

    /// Removes what writers that died left under `prefix` (local: in its folder, when it is one file) and no listing shows:
    /// temporary files. What a living writer still holds stays. Returns how many were removed.
    async fn sweep(&self, prefix: &Location) -> Result<u64, StoreError> {
        let _ = prefix;
        Ok(0)
    }

    /// Asks, with a probe object beside `prefix` that is removed again, whether conditional writes are honoured by the calls
    /// that [`Store::replace`] and [`Store::put`] use.
    async fn probe(&self, prefix: &Location) -> Result<ConditionalWrites, StoreError>;

    /// Lets every user of the machine read the object, where the store is a folder of it and new files are private.
    async fn open_to_readers(&self, _location: &Location) -> Result<(), StoreError> {
        Ok(())
    }

    /// The listed names below `prefix` that share their bytes with another name, as on a local disk they may.
    async fn aliases(&self, _prefix: &Location) -> Result<BTreeMap<Location, Alias>, StoreError> {
        Ok(BTreeMap::new())
    }

    /// Every version and delete marker of every key that starts with `prefix`, by key and then as the store orders them, newest
    /// first. `None` where the store keeps no versions, as a local disk.
    async fn list_versions(&self, _prefix: &Location) -> Result<Option<Vec<Version>>, StoreError> {
        Ok(None)
    }

    /// Removes one version, or one delete marker, for good. One that is gone already is a success; [`StoreError::Locked`] when an
    /// object lock or a legal hold protects it, which is never bypassed.
    async fn delete_version(&self, version: &Object) -> Result<(), StoreError> {
        Err(StoreError::Other { location: version.location.clone(), reason: "its store keeps no versions".to_owned() })
    }

    /// Every unfinished multipart upload to a key that starts with `prefix`.
    async fn list_uploads(&self, _prefix: &Location) -> Result<Vec<UnfinishedUpload>, StoreError> {
        Ok(Vec::new())
    }

    /// Aborts an upload and looks that no part of it is left; one that is gone already is a success.
    async fn abort_upload(&self, upload: &UnfinishedUpload) -> Result<(), StoreError> {
        Err(StoreError::Other { location: upload.location.clone(), reason: "its store has no uploads".to_owned() })
    }

    /// What the store keeps beside the object's bytes at its user's wish: names and values of user metadata and of tags.
    async fn labels(&self, _object: &Object) -> Result<Vec<String>, StoreError> {
        Ok(Vec::new())
    }

    /// What the place of `prefix` does with objects by itself (replication, lifecycle), in plain sentences; what may not be read is
    /// said, too.
    async fn standing_rules(&self, _prefix: &Location) -> Vec<String> {
        Vec::new()
    }
}

/// Bytes `range` of the object as it was listed, all of them: a body that ended early is a store that could not be reached, never
/// a shorter object. Stages read by this, by [`read_whole`] and by [`list`], not by the store's own methods.
pub async fn read(store: &dyn Store, object: &Object, range: Range<u64>) -> Result<Bytes, StoreError> {
    let bytes = store.get_range(object, range.clone()).await?;
    complete(&object.location, bytes.len() as u64, range.end.saturating_sub(range.start)).map(|()| bytes)
}

/// A small object whole, as [`read`] reads.
pub async fn read_whole(store: &dyn Store, location: &Location) -> Result<(Object, Bytes), StoreError> {
    let (object, bytes) = store.get(location).await?;
    complete(location, bytes.len() as u64, object.size_bytes).map(|()| (object, bytes))
}

/// Every object below `prefix` once: a page that a store gave twice would count its rows twice.
pub async fn list(store: &dyn Store, prefix: &Location) -> Result<Vec<Object>, StoreError> {
    let mut objects = store.list(prefix).await?;
    objects.sort_by(|a, b| a.location.cmp(&b.location));
    objects.dedup_by(|a, b| a.location == b.location);
    Ok(objects)
}

fn complete(location: &Location, arrived: u64, wanted: u64) -> Result<(), StoreError> {
    if arrived == wanted {
        return Ok(());
    }
    let reason = format!("{arrived} of {wanted} bytes arrived");
    Err(StoreError::Unavailable { location: location.clone(), reason })
}

/// The stores of one run: the local disk, and S3 where a location of the job needs it.
#[derive(Debug)]
pub struct Stores {
    local: Arc<dyn Store>,
    s3: Arc<dyn Store>,
}

impl Stores {
    pub fn new(local: Arc<dyn Store>, s3: Arc<dyn Store>) -> Self {
        Stores { local, s3 }
    }

    /// Opens S3, which needs credentials, only when `needs_s3`.
    pub async fn open(settings: &s3::S3Settings, requests_in_flight: usize, needs_s3: bool) -> Result<Stores, Error> {
        let s3: Arc<dyn Store> = match needs_s3 {
            true => Arc::new(s3::S3Store::open(settings, requests_in_flight).await?),
            // The local disk's store says of each location on S3 that it is not its own.
            false => Arc::new(local::LocalStore),
        };
        Ok(Stores { local: Arc::new(local::LocalStore), s3 })
    }

    pub fn of(&self, location: &Location) -> Arc<dyn Store> {
        match location {
            Location::Local(_) => self.local.clone(),
            Location::S3 { .. } => self.s3.clone(),
        }
    }
}

/// New content on its way to replace an object. Dropping it without `commit` leaves the object as it was.
#[async_trait]
pub trait Replacement: Send {
    /// Appends; holds back about one part in memory.
    async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError>;

    /// Appends `bytes`, which are the replaced object's own from its byte `at` on: a store that has them need not be sent them.
    async fn take_over(&mut self, at: u64, bytes: Bytes) -> Result<(), StoreError> {
        let _ = at;
        self.write(bytes).await
    }

    /// Ends the content and begins to make it durable, which [`Replacement::commit`] waits for. Where the store can show content before
    /// the swap (a local disk), the staged object is returned, to be read back before it.
    async fn stage(&mut self) -> Result<Option<Object>, StoreError>;

    /// The swap: one conditional write on the ETag that was scanned. Returns the object as it now is.
    async fn commit(self: Box<Self>) -> Result<Object, StoreError>;

    /// Gives up: removes what was staged (temporary file, multipart upload).
    async fn abort(self: Box<Self>) -> Result<(), StoreError>;
}

/// Blocking reads of one pinned object, for code that decodes on a thread of its own: the one bridge from CPU work to I/O.
/// Must not be used on a runtime thread.
#[derive(Debug, Clone)]
pub struct ObjectReader {
    store: Arc<dyn Store>,
    object: Object,
    runtime: tokio::runtime::Handle,
    /// All of a small object far away: a request costs as much as hundreds of kilobytes, and a decoder makes one for each column.
    whole: Arc<Mutex<Option<Bytes>>>,
}

/// How large an object may be that is fetched as a whole for the first byte that is asked of it.
const WHOLE_BYTES_MAX: u64 = 8 << 20;

/// How many bytes a sequential read asks for at a time.
const READ_AHEAD_BYTES: u64 = 4 << 20;

impl ObjectReader {
    /// Takes the current runtime; call it on a runtime thread and move the reader to a blocking one.
    pub fn new(store: Arc<dyn Store>, object: Object) -> Self {
        ObjectReader::on(tokio::runtime::Handle::current(), store, object)
    }

    /// A reader whose I/O runs on `runtime`.
    pub fn on(runtime: tokio::runtime::Handle, store: Arc<dyn Store>, object: Object) -> Self {
        ObjectReader { store, object, runtime, whole: Arc::default() }
    }

    pub fn object(&self) -> &Object {
        &self.object
    }

    pub fn read_range(&self, range: Range<u64>) -> Result<Bytes, StoreError> {
        let is_far = matches!(self.object.location, Location::S3 { .. });
        let size_bytes = self.object.size_bytes;
        if !is_far || size_bytes > WHOLE_BYTES_MAX || range.is_empty() || range.end > size_bytes {
            return self.runtime.block_on(read(self.store.as_ref(), &self.object, range));
        }
        // Held while it is fetched: whoever asks meanwhile waits for the same bytes.
        let mut whole = self.whole.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let bytes = match &*whole {
            Some(bytes) => bytes.clone(),
            None => {
                let bytes = self.runtime.block_on(read(self.store.as_ref(), &self.object, 0..size_bytes))?;
                whole.insert(bytes).clone()
            }
        };
        Ok(bytes.slice(range.start as usize..range.end as usize))
    }

    /// The object's bytes from `start` on, read ahead in bounded pieces.
    pub fn read_from(&self, start: u64) -> SequentialReader {
        self.read_within(start..self.object.size_bytes)
    }

    /// As [`ObjectReader::read_from`], up to the end of a range.
    pub fn read_within(&self, range: Range<u64>) -> SequentialReader {
        SequentialReader { reader: self.clone(), range, piece: Bytes::new() }
    }
}

/// A `std::io::Read` over an [`ObjectReader`]; a store error travels inside the `io::Error`, see [`store_error`].
#[derive(Debug)]
pub struct SequentialReader {
    reader: ObjectReader,
    /// What is not yet in `piece`.
    range: Range<u64>,
    piece: Bytes,
}

impl io::Read for SequentialReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.piece.is_empty() {
            let Range { start, end } = self.range;
            let end = end.min(start + READ_AHEAD_BYTES);
            if start >= end {
                return Ok(0);
            }
            self.piece = self.reader.read_range(start..end).map_err(io::Error::other)?;
            self.range.start = end;
        }
        let n = out.len().min(self.piece.len());
        out[..n].copy_from_slice(&self.piece.split_to(n));
        Ok(n)
    }
}

impl parquet::file::reader::Length for ObjectReader {
    fn len(&self) -> u64 {
        self.object.size_bytes
    }
}

impl parquet::file::reader::ChunkReader for ObjectReader {
    type T = SequentialReader;

    fn get_read(&self, start: u64) -> parquet::errors::Result<Self::T> {
        Ok(self.read_from(start))
    }

    fn get_bytes(&self, start: u64, length: usize) -> parquet::errors::Result<Bytes> {
        let end = start.checked_add(length as u64).filter(|end| *end <= self.object.size_bytes);
        let end = end.ok_or_else(|| parquet::errors::ParquetError::EOF("a range past the end of the object".into()))?;
        self.read_range(start..end).map_err(|error| parquet::errors::ParquetError::External(Box::new(error)))
    }
}

/// The store error that an `io::Error`, or a library's error around one, carries, if any: so that a lost connection in the
/// middle of a decode is told as such and not as a corrupt file.
pub fn store_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a StoreError> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<StoreError>() {
            return Some(found);
        }
        if let Some(io) = error.downcast_ref::<io::Error>()
            && let Some(found) = io.get_ref().and_then(|inner| inner.downcast_ref::<StoreError>())
        {
            return Some(found);
        }
        next = error.source();
    }
    None
}
