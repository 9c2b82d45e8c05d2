//! The local disk as a store: every write is a temporary file, fsync, rename, fsync of the folder.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use bytes::Bytes;
use rustix::fs::{FlockOperation, RenameFlags, flock, renameat_with};

use super::{Alias, ConditionalWrites, Etag, Location, Object, Precondition, Replacement, Store, StoreError};

/// Files on the machine's own disks.
#[derive(Debug, Default)]
pub struct LocalStore;

const TEMPORARY_PREFIX: &str = ".lakescrub-";
const TEMPORARY_SUFFIX: &str = ".tmp";

fn is_temporary(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("");
    name.starts_with(TEMPORARY_PREFIX) && name.ends_with(TEMPORARY_SUFFIX)
}

fn path_of(location: &Location) -> Result<&Path, StoreError> {
    match location {
        Location::Local(path) => Ok(path),
        Location::S3 { .. } => {
            Err(StoreError::Other { location: location.clone(), reason: "is not on a local disk".to_owned() })
        }
    }
}

fn failed(path: &Path) -> impl Fn(io::Error) -> StoreError + '_ {
    move |error| {
        let location = Location::Local(path.to_owned());
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => StoreError::NotFound(location),
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                StoreError::Denied { location, reason: error.kind().to_string() }
            }
            _ => StoreError::Other { location, reason: error.kind().to_string() },
        }
    }
}

fn etag(meta: &fs::Metadata) -> Etag {
    let nanos = i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec());
    Etag(format!("{:x}-{nanos:x}-{:x}", meta.len(), meta.ino()))
}

fn object(path: &Path, meta: &fs::Metadata) -> Object {
    Object {
        location: Location::Local(path.to_owned()),
        size_bytes: meta.len(),
        etag: etag(meta),
        version_id: None,
        storage_class: None,
    }
}

fn head(path: &Path) -> Result<Object, StoreError> {
    let meta = fs::metadata(path).map_err(failed(path))?;
    if meta.is_file() { Ok(object(path, &meta)) } else { Err(StoreError::NotFound(Location::Local(path.to_owned()))) }
}

/// What a name below a root leads to.
enum Entry {
    File(walkdir::DirEntry),
    /// A symbolic link to nothing, such as to a volume that is not mounted, or a pipe, a socket, a device.
    NoFile(PathBuf),
}

/// All that is below `root` and no folder, or `root` itself; symbolic links are followed. What was removed meanwhile is none.
fn entries(root: &Path) -> impl Iterator<Item = Result<Entry, StoreError>> + '_ {
    let entries = walkdir::WalkDir::new(root).follow_links(true).into_iter();
    entries.filter_map(move |entry| match entry {
        Ok(entry) if entry.path().to_str().is_none() => {
            // It could be told, journaled and matched under a wrong name only; the name itself may hold an identifier.
            let location = Location::Local(root.to_owned());
            Some(Err(StoreError::Other { location, reason: "a name in it is not UTF-8".to_owned() }))
        }
        Ok(entry) if entry.file_type().is_dir() || is_temporary(entry.path()) => None,
        Ok(entry) if entry.file_type().is_file() => Some(Ok(Entry::File(entry))),
        Ok(entry) => Some(Ok(Entry::NoFile(entry.into_path()))),
        Err(error) => {
            let path = error.path().unwrap_or(root).to_owned();
            match error.into_io_error() {
                // A link into a loop is none of its own either: its target is walked where it stands.
                None => None,
                Some(io) if io.kind() != io::ErrorKind::NotFound => Some(Err(failed(&path)(io))),
                Some(_) => (path != root && path.is_symlink()).then_some(Ok(Entry::NoFile(path))),
            }
        }
    })
}

fn list(root: &Path) -> Result<Vec<Object>, StoreError> {
    let mut objects = Vec::new();
    for entry in entries(root) {
        let entry = match entry? {
            Entry::File(entry) => entry,
            Entry::NoFile(path) => {
                let (location, etag) = (Location::Local(path), Etag("no file".to_owned()));
                objects.push(Object { location, size_bytes: 0, etag, version_id: None, storage_class: None });
                continue;
            }
        };
        match head(entry.path()) {
            Ok(object) => objects.push(object),
            Err(StoreError::NotFound(_)) => {}
            Err(error) => return Err(error),
        }
    }
    objects.sort_by(|a, b| a.location.cmp(&b.location));
    Ok(objects)
}

fn aliases(root: &Path) -> Result<BTreeMap<Location, Alias>, StoreError> {
    let Ok(true_root) = fs::canonicalize(root) else { return Ok(BTreeMap::new()) };
    let mut aliases = BTreeMap::new();
    for entry in entries(root) {
        let entry = match entry? {
            Entry::File(entry) => entry,
            Entry::NoFile(path) => {
                let location = Location::Local(path);
                aliases.insert(location.clone(), Alias::LinkTo(location));
                continue;
            }
        };
        let (Ok(target), Ok(meta)) = (fs::canonicalize(entry.path()), fs::metadata(entry.path())) else { continue };
        // The way to `root` itself may be a link: what lies below it is named by it.
        let target = target.strip_prefix(&true_root).map(|below| root.join(below)).unwrap_or(target.clone());
        let location = Location::Local(entry.path().to_owned());
        if entry.depth() > 0 && target != entry.path() {
            aliases.insert(location, Alias::LinkTo(Location::Local(target)));
        } else if meta.nlink() > 1 {
            aliases.insert(location, Alias::HardLinks);
        }
    }
    Ok(aliases)
}

fn read(listed: &Object, range: Range<u64>) -> Result<Bytes, StoreError> {
    let path = path_of(&listed.location)?;
    let file = File::open(path).map_err(failed(path))?;
    let unchanged = || match file.metadata() {
        Ok(meta) if etag(&meta) == listed.etag => Ok(()),
        Ok(_) => Err(StoreError::Changed(listed.location.clone())),
        Err(error) => Err(failed(path)(error)),
    };
    unchanged()?;
    if range.end > listed.size_bytes || range.start > range.end {
        return Err(StoreError::Other { location: listed.location.clone(), reason: "a range past the end".to_owned() });
    }
    let bytes = read_at(&file, &range).map_err(failed(path))?;
    // Once more, because the file may have been written to while it was read.
    unchanged()?;
    Ok(Bytes::from(bytes))
}

/// Bytes `range` of the file. They are read into memory that was not cleared first: that takes a third of the time again.
fn read_at(mut file: &File, range: &Range<u64>) -> io::Result<Vec<u8>> {
    let length = range.end - range.start;
    let mut bytes = Vec::with_capacity(length as usize);
    file.seek(SeekFrom::Start(range.start))?;
    file.take(length).read_to_end(&mut bytes)?;
    if bytes.len() as u64 == length { Ok(bytes) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

/// Makes missing folders and makes their names durable.
fn make_folders(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(folder)?;
    folder.ancestors().skip(1).take(2).try_for_each(sync_folder)
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// A temporary file beside its target, removed on drop unless it was moved there.
struct Temporary {
    file: File,
    path: PathBuf,
    moved: bool,
}

impl Temporary {
    fn create(target: &Path, name: &str) -> io::Result<Temporary> {
        make_folders(parent(target))?;
        let path = parent(target).join(format!("{TEMPORARY_PREFIX}{name}{TEMPORARY_SUFFIX}"));
        loop {
            let file = fs::OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
            // The lock says that the writer lives: it goes with the process, however that ends.
            flock(&file, FlockOperation::LockExclusive)?;
            // A sweep may have taken the file for a dead writer's before it was locked.
            if file.metadata()?.nlink() > 0 {
                return Ok(Temporary { file, path, moved: false });
            }
        }
    }

    /// Moves the file to `target` if `when` holds, under the lock that all our processes take for this folder.
    fn move_to(mut self, target: &Path, when: &Precondition) -> Result<Object, StoreError> {
        let folder = File::open(parent(target)).map_err(failed(parent(target)))?;
        flock(&folder, FlockOperation::LockExclusive).map_err(|error| failed(target)(error.into()))?;
        let changed = || StoreError::Changed(Location::Local(target.to_owned()));
        let flags = match when {
            Precondition::Absent => RenameFlags::NOREPLACE,
            Precondition::Unchanged(etag) if head(target)?.etag != *etag => return Err(changed()),
            Precondition::Unchanged(_) | Precondition::None => RenameFlags::empty(),
        };
        // Asked of our own file before it goes there: what stands at the name afterwards may be another writer's already.
        let written = object(target, &self.file.metadata().map_err(failed(target))?);
        match renameat_with(rustix::fs::CWD, &self.path, rustix::fs::CWD, target, flags) {
            Ok(()) => self.moved = true,
            Err(rustix::io::Errno::EXIST) => return Err(changed()),
            Err(error) => return Err(failed(target)(error.into())),
        }
        folder.sync_all().map_err(failed(target))?;
        Ok(written)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.moved {
            // A file that stays is left out of every listing, holds kept rows only, and goes with the next sweep.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Removes the temporary files of dead writers below `root` and beside the targets of its links.
fn sweep(root: &Path) -> u64 {
    let mut beside = std::collections::BTreeSet::new();
    let mut removed = 0;
    if !root.is_dir() {
        beside.insert(parent(root).to_owned());
        beside.extend(fs::canonicalize(root).iter().map(|target| parent(target).to_owned()));
    } else {
        // What cannot be walked holds nothing that could be removed; the listing tells of it.
        for entry in walkdir::WalkDir::new(root).follow_links(true).into_iter().filter_map(Result::ok) {
            if is_temporary(entry.path()) {
                removed += u64::from(remove_if_dead(entry.path()));
            } else if entry.path_is_symlink() && entry.file_type().is_file() {
                beside.extend(fs::canonicalize(entry.path()).iter().map(|target| parent(target).to_owned()));
            }
        }
    }
    for folder in beside {
        let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
        let temporary = entries.map(|entry| entry.path()).filter(|path| is_temporary(path));
        removed += temporary.filter(|path| remove_if_dead(path)).count() as u64;
    }
    removed
}

/// Whether the file was a dead writer's, and is gone now.
fn remove_if_dead(path: &Path) -> bool {
    let Ok(file) = File::open(path) else { return false };
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        return false;
    }
    // The name may belong to another file by now.
    let same = matches!((file.metadata(), fs::metadata(path)), (Ok(ours), Ok(there)) if ours.ino() == there.ino());
    same && fs::remove_file(path).is_ok()
}

fn random_name() -> Result<String, StoreError> {
    let mut bytes = [0u8; 8];
    getrandom::fill(&mut bytes).map_err(|_| StoreError::Other {
        location: Location::Local(PathBuf::new()),
        reason: "no random bytes".to_owned(),
    })?;
    Ok(hex::encode(bytes))
}

fn put(path: &Path, bytes: &[u8], when: &Precondition) -> Result<Object, StoreError> {
    let mut temporary = Temporary::create(path, &random_name()?).map_err(failed(path))?;
    temporary.file.write_all(bytes).and_then(|()| temporary.file.sync_all()).map_err(failed(path))?;
    temporary.move_to(path, when)
}

fn delete(listed: &Object) -> Result<(), StoreError> {
    let path = path_of(&listed.location)?;
    let folder = match File::open(parent(path)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(failed(path))?,
    };
    flock(&folder, FlockOperation::LockExclusive).map_err(|error| failed(path)(error.into()))?;
    match head(path) {
        Err(StoreError::NotFound(_)) => return Ok(()),
        Ok(now) if now.etag != listed.etag => return Err(StoreError::Changed(listed.location.clone())),
        other => other?,
    };
    let target = fs::canonicalize(path).map_err(failed(path))?;
    if path.is_symlink() {
        // The bytes go, not only this way to them.
        fs::remove_file(&target).and_then(|()| sync_folder(parent(&target))).map_err(failed(&target))?;
    }
    fs::remove_file(path).and_then(|()| folder.sync_all()).map_err(failed(path))?;
    // A partition of no file is none, and its folder's name may be what the object went for. One that holds anything stays.
    let is_partition = |folder: &&Path| folder.file_name().is_some_and(|name| name.as_encoded_bytes().contains(&b'='));
    for folder in path.ancestors().skip(1).take_while(is_partition) {
        if fs::remove_dir(folder).is_err() {
            break;
        }
    }
    Ok(())
}

/// Runs file work where it may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| {
        Err(StoreError::Other {
            location: Location::Local(PathBuf::new()),
            reason: "the file work panicked".to_owned(),
        })
    })
}

#[async_trait]
impl Store for LocalStore {
    async fn list(&self, prefix: &Location) -> Result<Vec<Object>, StoreError> {
        let root = path_of(prefix)?.to_owned();
        blocking(move || list(&root)).await
    }

    async fn aliases(&self, prefix: &Location) -> Result<BTreeMap<Location, Alias>, StoreError> {
        let root = path_of(prefix)?.to_owned();
        blocking(move || aliases(&root)).await
    }

    async fn head(&self, location: &Location) -> Result<Object, StoreError> {
        let path = path_of(location)?.to_owned();
        blocking(move || head(&path)).await
    }

    async fn get_range(&self, object: &Object, range: Range<u64>) -> Result<Bytes, StoreError> {
        let object = object.clone();
        blocking(move || read(&object, range)).await
    }

    async fn get(&self, location: &Location) -> Result<(Object, Bytes), StoreError> {
        let path = path_of(location)?.to_owned();
        blocking(move || {
            let object = head(&path)?;
            let bytes = read(&object, 0..object.size_bytes)?;
            Ok((object, bytes))
        })
        .await
    }

    async fn put(&self, location: &Location, bytes: Bytes, when: Precondition) -> Result<Object, StoreError> {
        let path = path_of(location)?.to_owned();
        blocking(move || put(&path, &bytes, &when)).await
    }

    async fn delete(&self, object: &Object) -> Result<(), StoreError> {
        let object = object.clone();
        blocking(move || delete(&object)).await
    }

    async fn replace(&self, object: &Object, write_id: &str) -> Result<Box<dyn Replacement>, StoreError> {
        let (object, write_id) = (object.clone(), write_id.to_owned());
        blocking(move || {
            let path = path_of(&object.location)?;
            // A symbolic link stays one: its target is replaced.
            let target = fs::canonicalize(path).map_err(failed(path))?;
            let meta = fs::metadata(&target).map_err(failed(&target))?;
            let temporary = Temporary::create(&target, &write_id).map_err(failed(&target))?;
            let owner = std::os::unix::fs::fchown(&temporary.file, Some(meta.uid()), Some(meta.gid()));
            if owner.is_err()
                && (meta.uid(), meta.gid())
                    != (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
            {
                owner.map_err(failed(&target))?;
            }
            let mode = fs::Permissions::from_mode(meta.mode() & 0o7777);
            temporary.file.set_permissions(mode).map_err(failed(&target))?;
            Ok(Box::new(LocalReplacement { object, target, temporary, syncing: None }) as Box<dyn Replacement>)
        })
        .await
    }

    async fn sweep(&self, prefix: &Location) -> Result<u64, StoreError> {
        let root = path_of(prefix)?.to_owned();
        blocking(move || Ok(sweep(&root))).await
    }

    async fn open_to_readers(&self, location: &Location) -> Result<(), StoreError> {
        let path = path_of(location)?.to_owned();
        blocking(move || fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).map_err(failed(&path))).await
    }

    async fn probe(&self, _: &Location) -> Result<ConditionalWrites, StoreError> {
        Ok(ConditionalWrites::Honoured)
    }
}

struct LocalReplacement {
    object: Object,
    target: PathBuf,
    temporary: Temporary,
    /// The way of what was staged to the disk, which takes as long as reading it back: both go on side by side.
    syncing: Option<tokio::task::JoinHandle<io::Result<()>>>,
}

#[async_trait]
impl Replacement for LocalReplacement {
    async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        let mut file = self.temporary.file.try_clone().map_err(failed(&self.target))?;
        let target = self.target.clone();
        blocking(move || file.write_all(&bytes).map_err(failed(&target))).await
    }

    async fn stage(&mut self) -> Result<Option<Object>, StoreError> {
        let (file, path) =
            (self.temporary.file.try_clone().map_err(failed(&self.target))?, self.temporary.path.clone());
        self.syncing = Some(tokio::task::spawn_blocking(move || file.sync_all()));
        blocking(move || head(&path).map(Some)).await
    }

    async fn commit(mut self: Box<Self>) -> Result<Object, StoreError> {
        if let Some(syncing) = self.syncing.take() {
            let synced = syncing.await.unwrap_or_else(|stopped| Err(io::Error::other(stopped)));
            synced.map_err(failed(&self.target))?;
        }
        blocking(move || {
            let location = self.object.location;
            let written = self.temporary.move_to(&self.target, &Precondition::Unchanged(self.object.etag))?;
            Ok(Object { location, ..written })
        })
        .await
    }

    async fn abort(self: Box<Self>) -> Result<(), StoreError> {
        drop(self);
        Ok(())
    }
}
