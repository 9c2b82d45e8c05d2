//! The match index: every listed identifier in one flat set, and the rules of a dataset compiled against it.
//!
//! No I/O and no clock. An entry is kept only as two 64-bit keyed hashes of its comparison form, XXH3 with a random secret of this
//! process and SipHash-1-3 with a random key: the index costs about 25 bytes an identifier whatever its length and holds nothing
//! readable. Two different values compare equal with a probability of 2^-128, and of 2^-64 should somebody outside be able
//! to construct values that collide under an XXH3 whose secret they do not know.

use std::collections::{BTreeMap, VecDeque};
use std::hash::Hasher;
use std::sync::Arc;

use siphasher::sip::SipHasher13;
use xxhash_rust::xxh3::{xxh3_64_with_secret, xxh3_128_with_secret};

use crate::column_values::Placed;
use crate::identifier::{Canonical, ColumnPath, HashFunction, Hashed, Kind, Value, join_part, plain_decimal};
use crate::job::{DatasetSpec, ListColumn, ListSpec, MatchPart, MatchRule};
use crate::key_table::{Key, KeyTable};
use crate::request::Entry;
use crate::screen::{self, Screen};
use crate::signature::{KindTags, TagKey};
use crate::tag_table::TagTable;
use crate::unlisted::Unlisted;

/// In which form two identifiers of one kind are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Form {
    Plain,
    /// The number that an entry of kind `text` stands for.
    Number,
    Hash(HashFunction),
}

/// One logical set of the index: entries of a kind in a form, from any list column or from those of one name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct SetName {
    kind: &'static str,
    form: Form,
    list_column: Option<String>,
}

/// A composite rule against lists of one shape: the form in which each part is compared.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct CompositeName {
    dataset: usize,
    rule: usize,
    forms: Vec<Form>,
}

/// Every listed identifier that a job's rules can ask for. Built by [`Builder`].
pub struct MatchIndex {
    keys: KeyTable,
    secret: Secret,
    sets: BTreeMap<SetName, u16>,
    composites: BTreeMap<CompositeName, u16>,
    /// Of the e-mail addresses that are listed as they are.
    screen: Arc<Screen>,
    tags: Option<Tags>,
    /// What the ledger was asked for in vain.
    unlisted: Unlisted,
}

/// The identifiers of the request ledger: keyed tags, made anew of each value that is asked about.
pub struct Tags {
    pub key: Arc<TagKey>,
    pub table: TagTable,
    /// Under which label the numbers stand that texts are another spelling of (`1.50`), if there are any.
    pub numbers: Option<&'static str>,
    /// What the ledger knows and asks for no more, which no other list asks for either.
    pub let_go: TagTable,
}

/// What keys the hashes of this process.
struct Secret {
    xxh3: [u8; SECRET_BYTES],
    sip: (u64, u64),
}

/// As long as XXH3's own secret.
const SECRET_BYTES: usize = 192;

impl Secret {
    /// Stretches a random seed.
    fn new(seed: [u8; 16]) -> Self {
        let mut xxh3 = [0; SECRET_BYTES];
        for (i, piece) in xxh3.chunks_mut(32).enumerate() {
            let mut digest = Vec::new();
            HashFunction::Sha256.digest(&[&seed[..], &[i as u8]].concat(), &mut digest);
            piece.copy_from_slice(&digest);
        }
        let half = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
        Secret { xxh3, sip: (half(&seed[..8]), half(&seed[8..])) }
    }
}

/// An entry of a set, hashed as far as it is asked for.
struct Hashes<'a> {
    secret: &'a Secret,
    set: u16,
    bytes: &'a [u8],
    fast: u64,
}

impl<'a> Hashes<'a> {
    #[inline]
    fn new(secret: &'a Secret, set: u16, bytes: &'a [u8]) -> Self {
        // The same bytes stand elsewhere in every set.
        let spread = u64::from(set).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Hashes { secret, set, bytes, fast: xxh3_64_with_secret(bytes, &secret.xxh3) ^ spread }
    }
}

impl Key for Hashes<'_> {
    #[inline]
    fn fast(&self) -> u64 {
        self.fast
    }

    fn slow(&self) -> u64 {
        let mut hasher = SipHasher13::new_with_keys(self.secret.sip.0, self.secret.sip.1 ^ u64::from(self.set));
        hasher.write(self.bytes);
        hasher.finish()
    }
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

/// Whether an entry of a list column is one that the ledger has let go.
enum LookUp {
    /// The ledger has let nothing go.
    Never,
    Plain(KindTags),
    Sha256(KindTags),
    /// Its tag cannot be made.
    Blind,
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

fn form_of(hashed: Option<Hashed>) -> Form {
    hashed.map_or(Form::Plain, |hashed| Form::Hash(hashed.function()))
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

/// The hash functions in which the lists hold what `part` asks for.
fn listed_functions<'a>(lists: &'a [ListSpec], part: &'a MatchPart) -> impl Iterator<Item = HashFunction> + 'a {
    let feeds = move |column: &&ListColumn| {
        column.kind.same_family(&part.kind) && part.list_column.as_ref().is_none_or(|name| *name == column.column)
    };
    lists.iter().flat_map(|list| &list.columns).filter(feeds).filter_map(|column| column.hashed.map(Hashed::function))
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

/// Tags keep a number, a text and a digest of the same bytes apart inside a composite.
const TEXT: u8 = 0;
const NUMBER: u8 = 1;
const DIGEST: u8 = 2;

fn tagged(tag: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + 5);
    out.push(tag);
    // The length keeps ("ab", "c") and ("a", "bc") apart.
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
    out
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

/// One form of a part, and where it stands in the lists of its row.
struct Choice<'a> {
    element: &'a [(usize, u32)],
    bytes: Vec<u8>,
}

/// Whether choices of two parts, each told by its part's number, may be of one person.
type Together<'a> = &'a dyn Fn((usize, &Choice<'_>), (usize, &Choice<'_>)) -> bool;

/// Calls `each` with the concatenation of one choice a part, for every combination whose choices are all `together`.
fn combinations(choices: &[Vec<Choice<'_>>], together: Together<'_>, each: &mut dyn FnMut(&[u8])) {
    fn extend<'c>(
        choices: &'c [Vec<Choice<'c>>],
        chosen: &mut Vec<&'c Choice<'c>>,
        together: Together<'_>,
        each: &mut dyn FnMut(&[u8]),
    ) {
        let part = chosen.len();
        let Some(of_part) = choices.get(part) else {
            let bytes: Vec<u8> = chosen.iter().flat_map(|choice| &choice.bytes).copied().collect();
            return each(&bytes);
        };
        for choice in of_part {
            if chosen.iter().enumerate().all(|known| together((known.0, known.1), (part, choice))) {
                chosen.push(choice);
                extend(choices, chosen, together, each);
                chosen.pop();
            }
        }
    }
    extend(choices, &mut Vec::new(), together, each);
}

/// How many names two paths begin with alike: a list that stands within them is one list to both.
fn shared_names(a: &ColumnPath, b: &ColumnPath) -> usize {
    a.0.iter().zip(&b.0).take_while(|(a, b)| a == b).count()
}

/// Whether two values stand in the same element of every list that their paths share.
fn in_same_element(a: &[(usize, u32)], b: &[(usize, u32)], shared_names: usize) -> bool {
    let shared = |(depth, _): &&(usize, u32)| *depth <= shared_names;
    a.iter().take_while(shared).eq(b.iter().take_while(shared))
}

impl MatchIndex {
    /// How many keys the index holds.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    fn next_set(&self) -> u16 {
        u16::try_from(self.sets.len() + self.composites.len()).expect("a job has fewer than 65536 rules")
    }

    fn want(&mut self, kind: &Kind, form: Form, list_column: &Option<String>) {
        let next = self.next_set();
        self.sets.entry(SetName { kind: kind.name(), form, list_column: list_column.clone() }).or_insert(next);
    }

    fn set(&self, kind: &Kind, form: Form, list_column: &Option<String>) -> Option<u16> {
        self.sets.get(&SetName { kind: kind.name(), form, list_column: list_column.clone() }).copied()
    }

    #[inline]
    fn holds(&self, set: u16, bytes: &[u8]) -> bool {
        self.keys.contains(&Hashes::new(&self.secret, set, bytes))
    }

    /// Compiles the rules of dataset number `dataset` of the job the index was built for.
    pub fn matcher(self: &Arc<Self>, dataset: usize, spec: &DatasetSpec) -> Matcher {
        let mut columns: Vec<ColumnPath> = Vec::new();
        let mut column = |path: &ColumnPath| {
            columns.iter().position(|known| known == path).unwrap_or_else(|| {
                columns.push(path.clone());
                columns.len() - 1
            })
        };
        let rules = spec
            .rules
            .iter()
            .enumerate()
            .map(|(rule, rules)| match rules {
                MatchRule::Single(part) => Rule::Single { column: column(&part.column), probe: self.probe(part) },
                MatchRule::All(parts) => Rule::All {
                    columns: parts.iter().map(|part| column(&part.column)).collect(),
                    composite: self.composite(dataset, rule, parts),
                },
                MatchRule::Joined { parts, whole } => Rule::All {
                    columns: parts.iter().map(|part| column(&part.column)).collect(),
                    composite: Composite {
                        index: self.clone(),
                        parts: parts.to_vec(),
                        ask: Ask::Joined(Box::new(self.probe(whole))),
                    },
                },
            })
            .collect();
        Matcher { columns, rules }
    }

    fn probe(self: &Arc<Self>, part: &MatchPart) -> Probe {
        let set = |form| self.set(&part.kind, form, &part.list_column);
        let mut probe = Probe {
            index: self.clone(),
            kind: part.kind.clone(),
            hashed: part.hashed,
            plain: set(form_of(part.hashed)),
            number: set(Form::Number),
            hashes: match part.hashed {
                Some(_) => Vec::new(),
                None => HashFunction::ALL.iter().filter_map(|f| Some((*f, set(Form::Hash(*f))?))).collect(),
            },
            tags: self.tags.as_ref().and_then(|tags| ProbeTags::new(tags, &self.secret, part)),
            screen: None,
        };
        // Digests and tags say nothing about the text that they are of.
        let is_screened = part.kind == Kind::Email && part.hashed.is_none();
        probe.screen = (is_screened && probe.hashes.is_empty() && probe.tags.is_none()).then(|| self.screen.clone());
        probe
    }

    fn composite(self: &Arc<Self>, dataset: usize, rule: usize, parts: &[MatchPart]) -> Composite {
        let shapes = self
            .composites
            .iter()
            .filter(|(name, _)| name.dataset == dataset && name.rule == rule)
            .map(|(name, set)| (name.forms.clone(), *set))
            .collect();
        Composite { index: self.clone(), parts: parts.to_vec(), ask: Ask::ListRow(shapes) }
    }
}

/// The rules of one dataset, ready to be asked.
#[derive(Clone)]
pub struct Matcher {
    /// The distinct columns that the rules name; rules refer to them by position.
    pub columns: Vec<ColumnPath>,
    pub rules: Vec<Rule>,
}

impl Matcher {
    /// Whether every rule on the column is one of its own.
    pub fn is_single(&self, column: &ColumnPath) -> bool {
        let is = |number: &usize| self.columns[*number] == *column;
        self.rules.iter().all(|rule| match rule {
            Rule::Single { .. } => true,
            Rule::All { columns, .. } => !columns.iter().any(is),
        })
    }

    /// Whether a rule of its own on the column matches the value.
    pub fn matches(&self, column: &ColumnPath, value: Value<'_>) -> bool {
        let mut scratch = Scratch::default();
        self.rules.iter().any(|rule| match rule {
            Rule::Single { column: number, probe } => {
                self.columns[*number] == *column && probe.check(value, &mut scratch) == Check::Match
            }
            Rule::All { .. } => false,
        })
    }

    /// Without the rules that need the column.
    pub fn without(&self, column: &ColumnPath) -> Matcher {
        let Some(gone) = self.columns.iter().position(|known| known == column) else { return self.clone() };
        let moved = |number: usize| if number > gone { number - 1 } else { number };
        let kept = self.rules.iter().filter_map(|rule| match rule {
            Rule::Single { column, .. } if *column == gone => None,
            Rule::Single { column, probe } => Some(Rule::Single { column: moved(*column), probe: probe.clone() }),
            Rule::All { columns, .. } if columns.contains(&gone) => None,
            Rule::All { columns, composite } => Some(Rule::All {
                columns: columns.iter().map(|column| moved(*column)).collect(),
                composite: composite.clone(),
            }),
        });
        let columns = self.columns.iter().filter(|known| *known != column).cloned().collect();
        Matcher { columns, rules: kept.collect() }
    }
}

#[derive(Clone)]
pub enum Rule {
    Single { column: usize, probe: Probe },
    All { columns: Vec<usize>, composite: Composite },
}

/// What a value is to a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    Match,
    NoMatch,
    NotComparable,
}

/// Asks whether one value is listed.
#[derive(Clone)]
pub struct Probe {
    index: Arc<MatchIndex>,
    kind: Kind,
    hashed: Option<Hashed>,
    plain: Option<u16>,
    number: Option<u16>,
    hashes: Vec<(HashFunction, u16)>,
    /// Boxed: most jobs have none.
    tags: Option<Box<ProbeTags>>,
    /// Where it knows all that the value is compared with.
    screen: Option<Arc<Screen>>,
}

/// What a value is asked of the ledger with. A plain value takes three SHA-256 compressions, a digest two; values repeat in most
/// columns, and one that was not there is not made a tag of again.
#[derive(Clone)]
struct ProbeTags {
    table: TagTable,
    /// Tells the kinds apart that share a memory of what is not there.
    salt: u128,
    own: KindTags,
    /// For numbers, beside `own`.
    numbers: Option<KindTags>,
}

impl ProbeTags {
    /// `None`: the ledger can say nothing about the part.
    fn new(tags: &Tags, secret: &Secret, part: &MatchPart) -> Option<Box<ProbeTags>> {
        let is_comparable = part.hashed.is_none_or(|hashed| hashed.function() == HashFunction::Sha256);
        if part.list_column.is_some() || !is_comparable {
            return None;
        }
        let numbers = tags.numbers.filter(|_| part.kind == Kind::Text && part.hashed.is_none());
        Some(Box::new(ProbeTags {
            table: tags.table.clone(),
            salt: xxh3_128_with_secret(part.kind.name().as_bytes(), &secret.xxh3),
            own: tags.key.tags_of(part.kind.name()),
            numbers: numbers.map(|label| tags.key.tags_of(label)),
        }))
    }

    /// By what a value is known that is not there.
    #[inline]
    fn unlisted_key(&self, secret: &Secret, canonical: &[u8], is_number: bool) -> u128 {
        // A number is asked for under another label as well.
        let salt = if is_number { !self.salt } else { self.salt };
        xxh3_128_with_secret(canonical, &secret.xxh3) ^ salt
    }

    #[inline]
    fn hold_canonical(&self, index: &MatchIndex, canonical: &[u8], key: Option<u128>, is_number: bool) -> bool {
        let key = key.unwrap_or_else(|| self.unlisted_key(&index.secret, canonical, is_number));
        if index.unlisted.holds(key) {
            return false;
        }
        let is_held = self.hold_anew(canonical, is_number);
        if !is_held {
            index.unlisted.insert(key);
        }
        is_held
    }

    fn hold_anew(&self, canonical: &[u8], is_number: bool) -> bool {
        let (tag, digest) = self.own.tag_of_canonical(canonical);
        let numbers = self.numbers.as_ref().filter(|_| is_number);
        self.table.contains(&tag) || numbers.is_some_and(|numbers| self.table.contains(&numbers.tag(&digest)))
    }

    fn hold_digest(&self, digest: &[u8]) -> bool {
        digest.try_into().is_ok_and(|digest| self.table.contains(&self.own.tag(digest)))
    }
}

/// Buffers that a thread of work reuses from value to value.
#[derive(Default)]
pub struct Scratch {
    canonical: Vec<u8>,
    digest: Vec<u8>,
}

/// Told apart from "has no fingerprint" in what [`Probe::fetch`] of a screened probe gives.
const FINGERPRINTED: u128 = 1 << 32;

impl Probe {
    /// Whether [`Probe::fetch`] has anything to do.
    pub fn looks_far(&self) -> bool {
        let is_far = self.screen.as_ref().is_some_and(|screen| screen.is_far());
        is_far || (self.tags.is_some() && self.hashed.is_none())
    }

    /// Tells of a value that will be asked about soon: what is looked up far away is on its way until then. Costs a wrong guess, no
    /// more, when the value is not its own canonical form. What it is looked up by, for [`Probe::check_bytes`].
    #[inline]
    pub fn fetch(&self, bytes: &[u8]) -> u128 {
        if let Some(screen) = &self.screen {
            return screen::fingerprint(bytes).map_or(0, |fingerprint| {
                screen.fetch(fingerprint);
                FINGERPRINTED | u128::from(fingerprint)
            });
        }
        let Some(tags) = &self.tags else { return 0 };
        let key = tags.unlisted_key(&self.index.secret, bytes, false);
        self.index.unlisted.fetch(key);
        key
    }

    /// As [`Probe::check`] of a column's bytes, which are a text when they are UTF-8 and the column `is_text`; `key` is what
    /// [`Probe::fetch`] of this probe gave for these bytes.
    #[inline]
    pub fn check_bytes(&self, bytes: &[u8], is_text: bool, key: Option<u128>, scratch: &mut Scratch) -> Check {
        if let Some(screen) = &self.screen
            && is_text
        {
            let fingerprint = match key {
                Some(key) => (key & FINGERPRINTED != 0).then_some(key as u32),
                None => screen::fingerprint(bytes),
            };
            if fingerprint.is_some_and(|fingerprint| !screen.holds(fingerprint)) {
                return Check::NoMatch;
            }
        }
        if is_text && self.hashed.is_none() && self.kind.is_canonical_ascii(bytes) {
            return self.check_canonical(bytes, key, scratch);
        }
        let value = match is_text {
            true => std::str::from_utf8(bytes).map_or(Value::Bytes(bytes), Value::Text),
            false => Value::Bytes(bytes),
        };
        self.check(value, scratch)
    }

    pub fn check(&self, value: Value<'_>, scratch: &mut Scratch) -> Check {
        if let Value::Text(text) = value
            && self.hashed.is_none()
            && self.kind.is_canonical(text)
        {
            return self.check_canonical(text.as_bytes(), None, scratch);
        }
        let read = match self.hashed {
            Some(hashed) => hashed.read(value, &mut scratch.canonical),
            None => self.kind.canonicalise(value, &mut scratch.canonical),
        };
        let listed = match read {
            Canonical::Empty => false,
            Canonical::NotComparable => return Check::NotComparable,
            Canonical::Number => self.holds(self.number, &scratch.canonical),
            Canonical::Text => self.holds(self.plain, &scratch.canonical),
        };
        let in_ledger = |tags: &ProbeTags| match (self.hashed, read) {
            (_, Canonical::Empty | Canonical::NotComparable) => false,
            (Some(_), Canonical::Text | Canonical::Number) => tags.hold_digest(&scratch.canonical),
            (None, Canonical::Text | Canonical::Number) => {
                tags.hold_canonical(&self.index, &scratch.canonical, None, read == Canonical::Number)
            }
        };
        if listed
            || self.tags.as_deref().is_some_and(in_ledger)
            || (!scratch.canonical.is_empty() && read != Canonical::Empty && self.hash_listed(scratch))
        {
            Check::Match
        } else {
            Check::NoMatch
        }
    }

    /// For a value that is its own canonical form: nothing is copied.
    #[inline]
    fn check_canonical(&self, canonical: &[u8], key: Option<u128>, scratch: &mut Scratch) -> Check {
        let listed = self.holds(self.plain, canonical)
            || self.tags.as_ref().is_some_and(|tags| tags.hold_canonical(&self.index, canonical, key, false))
            || self.hashes.iter().any(|(function, set)| {
                function.digest(canonical, &mut scratch.digest);
                self.index.holds(*set, &scratch.digest)
            });
        if listed { Check::Match } else { Check::NoMatch }
    }

    fn holds(&self, set: Option<u16>, bytes: &[u8]) -> bool {
        set.is_some_and(|set| self.index.holds(set, bytes))
    }

    fn hash_listed(&self, scratch: &mut Scratch) -> bool {
        self.hashes.iter().any(|(function, set)| {
            function.digest(&scratch.canonical, &mut scratch.digest);
            self.index.holds(*set, &scratch.digest)
        })
    }
}

/// Asks whether the parts of one row stand together in one list row, or make up one listed identifier.
#[derive(Clone)]
pub struct Composite {
    index: Arc<MatchIndex>,
    parts: Vec<MatchPart>,
    ask: Ask,
}

/// What the parts of a row are compared with.
#[derive(Clone)]
enum Ask {
    /// List rows, by the forms of their cells.
    ListRow(Vec<(Vec<Form>, u16)>),
    /// Identifiers that are made of all parts, as a probe of one value knows them.
    Joined(Box<Probe>),
}

impl Composite {
    /// `values[i]` are the values of part `i` in this row, several when it stands in a list; none when it is null. Parts below one
    /// list must stand in the same element of it: those of two elements are of two persons.
    pub fn check(&self, values: &[Vec<Placed<'_>>], scratch: &mut Scratch) -> bool {
        let together = |(a, of_a): (usize, &Choice<'_>), (b, of_b): (usize, &Choice<'_>)| {
            let shared = shared_names(&self.parts[a].column, &self.parts[b].column);
            in_same_element(of_a.element, of_b.element, shared)
        };
        let mut found = false;
        match &self.ask {
            Ask::ListRow(shapes) => {
                for (forms, set) in shapes {
                    let parts = self.parts.iter().zip(forms).zip(values);
                    let choices: Vec<Vec<Choice<'_>>> =
                        parts.map(|((part, form), values)| stored_part(part, *form, values, scratch)).collect();
                    combinations(&choices, &together, &mut |bytes| found |= self.index.holds(*set, bytes));
                }
            }
            Ask::Joined(probe) => {
                let parts = self.parts.iter().zip(values);
                let choices: Vec<Vec<Choice<'_>>> =
                    parts.map(|(part, values)| joined_part(part, values, scratch)).collect();
                combinations(&choices, &together, &mut |bytes| {
                    found |= probe.check_canonical(bytes, None, scratch) == Check::Match;
                });
            }
        }
        found
    }

    /// Whether part `i` cannot read `value`.
    pub fn is_not_comparable(&self, part: usize, value: Value<'_>, scratch: &mut Scratch) -> bool {
        read_part(&self.parts[part], value, &mut scratch.canonical) == Canonical::NotComparable
    }
}

fn read_part(part: &MatchPart, value: Value<'_>, out: &mut Vec<u8>) -> Canonical {
    match part.hashed {
        Some(hashed) => hashed.read(value, out),
        None => part.kind.canonicalise(value, out),
    }
}

/// What each value adds to an identifier that is made of several columns.
fn joined_part<'v>(part: &MatchPart, values: &[Placed<'v>], scratch: &mut Scratch) -> Vec<Choice<'v>> {
    let mut out = Vec::new();
    for Placed { value, element } in values {
        if read_part(part, *value, &mut scratch.canonical) == Canonical::Text {
            let mut bytes = Vec::new();
            join_part(&scratch.canonical, &mut bytes);
            out.push(Choice { element, bytes });
        }
    }
    out
}

fn stored_part<'v>(part: &MatchPart, form: Form, values: &[Placed<'v>], scratch: &mut Scratch) -> Vec<Choice<'v>> {
    let mut out = Vec::new();
    for Placed { value, element } in values {
        let read = read_part(part, *value, &mut scratch.canonical);
        let tag = match read {
            Canonical::Empty | Canonical::NotComparable => continue,
            Canonical::Number => NUMBER,
            Canonical::Text => TEXT,
        };
        let bytes = match (form, part.hashed) {
            (Form::Hash(function), None) => {
                function.digest(&scratch.canonical, &mut scratch.digest);
                tagged(DIGEST, &scratch.digest)
            }
            (Form::Hash(_), Some(_)) => tagged(DIGEST, &scratch.canonical),
            (Form::Plain | Form::Number, _) => tagged(tag, &scratch.canonical),
        };
        out.push(Choice { element, bytes });
    }
    out
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use sha2::{Digest, Sha256};

    use super::*;
    use crate::job::Job;

    /// A job of one list and one dataset.
    fn job(list_columns: &str, rules: &str) -> Job {
        let text = format!(
            "version = 1\n[[list]]\nname = \"l\"\nuri = \"l.csv\"\n{list_columns}\n[[dataset]]\nname = \"d\"\nuri = \"d/\"\nformat = \"parquet\"\n{rules}\n"
        );
        Job::parse(&text, Path::new("/"), &[]).unwrap()
    }

    fn index(job: &Job, rows: &[&[Option<&[u8]>]]) -> (Arc<MatchIndex>, Added) {
        let mut builder = Builder::new(&job.lists, &job.datasets, [7; 16]);
        for cells in rows {
            builder.add(Entry { list: &job.lists[0], cells });
        }
        let (index, mut added) = builder.finish();
        (Arc::new(index), added.remove(0))
    }

    fn check(job: &Job, rows: &[&[Option<&[u8]>]], value: Value<'_>) -> Check {
        let (index, _) = index(job, rows);
        let matcher = index.matcher(0, &job.datasets[0]);
        let Rule::Single { probe, .. } = &matcher.rules[0] else { panic!("a single rule") };
        probe.check(value, &mut Scratch::default())
    }

    fn column(kind: &str, hashed: &str) -> String {
        format!("[[list.column]]\ncolumn = \"c\"\nkind = \"{kind}\"\n{hashed}\n")
    }

    fn rule(kind: &str, hashed: &str) -> String {
        format!("[[dataset.match]]\ncolumn = \"c\"\nkind = \"{kind}\"\n{hashed}\n")
    }

    #[test]
    fn plain_and_hashed_sides_meet() {
        let email = b"a@b.c".as_slice();
        let mut digest = Vec::new();
        HashFunction::Sha256.digest(email, &mut digest);
        let hex = hex::encode(&digest);
        let (plain, sha) = ("", "hashed = \"sha256-hex\"");
        for (listed, stored, entry, value) in [
            (plain, plain, email, Value::Text(" A@B.c")),
            (plain, sha, email, Value::Text(&hex)),
            (sha, plain, &digest, Value::Text("A@b.C")),
            (sha, sha, &digest, Value::Text(&hex)),
        ] {
            let job = job(&column("email", listed), &rule("email", stored));
            assert_eq!(check(&job, &[&[Some(entry)]], value), Check::Match, "{listed} {stored}");
            let other = hex::encode([9u8; 32]);
            let stranger = if stored == sha { other.as_str() } else { "x@b.c" };
            assert_eq!(check(&job, &[&[Some(entry)]], Value::Text(stranger)), Check::NoMatch, "{listed} {stored}");
        }
    }

    #[test]
    fn text_meets_numbers_by_value_and_text_by_bytes() {
        let job = job(&column("text", ""), &rule("text", ""));
        for (listed, value, wanted) in [
            ("12345", Value::Integer(12345), Check::Match),
            ("1.5", Value::Decimal { unscaled: 150, scale: 2 }, Check::Match),
            ("1.50", Value::Decimal { unscaled: 15, scale: 1 }, Check::Match),
            ("1.50", Value::Text("1.5"), Check::NoMatch),
            ("1", Value::Other, Check::NotComparable),
            ("007", Value::Integer(7), Check::NoMatch),
        ] {
            assert_eq!(check(&job, &[&[Some(listed.as_bytes())]], value), wanted, "{listed}");
        }
    }

    #[test]
    fn composites_match_one_list_row_and_no_cross_product() {
        let columns =
            "[[list.column]]\ncolumn = \"n\"\nkind = \"text\"\n[[list.column]]\ncolumn = \"z\"\nkind = \"zip\"";
        let rules = "[[dataset.match]]\nall = [{ column = \"name\", kind = \"text\", list_column = \"n\" }, { column = \"zip\", kind = \"zip\", list_column = \"z\" }]";
        let job = job(columns, rules);
        let (index, _) =
            index(&job, &[&[Some(b"ann"), Some(b"91790")], &[Some(b"bob"), Some(b"71234")], &[Some(b"eve"), None]]);
        let matcher = index.matcher(0, &job.datasets[0]);
        let Rule::All { composite, .. } = &matcher.rules[0] else { panic!("a composite") };
        let placed = |text| Placed { value: Value::Text(text), element: &[] };
        let one = |text| vec![placed(text)];
        for (name, zip, wanted) in [
            (one("ann"), one("91790-1234"), true),
            (one("ann"), one("71234"), false),
            (one("eve"), vec![], false),
            (one("eve"), one(""), false),
            (vec![placed("x"), placed("bob")], one("0071234"), true),
        ] {
            assert_eq!(composite.check(&[name, zip], &mut Scratch::default()), wanted);
        }
    }

    #[test]
    fn parts_below_one_list_match_within_one_element() {
        let columns =
            "[[list.column]]\ncolumn = \"n\"\nkind = \"text\"\n[[list.column]]\ncolumn = \"z\"\nkind = \"zip\"";
        let of = |name: &str, zip: &str| {
            let rules = format!(
                "[[dataset.match]]\nall = [{{ column = \"{name}\", kind = \"text\", list_column = \"n\" }}, {{ column = \"{zip}\", kind = \"zip\", list_column = \"z\" }}]"
            );
            let job = job(columns, &rules);
            let (index, _) = index(&job, &[&[Some(b"ann"), Some(b"91790")]]);
            index.matcher(0, &job.datasets[0])
        };
        let (same, other, inner) =
            (of("people.name", "people.zip"), of("people.name", "zips.zip"), of("people.name", "people.homes.zip"));
        for (matcher, of_name, of_zip, wanted) in [
            (&same, &[(1, 0)][..], &[(1, 0)][..], true),
            (&same, &[(1, 0)], &[(1, 1)], false),
            (&same, &[], &[], true),
            (&other, &[(1, 0)], &[(1, 1)], true),
            (&inner, &[(1, 4)], &[(1, 4), (2, 9)], true),
            (&inner, &[(1, 4)], &[(1, 5), (2, 9)], false),
            // A list of lists: two of one depth.
            (&same, &[(1, 0), (1, 3)], &[(1, 0), (1, 3)], true),
            (&same, &[(1, 0), (1, 3)], &[(1, 0), (1, 4)], false),
        ] {
            let Rule::All { composite, .. } = &matcher.rules[0] else { panic!("a composite") };
            let name = vec![Placed { value: Value::Text("ann"), element: of_name }];
            let zip = vec![Placed { value: Value::Text("91790"), element: of_zip }];
            assert_eq!(composite.check(&[name, zip], &mut Scratch::default()), wanted, "{of_name:?} {of_zip:?}");
        }
    }

    /// DROP's worked example (regulation.md 1.4): danielle/johnson/19850704/91790.
    const NDZ: &str = "PQOfn1RffEKmqMmNAzDKKaoZCwxWbQZkQzPWmQo9REA=";

    #[test]
    fn several_columns_make_up_one_listed_identifier() {
        let rule = "[[dataset.match]]\nkind = \"ndz\"\ncolumns = [\"people.first\", \"people.last\", \"born\", \"zip\"]\ndate_format = \"%m/%d/%Y\"";
        let job = job(&column("ndz", "hashed = \"sha256-base64\""), rule);
        let mut digest = Vec::new();
        assert_eq!(Hashed::Sha256Base64.read(Value::Text(NDZ), &mut digest), Canonical::Text);
        let (index, _) = index(&job, &[&[Some(&digest)]]);
        let matcher = index.matcher(0, &job.datasets[0]);
        let Rule::All { composite, .. } = &matcher.rules[0] else { panic!("several columns") };
        let text = |text| vec![Placed { value: Value::Text(text), element: &[] }];
        let born = Value::Date(jiff::civil::date(1985, 7, 4));
        let (born, other) = (vec![Placed { value: born, element: &[] }], text("07/05/1985"));
        let in_list = |text, element| Placed { value: Value::Text(text), element };
        let (one, two) = (&[(1, 0)][..], &[(1, 1)][..]);
        for (first, last, born, zip, wanted) in [
            (text("Danielle"), text("JOHNSON"), text("7/4/1985"), text("91790-3771"), true),
            (text("Danielle"), text("Johnson"), born, text("91790"), true),
            (text("Danielle"), text("Johnson"), other, text("91790"), false),
            (text("Johnson"), text("Danielle"), text("07/04/1985"), text("91790"), false),
            (text("Danielle"), text("Johnson"), text("1985-07-04"), text("91790"), false),
            (text("Danielle"), text("Johnson"), text("07/04/1985"), vec![], false),
            (
                vec![in_list("Eve", one), in_list("Danielle", two)],
                vec![in_list("Johnson", two)],
                text("07/04/1985"),
                text("91790"),
                true,
            ),
            (vec![in_list("Danielle", one)], vec![in_list("Johnson", two)], text("07/04/1985"), text("91790"), false),
        ] {
            assert_eq!(composite.check(&[first, last, born, zip], &mut Scratch::default()), wanted);
        }
        assert!(composite.is_not_comparable(2, Value::Text("1985-07-04"), &mut Scratch::default()));
    }

    #[test]
    fn values_are_found_in_the_ledger_by_their_tags_however_often_they_are_asked() {
        let key = Arc::new(TagKey::new([5; 32]));
        let tag = |kind: &str, text: &str| key.raw_tag(kind, &Sha256::digest(text).into());
        let tags = [tag("email", "a@b.c"), tag("text", "1.50"), tag("numbers", "1.5"), tag("phone", "x@y.z")];
        for (kind, hashed, value, wanted) in [
            ("email", "", Value::Text(" A@B.c"), Check::Match),
            ("email", "", Value::Text("a@b.c"), Check::Match),
            ("email", "", Value::Text("x@y.z"), Check::NoMatch),
            ("email", "", Value::Text("nobody"), Check::NotComparable),
            ("email", "hashed = \"sha256-hex\"", Value::Bytes(&Sha256::digest("a@b.c")), Check::Match),
            ("email", "list_column = \"c\"", Value::Text("a@b.c"), Check::NoMatch),
            ("text", "", Value::Text("1.50"), Check::Match),
            ("text", "", Value::Text("1.5"), Check::NoMatch),
            ("text", "", Value::Decimal { unscaled: 15, scale: 1 }, Check::Match),
        ] {
            let job = job(&column(kind, ""), &rule(kind, hashed));
            let table = TagTable::build(tags.len(), tags.iter());
            let builder = Builder::new(&job.lists, &job.datasets, [7; 16]);
            let index = Arc::new(
                builder
                    .with_tags(Some(Tags {
                        key: key.clone(),
                        table,
                        numbers: Some("numbers"),
                        let_go: TagTable::default(),
                    }))
                    .finish()
                    .0,
            );
            let matcher = index.matcher(0, &job.datasets[0]);
            let Rule::Single { probe, .. } = &matcher.rules[0] else { panic!("a single rule") };
            for _ in 0..3 {
                assert_eq!(probe.check(value, &mut Scratch::default()), wanted, "{kind} {hashed}");
            }
        }
    }

    #[test]
    fn duplicates_are_counted_once() {
        let job = job(&column("email", ""), &rule("email", ""));
        let (index, added) = index(&job, &[&[Some(b"a@b.c")], &[Some(b"a@b.c")], &[None]]);
        assert_eq!((index.len(), added.duplicates, added.identifiers["email"]), (1, 1, 1));
    }
}
