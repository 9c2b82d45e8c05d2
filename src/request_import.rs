//! From lists and typed-in identifiers to the events of the ledger: canonical form, SHA-256, keyed tag.
//!
//! Which file is meant and how it is read is said here; reading it is [`crate::request`]'s, what is news is the ledger's. Invariant:
//! past this module a person is a tag, and a request id that is an identifier or an unkeyed hash of one has become a tag as well.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use sha2::{Digest, Sha256};

use crate::deadline::{DueDates, Received, Since};
use crate::error::{Error, Result};
use crate::identifier::{Canonical, HashFunction, Hashed, Kind, Value, plain_decimal};
use crate::job::{Job, ListColumn, ListFormat, ListSpec, Scope, scope_of};
use crate::ledger_event::{Event, Fact, Tagged, Text, last_moment};
use crate::ledger_fold::{Request, Requests, derived_id};
use crate::meter::Meter;
use crate::request::{self, Entry, ListReport};
use crate::request_id::{Held, tells_row};
use crate::signature::TagKey;
use crate::store::{self, Stores};

/// The label of the number that an entry of kind `text` stands for beside its bytes: `1.50` is met by a numeric `1.5`, not by a text.
pub const NUMBER_OF_TEXT: &str = "text-number";

/// One list row as the ledger may know it.
#[derive(Debug, Clone)]
pub struct TaggedRow {
    /// As the list has it, safe to be shown; `None` when it has none.
    pub request_id: Option<Text>,
    /// Whether that is its tag.
    pub is_id_hidden: bool,
    /// What a hidden id was under the key before a rotation, and in clear, as an earlier version may have shown it.
    pub earlier_ids: Vec<Text>,
    pub received_at: Option<Received>,
    pub identifiers: Vec<Tagged>,
    /// The same under the key before a rotation.
    pub old_tags: Vec<[u8; 32]>,
}

/// The rows of one list.
pub struct TaggedList {
    pub report: ListReport,
    pub rows: Vec<TaggedRow>,
}

/// How a file that is no list of the job is read: columns as `COLUMN=KIND` or `COLUMN=KIND:HASHED`.
#[derive(Debug, Clone, Default)]
pub struct Columns {
    pub columns: Vec<String>,
    pub request_id: Option<String>,
    pub received_at: Option<String>,
}

/// The names of all kinds, each held once: millions of identifiers share them.
static KINDS: LazyLock<Vec<Text>> =
    LazyLock::new(|| Kind::NAMES.iter().copied().chain([NUMBER_OF_TEXT]).map(Text::from).collect());

/// The tag of an identifier in canonical form, or of its SHA-256.
pub fn tagged(key: &TagKey, kind: &str, canonical_sha256: &[u8; 32]) -> Tagged {
    let shared = KINDS.iter().find(|known| ***known == *kind).cloned();
    Tagged { kind: shared.unwrap_or_else(|| kind.into()), tag: key.raw_tag(kind, canonical_sha256) }
}

/// Reads lists by the names that the job gives them, or files; all lists of the job when `wanted` is empty.
///
/// Errors: as [`request::read_lists`], and a column whose hashes lead to no tag.
pub async fn read(
    job: &Job,
    stores: &Stores,
    wanted: &[String],
    columns: &Columns,
    keys: (&TagKey, Option<&TagKey>),
    clock: &(dyn Fn() -> Timestamp + Sync),
) -> Result<Vec<TaggedList>> {
    let mut lists = Vec::new();
    for name in wanted {
        lists.push(spec_of(job, stores, name, columns).await?);
    }
    if wanted.is_empty() {
        lists.clone_from(&job.lists);
    }
    if lists.is_empty() {
        return Err(Error::usage("no list to read: the job's only list is the ledger itself")
            .hint("name a file, or add the [[list]] that the requests come from"));
    }
    lists.iter().try_for_each(check_functions)?;
    let mut all = Vec::with_capacity(lists.len());
    for list in lists {
        all.push(read_one(job, stores, list, keys, clock).await?);
    }
    Ok(all)
}

async fn read_one(
    job: &Job,
    stores: &Stores,
    list: ListSpec,
    keys: (&TagKey, Option<&TagKey>),
    clock: &(dyn Fn() -> Timestamp + Sync),
) -> Result<TaggedList> {
    let identifiers = list.columns.len();
    let mut list = list;
    let text = |column: String| ListColumn { column, kind: Kind::Text, hashed: None };
    list.columns.extend(list.request_id.clone().map(text));
    list.columns.extend(list.received_at.clone().map(text));
    let (has_id, has_time) = (list.request_id.is_some(), list.received_at.is_some());
    // An id may be the hash of an identifier as it is written: these columns once more, as they are.
    let written: Vec<usize> =
        (0..identifiers).filter(|number| has_id && is_rewritten(&list.columns[*number])).collect();
    for number in &written {
        list.columns.push(text(list.columns[*number].column.clone()));
    }
    let (mut rows, mut bad_time, mut ahead, mut number) = (Vec::new(), None, None, 0u64);
    let now = clock();
    let mut each = |entry: Entry<'_>| {
        number += 1;
        let mut more = entry.cells[identifiers..].iter().copied();
        let raw_id = if has_id { more.next().flatten() } else { None };
        let raw_time = if has_time { more.next().flatten() } else { None };
        let received_at = raw_time.map(|raw| std::str::from_utf8(raw).ok().and_then(when));
        if received_at == Some(None) {
            bad_time.get_or_insert(number);
        }
        if received_at.flatten().is_some_and(|received| is_ahead(received, now)) {
            ahead.get_or_insert(number);
        }
        let mut raws = vec![None; identifiers];
        written.iter().zip(more).for_each(|(number, raw)| raws[*number] = raw);
        let columns = entry.list.columns[..identifiers].iter();
        let cells = columns.zip(entry.cells).zip(raws);
        let cells = cells.filter_map(|((column, cell), raw)| Some(Held { column, cell: (*cell)?, raw }));
        let cells: Vec<Held<'_>> = cells.collect();
        let mut row = TaggedRow {
            received_at: received_at.flatten(),
            identifiers: Vec::with_capacity(cells.len()),
            ..of_id(keys, raw_id.map(|raw| String::from_utf8_lossy(raw)).as_deref(), &cells)
        };
        for held in cells {
            for (kind, sha256) in digests(held.column, held.cell) {
                let tagged = tagged(keys.0, kind, &sha256);
                // A list may hold an e-mail address and its hash.
                if !row.identifiers.contains(&tagged) {
                    row.identifiers.push(tagged);
                    row.old_tags.extend(keys.1.map(|old| old.raw_tag(kind, &sha256)));
                }
            }
        }
        if !row.identifiers.is_empty() {
            rows.push(row);
        }
    };
    let one = Job { lists: vec![list], ..job.clone() };
    let mut reports = request::read_lists(&one, stores, clock, &Meter::default(), &mut each).await?;
    let report = reports.remove(0);
    if let Some(number) = bad_time {
        let (name, uri) = (&report.name, &report.uri);
        let column = one.lists[0].received_at.as_deref().unwrap_or_default();
        return Err(Error::usage(format!("list {name}: {uri}: {column} of entry {number} is no date or time"))
            .hint("RFC 3339, YYYY-MM-DD, YYYY-MM-DD HH:MM:SS (UTC) and Unix seconds are read"));
    }
    if let Some(number) = ahead {
        let (name, uri) = (&report.name, &report.uri);
        let column = one.lists[0].received_at.as_deref().unwrap_or_default();
        let what = format!("{column} of entry {number} lies more than a day ahead");
        return Err(Error::usage(format!("list {name}: {uri}: {what}; nothing was recorded"))
            .hint("nobody has asked yet at a time to come, and no withdrawal would be later; is the clock right?"));
    }
    Ok(TaggedList { report, rows })
}

/// A row with its id and nothing else. A blank id is none: it would make one person of all who have it.
fn of_id(keys: (&TagKey, Option<&TagKey>), id: Option<&str>, cells: &[Held<'_>]) -> TaggedRow {
    let id = id.filter(|id| !id.trim().is_empty());
    let is_id_hidden = id.is_some_and(|id| !may_be_shown(id, cells));
    TaggedRow {
        request_id: id.map(|id| if is_id_hidden { hidden_id(keys.0, id) } else { id.trim().into() }),
        is_id_hidden,
        earlier_ids: match id.filter(|_| is_id_hidden) {
            Some(id) => keys.1.map(|old| hidden_id(old, id)).into_iter().chain([id.trim().into()]).collect(),
            None => Vec::new(),
        },
        received_at: None,
        identifiers: Vec::new(),
        old_tags: Vec::new(),
    }
}

/// The SHA-256 digests that a cell in canonical form leads to, with the kinds that their tags are bound to.
fn digests(column: &ListColumn, cell: &[u8]) -> Vec<(&'static str, [u8; 32])> {
    if column.hashed.is_some() {
        let digest = cell.try_into().expect("SHA-256 lists were read: `check_functions`");
        return vec![(column.kind.name(), digest)];
    }
    let mut digests = vec![(column.kind.name(), Sha256::digest(cell).into())];
    if column.kind == Kind::Text
        && let Some(number) = std::str::from_utf8(cell).ok().and_then(plain_decimal)
        && number.as_bytes() != cell
    {
        digests.push((NUMBER_OF_TEXT, Sha256::digest(number).into()));
    }
    digests
}

fn check_functions(list: &ListSpec) -> Result<()> {
    let other = |column: &&ListColumn| column.hashed.is_some_and(|hashed| hashed.function() != HashFunction::Sha256);
    match list.columns.iter().find(other) {
        None => Ok(()),
        Some(column) => Err(Error::usage(format!(
            "list {}: column {} holds {}, from which no tag can be made",
            list.name,
            column.column,
            column.hashed.map_or("", Hashed::name)
        ))
        .hint("the ledger's tags are made from SHA-256; keep this list as a [[list]] of files beside the ledger")),
    }
}

/// What all requests of one list have in common.
pub struct Receipt<'a> {
    pub source: Text,
    pub list_digest: Text,
    /// With the regime they are under.
    pub due: Option<(Text, DueDates<'a>)>,
    pub now: Timestamp,
    /// Rows of which the regime gives no date: it was not in force when they were received.
    pub rows_without_due_date: u64,
}

impl TaggedList {
    /// Gives every row the id of its request, before any of them is recorded: what the ledger knows decides, not their order.
    pub fn name_requests(&mut self, known: &Requests) {
        self.rows.iter_mut().for_each(|row| row.request_id = Some(id_of(row, known)));
    }

    /// How many rows ask for somebody who opted in again, and tell no time from which it follows that they asked later: those with an
    /// identifier that is news and another that is withdrawn, those with one that their request turns away, and those of the very day of
    /// the withdrawal. Nobody is deleted on a guess.
    pub fn not_heard(&self, known: &Requests) -> usize {
        self.rows.iter().filter(|row| is_not_heard(row, known)).count()
    }
}

impl Receipt<'_> {
    /// The events of rows that were given their ids; of millions so many at a time as are to be held beside the ledger. What a row without
    /// an id says of people whose requests are known, all of them, is said of these requests: only an earlier date is news of them.
    pub fn events(&mut self, rows: impl Iterator<Item = TaggedRow>, known: &Requests) -> Vec<Event> {
        let mut events = Vec::new();
        for row in rows {
            let since = row.received_at.map_or(Since::Recorded, |_| Since::Received);
            let received = row.received_at.unwrap_or(Received::At(self.now));
            let due = self.due.as_mut().and_then(|(_, due)| due.of(received, since));
            self.rows_without_due_date += u64::from(self.due.is_some() && due.is_none());
            let ids = ids_of(row.request_id.unwrap_or_default(), &row.identifiers, known);
            events.extend(row.identifiers.into_iter().zip(ids).map(|(identifier, request_id)| Event {
                recorded_at: self.now,
                request_id,
                fact: Fact::Received {
                    identifier,
                    source: self.source.clone(),
                    received_at: row.received_at.map(time_of),
                    regime: self.due.as_ref().map(|(regime, _)| regime.clone()),
                    due: due.clone(),
                    list_digest: Some(self.list_digest.clone()),
                },
            }));
        }
        events
    }
}

/// The request that each identifier of a row is recorded for.
pub fn ids_of(request_id: Text, identifiers: &[Tagged], known: &Requests) -> Vec<Text> {
    let is_named_after = identifiers.first().is_some_and(|first| *request_id == *derived_id(&first.tag));
    let is_row = is_named_after && known.get(&request_id).is_none();
    match known.asking_for(identifiers).filter(|_| is_row) {
        Some(asking) => asking.into_iter().map(|request| request.id.clone()).collect(),
        None => vec![request_id; identifiers.len()],
    }
}

fn is_not_heard(row: &TaggedRow, known: &Requests) -> bool {
    let holding = |tagged: &Tagged| known.with_identifier(tagged).map(|number| known.at(number));
    let received_at = row.received_at.map(time_of);
    let is_let_go = |request: &Request| request.withdrawn_at.is_some_and(|withdrawn| received_at <= Some(withdrawn));
    if let Some(named) = row.request_id.as_deref().and_then(|id| known.get(id)) {
        let is_turned_away = |tagged: &Tagged| known.turns_away(named, tagged, "", received_at);
        return is_of_the_day(row, named) || row.identifiers.iter().any(is_turned_away);
    }
    let first = row.identifiers.first();
    if row.request_id.as_deref().zip(first).is_none_or(|(id, first)| *id != *derived_id(&first.tag)) {
        return false;
    }
    let is_new = row.identifiers.iter().any(|tagged| holding(tagged).next().is_none());
    let is_withdrawn = |tagged: &Tagged| holding(tagged).next().is_some() && holding(tagged).all(is_let_go);
    let is_of_the_day = row.identifiers.iter().flat_map(holding).any(|request| is_of_the_day(row, request));
    is_of_the_day || (is_new && row.identifiers.iter().any(is_withdrawn))
}

/// Whether the row has the day of the request's withdrawal and no time, and is not the asking that was withdrawn.
fn is_of_the_day(row: &TaggedRow, request: &Request) -> bool {
    let Some((Received::On(day), withdrawn)) = row.received_at.zip(request.withdrawn_at) else { return false };
    let is_new = request.asked_at.is_none_or(|asked| time_of(Received::On(day)) > asked);
    is_new && withdrawn.to_zoned(TimeZone::UTC).date() == day
}

/// The request that the ledger has under the row's id.
fn by_id<'a>(row: &TaggedRow, known: &'a Requests) -> Option<&'a Request> {
    row.request_id.iter().chain(&row.earlier_ids).find_map(|id| known.get(id))
}

/// The list's own id; else that of the request which had this row's tag under the key before; else one of its tag. A hidden id depends
/// on the key: once that is another one, the request is told by the id under the key before, or by its person.
pub fn id_of(row: &TaggedRow, known: &Requests) -> Text {
    // Of several the one that a row like this had given its id.
    let before = || {
        let named = row.old_tags.first().and_then(|tag| known.get(&derived_id(tag)));
        let holding = || row.old_tags.iter().find_map(|tag| known.with_stale_tag(tag).next());
        named.or_else(holding).map(|request| request.id.clone())
    };
    let hidden_before = || {
        let having = row.identifiers.iter().flat_map(|tagged| known.with_identifier(tagged));
        let mut requests = having.map(|number| known.at(number));
        // Under the present key it would have been found by its id: another id is another request.
        requests.find(|request| request.is_named_before && is_hidden(&request.id)).map(|request| request.id.clone())
    };
    let named = || by_id(row, known).map(|request| request.id.clone());
    let derived = || row.identifiers.first().map(|first| derived_id(&first.tag)).unwrap_or_default().into();
    match &row.request_id {
        Some(id) if row.is_id_hidden && known.get(id).is_none() => {
            named().or_else(before).or_else(hidden_before).unwrap_or_else(|| id.clone())
        }
        Some(id) => id.clone(),
        None => before().unwrap_or_else(derived),
    }
}

/// Refuses what would make new requests of old ones: after a change of the tag key nothing is known by the new one until the lists were
/// read with both, a key that fits none of the old tags is not the one before, a person whom nobody knows by the new key and who has
/// no id may be one who opted in again under the old, and what a request is named to have may be what it had, or not.
pub fn check_rotation<'a>(
    rows: impl IntoIterator<Item = &'a TaggedRow> + Clone,
    known: &Requests,
    has_old_key: bool,
) -> Result<()> {
    let stale = known.left_behind();
    let is_found_by_id =
        |row: &TaggedRow| row.request_id.is_some() && (!row.is_id_hidden || by_id(row, known).is_some());
    let is_unknown = |tagged: &Tagged| known.with_identifier(tagged).next().is_none();
    let may_be_stale = |row: &TaggedRow| !is_found_by_id(row) && row.identifiers.iter().any(is_unknown);
    let is_left_behind = |row: &TaggedRow| by_id(row, known).is_some_and(|request| known.is_left_behind(request));
    let mut old_tags = rows.clone().into_iter().flat_map(|row| &row.old_tags);
    let refused = |what: &str| {
        Err(Error::usage(format!(
            "{stale} requests of the ledger are tagged with another tag_key, {what}; nothing was recorded"
        ))
        .hint(
            "import the lists once with --old-tag-key and the key from before, so that each request is found again, and add what was added \
             by hand with it as well; withdraw by their ids those that no list has any more",
        ))
    };
    match stale {
        0 => Ok(()),
        _ if !has_old_key && known.identifiers_by_kind().is_empty() => refused("and none with this one"),
        _ if !has_old_key && rows.clone().into_iter().any(may_be_stale) => {
            refused("and what has no request id may be one of these")
        }
        _ if !has_old_key && rows.into_iter().any(is_left_behind) => refused("and one of these is named"),
        _ if has_old_key && !old_tags.any(|tag| known.with_stale_tag(tag).next().is_some()) => {
            refused("which is not the one of --old-tag-key, or the lists name none of them")
        }
        _ => Ok(()),
    }
}

/// That identifiers of these rows are known under the key before: of every request that has them, and first of all that is recorded of
/// the rows, for with tags that were compared counts tell nothing any more.
pub fn rekeyed<'a>(
    rows: impl IntoIterator<Item = &'a TaggedRow>,
    known: &Requests,
    recorded_at: Timestamp,
) -> Vec<Event> {
    let mut events = Vec::new();
    for row in rows {
        for (identifier, old_tag) in row.identifiers.iter().zip(&row.old_tags) {
            events.extend(known.with_stale_tag(old_tag).map(|request| Event {
                recorded_at,
                request_id: request.id.clone(),
                fact: Fact::Rekeyed { identifier: identifier.clone(), old_tag: *old_tag },
            }));
        }
    }
    events
}

/// Refuses rows under the id of another list's request that have none of its identifiers: numbers of two lists that are alike by chance
/// would be one request, and whoever withdraws it withdraws a stranger's.
pub fn check_ids(lists: &[TaggedList], known: &Requests) -> Result<()> {
    let mut before: HashMap<&str, Vec<(&str, &TaggedRow)>> = HashMap::new();
    for list in lists {
        let name = list.report.name.as_str();
        let is_strange = |id: &Text, row: &TaggedRow| match by_id(row, known) {
            Some(request) => *request.source != *name && shares_nothing(row, request, known),
            None => {
                let mut others = before.get(&**id).into_iter().flatten().peekable();
                others.peek().is_some_and(|(other, _)| *other != name)
                    && !others.any(|(_, other)| other.identifiers.iter().any(|own| row.identifiers.contains(own)))
            }
        };
        let own = list.rows.iter().filter_map(|row| Some((row.request_id.as_ref()?, row)));
        let strange = own.clone().filter(|(id, row)| is_strange(id, row)).count();
        if strange > 0 {
            let rows = if strange == 1 { "1 row has".to_owned() } else { format!("{strange} rows have") };
            return Err(Error::usage(format!(
                "list {name}: {rows} the id of a request that came from elsewhere, and no identifier of it; nothing was recorded"
            ))
            .hint("an id names one request, whatever list it is in: give the ids of this list something of their own, such as its name"));
        }
        if lists.len() > 1 {
            own.for_each(|(id, row)| before.entry(id).or_default().push((name, row)));
        }
    }
    Ok(())
}

/// Not when there is nothing to compare with: all of the request is under another key, and that is not at hand.
fn shares_nothing(row: &TaggedRow, request: &Request, known: &Requests) -> bool {
    let mut identifiers = known.identifiers(request).peekable();
    (identifiers.peek().is_some() || !row.old_tags.is_empty())
        && !identifiers.any(|known| row.identifiers.contains(known))
        && !row.old_tags.iter().any(|tag| known.has_stale_tag(request, tag))
}

/// What a command line names: a request, or a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Who {
    /// A request id as it was typed, and its hidden form, should the ledger know it by that.
    Request {
        id: Text,
        hidden: Text,
    },
    Person(Vec<Tagged>),
}

/// An identifier as it was typed in, like a list's cell: how it is read, and its canonical form or the digest that it is.
pub struct Typed {
    pub column: ListColumn,
    pub cell: Vec<u8>,
    raw: String,
}

impl Typed {
    fn held(&self) -> Held<'_> {
        Held { column: &self.column, cell: &self.cell, raw: Some(self.raw.as_bytes()) }
    }

    fn tags(&self, key: &TagKey) -> Vec<Tagged> {
        digests(&self.column, &self.cell).into_iter().map(|(kind, sha256)| tagged(key, kind, &sha256)).collect()
    }
}

/// Whether an id that was typed in is kept as its tag because it tells whom these identifiers mean.
pub fn is_id_of(typed: &[Typed], id: &str) -> bool {
    let cells: Vec<Held<'_>> = typed.iter().map(Typed::held).collect();
    tells_person(id, &cells)
}

/// A request as it was typed in, like a list's row. A blank id is none.
pub fn typed_row(
    keys: (&TagKey, Option<&TagKey>),
    typed: &[Typed],
    id: Option<&str>,
    received_at: Received,
) -> TaggedRow {
    let cells: Vec<Held<'_>> = typed.iter().map(Typed::held).collect();
    let tags = |key: &TagKey| typed.iter().flat_map(|typed| typed.tags(key)).collect::<Vec<Tagged>>();
    let (identifiers, old_tags) = (tags(keys.0), keys.1.map(tags).unwrap_or_default());
    let old_tags = old_tags.into_iter().map(|tagged| tagged.tag).collect();
    TaggedRow { received_at: Some(received_at), identifiers, old_tags, ..of_id(keys, id, &cells) }
}

/// Reads `KIND=VALUE`; `None`: it is none. The error never holds the value.
pub fn typed(text: &str, hashed: Option<Hashed>) -> Result<Option<Typed>> {
    let parts = text.split_once('=').and_then(|(kind, value)| Some((Kind::parse(kind.trim(), None)?, value)));
    let Some((kind, value)) = parts else { return Ok(None) };
    let column = ListColumn { column: String::new(), kind, hashed };
    let mut cell = Vec::new();
    let read = match hashed {
        None => column.kind.canonicalise(Value::Text(value), &mut cell),
        Some(hashed) => hashed.read(Value::Text(value), &mut cell),
    };
    match read {
        Canonical::Text | Canonical::Number => Ok(Some(Typed { column, cell, raw: value.to_owned() })),
        Canonical::Empty | Canonical::NotComparable => {
            Err(Error::usage(format!("the value of {}= is none of that kind", column.kind.name())))
        }
    }
}

/// Reads `KIND=VALUE`, or else a request id. The error never holds the value.
pub fn who(key: &TagKey, text: &str, hashed: Option<Hashed>) -> Result<Who> {
    Ok(match typed(text, hashed)? {
        None => Who::Request { id: text.trim().into(), hidden: hidden_id(key, text) },
        Some(typed) => Who::Person(typed.tags(key)),
    })
}

/// Whether lists write such identifiers otherwise than in their canonical form. Only of kinds that are text wherever they stand.
fn is_rewritten(column: &ListColumn) -> bool {
    let is_written = match column.kind {
        Kind::Email | Kind::Phone | Kind::PhoneE164 { .. } => true,
        Kind::Maid
        | Kind::Uuid
        | Kind::Ip
        | Kind::Integer
        | Kind::Text
        | Kind::Vin
        | Kind::Zip
        | Kind::Name
        | Kind::Date { .. }
        | Kind::Ctvid
        | Kind::Ndz
        | Kind::NameVin => false,
    };
    is_written && column.hashed.is_none()
}

/// Not an id that is an e-mail address, one of its row's own identifiers, or what may be an unkeyed hash of one or of anybody's: many
/// hexadecimal digits that are no UUID. Nor one that plainly holds a telephone number.
fn may_be_shown(raw: &str, cells: &[Held<'_>]) -> bool {
    !tells_person(raw, cells) && plainly_held(raw).is_none()
}

fn tells_person(raw: &str, cells: &[Held<'_>]) -> bool {
    let text = raw.trim();
    (text.len() == 44 && text.ends_with('=')) || tells_row(text, cells)
}

/// What a text plainly holds that should be kept as a tag alone: an e-mail address, or a telephone number by the way it is written. Ten
/// digits and nothing else may be anybody's file number, and pass.
pub fn plainly_held(text: &str) -> Option<&'static str> {
    let is_email = |word: &str| {
        let word = word.trim_matches(|c: char| !c.is_alphanumeric());
        word.contains('@') && matches!(Kind::Email.canonicalise(Value::Text(word), &mut Vec::new()), Canonical::Text)
    };
    if text.split(|c: char| c.is_whitespace() || ",;<>()".contains(c)).any(is_email) {
        return Some("an e-mail address");
    }
    // Runs of what telephone numbers are written with, as the lengths of their groups of digits.
    let runs = text.split(|c: char| !(c.is_ascii_digit() || " ()+-./".contains(c)));
    let is_phone = |run: &str| {
        let groups: Vec<usize> =
            run.split(|c: char| !c.is_ascii_digit()).map(str::len).filter(|digits| *digits > 0).collect();
        let international = run.rsplit('+').next().filter(|_| run.contains('+'));
        let digits = international.map_or(0, |rest| rest.bytes().filter(u8::is_ascii_digit).count());
        (9..=15).contains(&digits) || groups.windows(3).any(|groups| groups == [3, 3, 4])
    };
    runs.into_iter().any(is_phone).then_some("a telephone number")
}

/// How a hidden id begins, and how many hexadecimal digits follow.
const HIDDEN: (&str, usize) = ("id-", 24);

fn hidden_id(key: &TagKey, text: &str) -> Text {
    let tag = key.tag("request", &Sha256::digest(text.trim()).into());
    format!("{}{}", HIDDEN.0, &tag[..HIDDEN.1]).into()
}

/// Whether an id has the shape of a hidden one.
fn is_hidden(id: &str) -> bool {
    let digits = id.strip_prefix(HIDDEN.0).filter(|digits| digits.len() == HIDDEN.1);
    digits.is_some_and(|digits| digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')))
}

/// A time as lists spell them, see [`when`]; a date alone is its first moment.
pub fn moment(text: &str) -> Option<Timestamp> {
    when(text).map(time_of)
}

/// The moment that the ledger keeps; a date alone begins at midnight UTC.
pub fn time_of(received: Received) -> Timestamp {
    let time = match received {
        Received::At(time) => time,
        Received::On(date) => date.to_zoned(TimeZone::UTC).map_or(Timestamp::MAX, |zoned| zoned.timestamp()),
    };
    time.min(last_moment())
}

/// Whether that is more than a day ahead of `now`: by so much clocks and time zones may differ, and no asking has come by then.
pub fn is_ahead(received: Received, now: Timestamp) -> bool {
    let latest = now.checked_add(SignedDuration::from_hours(24));
    latest.is_ok_and(|latest| time_of(received) > latest)
}

/// A date or a time as lists spell them; what has no zone is UTC. Midnight that is written out is a time like any other.
pub fn when(text: &str) -> Option<Received> {
    let text = text.trim();
    let utc = |civil: DateTime| civil.to_zoned(TimeZone::UTC).ok().map(|zoned| zoned.timestamp());
    let unix = || {
        let number: i64 = text.parse().ok()?;
        match text.len() {
            13 => Timestamp::from_millisecond(number).ok(),
            9..=11 => Timestamp::from_second(number).ok(),
            _ => None,
        }
    };
    let compact = || match text.len() {
        8 if text.bytes().all(|byte| byte.is_ascii_digit()) => Date::strptime("%Y%m%d", text).ok(),
        _ => None,
    };
    let written = || match text.len() {
        10 => text.parse::<Date>().ok(),
        _ => None,
    };
    if let Some(date) = compact().or_else(written) {
        return Some(Received::On(date));
    }
    let read = text.parse::<Timestamp>().ok();
    let read = read.or_else(|| text.parse::<DateTime>().ok().and_then(utc)).or_else(unix);
    read.map(|time| Received::At(whole_microseconds(time)))
}

/// The ledger keeps microseconds: what is finer would not be what was read again.
pub fn whole_microseconds(time: Timestamp) -> Timestamp {
    Timestamp::from_microsecond(time.as_microsecond()).unwrap_or(time)
}

/// A list of the job by its name, or a file: read like the list of the job that it belongs to, or by its own columns.
async fn spec_of(job: &Job, stores: &Stores, wanted: &str, columns: &Columns) -> Result<ListSpec> {
    if let Some(list) = job.lists.iter().find(|list| list.name == wanted) {
        return Ok(list.clone());
    }
    let scope = scope_of(wanted)?;
    let file = scope.root().clone();
    let own = |list: &&ListSpec| {
        crate::dataset::listing::is_in_scope(&list.scope, &file, &|_| true) || list.scope.root() == &file
    };
    let mut spec = ListSpec {
        name: file.file_name().to_owned(),
        uri: wanted.to_owned(),
        scope,
        format: None,
        request_id: None,
        received_at: None,
        regime: None,
        columns: Vec::new(),
        csv: Default::default(),
    };
    if let Some(list) = job.lists.iter().find(own) {
        let ListSpec { format, request_id, received_at, regime, columns, csv, name, .. } = list.clone();
        spec = ListSpec { format, request_id, received_at, regime, columns, csv, name, ..spec };
    }
    if columns.columns.is_empty() && spec.columns.is_empty() {
        let names = header(job, stores, &spec).await?;
        let named = |name: &&String| Kind::parse(&name.to_lowercase(), None).is_some();
        let column = |name: &String| ListColumn {
            column: name.clone(),
            kind: Kind::parse(&name.to_lowercase(), None).expect("filtered"),
            hashed: None,
        };
        spec.columns = names.iter().filter(named).map(column).collect();
        let find = |wanted: &str| names.iter().find(|name| name.eq_ignore_ascii_case(wanted)).cloned();
        spec.request_id = find("request_id");
        spec.received_at = find("received_at");
        if spec.columns.is_empty() {
            return Err(Error::usage(format!(
                "{wanted} is no list of the job, and none of its columns is named after a kind"
            ))
            .hint(format!("say --column COLUMN=KIND; kinds are {}", Kind::NAMES.join(", "))));
        }
    } else if !columns.columns.is_empty() {
        spec.columns = columns.columns.iter().map(|text| column(text)).collect::<Result<_>>()?;
    }
    spec.request_id = columns.request_id.clone().or(spec.request_id);
    spec.received_at = columns.received_at.clone().or(spec.received_at);
    Ok(spec)
}

/// `COLUMN=KIND` or `COLUMN=KIND:HASHED`.
fn column(text: &str) -> Result<ListColumn> {
    let wrong = || {
        let hashed = Hashed::NAMES.join(", ");
        Error::usage(format!("--column {text} is not COLUMN=KIND or COLUMN=KIND:HASHED"))
            .hint(format!("kinds are {}; hashed is one of {hashed}", Kind::NAMES.join(", ")))
    };
    let (column, kind) = text.rsplit_once('=').ok_or_else(wrong)?;
    let (kind, hashed) = kind.split_once(':').map_or((kind, None), |(kind, hashed)| (kind, Some(hashed)));
    let hashed = hashed.map(|hashed| Hashed::parse(hashed).ok_or_else(wrong)).transpose()?;
    Ok(ListColumn { column: column.to_owned(), kind: Kind::parse(kind, None).ok_or_else(wrong)?, hashed })
}

/// A header longer than this is none.
const HEADER_BYTES_MAX: u64 = 1 << 16;

/// The names in the first line of a delimited file; none of any other. Errors: a file that is not there.
async fn header(job: &Job, stores: &Stores, spec: &ListSpec) -> Result<Vec<String>> {
    let file = spec.scope.root();
    let store: Arc<dyn store::Store> = stores.of(file);
    let object = match (store.head(file).await, &spec.scope) {
        (Ok(object), _) => object,
        (Err(store::StoreError::NotFound(_)), Scope::Object(_)) => return Err(no_such_list(job, spec)),
        // Of several files only the reader of lists knows; their columns have to be named.
        (Err(_), Scope::Prefix(_) | Scope::Glob { .. }) => return Ok(Vec::new()),
        (Err(error), Scope::Object(_)) => {
            let mut error = Error::from(error);
            error.exit = crate::error::Exit::Usage;
            error.message = format!("list {} cannot be read: {}", spec.name, error.message);
            return Err(error);
        }
    };
    let name = file.file_name().to_ascii_lowercase();
    let delimiter = match Path::new(&name).extension().and_then(|ending| ending.to_str()) {
        Some("csv") => ',',
        Some("tsv") => '\t',
        _ if spec.format == Some(ListFormat::Csv) => ',',
        _ => return Ok(Vec::new()),
    };
    let bytes = store::read(store.as_ref(), &object, 0..object.size_bytes.min(HEADER_BYTES_MAX)).await?;
    let text = String::from_utf8_lossy(&bytes);
    let first = text.trim_start_matches('\u{feff}').lines().next().unwrap_or_default();
    Ok(first.split(delimiter).map(|name| name.trim().trim_matches('"').to_owned()).collect())
}

fn no_such_list(job: &Job, spec: &ListSpec) -> Error {
    let names: Vec<&str> = job.lists.iter().map(|list| list.name.as_str()).collect();
    let error = Error::usage(format!("{} is no list of the job, and there is no such file", spec.uri));
    match names.is_empty() {
        true => error.hint("name a file that is there"),
        false => error.hint(format!("name a file that is there, or one of the job's lists: {}", names.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use md5::Md5;

    #[test]
    fn times_are_read_as_lists_spell_them() {
        for (text, wish) in [
            ("2026-08-01T10:00:00Z", "2026-08-01T10:00:00Z"),
            ("2026-08-01T10:00:00+02:00", "2026-08-01T08:00:00Z"),
            ("2026-08-01", "2026-08-01T00:00:00Z"),
            ("2026-08-01 10:30:00", "2026-08-01T10:30:00Z"),
            ("2026-08-01 10:30:00.123456", "2026-08-01T10:30:00.123456Z"),
            ("20260801", "2026-08-01T00:00:00Z"),
            ("1785578400", "2026-08-01T10:00:00Z"),
            ("1785578400000", "2026-08-01T10:00:00Z"),
        ] {
            assert_eq!(moment(text).map(|time| time.to_string()).as_deref(), Some(wish), "{text}");
        }
        let day = jiff::civil::date(2026, 8, 1);
        assert!(["2026-08-01", " 20260801 "].iter().all(|text| when(text) == Some(Received::On(day))));
        let midnight = Received::At("2026-08-01T00:00:00Z".parse().unwrap());
        for text in ["2026-08-01T00:00:00Z", "2026-08-01 00:00:00", "1785542400"] {
            assert_eq!(when(text), Some(midnight), "{text}");
        }
        for text in ["", "soon", "12", "01/08/2026"] {
            assert_eq!(moment(text), None, "{text}");
        }
    }

    #[test]
    fn a_text_that_names_a_person_is_told_from_one_that_names_a_case() {
        for (text, wish) in [
            ("tax records, 6 years", None),
            ("case 2026-11-27 / 4711, 26 U.S.C. 6001", None),
            ("file 4155559317", None),
            ("20260812_4821_DROP.zip", None),
            ("desk @ Berlin", None),
            ("asked by ada@example.com", Some("an e-mail address")),
            ("<Ada@Example.com>,", Some("an e-mail address")),
            ("call +49 30 1234567", Some("a telephone number")),
            ("(415) 555-9317", Some("a telephone number")),
            ("tel:1-415-555-9317", Some("a telephone number")),
        ] {
            assert_eq!(plainly_held(text), wish, "{text}");
        }
    }

    #[test]
    fn an_id_that_is_an_identifier_or_its_hash_is_shown_as_a_tag() {
        let column = |kind| ListColumn { column: "c".into(), kind, hashed: None };
        let phone = column(Kind::Phone);
        let cells = [Held { column: &phone, cell: b"4155559317", raw: None }];
        let hash = hex::encode(Sha256::digest("a@b.c"));
        let (own, other) = (hex::encode(Md5::digest("4155559317")), hex::encode(Md5::digest("4155550000")));
        for (raw, is_shown) in [
            ("R-17", true),
            ("4155550000", true),
            ("+1 (415) 555-9317", false),
            ("+1 (415) 555-0000", false),
            ("a@b.c", false),
            (hash.as_str(), false),
            (own.as_str(), false),
            (&own.to_uppercase(), false),
            (other.as_str(), false),
            ("550e8400-e29b-41d4-a716-446655440000", true),
        ] {
            assert_eq!(may_be_shown(raw, &cells), is_shown, "{raw}");
        }
    }

    #[test]
    fn a_plain_value_and_its_sha256_are_one_tag() {
        let key = TagKey::new([7; 32]);
        let plain = who(&key, "email=Anna.Smith@Domain.com", None).unwrap();
        let hashed = "email=KA18MT/ph6IHYjzT9zwETySDQyvSh87YuoSBpOQtkhE=";
        assert_eq!(who(&key, hashed, Some(Hashed::Sha256Base64)).unwrap(), plain);
        let Who::Request { id, .. } = who(&key, "R=1", None).unwrap() else { panic!("a request") };
        assert_eq!(&*id, "R=1");
        let error = who(&key, "email=canary", None).unwrap_err();
        assert!(!error.message.contains("canary"), "{error}");
    }
}
