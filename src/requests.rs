//! The `requests` commands: what people and schedulers write into the request ledger and read from it.
//!
//! Wiring: opens the ledger, hands events to it, shows what it folds to. What is news is the ledger's to decide, so that a command
//! that is run twice records nothing twice.

use std::collections::{BTreeMap, BTreeSet};
use std::io::BufRead;
use std::path::Path;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::chain;
use crate::cli::{Common, ReadAs, RequestsCommand, print_result};
use crate::deadline::{DueDates, Received, Regimes, Since};
use crate::drop_answer::{download_of, status_of};
use crate::drop_files::Status;
use crate::error::{Error, Exit, Result};
use crate::identifier::{HashFunction, Hashed};
use crate::job::Job;
use crate::keys;
use crate::ledger::{Appended, EVENTS_A_SEGMENT, Ledger};
use crate::ledger_event::{Event, Fact, Tagged, Text, last_moment};
use crate::ledger_fold::{Holds, Request, Requests, State};
use crate::ledger_probe;
use crate::ledger_run;
use crate::request_deadlines::{dates, deadlines, due_of};
use crate::request_export::export;
use crate::request_import::{
    self, Columns, Receipt, TaggedList, Who, plainly_held, time_of, when, who, whole_microseconds,
};
use crate::run::{exit_json, print_json, print_lines};
use crate::session::{honours_conditions, self_test, uses_s3};
use crate::show::{self, counted};
use crate::signature::TagKey;
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
        for name in job.regimes.replaced() {
            tracing::warn!(deadline = name, "a [[deadline]] of the job stands in for the preset of its name");
        }
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

    /// Itself, having told whoever records something that no run of this job minds it. A job without datasets has no runs: it is there to
    /// take requests in for others.
    fn told(self) -> Desk {
        if self.job.ledger.is_none() && !self.job.datasets.is_empty() {
            let state = self.job.state.location.to_string();
            tracing::warn!(
                state,
                "the runs of this job do not read the ledger: what is recorded counts for jobs on this state with [[list]] uri = \"ledger\""
            );
        }
        self
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
            ledger_probe::refresh(&self.stores.of(state), &self.ledger, state, &self.key, now).await;
        }
    }

    /// Lets the ledger begin where a list without anybody is the first one: nobody is to be removed then, which is no missing list.
    pub async fn begin(&mut self, source: &str, digest: &str) -> Result<()> {
        if self.ledger.head().sequence > 0 {
            return Ok(());
        }
        let fact = Fact::Imported { source: source.into(), list_digest: digest.into() };
        let event = Event { recorded_at: self.now, request_id: "".into(), fact };
        self.append(vec![event]).await.map(drop)
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

    /// The requests that a command line names, by id or by person. Those that are not in the ledger are a usage error, which tells their
    /// places and never what was typed: it may be an identifier.
    fn named(&self, texts: &[String]) -> Result<Vec<Text>> {
        let (mut ids, mut unknown) = (Vec::new(), Vec::new());
        let typed_in = lines_of(texts)?;
        for typed_in in &typed_in {
            let requests = self.ledger.requests();
            match who(&self.key, &typed_in.text, None)? {
                Who::Request { id, hidden } => match requests.get(&id).or_else(|| requests.get(&hidden)) {
                    Some(request) => ids.push(request.id.clone()),
                    None => unknown.push(&typed_in.place),
                },
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
        if !unknown.is_empty() {
            return Err(Error::usage(not_in_ledger(&unknown, typed_in.len()))
                .hint("`requests list` shows the ids; a person is named as KIND=VALUE"));
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
    let having = tags.iter().flat_map(|tagged| requests.with_identifier(tagged));
    having.map(|number| requests.at(number).id.clone()).collect()
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

/// So many places are told one by one.
const PLACES_TOLD: usize = 10;

fn not_in_ledger(unknown: &[&Place], named: usize) -> String {
    let told: Vec<String> = unknown.iter().take(PLACES_TOLD).map(ToString::to_string).collect();
    let more = if unknown.len() > told.len() { ", ..." } else { "" };
    let places = format!("{}{more}", told.join(", "));
    match (unknown.len(), named) {
        (1, 1) => "the request that was named is not in the ledger; nothing was recorded".to_owned(),
        (1, _) => format!("the request named by {places} is not in the ledger; nothing was recorded"),
        (count, _) => {
            format!("{count} of the {named} requests named are not in the ledger ({places}); nothing was recorded")
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
            let desk = Desk::open_with(common, job, list).await?.told();
            let old = old_key(old_tag_key.as_deref())?;
            import(common, desk, list, &columns(read_as), regime.as_deref(), old.as_ref()).await
        }
        RequestsCommand::Add { job, identifier, request_id, received_at, source, regime, hashed, old_tag_key } => {
            let desk = Desk::open(common, job).await?.told();
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
            let desk = Desk::open_with(common, job, list.as_slice()).await?.told();
            withdraw(common, desk, who, list.as_ref(), &columns(read_as), source).await
        }
        RequestsCommand::Exempt { job, who, ground, until } => {
            let desk = Desk::open(common, job).await?.told();
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
    for list in &lists {
        // The name of a file is kept as the source of its requests; those of the job's lists are the job's.
        if !desk.job.lists.iter().any(|spec| spec.name == list.report.name) {
            refuse_identifier(&list.report.name, "a list's file name")?;
        }
    }
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
            rows_without_due_date: 0,
        };
        let (count, mut rows, mut appended) = (rows.len(), rows.into_iter(), Appended::default());
        while rows.len() > 0 {
            let events = receipt.events(rows.by_ref().take(EVENTS_A_SEGMENT), desk.ledger.requests());
            let of_these = desk.append(events).await?;
            (appended.events, appended.known) = (appended.events + of_these.events, appended.known + of_these.known);
        }
        if receipt.rows_without_due_date > 0 {
            let rows = receipt.rows_without_due_date;
            tracing::warn!(
                list = report.name,
                rows,
                "rows have no due date: their regime was not in force when they were received"
            );
        }
        desk.begin(&report.name, &report.digest).await?;
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
            "rows_not_heard": not_heard,
        }));
        let (name, rows) = (&report.name, report.rows);
        lines.push(format!(
            "list {name}: {}, {} recorded, {} known{}",
            counted(rows, "row"),
            appended.events,
            appended.known,
            if not_heard > 0 { format!("; {not_heard} name somebody who opted in again") } else { String::new() }
        ));
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
    let (requests, events) = (counted(requests.len() as u64, "request"), counted(requests.events, "event"));
    format!("ledger: {requests}, {events} in {}", counted(head.sequence, "segment"))
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
    if request_import::is_ahead(received_at, desk.now) {
        return Err(Error::usage("--received-at lies more than a day ahead; nothing was recorded")
            .hint("nobody has asked yet at a time to come, and no withdrawal would be later; is the clock right?"));
    }
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
    let due = due_dates(&desk.job.regimes, regime.as_ref())?.and_then(|mut due| due.of(received_at, Since::Received));
    if regime.is_some() && due.is_none() {
        tracing::warn!("no due date: the regime was not in force when the request was received");
    }
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
    let ids = request_import::ids_of(id.clone(), &row.identifiers, desk.ledger.requests());
    let events = row.identifiers.iter().zip(&ids).map(|(identifier, id)| desk.event(id, fact(identifier))).collect();
    let Appended { events, known } = desk.append(events).await?;
    let appended = Appended { events: rekeyed + events, known };
    desk.refresh_probe(appended.events).await;
    if desk.ledger.requests().asking_for(&row.identifiers).is_none() {
        tracing::warn!(
            "the person opted in again, and the time is not later: nobody asks for what stays withdrawn; name the time of the new asking \
             with --received-at"
        );
    }
    // Without an id of its own the person may be known under another request.
    let mut ids = match desk.ledger.requests().get(&id) {
        Some(_) => vec![id],
        None => requests_of(desk.ledger.requests(), &row.identifiers),
    };
    ids.sort();
    ids.dedup();
    told(common, &desk, "requests add", &ids, appended)
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
    // Whoever says so now has the last word over every asking so far, one with a time to come included.
    let asked_at = |id: &Text| desk.ledger.requests().get(id).and_then(|request| request.asked_at);
    let fact = |id| Fact::Withdrawn { source: source.into(), at: asked_at(id).filter(|asked| *asked > desk.now) };
    let events = ids.iter().map(|id| desk.event(id, fact(id))).collect();
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
        Received::On(_) => time_of(until).checked_add(SignedDuration::from_secs(86_399)).unwrap_or(last_moment()),
    });
    // "For ever" is written as the calendar's last day, of which the ledger could not be read again.
    let until = until.map(|until| until.min(last_moment()));
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
        let line = match appended.events {
            0 => format!("nothing new: known as {}", ids.join(", ")),
            events => format!("{} recorded for {}", counted(events, "event"), ids.join(", ")),
        };
        print_lines(&[line, totals(desk)])?;
    }
    Ok(Exit::Clean)
}

/// The ids of the exempted requests that hold an identifier of this one.
pub fn holders<'a>(requests: &'a Requests, request: &Request, holds: &Holds) -> Vec<&'a str> {
    requests.held_by(request, holds).into_iter().map(|number| &*requests.at(number).id).collect()
}

/// A request as JSON: what `requests list --json` shows of each.
fn request_json(desk: &Desk, request: &Request, holds: &Holds) -> Value {
    let (requests, now) = (desk.ledger.requests(), desk.now);
    let due = due_of(&desk.job.regimes, request, now);
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
        "due_at": due.as_ref().map(|due| due.at),
        "due_how": due.as_ref().map(|due| &*due.how),
        "drop_status": download_of(request).and_then(|_| status_of(request, now)).map(Status::code),
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

/// What `requests list --state` calls what is past its due date.
const OVERDUE: &str = "overdue";

/// What DROP is to be told of a work item, why, and whether it was.
fn drop_standing(request: &Request, now: Timestamp) -> String {
    if request.state(now) == State::Withdrawn {
        return "cancelled".to_owned();
    }
    let told = request.answered.as_ref().map(|answered| answered.status);
    let Some(status) = status_of(request, now) else {
        return told.map_or_else(|| "no status yet".to_owned(), |told| format!("answered {told}"));
    };
    let why = match (status, &request.exempted) {
        (Status::Exempted, Some(exemption)) => format!(": {}", exemption.ground),
        (Status::OptedOut, _) => ": several consumers".to_owned(),
        (Status::Exempted | Status::Deleted | Status::NotFound, _) => String::new(),
    };
    let code = status.code();
    let answered = match told {
        None => "unanswered".to_owned(),
        Some(told) if told == u64::from(code) => "answered".to_owned(),
        Some(told) => format!("answered {told} before"),
    };
    format!("{code} {}{why} ({answered})", status.name())
}

fn list(
    common: &Common,
    desk: &Desk,
    state: Option<&str>,
    source: Option<&str>,
    request_id: Option<&str>,
) -> Result<Exit> {
    let is_overdue = |request: &Request| {
        dates(&desk.job.regimes, request, desk.now).is_some_and(|(dates, _)| dates.is_overdue(desk.now))
    };
    // Overdue is what is late in whatever state.
    let late = state == Some(OVERDUE);
    let wanted = state.filter(|_| !late).map(|name| {
        let names = State::ALL.map(State::name).join(", ");
        State::parse(name)
            .ok_or_else(|| Error::usage(format!("--state {} is none of {names}, {OVERDUE}", as_typed(name))))
    });
    let wanted = wanted.transpose()?;
    let requests = desk.ledger.requests();
    let shown: Vec<&Request> = requests
        .iter()
        .filter(|request| wanted.is_none_or(|state| request.state(desk.now) == state))
        .filter(|request| !late || is_overdue(request))
        .filter(|request| source.is_none_or(|source| &*request.source == source))
        .filter(|request| request_id.is_none_or(|id| &*request.id == id))
        .collect();
    let holds = requests.holds(desk.now);
    if common.json {
        let all: Vec<Value> = shown.iter().map(|request| request_json(desk, request, &holds)).collect();
        print_json(&json!({
            "command": "requests list",
            "exit": exit_json(Exit::Clean),
            "requests": all,
            "ledger": desk.ledger_json(),
        }))?;
    } else {
        let has_drop = desk.job.drop.is_some();
        let row = |request: &&Request| show::RequestRow {
            due: due_of(&desk.job.regimes, request, desk.now).map(|due| due.at),
            drop: download_of(request).filter(|_| has_drop).map(|_| drop_standing(request, desk.now)),
        };
        let rows: Vec<show::RequestRow> = shown.iter().map(row).collect();
        print_result(&show::requests(requests, &shown, &rows, &holds, desk.now))?;
    }
    Ok(Exit::Clean)
}

/// Sources that are counted one by one.
const SOURCES_SHOWN: usize = 20;

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
    lines.extend(sources.iter().take(SOURCES_SHOWN).map(|(source, states)| {
        let open: u64 = states.iter().filter(|(state, _)| state.is_open()).map(|(_, count)| count).sum();
        format!("{:>10}  from {source}, {open} of them to be removed", states.values().sum::<u64>())
    }));
    if sources.len() > SOURCES_SHOWN {
        lines.push(format!("{:>10}  and {} more sources; --json lists all", "", sources.len() - SOURCES_SHOWN));
    }
    lines.extend(deadlines.lines(due_within));
    lines.push(totals(desk));
    print_lines(&lines)?;
    Ok(exit)
}
