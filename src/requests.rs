//! The `requests` commands: what people and schedulers write into the request ledger and read from it.
//!
//! Wiring: opens the ledger, hands events to it, shows what it folds to. What is news is the ledger's to decide, so that a command
//! that is run twice records nothing twice.

use std::collections::{BTreeMap, BTreeSet};
use std::io::BufRead;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::DataType;
use arrow::util::display::array_value_to_string;
use jiff::civil::Date;
use jiff::{SignedDuration, Timestamp};
use parquet::arrow::ArrowWriter;
use serde_json::{Value, json};

use crate::chain;
use crate::cli::{Common, ExportFormat, ReadAs, RequestsCommand, print_result};
use crate::deadline::{DueDates, Received, Regimes};
use crate::drop_answer::download_of;
use crate::error::{Error, Exit, Result};
use crate::identifier::{HashFunction, Hashed};
use crate::job::Job;
use crate::keys;
use crate::ledger::{Appended, EVENTS_A_SEGMENT, Ledger};
use crate::ledger_event::{DueDate, Event, Fact, Tagged, Text, table};
use crate::ledger_fold::{Holds, Request, Requests, State};
use crate::ledger_probe;
use crate::ledger_run;
use crate::request_import::{
    self, Columns, Receipt, TaggedList, Who, plainly_held, time_of, when, who, whole_microseconds,
};
use crate::run::{exit_json, print_json, print_lines};
use crate::session::{honours_conditions, self_test, uses_s3};
use crate::show;
use crate::signature::TagKey;
use crate::standing::{Dates, Standing, next_run, standing, whole_days};
use crate::store::Stores;

/// The job's ledger, open, and what belongs to it.
pub struct Desk {
    pub job: Job,
    pub stores: Stores,
    pub key: TagKey,
    pub ledger: Ledger,
    /// Of the command; whole microseconds, as the ledger keeps them.
    pub now: Timestamp,
}

impl Desk {
    /// Opens the ledger of a job. Reads nothing but the job file, the tag key and the ledger.
    pub async fn open(common: &Common, path: &Path) -> Result<Desk> {
        Desk::open_with(common, path, &[]).await
    }

    /// [`Desk::open`] for a command that reads these lists, too.
    async fn open_with(common: &Common, path: &Path, lists: &[String]) -> Result<Desk> {
        let job = Job::read(path, &common.set)?;
        self_test()?;
        keys::open_to_others(&job.state.tag_key).into_iter().for_each(|warning| tracing::warn!("{warning}"));
        let key = keys::load_tag_key(&job.state.tag_key)?;
        let needs_s3 = uses_s3(&job) || lists.iter().any(|list| list.starts_with("s3://"));
        let stores = Stores::open(&job.s3, job.resources.requests_in_flight, needs_s3).await?;
        let state = &job.state.location;
        // Read before the ledger is: what it names must be there. Of a ledger that lost its end nobody must read that nothing is left to
        // do, and behind a lost end nothing may be written.
        let anchor = ledger_run::anchor(stores.of(state).as_ref(), state).await?;
        let ledger = Ledger::open(stores.of(state), state, &key).await?;
        ledger.check_anchor(anchor.as_ref())?;
        let now = whole_microseconds(common.now.unwrap_or_else(Timestamp::now));
        Ok(Desk { job, stores, key, ledger, now })
    }

    /// Records events, see [`Desk::append`], and lets the gate know.
    pub async fn record(&mut self, events: Vec<Event>) -> Result<Appended> {
        let appended = self.append(events).await?;
        self.refresh_probe(appended.events).await;
        Ok(appended)
    }

    /// Records events; on a store that ignores conditional writes only if the job allows that.
    pub async fn append(&mut self, events: Vec<Event>) -> Result<Appended> {
        honours_conditions(&self.stores, &self.job, &self.job.state.location.join("")).await?;
        self.ledger.append(events).await
    }

    /// [`Desk::append`] of events that are one fact together.
    pub async fn append_at_once(&mut self, events: Vec<Event>) -> Result<Appended> {
        honours_conditions(&self.stores, &self.job, &self.job.state.location.join("")).await?;
        self.ledger.append_at_once(events).await
    }

    /// Once behind all appends of a command: the file is made of the whole ledger.
    pub async fn refresh_probe(&self, appended_events: u64) {
        if appended_events > 0 {
            let (state, now) = (&self.job.state.location, self.now);
            ledger_probe::refresh(self.stores.of(state).as_ref(), &self.ledger, state, &self.key, now).await;
        }
    }

    /// The predicate of the last scrub's manifest, if there is one.
    pub async fn last_scrub(&self) -> Result<Option<Value>> {
        let state = &self.job.state.location;
        let is_scrub = |predicate: &Value| predicate["run"]["command"] == "scrub";
        let last = chain::newest(self.stores.of(state).as_ref(), state, is_scrub).await?;
        Ok(last.map(|(_, predicate)| predicate))
    }

    fn event(&self, request_id: &Text, fact: Fact) -> Event {
        Event { recorded_at: self.now, request_id: request_id.clone(), fact }
    }

    /// The requests that a command line names, by id or by person. One that is not in the ledger is a usage error, which tells its
    /// place and never what was typed: it may be an identifier.
    fn named(&self, texts: &[String]) -> Result<Vec<Text>> {
        let mut ids = Vec::new();
        for typed_in in &lines_of(texts)? {
            let requests = self.ledger.requests();
            match who(&self.key, &typed_in.text, None)? {
                Who::Request { id, hidden } => {
                    let known = requests.get(&id).or_else(|| requests.get(&hidden));
                    let request = known.ok_or_else(|| {
                        let place = &typed_in.place;
                        Error::usage(format!("the request named by {place} is not in the ledger; nothing was recorded"))
                            .hint("`requests list` shows the ids; a person is named as KIND=VALUE")
                    })?;
                    ids.push(request.id.clone());
                }
                Who::Person(tags) => {
                    let before = ids.len();
                    ids.extend(requests_of(requests, &tags));
                    if ids.len() == before {
                        let (kind, place) = (&tags[0].kind, &typed_in.place);
                        return Err(Error::usage(format!(
                            "{place}: no request in the ledger has this {kind}; nothing was recorded"
                        )));
                    }
                }
            }
        }
        ids.sort();
        ids.dedup();
        Ok(ids)
    }

    pub fn ledger_json(&self) -> Value {
        let (head, requests) = (self.ledger.head(), self.ledger.requests());
        json!({
            "segments": head.sequence,
            "digest": head.digest_hex(),
            "events": requests.events,
            "requests": requests.len(),
        })
    }
}

/// The due dates of requests under a regime. Errors: one that neither the presets nor the job has.
fn due_dates<'a>(regimes: &'a Regimes, regime: Option<&Text>) -> Result<Option<DueDates<'a>>> {
    let Some(regime) = regime else { return Ok(None) };
    refuse_identifier(regime, "--regime")?;
    DueDates::new(regimes, regime).map(Some).map_err(|error| {
        Error::usage(format!("{error}; nothing was recorded")).hint(format!("known are {}", regimes.ids().join(", ")))
    })
}

fn requests_of(requests: &Requests, tags: &[Tagged]) -> Vec<Text> {
    let heads = tags.iter().map(|tagged| tagged.tag[..16].try_into().expect("half a tag"));
    heads.flat_map(|head| requests.with_tag(head)).map(|number| requests.at(number).id.clone()).collect()
}

/// Where something was typed in, counted from 1.
enum Place {
    Argument(usize),
    Line(usize),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Place::Argument(number) => write!(f, "argument {number}"),
            Place::Line(number) => write!(f, "line {number} of stdin"),
        }
    }
}

struct TypedIn {
    text: String,
    place: Place,
}

/// Arguments, with the lines of stdin in the place of `-`.
fn lines_of(texts: &[String]) -> Result<Vec<TypedIn>> {
    let mut all = Vec::new();
    for (text, number) in texts.iter().zip(1..) {
        if text != "-" {
            all.push(TypedIn { text: text.clone(), place: Place::Argument(number) });
            continue;
        }
        for (line, number) in std::io::stdin().lock().lines().zip(1..) {
            let line = line.map_err(|error| Error::usage(format!("stdin cannot be read: {}", error.kind())))?;
            let text = line.trim().to_owned();
            all.extend(Some(TypedIn { text, place: Place::Line(number) }).filter(|typed_in| !typed_in.text.is_empty()));
        }
    }
    Ok(all)
}

fn columns(read_as: &ReadAs) -> Columns {
    Columns {
        columns: read_as.columns.clone(),
        request_id: read_as.id_column.clone(),
        received_at: read_as.received_at_column.clone(),
    }
}

fn old_key(path: Option<&Path>) -> Result<Option<TagKey>> {
    path.map(|path| keys::load_tag_key(&crate::job::KeySource::File(path.to_owned()))).transpose()
}

/// Runs one of the commands.
pub async fn run(common: &Common, command: &RequestsCommand) -> Result<Exit> {
    match command {
        RequestsCommand::Import { job, list, read_as, regime, old_tag_key } => {
            let desk = Desk::open_with(common, job, list).await?;
            let old = old_key(old_tag_key.as_deref())?;
            import(common, desk, list, &columns(read_as), regime.as_deref(), old.as_ref()).await
        }
        RequestsCommand::Add { job, identifier, request_id, received_at, source, regime, hashed, old_tag_key } => {
            let desk = Desk::open(common, job).await?;
            let old = old_key(old_tag_key.as_deref())?;
            let new = New {
                identifiers: identifier,
                request_id: request_id.as_deref(),
                received_at: received_at.as_deref(),
                source,
                regime: regime.as_deref(),
                hashed: hashed.as_deref(),
                old_key: old.as_ref(),
            };
            add(common, desk, &new).await
        }
        RequestsCommand::Withdraw { list: Some(_), read_as: ReadAs { received_at_column: Some(_), .. }, .. } => {
            Err(Error::usage("a withdrawal reads no times: --received-at-column does not go with withdraw --list")
                .hint("leave it out: every request of these people is withdrawn, whenever they opted in again"))
        }
        RequestsCommand::Withdraw { job, who, list, read_as, source } => {
            let desk = Desk::open_with(common, job, list.as_slice()).await?;
            withdraw(common, desk, who, list.as_ref(), &columns(read_as), source).await
        }
        RequestsCommand::Exempt { job, who, ground, until } => {
            let desk = Desk::open(common, job).await?;
            exempt(common, desk, who, ground, until.as_deref()).await
        }
        RequestsCommand::List { job, state, source, request_id } => {
            let desk = Desk::open(common, job).await?;
            list(common, &desk, state.as_deref(), source.as_deref(), request_id.as_deref())
        }
        RequestsCommand::Status { job, fail_on_overdue, due_within } => {
            status(common, &Desk::open(common, job).await?, *fail_on_overdue, *due_within).await
        }
        RequestsCommand::Export { job, out, events, format } => {
            let desk = Desk::open(common, job).await?;
            export(common, &desk, out.as_deref(), *events, *format).await
        }
    }
}

async fn import(
    common: &Common,
    mut desk: Desk,
    wanted: &[String],
    columns: &Columns,
    regime: Option<&str>,
    old_key: Option<&TagKey>,
) -> Result<Exit> {
    let regime: Option<Text> = regime.map(Text::from);
    let (now, regimes) = (desk.now, desk.job.regimes.clone());
    due_dates(&regimes, regime.as_ref())?;
    let lists = request_import::read(&desk.job, &desk.stores, wanted, columns, (&desk.key, old_key), &|| now).await?;
    request_import::check_rotation(
        lists.iter().flat_map(|list| &list.rows),
        desk.ledger.requests(),
        old_key.is_some(),
    )?;
    request_import::check_ids(&lists, desk.ledger.requests())?;
    let (mut told, mut lines, mut total) = (Vec::new(), Vec::new(), Appended::default());
    let mut rekeyed = 0;
    for rows in lists.iter().flat_map(|list| list.rows.chunks(EVENTS_A_SEGMENT)).filter(|_| old_key.is_some()) {
        let events = request_import::rekeyed(rows, desk.ledger.requests(), now);
        rekeyed += desk.append(events).await?.events;
    }
    if rekeyed > 0 {
        lines.push(format!("{rekeyed} identifiers found again that were under the key before"));
    }
    for mut list in lists {
        let own = desk.job.lists.iter().find(|spec| spec.name == list.report.name);
        let regime = regime.clone().or_else(|| own?.regime.as_deref().map(Text::from));
        list.name_requests(desk.ledger.requests());
        let not_heard = list.not_heard(desk.ledger.requests());
        if not_heard > 0 {
            tracing::warn!(
                list = list.report.name,
                rows = not_heard,
                "rows name somebody who opted in again, and tell no later time: they open no request"
            );
        }
        let TaggedList { report, rows } = list;
        let mut receipt = Receipt {
            source: report.name.as_str().into(),
            list_digest: report.digest.as_str().into(),
            due: regime.clone().zip(due_dates(&regimes, regime.as_ref())?),
            now,
        };
        let (count, mut rows, mut appended) = (rows.len(), rows.into_iter(), Appended::default());
        while rows.len() > 0 {
            let events = receipt.events(rows.by_ref().take(EVENTS_A_SEGMENT));
            let of_these = desk.append(events).await?;
            (appended.events, appended.known) = (appended.events + of_these.events, appended.known + of_these.known);
        }
        (total.events, total.known) = (total.events + appended.events, total.known + appended.known);
        tracing::info!(list = report.name, added = appended.events, known = appended.known, "list imported");
        told.push(json!({
            "name": report.name,
            "uri": report.uri,
            "digest": report.digest,
            "rows": report.rows,
            "rows_with_identifier": count,
            "malformed": report.malformed,
            "added": appended.events,
            "known": appended.known,
        }));
        let (name, rows) = (&report.name, report.rows);
        lines
            .push(format!("list {name}: {rows} rows, {} identifiers added, {} known", appended.events, appended.known));
    }
    desk.refresh_probe(total.events + rekeyed).await;
    if common.json {
        print_json(&json!({
            "command": "requests import",
            "rekeyed": rekeyed,
            "exit": exit_json(Exit::Clean),
            "added": total.events,
            "known": total.known,
            "lists": told,
            "ledger": desk.ledger_json(),
        }))?;
    } else {
        lines.push(totals(&desk));
        print_lines(&lines)?;
    }
    Ok(Exit::Clean)
}

fn totals(desk: &Desk) -> String {
    let (head, requests) = (desk.ledger.head(), desk.ledger.requests());
    format!("ledger: {} requests, {} events in {} segments", requests.len(), requests.events, head.sequence)
}

/// A request as it was typed in.
struct New<'a> {
    identifiers: &'a [String],
    request_id: Option<&'a str>,
    received_at: Option<&'a str>,
    source: &'a str,
    regime: Option<&'a str>,
    hashed: Option<&'a str>,
    old_key: Option<&'a TagKey>,
}

async fn add(common: &Common, mut desk: Desk, new: &New<'_>) -> Result<Exit> {
    let hashed = match new.hashed {
        None => None,
        Some(name) => {
            let hashed = Hashed::parse(name).filter(|hashed| hashed.function() == HashFunction::Sha256);
            let wrong = || {
                let name = as_typed(name);
                Error::usage(format!("--hashed {name} leads to no tag; sha256-hex and sha256-base64 do"))
            };
            Some(hashed.ok_or_else(wrong)?)
        }
    };
    let received_at = match new.received_at {
        None => Received::At(desk.now),
        Some(text) => time(text, "--received-at")?,
    };
    refuse_identifier(new.source, "--source")?;
    let mut all = Vec::new();
    for typed_in in &lines_of(new.identifiers)? {
        all.push(request_import::typed(&typed_in.text, hashed)?.ok_or_else(|| {
            let place = &typed_in.place;
            Error::usage(format!("{place} is not KIND=VALUE with a known kind; nothing was recorded"))
                .hint(format!("kinds are {}", crate::identifier::Kind::NAMES.join(", ")))
        })?);
    }
    // Without an identifier of its row it is kept as it is.
    let own_id = new.request_id.filter(|id| !request_import::is_id_of(&all, id));
    own_id.map_or(Ok(()), |id| refuse_identifier(id, "--request-id"))?;
    let row = request_import::typed_row((&desk.key, new.old_key), &all, new.request_id, received_at);
    if row.identifiers.is_empty() {
        return Err(Error::usage("no identifier was given; nothing was recorded"));
    }
    request_import::check_rotation([&row], desk.ledger.requests(), new.old_key.is_some())?;
    let id = request_import::id_of(&row, desk.ledger.requests());
    let regime = new.regime.map(Text::from);
    let due = due_dates(&desk.job.regimes, regime.as_ref())?.and_then(|mut due| due.of(received_at));
    let fact = |identifier: &Tagged| Fact::Received {
        identifier: identifier.clone(),
        source: new.source.into(),
        received_at: Some(time_of(received_at)),
        regime: regime.clone(),
        due: due.clone(),
        list_digest: None,
    };
    let rekeyed = request_import::rekeyed([&row], desk.ledger.requests(), desk.now);
    let rekeyed = desk.append(rekeyed).await?.events;
    let events = row.identifiers.iter().map(|identifier| desk.event(&id, fact(identifier))).collect();
    let Appended { events, known } = desk.append(events).await?;
    let appended = Appended { events: rekeyed + events, known };
    desk.refresh_probe(appended.events).await;
    told(common, &desk, "requests add", &[id], appended)
}

async fn withdraw(
    common: &Common,
    mut desk: Desk,
    named: &[String],
    list: Option<&String>,
    columns: &Columns,
    source: &str,
) -> Result<Exit> {
    refuse_identifier(source, "--source")?;
    let mut ids = desk.named(named)?;
    if let Some(list) = list {
        let now = desk.now;
        let wanted = std::slice::from_ref(list);
        let lists = request_import::read(&desk.job, &desk.stores, wanted, columns, (&desk.key, None), &|| now).await?;
        let (mut rows, mut unknown) = (0, 0);
        for row in lists.iter().flat_map(|list| &list.rows) {
            let before = ids.len();
            ids.extend(requests_of(desk.ledger.requests(), &row.identifiers));
            (rows, unknown) = (rows + 1, unknown + usize::from(ids.len() == before));
        }
        check_unknown(desk.ledger.requests(), rows, unknown, ids.is_empty())?;
        ids.sort();
        ids.dedup();
    }
    let others = others(&desk, &ids);
    if others > 0 {
        tracing::warn!(
            others,
            "other requests name the same people, who go on being removed for these; name them as KIND=VALUE"
        );
    }
    let events = ids.iter().map(|id| desk.event(id, Fact::Withdrawn { source: source.into(), at: None })).collect();
    let appended = desk.record(events).await?;
    told(common, &desk, "requests withdraw", &ids, appended)
}

/// A withdrawal that reaches nobody would be lost without a word, and somebody who opted in again deleted.
fn check_unknown(requests: &Requests, rows: usize, unknown: usize, is_none_named: bool) -> Result<()> {
    match requests.left_behind() {
        _ if unknown == 0 => Ok(()),
        0 if is_none_named => Err(Error::usage(format!(
            "none of the {rows} rows of the list names somebody whom a request in the ledger names; nothing was recorded"
        ))
        .hint("is it the right list, and the tag_key of this ledger?")),
        0 => {
            tracing::warn!(rows = unknown, "no request in the ledger names these people: there is nothing to withdraw");
            Ok(())
        }
        stale => Err(Error::usage(format!(
            "{stale} requests of the ledger are tagged with another tag_key, and {unknown} of the {rows} rows may mean one of these; \
             nothing was recorded"
        ))
        .hint("import the lists once with --old-tag-key and the key from before, or withdraw these people by their request ids")),
    }
}

/// How many other requests ask for an identifier that one of these has. `ids` are sorted.
fn others(desk: &Desk, ids: &[Text]) -> usize {
    let requests = desk.ledger.requests();
    let mut others = BTreeSet::new();
    for request in ids.iter().filter_map(|id| requests.get(id)) {
        let tags: Vec<Tagged> = requests.identifiers(request).cloned().collect();
        let standing = requests_of(requests, &tags).into_iter().filter(|other| ids.binary_search(other).is_err());
        others.extend(standing.filter(|other| requests.get(other).is_some_and(|other| other.is_suppressed(desk.now))));
    }
    others.len()
}

async fn exempt(common: &Common, mut desk: Desk, named: &[String], ground: &str, until: Option<&str>) -> Result<Exit> {
    refuse_identifier(ground, "--ground")?;
    let until = until.map(|text| time(text, "--until")).transpose()?.map(|until| match until {
        Received::At(time) => time,
        // The whole day, as a due date is.
        Received::On(_) => time_of(until).saturating_add(SignedDuration::from_secs(86_399)).unwrap_or(Timestamp::MAX),
    });
    let ids = desk.named(named)?;
    let others = others(&desk, &ids);
    if others > 0 {
        tracing::warn!(others, "other requests name the same people, and are held by this exemption as well");
    }
    let fact = || Fact::Exempted { ground: ground.into(), until };
    let events = ids.iter().map(|id| desk.event(id, fact())).collect();
    let appended = desk.record(events).await?;
    told(common, &desk, "requests exempt", &ids, appended)
}

/// Refuses a text that is kept as it was typed and holds what should be kept as a tag alone.
fn refuse_identifier(text: &str, option: &str) -> Result<()> {
    match plainly_held(text) {
        None => Ok(()),
        Some(what) => Err(Error::usage(format!("the text of {option} holds {what}; nothing was recorded"))
            .hint("it would be kept in clear: name the request's id, or a case of yours, instead of a person")),
    }
}

/// What was typed in, for an error; not when it is in the place of something else and names a person.
fn as_typed(text: &str) -> &str {
    plainly_held(text).map_or(text, |_| "(as given)")
}

fn time(text: &str, option: &str) -> Result<Received> {
    when(text).ok_or_else(|| {
        Error::usage(format!("{option} {} is no date or time", as_typed(text)))
            .hint("such as 2026-08-01 or 2026-08-01T10:00:00Z")
    })
}

fn told(common: &Common, desk: &Desk, command: &str, ids: &[Text], appended: Appended) -> Result<Exit> {
    if common.json {
        let ids: Vec<&str> = ids.iter().map(|id| &**id).collect();
        print_json(&json!({
            "command": command,
            "exit": exit_json(Exit::Clean),
            "request_ids": ids,
            "added": appended.events,
            "known": appended.known,
            "ledger": desk.ledger_json(),
        }))?;
    } else {
        let ids: Vec<&str> = ids.iter().map(|id| &**id).take(20).collect();
        let events = appended.events;
        print_lines(&[format!("{events} events recorded for {}", ids.join(", ")), totals(desk)])?;
    }
    Ok(Exit::Clean)
}

/// The ids of the exempted requests that hold an identifier of this one.
fn holders<'a>(requests: &'a Requests, request: &Request, holds: &Holds) -> Vec<&'a str> {
    requests.held_by(request, holds).into_iter().map(|number| &*requests.at(number).id).collect()
}

/// A request as JSON: what `requests list --json` shows of each.
pub fn request_json(requests: &Requests, request: &Request, holds: &Holds, now: Timestamp) -> Value {
    let identifiers: Vec<Value> = requests
        .identifiers(request)
        .map(|identifier| json!({ "kind": &*identifier.kind, "tag": hex::encode(identifier.tag) }))
        .collect();
    let datasets: Vec<Value> = request
        .datasets
        .iter()
        .map(|(name, facts)| {
            json!({
                "dataset": &**name,
                "rows_removed": facts.rows_removed,
                "rows_planned": facts.planned.as_ref().map(|planned| planned.rows),
                "consumers": facts.consumers,
                "removed_at": facts.removed_at,
                "run_id": facts.removed_by.as_ref().map(|(run, _)| &**run),
                "manifest_digest": facts.removed_by.as_ref().map(|(_, digest)| &**digest),
            })
        })
        .collect();
    let verified = request.verified.as_ref().map(|verified| {
        json!({ "at": verified.at, "run_id": &*verified.run_id, "manifest_digest": &*verified.manifest_digest })
    });
    json!({
        "request_id": &*request.id,
        "state": request.state(now).name(),
        "source": &*request.source,
        "received_at": request.received_at,
        "recorded_at": request.recorded_at,
        "regime": request.regime.as_deref(),
        "due_at": request.deadline(now).map(|due| due.at),
        "due_how": request.deadline(now).map(|due| &*due.how),
        "list_digest": request.list_digest.as_deref(),
        "identifiers": identifiers,
        "identifiers_under_another_key": request.stale_tags,
        "rows_removed": request.rows_removed(),
        "datasets": datasets,
        "verified": verified,
        "reappearances": request.reappearances,
        "reappeared_at": request.reappeared_at,
        "withdrawn_at": request.withdrawn_at,
        "exempted": request.exempted.as_ref().map(|it| json!({ "ground": &*it.ground, "until": it.until })),
        "held_by": holders(requests, request, holds),
        "answered": request.answered.as_ref().map(|it| json!({ "status": it.status, "at": it.at, "source": &*it.source })),
    })
}

fn list(
    common: &Common,
    desk: &Desk,
    state: Option<&str>,
    source: Option<&str>,
    request_id: Option<&str>,
) -> Result<Exit> {
    let wanted = state.map(|name| {
        let names = State::ALL.map(State::name).join(", ");
        State::parse(name).ok_or_else(|| Error::usage(format!("--state {} is none of {names}", as_typed(name))))
    });
    let wanted = wanted.transpose()?;
    let requests = desk.ledger.requests();
    let shown: Vec<&Request> = requests
        .iter()
        .filter(|request| wanted.is_none_or(|state| request.state(desk.now) == state))
        .filter(|request| source.is_none_or(|source| &*request.source == source))
        .filter(|request| request_id.is_none_or(|id| &*request.id == id))
        .collect();
    let holds = requests.holds(desk.now);
    if common.json {
        let all: Vec<Value> = shown.iter().map(|request| request_json(requests, request, &holds, desk.now)).collect();
        print_json(&json!({
            "command": "requests list",
            "exit": exit_json(Exit::Clean),
            "requests": all,
            "ledger": desk.ledger_json(),
        }))?;
    } else {
        print_result(&show::requests(requests, &shown, &holds, desk.now))?;
    }
    Ok(Exit::Clean)
}

/// The dates of a request that a deadline can be measured by, and its due date with how that was computed; `None` for those that are
/// exempted or withdrawn. One that came back, or was found after a run had found nothing, has a term of its own from that day on.
fn dates(desk: &Desk, request: &Request) -> Option<(Dates, Option<DueDate>)> {
    let is_open = match request.state(desk.now) {
        State::Exempted | State::Withdrawn => return None,
        // A DROP work item is done when DROP was told.
        state => state.is_open() || (download_of(request).is_some() && request.answered.is_none()),
    };
    let told = request.answered.as_ref().filter(|_| download_of(request).is_some()).map(|answered| answered.at);
    let done = told.or_else(|| request.done_at()).unwrap_or(desk.now);
    let seen_again = request.reappeared_at.or(request.reopened_at.filter(|_| request.verified.is_none()));
    let (received, due) = match (seen_again, &request.regime) {
        (Some(back), regime) if is_open => {
            let due = regime.as_ref().and_then(|regime| desk.job.regimes.due(regime, Received::At(back)).ok());
            (back, due.map(|due| DueDate { at: due.date, how: due.how.into() }))
        }
        _ => (request.clock_from(), request.due.clone()),
    };
    let dates = Dates {
        received,
        due: due.as_ref().and_then(|due| desk.job.regimes.end_of(due.at)),
        done: (!is_open).then_some(done),
        is_return: request.reappearances > 0 || request.reopened_at.is_some(),
    };
    Some((dates, due))
}

/// How the requests stand against their due dates, and what the next run of the schedule comes too late for.
struct Deadlines<'a> {
    standing: Standing,
    /// Open requests by due date.
    due: BTreeMap<Date, u64>,
    /// With the due date that was applied.
    overdue: Vec<(&'a Request, DueDate)>,
    next_run: Option<(Timestamp, Vec<&'a Request>)>,
}

async fn deadlines(desk: &Desk, due_within: u32) -> Result<Deadlines<'_>> {
    let requests = desk.ledger.requests();
    let all = requests.iter().filter_map(|request| Some((request, dates(desk, request)?)));
    let mut dated: Vec<(&Request, Dates)> = Vec::new();
    let mut overdue: Vec<(&Request, DueDate)> = Vec::new();
    let mut due: BTreeMap<Date, u64> = BTreeMap::new();
    for (request, (dates, due_on)) in all {
        dated.push((request, dates));
        if let Some(due_on) = due_on.filter(|_| dates.is_open()) {
            *due.entry(due_on.at).or_default() += 1;
            if dates.is_overdue(desk.now) {
                overdue.push((request, due_on));
            }
        }
    }
    let next_run = match desk.job.runs_every {
        None => None,
        Some(every) => {
            let last = desk.last_scrub().await?;
            let started = last.and_then(|last| last["run"]["started_at"].as_str()?.parse().ok());
            let at = next_run(started, every, desk.now);
            let missed = dated.iter().filter(|(_, dates)| dates.is_missed_by(at)).map(|(request, _)| *request);
            Some((at, missed.collect()))
        }
    };
    let dates: Vec<Dates> = dated.iter().map(|(_, dates)| *dates).collect();
    Ok(Deadlines { standing: standing(&dates, desk.now, due_within), due, overdue, next_run })
}

impl Deadlines<'_> {
    fn json(&self, desk: &Desk, due_within: u32) -> Vec<(&'static str, Value)> {
        let ids = |requests: &[&Request]| requests.iter().map(|request| json!(&*request.id)).collect::<Vec<Value>>();
        let in_days = |date: Date| {
            let end = desk.job.regimes.end_of(date);
            end.map(|end| whole_days(desk.now, end))
        };
        let due = self.due.iter();
        let due = due.map(|(date, count)| json!({ "due_at": date, "in_days": in_days(*date), "requests": count }));
        let Standing { open, done, overdue, due_soon, without_due_date, done_late, oldest_open_days, days_to_done } =
            self.standing;
        let rounded = |days: f64| (days * 100.0).round() / 100.0;
        vec![
            ("open", json!(open)),
            ("done", json!(done)),
            ("overdue", json!(overdue)),
            ("overdue_requests", json!(self.overdue.iter().map(|(request, _)| &*request.id).collect::<Vec<_>>())),
            ("due_within", json!({ "days": due_within, "requests": due_soon })),
            ("due", json!(due.collect::<Vec<Value>>())),
            ("without_due_date", json!(without_due_date)),
            ("done_late", json!(done_late)),
            ("oldest_age_days", json!(oldest_open_days.map(rounded))),
            (
                "days_to_done",
                json!(days_to_done.map(|days| json!({
                    "p50": rounded(days.p50), "p95": rounded(days.p95), "max": rounded(days.max),
                }))),
            ),
            (
                "forecast",
                json!(self.next_run.as_ref().map(|(at, missed)| json!({
                    "next_run_at": at, "missed": missed.len(), "missed_requests": ids(missed),
                }))),
            ),
        ]
    }

    fn lines(&self, due_within: u32) -> Vec<String> {
        let Standing { open, overdue, due_soon, without_due_date, oldest_open_days, days_to_done, .. } = self.standing;
        let mut lines = vec![
            format!(
                "{open:>10}  open, {due_soon} of them due within {due_within} days, {without_due_date} of no regime"
            ),
            format!("{overdue:>10}  overdue"),
        ];
        let told = |(request, due): &(&Request, DueDate)| {
            let back = request.reappeared_at.map(|at| format!(", back since {at}")).unwrap_or_default();
            format!("{:>10}  {}: due on {}, {}{back}", "", request.id, due.at, due.how)
        };
        lines.extend(self.overdue.iter().map(told).take(OVERDUE_SHOWN));
        if let Some(days) = oldest_open_days {
            lines.push(format!("{days:>10.1}  days: age of the oldest open request"));
        }
        if let Some(days) = days_to_done {
            lines.push(format!(
                "{:>10.1}  days to done (p50), {:.1} (p95), {:.1} at most",
                days.p50, days.p95, days.max
            ));
        }
        if let Some((at, missed)) = &self.next_run {
            lines.push(format!("{:>10}  will be late at the next run, {at}", missed.len()));
        }
        lines
    }
}

/// Overdue requests that are named one by one.
const OVERDUE_SHOWN: usize = 20;

async fn status(common: &Common, desk: &Desk, fail_on_overdue: bool, due_within: u32) -> Result<Exit> {
    let requests = desk.ledger.requests();
    let deadlines = deadlines(desk, due_within).await?;
    let late = fail_on_overdue && deadlines.standing.overdue > 0;
    let exit = if late { Exit::Overdue } else { Exit::Clean };
    let mut states: BTreeMap<State, u64> = State::ALL.into_iter().map(|state| (state, 0)).collect();
    let mut sources: BTreeMap<&str, BTreeMap<State, u64>> = BTreeMap::new();
    for request in requests.iter() {
        let state = request.state(desk.now);
        *states.entry(state).or_default() += 1;
        *sources.entry(&request.source).or_default().entry(state).or_default() += 1;
    }
    let named = |counts: &BTreeMap<State, u64>| -> Value {
        counts
            .iter()
            .map(|(state, count)| (state.name().to_owned(), json!(count)))
            .collect::<serde_json::Map<_, _>>()
            .into()
    };
    let lost = requests.not_comparable(desk.now);
    let held = ledger_run::held(&desk.ledger, desk.now);
    if common.json {
        let by_source: serde_json::Map<String, Value> =
            sources.iter().map(|(source, counts)| ((*source).to_owned(), named(counts))).collect();
        let mut document = json!({
            "command": "requests status",
            "exit": exit_json(exit),
            "requests": requests.len(),
            "states": named(&states),
            "sources": by_source,
            "identifiers": requests.identifiers_by_kind(),
            "reappearances": requests.iter().map(|request| u64::from(request.reappearances)).sum::<u64>(),
            "under_another_key": lost,
            "held": held,
            "ledger": desk.ledger_json(),
        });
        for (name, value) in deadlines.json(desk, due_within) {
            document[name] = value;
        }
        print_json(&document)?;
        return Ok(exit);
    }
    let mut lines: Vec<String> = states
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(state, count)| format!("{count:>10}  {}", state.name()))
        .collect();
    lines.extend(
        requests.identifiers_by_kind().iter().map(|(kind, count)| format!("{count:>10}  identifiers of kind {kind}")),
    );
    if held > 0 {
        lines.push(format!("{held:>10}  held by another's exemption: not looked for by what they share with it"));
    }
    if lost > 0 {
        lines.push(format!("{lost:>10}  under another tag key: import their lists again"));
    }
    lines.extend(deadlines.lines(due_within));
    lines.push(totals(desk));
    print_lines(&lines)?;
    Ok(exit)
}

async fn export(
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
        ("due_at", text(&|request| request.deadline(now).map(|due| due.at.to_string())), true),
        ("due_how", text(&|request| request.deadline(now).map(|due| due.how.to_string())), true),
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
