//! Fills the match index: which sets and shapes the rules of a job can ask for, and what each list row adds to them.
//!
//! No I/O and no clock. Invariant: an entry that the ledger has let go is in no set, and its row in no shape.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::identifier::{HashFunction, Hashed, Kind, plain_decimal};
use crate::job::{DatasetSpec, ListColumn, ListSpec, MatchPart, MatchRule};
use crate::key_table::{Key, KeyTable};
use crate::match_composite::{Choice, DIGEST, NUMBER, TEXT, combinations, tagged};
use crate::match_index::{CompositeName, Form, Hashes, MatchIndex, Secret, SetName, Tags, form_of};
use crate::request::Entry;
use crate::screen::{self, Screen};
use crate::signature::KindTags;
use crate::unlisted::Unlisted;

/// How many identifiers a list added, and how many were there before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Added {
    /// New identifiers by kind.
    pub identifiers: BTreeMap<&'static str, u64>,
    pub duplicates: u64,
    /// Entries that the ledger has let go: they are in no set.
    pub let_go: u64,
    /// Columns of hashes that no tag can be made of, so that what the ledger has let go was not looked for in them.
    pub not_looked_up: Vec<String>,
}

/// Fills a [`MatchIndex`] with what the datasets' rules can ask for.
pub struct Builder<'a> {
    index: MatchIndex,
    lists: &'a [ListSpec],
    datasets: &'a [DatasetSpec],
    /// By list, by column.
    targets: Vec<Vec<Targets>>,
    scratch: Vec<u8>,
    /// Of e-mail addresses, for the screen.
    fingerprints: Vec<u32>,
    /// Keys on their way into the table, with the list and the column of those that are an identifier of their own.
    waiting: VecDeque<(Made, Option<(usize, usize)>)>,
    /// By list, by column: how many identifiers were new, and how many there before.
    counts: Vec<Vec<[u64; 2]>>,
    /// By list, by column.
    look_ups: Vec<Vec<LookUp>>,
    /// By list.
    let_go: Vec<u64>,
}

/// Whether an entry of a list column is one that the ledger has let go.
enum LookUp {
    /// The ledger has let nothing go.
    Never,
    Plain(KindTags),
    Sha256(KindTags),
    /// Its tag cannot be made.
    Blind,
}

/// A key whose halves are both made.
struct Made {
    fast: u64,
    slow: u64,
}

impl Key for Made {
    fn fast(&self) -> u64 {
        self.fast
    }

    fn slow(&self) -> u64 {
        self.slow
    }
}

/// So many keys wait for the memory that they will stand in.
const KEYS_AHEAD: usize = 16;

/// The sets that a cell of one list column goes to.
struct Targets {
    own: u16,
    named: Option<u16>,
    hashes: Vec<(HashFunction, u16)>,
    numbers: Vec<u16>,
}

impl Targets {
    fn new(index: &MatchIndex, column: &ListColumn) -> Self {
        let (own, named) = (form_of(column.hashed), Some(column.column.clone()));
        let both =
            |form: Form| [None, named.clone()].into_iter().filter_map(move |name| index.set(&column.kind, form, &name));
        let plain = column.hashed.is_none();
        Targets {
            own: index.set(&column.kind, own, &None).expect("every list column's own set is wanted"),
            named: index.set(&column.kind, own, &named),
            hashes: HashFunction::ALL
                .iter()
                .filter(|_| plain)
                .flat_map(|f| both(Form::Hash(*f)).map(move |set| (*f, set)))
                .collect(),
            numbers: both(Form::Number).filter(|_| plain).collect(),
        }
    }
}

impl<'a> Builder<'a> {
    /// `secret` keys the hashes of this process; it need not be kept.
    pub fn new(lists: &'a [ListSpec], datasets: &'a [DatasetSpec], secret: [u8; 16]) -> Self {
        let mut index = MatchIndex {
            keys: KeyTable::default(),
            secret: Secret::new(secret),
            sets: BTreeMap::new(),
            composites: BTreeMap::new(),
            screen: Arc::new(Screen::new(&[])),
            tags: None,
            unlisted: Unlisted::default(),
        };
        for column in lists.iter().flat_map(|list| &list.columns) {
            index.want(&column.kind, form_of(column.hashed), &None);
        }
        for (dataset, spec) in datasets.iter().enumerate() {
            for (rule, parts) in spec.rules.iter().enumerate() {
                match parts {
                    MatchRule::Single(part) => want_single(&mut index, lists, part),
                    MatchRule::All(parts) => want_composite(&mut index, lists, parts, dataset, rule),
                    MatchRule::Joined { whole, .. } => want_single(&mut index, lists, whole),
                }
            }
        }
        let target = |column: &ListColumn| Targets::new(&index, column);
        let targets = lists.iter().map(|list| list.columns.iter().map(target).collect()).collect();
        let counts = lists.iter().map(|list| vec![[0; 2]; list.columns.len()]).collect();
        let (fingerprints, waiting) = (Vec::new(), VecDeque::with_capacity(KEYS_AHEAD));
        let look_ups = lists.iter().map(|list| list.columns.iter().map(|_| LookUp::Never).collect()).collect();
        let let_go = vec![0; lists.len()];
        let scratch = Vec::new();
        Builder { index, lists, datasets, targets, scratch, fingerprints, waiting, counts, look_ups, let_go }
    }

    /// Compares with the ledger as well: every rule of its own that names no list column. Entries that the ledger has let go are left out.
    pub fn with_tags(mut self, tags: Option<Tags>) -> Self {
        if let Some(Tags { key, .. }) = tags.as_ref().filter(|tags| !tags.let_go.is_empty()) {
            let look_up = |column: &ListColumn| match column.hashed.map(Hashed::function) {
                None => LookUp::Plain(key.tags_of(column.kind.name())),
                Some(HashFunction::Sha256) => LookUp::Sha256(key.tags_of(column.kind.name())),
                Some(HashFunction::Md5 | HashFunction::Sha1) => LookUp::Blind,
            };
            self.look_ups = self.lists.iter().map(|list| list.columns.iter().map(look_up).collect()).collect();
        }
        self.index.tags = tags;
        self
    }

    fn is_let_go(&self, list: usize, column: usize, cell: &[u8]) -> bool {
        let Some(Tags { let_go, .. }) = &self.index.tags else { return false };
        match &self.look_ups[list][column] {
            LookUp::Never | LookUp::Blind => false,
            LookUp::Plain(tags) => let_go.contains(&tags.tag_of_canonical(cell).0),
            LookUp::Sha256(tags) => cell.try_into().is_ok_and(|digest| let_go.contains(&tags.tag(digest))),
        }
    }

    /// Adds one list row.
    pub fn add(&mut self, entry: Entry<'_>) {
        let list = self.lists.iter().position(|list| std::ptr::eq(list, entry.list) || list.name == entry.list.name);
        let list = list.expect("entries come from the lists the index was made for");
        let mut let_go = 0;
        for (column, cell) in entry.cells.iter().enumerate() {
            match cell {
                Some(cell) if self.is_let_go(list, column, cell) => let_go += 1,
                Some(cell) => self.add_cell(list, column, cell),
                None => {}
            }
        }
        self.let_go[list] += let_go;
        // The row names somebody who is let go: nobody is looked for by what its cells say together.
        if let_go == 0 && !self.index.composites.is_empty() {
            self.add_composites(&entry);
        }
    }

    /// The index, and what each list added to it.
    pub fn finish(mut self) -> (MatchIndex, Vec<Added>) {
        while self.settle_one() {}
        let blind = |list: usize| {
            let columns = self.lists[list].columns.iter().zip(&self.look_ups[list]);
            let columns = columns.filter(|(_, look_up)| matches!(look_up, LookUp::Blind));
            columns.map(|(column, _)| column.column.clone()).collect()
        };
        let added = self.lists.iter().zip(&self.counts).enumerate().map(|(number, (list, counts))| {
            let (let_go, not_looked_up) = (self.let_go[number], blind(number));
            let mut added = Added { let_go, not_looked_up, ..Added::default() };
            for (column, [new, known]) in list.columns.iter().zip(counts).filter(|(_, counts)| **counts != [0; 2]) {
                added.duplicates += known;
                if *new > 0 {
                    *added.identifiers.entry(column.kind.name()).or_default() += new;
                }
            }
            added
        });
        let added: Vec<Added> = added.collect();
        self.index.keys = self.index.keys.settled();
        self.index.screen = Arc::new(Screen::new(&self.fingerprints));
        (self.index, added)
    }

    fn add_cell(&mut self, list: usize, column: usize, cell: &[u8]) {
        let lists = self.lists;
        let spec = &lists[list].columns[column];
        let Targets { own, named, .. } = self.targets[list][column];
        if spec.kind == Kind::Email && spec.hashed.is_none() {
            self.fingerprints.extend(screen::fingerprint(cell));
        }
        self.put(own, cell, Some((list, column)));
        if let Some(named) = named {
            self.put(named, cell, None);
        }
        for i in 0..self.targets[list][column].hashes.len() {
            let (function, set) = self.targets[list][column].hashes[i];
            let mut digest = std::mem::take(&mut self.scratch);
            function.digest(cell, &mut digest);
            self.put(set, &digest, None);
            self.scratch = digest;
        }
        if !self.targets[list][column].numbers.is_empty()
            && let Some(number) = number_of(&spec.kind, cell)
        {
            for i in 0..self.targets[list][column].numbers.len() {
                self.put(self.targets[list][column].numbers[i], number.as_bytes(), None);
            }
        }
    }

    fn put(&mut self, set: u16, bytes: &[u8], counted: Option<(usize, usize)>) {
        let hashes = Hashes::new(&self.index.secret, set, bytes);
        let key = Made { fast: hashes.fast, slow: hashes.slow() };
        self.index.keys.fetch(key.fast);
        if self.waiting.len() == KEYS_AHEAD {
            self.settle_one();
        }
        self.waiting.push_back((key, counted));
    }

    /// Whether one was waiting.
    fn settle_one(&mut self) -> bool {
        let Some((key, counted)) = self.waiting.pop_front() else { return false };
        let is_new = self.index.keys.insert(&key);
        if let Some((list, column)) = counted {
            self.counts[list][column][usize::from(!is_new)] += 1;
        }
        true
    }

    fn add_composites(&mut self, entry: &Entry<'_>) {
        let MatchIndex { keys, secret, composites, .. } = &mut self.index;
        for (name, set) in composites.iter() {
            let MatchRule::All(parts) = &self.datasets[name.dataset].rules[name.rule] else { continue };
            if composite_forms(entry.list, parts).as_ref() != Some(&name.forms) {
                continue;
            }
            let choices: Option<Vec<_>> =
                parts.iter().zip(&name.forms).map(|(part, form)| listed_part(entry, part, *form)).collect();
            if let Some(choices) = choices {
                let choice = |bytes| Choice { element: &[], bytes };
                let choices: Vec<Vec<_>> =
                    choices.into_iter().map(|forms: Vec<_>| forms.into_iter().map(choice).collect()).collect();
                combinations(&choices, &|_, _| true, &mut |bytes| {
                    keys.insert(&Hashes::new(secret, *set, bytes));
                });
            }
        }
    }
}

impl MatchIndex {
    fn next_set(&self) -> u16 {
        u16::try_from(self.sets.len() + self.composites.len()).expect("a job has fewer than 65536 rules")
    }

    fn want(&mut self, kind: &Kind, form: Form, list_column: &Option<String>) {
        let next = self.next_set();
        self.sets.entry(SetName { kind: kind.name(), form, list_column: list_column.clone() }).or_insert(next);
    }
}

fn want_single(index: &mut MatchIndex, lists: &[ListSpec], part: &MatchPart) {
    index.want(&part.kind, form_of(part.hashed), &part.list_column);
    if part.hashed.is_none() {
        if part.kind == Kind::Text {
            index.want(&part.kind, Form::Number, &part.list_column);
        }
        for function in listed_functions(lists, part) {
            index.want(&part.kind, Form::Hash(function), &part.list_column);
        }
    }
}

fn want_composite(index: &mut MatchIndex, lists: &[ListSpec], parts: &[MatchPart], dataset: usize, rule: usize) {
    for forms in lists.iter().filter_map(|list| composite_forms(list, parts)) {
        let next = index.next_set();
        index.composites.entry(CompositeName { dataset, rule, forms }).or_insert(next);
    }
}

/// The hash functions in which the lists hold what `part` asks for.
fn listed_functions<'a>(lists: &'a [ListSpec], part: &'a MatchPart) -> impl Iterator<Item = HashFunction> + 'a {
    let feeds = move |column: &&ListColumn| {
        column.kind.same_family(&part.kind) && part.list_column.as_ref().is_none_or(|name| *name == column.column)
    };
    lists.iter().flat_map(|list| &list.columns).filter(feeds).filter_map(|column| column.hashed.map(Hashed::function))
}

/// The forms in which the parts are compared with this list; `None` when it lacks one of the columns.
fn composite_forms(list: &ListSpec, parts: &[MatchPart]) -> Option<Vec<Form>> {
    let form = |part: &MatchPart| {
        let column = &list.columns[listed_column(list, part)?];
        match (part.hashed, column.hashed) {
            (Some(stored), Some(listed)) if stored.function() != listed.function() => None,
            (Some(hashed), _) | (None, Some(hashed)) => Some(Form::Hash(hashed.function())),
            (None, None) => Some(Form::Plain),
        }
    };
    parts.iter().map(form).collect()
}

fn listed_column(list: &ListSpec, part: &MatchPart) -> Option<usize> {
    let wanted = part.list_column.as_deref();
    list.columns.iter().position(|column| Some(column.column.as_str()) == wanted && column.kind.same_family(&part.kind))
}

fn number_of(kind: &Kind, canonical: &[u8]) -> Option<String> {
    match kind {
        Kind::Text => std::str::from_utf8(canonical).ok().and_then(plain_decimal),
        Kind::Email
        | Kind::Phone
        | Kind::PhoneE164 { .. }
        | Kind::Maid
        | Kind::Uuid
        | Kind::Ip
        | Kind::Integer
        | Kind::Vin
        | Kind::Zip
        | Kind::Name
        | Kind::Date { .. }
        | Kind::Ctvid
        | Kind::Ndz
        | Kind::NameVin => None,
    }
}

/// What the list row offers for a part: its text, and the number it stands for; `None` when the cell is empty.
fn listed_part(entry: &Entry<'_>, part: &MatchPart, form: Form) -> Option<Vec<Vec<u8>>> {
    let at = listed_column(entry.list, part)?;
    let cell = entry.cells[at]?;
    match (form, entry.list.columns[at].hashed) {
        (Form::Hash(function), None) => {
            let mut digest = Vec::new();
            function.digest(cell, &mut digest);
            Some(vec![tagged(DIGEST, &digest)])
        }
        (Form::Hash(_), Some(_)) => Some(vec![tagged(DIGEST, cell)]),
        (Form::Plain | Form::Number, _) => {
            let number = number_of(&part.kind, cell).map(|number| tagged(NUMBER, number.as_bytes()));
            Some([Some(tagged(TEXT, cell)), number].into_iter().flatten().collect())
        }
    }
}
