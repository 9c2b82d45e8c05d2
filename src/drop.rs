//! The `drop` commands: downloads of California's DROP go into the request ledger, statuses come out of it as upload files.
//!
//! Wiring, without a network call: what the files look like is in [`crate::drop_files`], what is answered in [`crate::drop_answer`].
//! Invariant: a download is read to its end and found whole before anything is recorded, and kept before it is used, for later
//! downloads hold only what is new.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::cli::{Common, DropCommand};
use crate::deadline::{Due, NoDue, Received};
use crate::drop_answer::{Answers, answers};
use crate::drop_files::{
    ArchiveName, Content, FileSummary, ListType, Status, WorkItem, WorkItemId, encrypt_archive, read_download,
    write_upload,
};
use crate::error::{Error, Exit, Result};
use crate::job::{DropSpec, MatchRule};
use crate::ledger::Appended;
use crate::ledger_event::{DueDate, Event, Fact, Text};
use crate::ledger_run;
use crate::request_import::{is_ahead, tagged};
use crate::requests::Desk;
use crate::run::{exit_json, print_json, print_lines};
use crate::show::counted;
use crate::store::{Location, Precondition, StoreError};

/// The deadline of every work item.
const REGIME: &str = "us-ca-drop";
/// That of the next download.
const ACCESS: &str = "us-ca-drop-access";
/// Work items that are recorded at a time.
const ITEMS_A_TIME: usize = 100_000;

/// Runs one of the commands.
pub async fn run(common: &Common, command: &DropCommand) -> Result<Exit> {
    match command {
        DropCommand::Import { job, zip } => import(common, Desk::open(common, job).await?, zip).await,
        DropCommand::Answer { job, out } => answer(common, Desk::open(common, job).await?, out).await,
    }
}

fn settings(desk: &Desk) -> Result<DropSpec> {
    desk.job.drop.clone().ok_or_else(|| {
        Error::usage("the job file has no [drop]").hint("it needs at least broker_id, see the README's section DROP")
    })
}

/// A download on the local disk.
struct Download<'a> {
    path: &'a Path,
    name: String,
    archive: ArchiveName,
    broker_id: &'a str,
    files: Vec<FileSummary>,
    sha256: String,
}

impl<'a> Download<'a> {
    /// Reads it to its end: whatever is wrong with it is told before anything is recorded.
    fn open(path: &'a Path, broker_id: &'a str) -> Result<Download<'a>> {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let sha256 = digest(&mut open(path)?).map_err(|error| unreadable(path, &error))?;
        let files = read_download(&name, open(path)?, broker_id, &mut |_| {}).map_err(bad_download)?;
        let archive =
            ArchiveName::parse(&name).ok_or_else(|| Error::internal("a download without its name was read"))?;
        Ok(Download { path, name, archive, broker_id, files, sha256 })
    }

    fn each_item(&self, each: &mut dyn FnMut(WorkItem)) -> Result<()> {
        read_download(&self.name, open(self.path)?, self.broker_id, each).map(drop).map_err(bad_download)
    }
}

fn open(path: &Path) -> Result<BufReader<File>> {
    File::open(path).map(BufReader::new).map_err(|error| unreadable(path, &error))
}

fn digest(content: &mut impl BufRead) -> io::Result<String> {
    let mut sha256 = Sha256::new();
    loop {
        let piece = content.fill_buf()?;
        if piece.is_empty() {
            return Ok(hex::encode(sha256.finalize()));
        }
        sha256.update(piece);
        let read = piece.len();
        content.consume(read);
    }
}

fn unreadable(path: &Path, error: &io::Error) -> Error {
    let why = match error.kind() {
        io::ErrorKind::NotFound => "there is no such file".to_owned(),
        kind => kind.to_string(),
    };
    Error::usage(format!("cannot read {}: {why}", path.display()))
}

fn bad_download(fault: crate::drop_files::BadDownload) -> Error {
    Error::usage(fault.to_string())
        .hint("nothing was recorded; download it again, and leave names and files as DROP made them")
}

/// What an import did.
#[derive(Default)]
struct Imported {
    added: u64,
    known: u64,
    withdrawn: u64,
    /// Removals of work items that the ledger never knew.
    removals_unknown: u64,
}

async fn import(common: &Common, mut desk: Desk, zip: &Path) -> Result<Exit> {
    let spec = settings(&desk)?;
    let download = Download::open(zip, &spec.broker_id)?;
    if is_ahead(Received::On(download.archive.date), desk.now) {
        return Err(Error::usage(format!("{} is dated more than a day ahead; nothing was recorded", download.archive))
            .hint("what it cancels would stay so whoever asks before that day; is the clock right?"));
    }
    let archived = archive(&desk, &spec, &download).await?;
    let received = Received::On(download.archive.date);
    let due = desk.job.regimes.due(REGIME, received);
    let mut items = Vec::new();
    // Twelve bytes of id, a digest and a tag each: a download of millions is some hundred megabytes at most.
    download.each_item(&mut |item| items.push(item))?;
    // Removals first: were they behind what is listed and the import killed in between, the next run would delete whom they cancel.
    items.sort_by_key(|item| !item.is_removed);
    check_permanent(&desk, &items)?;
    let listed_too = check_itself(&items)?;
    let mut imported = Imported::default();
    let receipt = Receipt {
        source: download.archive.to_string().into(),
        list_digest: download.sha256.as_str().into(),
        regime: REGIME.into(),
        due: due.as_ref().ok().map(|due| DueDate { at: due.date, how: due.how.as_str().into() }),
    };
    for items in items.chunks(ITEMS_A_TIME) {
        record(&mut desk, &download, &receipt, (items, &listed_too), &mut imported).await?;
    }
    desk.begin(&receipt.source, &receipt.list_digest).await?;
    desk.refresh_probe(imported.added + imported.withdrawn + imported.removals_unknown).await;
    tracing::info!(download = %download.archive, added = imported.added, withdrawn = imported.withdrawn, "download imported");
    let access = desk.job.regimes.due(ACCESS, received);
    told_import(common, &desk, &download, archived.as_ref(), (&due, &access), &imported)
}

/// DROP's ids are permanent (regulation.md, 1.1): one that comes with another hash than before is not the same download's.
fn check_permanent(desk: &Desk, items: &[WorkItem]) -> Result<()> {
    let requests = desk.ledger.requests();
    let differs = |item: &&WorkItem| {
        let Some(request) = requests.get(item.id.as_str()) else { return false };
        let wanted = tagged(&desk.key, item.list_type.kind().name(), &item.sha256);
        // After a change of the tag key there is nothing to compare with yet.
        let mut known = requests.identifiers(request).peekable();
        known.peek().is_some() && !known.any(|known| *known == wanted)
    };
    match items.iter().find(differs) {
        None => Ok(()),
        Some(item) => Err(Error::usage(format!(
            "work item {} is known with another hash or list type; nothing was recorded",
            item.id.as_str()
        ))
        .hint("ids never change: was the file edited, or is it another broker's?")),
    }
}

/// That a download says of no work item what it denies elsewhere. Gives the removals of items that it lists as well.
fn check_itself(items: &[WorkItem]) -> Result<HashSet<WorkItemId>> {
    let (removed, listed): (Vec<&WorkItem>, Vec<&WorkItem>) = items.iter().partition(|item| item.is_removed);
    let removed: HashMap<WorkItemId, &WorkItem> = removed.into_iter().map(|item| (item.id, item)).collect();
    let mut listed_too = HashSet::new();
    for (item, removal) in listed.into_iter().filter_map(|item| Some((item, removed.get(&item.id)?))) {
        if (item.list_type, item.sha256) != (removal.list_type, removal.sha256) {
            let id = item.id.as_str();
            return Err(Error::usage(format!(
                "work item {id} is listed and removed with another hash or list type; nothing was recorded"
            ))
            .hint("ids never change: was the file edited?"));
        }
        listed_too.insert(item.id);
    }
    Ok(listed_too)
}

/// What all work items of a download have in common: millions share it.
struct Receipt {
    source: Text,
    list_digest: Text,
    regime: Text,
    due: Option<DueDate>,
}

/// Records some work items, removals before what is listed. A removal counts from the download's date on, and is recorded of unknown ones
/// as well: this download may list them (`listed_too`), or an older one that is imported later.
async fn record(
    desk: &mut Desk,
    download: &Download<'_>,
    receipt: &Receipt,
    (items, listed_too): (&[WorkItem], &HashSet<WorkItemId>),
    imported: &mut Imported,
) -> Result<()> {
    let received_at = desk.job.regimes.start_of(download.archive.date);
    let recorded_at = desk.now;
    // The same download once more, by a job of another time zone: it asks for nobody later than it did.
    let asked_at = |item: &WorkItem| {
        let known = desk.ledger.requests().get(item.id.as_str());
        known.filter(|request| request.source == receipt.source).and_then(|request| request.received_at).or(received_at)
    };
    let event = |item: &WorkItem, fact| Event { recorded_at, request_id: item.id.as_str().into(), fact };
    let received = |item: &WorkItem| Fact::Received {
        identifier: tagged(&desk.key, item.list_type.kind().name(), &item.sha256),
        source: receipt.source.clone(),
        received_at: asked_at(item),
        regime: Some(receipt.regime.clone()),
        due: receipt.due.clone(),
        list_digest: Some(receipt.list_digest.clone()),
    };
    let listed = items.iter().filter(|item| !item.is_removed);
    let events: Vec<Event> = listed.map(|item| event(item, received(item))).collect();
    let removed: Vec<&WorkItem> = items.iter().filter(|item| item.is_removed).collect();
    let requests = desk.ledger.requests();
    let is_known = |item: &&WorkItem| listed_too.contains(&item.id) || requests.get(item.id.as_str()).is_some();
    let (there, unknown): (Vec<&WorkItem>, Vec<&WorkItem>) = removed.into_iter().partition(is_known);
    let withdrawn = Fact::Withdrawn { source: format!("{} Removed", receipt.source).into(), at: received_at };
    let [there, unknown] = [there, unknown]
        .map(|items| items.into_iter().map(|item| event(item, withdrawn.clone())).collect::<Vec<Event>>());
    imported.withdrawn += desk.append(there).await?.events;
    imported.removals_unknown += desk.append(unknown).await?.events;
    let Appended { events: added, known } = desk.append(events).await?;
    (imported.added, imported.known) = (imported.added + added, imported.known + known);
    Ok(())
}

/// Keeps the download encrypted under the state, once. `None`: the job names nobody who could open it.
async fn archive(desk: &Desk, spec: &DropSpec, download: &Download<'_>) -> Result<Option<Location>> {
    let Some(recipient) = &spec.archive_recipient else {
        tracing::warn!(
            "the download is not kept: without [drop] archive_recipient a change of the tag key needs DROP's support"
        );
        return Ok(None);
    };
    let state = &desk.job.state.location;
    // The digest tells two downloads of one day apart.
    let location = state.join("drop").join(&format!("{}-{}.age", download.archive, &download.sha256[..8]));
    let store = desk.stores.of(state);
    match store.head(&location).await {
        Ok(_) => return Ok(Some(location)),
        Err(StoreError::NotFound(_)) => {}
        Err(error) => return Err(error.into()),
    }
    let mut sealed = Vec::new();
    encrypt_archive(recipient, &mut open(download.path)?, &mut sealed)
        .map_err(|error| Error::internal(format!("the download cannot be encrypted: {}", error.kind())))?;
    let object = store.put(&location, sealed.into(), Precondition::Absent).await?;
    Ok(Some(object.location))
}

fn told_import(
    common: &Common,
    desk: &Desk,
    download: &Download<'_>,
    archived: Option<&Location>,
    (due, access): (&Result<Due, NoDue>, &Result<Due, NoDue>),
    imported: &Imported,
) -> Result<Exit> {
    let kind = |file: &FileSummary| match file.content {
        Content::List(list_type) => list_type.name(),
        Content::Removed => "Removed",
    };
    if common.json {
        let files =
            download.files.iter().map(|file| json!({ "name": file.name, "type": kind(file), "rows": file.rows }));
        print_json(&json!({
            "command": "drop import",
            "exit": exit_json(Exit::Clean),
            "archive": {
                "name": download.archive.to_string(),
                "broker_id": download.archive.broker_id,
                "date": download.archive.date,
                "sha256": download.sha256,
                "kept": archived.map(Location::to_string),
            },
            "files": files.collect::<Vec<Value>>(),
            "added": imported.added,
            "known": imported.known,
            "withdrawn": imported.withdrawn,
            "removals_unknown": imported.removals_unknown,
            "due_at": due.as_ref().ok().map(|due| due.date),
            "due_how": due.as_ref().ok().map(|due| &due.how),
            "next_access_due_at": access.as_ref().ok().map(|due| due.date),
            "ledger": desk.ledger_json(),
        }))?;
        return Ok(Exit::Clean);
    }
    let mut lines: Vec<String> =
        download.files.iter().map(|file| format!("{}  {}", rows_wide(file.rows), file.name)).collect();
    lines.push(format!(
        "{} added, {} known, {} withdrawn",
        counted(imported.added, "work item"),
        imported.known,
        imported.withdrawn
    ));
    if imported.removals_unknown > 0 {
        let removals = counted(imported.removals_unknown, "removal");
        lines.push(format!("{removals} of work items that the ledger does not know yet: kept for an older download"));
    }
    // A rule of the job's own in the place of the preset may not be in force yet.
    lines.push(match due {
        Ok(due) => format!("due on {}: {}", due.date, due.how),
        Err(none) => format!("no due date: {none}"),
    });
    lines.extend(access.iter().map(|access| format!("DROP is to be accessed again by {}", access.date)));
    lines.extend(archived.map(|location| format!("kept encrypted at {location}")));
    print_lines(&lines)?;
    Ok(Exit::Clean)
}

async fn answer(common: &Common, mut desk: Desk, out: &Path) -> Result<Exit> {
    let spec = settings(&desk)?;
    // "Not found" is said of what the job's datasets were searched for.
    desk.job.check_datasets()?;
    desk.ledger.check_key(desk.now)?;
    let looked_for = ledger_run::compared_kinds(&desk.job).into_iter().filter_map(ListType::of_kind).collect();
    let answers = answers(desk.ledger.requests(), desk.now, spec.rows_per_file, &looked_for);
    if !answers.unsettled.is_empty() {
        return Err(unsettled(&answers));
    }
    let not_comparable = not_comparable(&desk).await?;
    warn_of_blind_types(&looked_for, &answers);
    warn_of_unread_types(&answers, &not_comparable);
    std::fs::create_dir_all(out).map_err(|error| unwritable(out, &error))?;
    for file in &answers.files {
        let mut bytes = Vec::new();
        write_upload(&mut bytes, &file.rows).map_err(|error| unwritable(out, &error))?;
        write_once(&out.join(file.name.to_string()), &bytes)?;
    }
    // The files are there before the ledger says so, and it says so of all at once: killed in between, the next answer writes the
    // same ones again. Were only some recorded, the others' rows would be answered a second time under other names.
    let mut events = Vec::new();
    for file in &answers.files {
        let source: Text = file.name.to_string().into();
        events.extend(file.rows.iter().map(|(id, status)| Event {
            recorded_at: desk.now,
            request_id: id.as_str().into(),
            fact: Fact::Answered { status: u64::from(status.code()), source: source.clone() },
        }));
    }
    let recorded = desk.append_at_once(events).await?;
    desk.refresh_probe(recorded.events).await;
    told_answer(common, &desk, out, &answers, &not_comparable)
}

fn rows_wide(rows: u64) -> String {
    format!("{rows:>10} {:<4}", if rows == 1 { "row" } else { "rows" })
}

/// "Not found" is true of what nobody looked for as well; whoever answers must know that it was not looked for.
fn warn_of_blind_types(looked_for: &BTreeSet<ListType>, answers: &Answers) {
    let mut blind: BTreeMap<ListType, usize> = BTreeMap::new();
    for file in &answers.files {
        if let Content::List(list_type) = file.name.content
            && !looked_for.contains(&list_type)
        {
            *blind.entry(list_type).or_default() +=
                file.rows.iter().filter(|(_, status)| *status == Status::NotFound).count();
        }
    }
    for (list_type, items) in blind.into_iter().filter(|(_, items)| *items > 0) {
        let list_type = list_type.name();
        tracing::warn!(
            list_type,
            items,
            "answered as not found, but no dataset names columns of this list type: nobody looked for them"
        );
    }
}

fn unsettled(answers: &Answers) -> Error {
    let shown: Vec<&str> = answers.unsettled.iter().take(10).map(|id| &**id).collect();
    let more = if answers.unsettled.len() > shown.len() { ", ..." } else { "" };
    Error::new(
        Exit::Incomplete,
        format!(
            "{} work items have no outcome yet, so nothing was written: {}{more}",
            answers.unsettled.len(),
            shown.join(", ")
        ),
    )
    .hint(match answers.held {
        0 => "run `lakescrub scrub` until it ends clean: a status says what a whole run has seen".to_owned(),
        held => format!(
            "{held} of them share an identifier with a request that is exempted, so that no run looks for it: exempt them as well, or end \
             that exemption"
        ),
    })
}

fn unwritable(path: &Path, error: &io::Error) -> Error {
    Error::usage(format!("cannot write {}: {}", path.display(), error.kind()))
}

/// An upload file is there as a whole or not at all, and is never changed once it is there: DROP may have it already. One that was cut
/// within a line is of an answer that was killed, by a version that wrote it in its place.
fn write_once(path: &Path, bytes: &[u8]) -> Result<()> {
    let cannot = |error: io::Error| unwritable(path, &error);
    match std::fs::read(path) {
        Ok(there) if there == bytes => return Ok(()),
        Ok(there) if bytes.starts_with(&there) && !there.ends_with(b"\n") => {}
        Ok(_) => {
            return Err(Error::usage(format!("{} is there already and holds something else", path.display()))
                .hint("name an empty folder with --out"));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(cannot(error)),
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let part = path.with_file_name(format!(".{name}.part"));
    let mut file = File::create(&part).map_err(cannot)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(cannot)?;
    std::fs::rename(&part, path).map_err(cannot)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(cannot)
}

/// So is it of what was looked for in a column whose values nobody could read, as dates in another format than the job tells.
fn warn_of_unread_types(answers: &Answers, not_comparable: &[NotComparable]) {
    for unread in not_comparable.iter().filter(|unread| unread.are_most) {
        for list_type in &unread.list_types {
            let files = answers.files.iter().filter(|file| file.name.content == Content::List(*list_type));
            let items = files.flat_map(|file| &file.rows).filter(|(_, status)| *status == Status::NotFound).count();
            let (dataset, column) = (&unread.dataset, &unread.column);
            let (list_type, values) = (list_type.name(), unread.values);
            if items > 0 {
                tracing::warn!(
                    list_type,
                    items,
                    dataset,
                    column,
                    values,
                    "answered as not found, but the last scrub could not compare most values of a column that makes up this list type"
                );
            }
        }
    }
}

/// A column that the last scrub could not compare in part.
struct NotComparable {
    dataset: String,
    column: String,
    values: u64,
    /// At least half of the rows have such a value.
    are_most: bool,
    /// What the column makes up.
    list_types: BTreeSet<ListType>,
}

/// What the last scrub could not compare, as its manifest tells.
async fn not_comparable(desk: &Desk) -> Result<Vec<NotComparable>> {
    let last = desk.last_scrub().await?.unwrap_or_default();
    let mut columns = Vec::new();
    for dataset in last["datasets"].as_array().into_iter().flatten() {
        let name = dataset["name"].as_str().unwrap_or_default();
        // Counted by the verifying scan, of what was left.
        let rows = dataset["rows"]["after"].as_u64().unwrap_or(0);
        let rules = || desk.job.datasets.iter().filter(|spec| spec.name == name).flat_map(|spec| &spec.rules);
        for (column, values) in dataset["not_comparable"].as_object().into_iter().flatten() {
            let Some(values) = values.as_u64().filter(|values| *values > 0) else { continue };
            let of_column = rules().filter(|rule| rule.parts().iter().any(|part| part.column.to_string() == *column));
            let kinds = of_column.flat_map(MatchRule::compared).map(|part| part.kind.name());
            columns.push(NotComparable {
                dataset: name.to_owned(),
                column: column.clone(),
                values,
                are_most: values >= rows.div_ceil(2),
                list_types: kinds.filter_map(ListType::of_kind).collect(),
            });
        }
    }
    Ok(columns)
}

fn told_answer(
    common: &Common,
    desk: &Desk,
    out: &Path,
    answers: &Answers,
    not_comparable: &[NotComparable],
) -> Result<Exit> {
    let count = |status: Status| answers.statuses.get(&status).copied().unwrap_or(0);
    if common.json {
        let mut by_dataset: BTreeMap<&str, BTreeMap<&str, u64>> = BTreeMap::new();
        for NotComparable { dataset, column, values, .. } in not_comparable {
            by_dataset.entry(dataset).or_default().insert(column, *values);
        }
        let files = answers
            .files
            .iter()
            .map(|file| json!({ "name": file.name.to_string(), "rows": file.rows.len(), "amended": file.is_amended }));
        let statuses: serde_json::Map<String, Value> =
            Status::ALL.into_iter().map(|status| (status.code().to_string(), json!(count(status)))).collect();
        print_json(&json!({
            "command": "drop answer",
            "exit": exit_json(Exit::Clean),
            "out": out,
            "files": files.collect::<Vec<Value>>(),
            "statuses": statuses,
            "unchanged": answers.unchanged,
            "withdrawn": answers.withdrawn,
            "not_comparable": by_dataset,
            "ledger": desk.ledger_json(),
        }))?;
        return Ok(Exit::Clean);
    }
    let mut lines = Vec::new();
    for file in &answers.files {
        let form = if file.is_amended { "  (to DROP's amend form)" } else { "" };
        lines.push(format!("{}  {}{form}", rows_wide(file.rows.len() as u64), file.name));
    }
    for status in Status::ALL {
        lines.push(format!("{:>10}  {} ({})", count(status), status.name(), status.code()));
    }
    lines.push(format!("{:>10}  answered before and unchanged", answers.unchanged));
    lines.push(format!("{:>10}  cancelled: no status is due", answers.withdrawn));
    for NotComparable { dataset, column, values, list_types, .. } in not_comparable {
        let types: Vec<&str> = list_types.iter().map(|list_type| list_type.name()).collect();
        let (values, types) = (counted(*values, "value"), types.join(", "));
        lines.push(format!(
            "{dataset}: {values} of column {column} could not be compared in the last scrub: {types} may be there all the same"
        ));
    }
    print_lines(&lines)?;
    Ok(Exit::Clean)
}
