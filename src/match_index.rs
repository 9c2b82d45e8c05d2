//! The match index: every listed identifier in one flat set, and the rules of a dataset compiled against it.
//!
//! [`crate::match_builder`] fills it, [`crate::match_probe`] asks for one value and [`crate::match_composite`] for several of a row.
//! No I/O and no clock. An entry is kept only as two 64-bit keyed hashes of its comparison form, XXH3 with a random secret of this
//! process and SipHash-1-3 with a random key: the index costs at most 29 bytes an identifier whatever its length and holds nothing
//! readable. Two different values compare equal with a probability of 2^-128, and of 2^-64 should somebody outside be able
//! to construct values that collide under an XXH3 whose secret they do not know.

use std::collections::BTreeMap;
use std::hash::Hasher;
use std::sync::Arc;

use siphasher::sip::SipHasher13;
use xxhash_rust::xxh3::xxh3_64_with_secret;

use crate::identifier::{ColumnPath, HashFunction, Hashed, Kind, Value};
use crate::job::{DatasetSpec, MatchRule};
use crate::key_table::{Key, KeyTable};
pub use crate::match_builder::{Added, Builder};
pub use crate::match_composite::Composite;
pub use crate::match_probe::{Check, Probe, Scratch};
use crate::screen::Screen;
use crate::signature::TagKey;
use crate::tag_table::TagTable;
use crate::unlisted::Unlisted;

/// In which form two identifiers of one kind are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Form {
    Plain,
    /// The number that an entry of kind `text` stands for.
    Number,
    Hash(HashFunction),
}

/// One logical set of the index: entries of a kind in a form, from any list column or from those of one name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct SetName {
    pub(crate) kind: &'static str,
    pub(crate) form: Form,
    pub(crate) list_column: Option<String>,
}

/// A composite rule against lists of one shape: the form in which each part is compared.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct CompositeName {
    pub(crate) dataset: usize,
    pub(crate) rule: usize,
    pub(crate) forms: Vec<Form>,
}

/// Every listed identifier that a job's rules can ask for. Built by [`Builder`].
pub struct MatchIndex {
    pub(crate) keys: KeyTable,
    pub(crate) secret: Secret,
    pub(crate) sets: BTreeMap<SetName, u16>,
    pub(crate) composites: BTreeMap<CompositeName, u16>,
    /// Of the e-mail addresses that are listed as they are.
    pub(crate) screen: Arc<Screen>,
    pub(crate) tags: Option<Tags>,
    /// What the ledger was asked for in vain.
    pub(crate) unlisted: Unlisted,
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
pub(crate) struct Secret {
    pub(crate) xxh3: [u8; SECRET_BYTES],
    pub(crate) sip: (u64, u64),
}

/// As long as XXH3's own secret.
const SECRET_BYTES: usize = 192;

impl Secret {
    /// Stretches a random seed.
    pub(crate) fn new(seed: [u8; 16]) -> Self {
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
pub(crate) struct Hashes<'a> {
    secret: &'a Secret,
    set: u16,
    bytes: &'a [u8],
    pub(crate) fast: u64,
}

impl<'a> Hashes<'a> {
    #[inline]
    pub(crate) fn new(secret: &'a Secret, set: u16, bytes: &'a [u8]) -> Self {
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

pub(crate) fn form_of(hashed: Option<Hashed>) -> Form {
    hashed.map_or(Form::Plain, |hashed| Form::Hash(hashed.function()))
}

impl MatchIndex {
    /// How many keys the index holds.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    pub(crate) fn set(&self, kind: &Kind, form: Form, list_column: &Option<String>) -> Option<u16> {
        self.sets.get(&SetName { kind: kind.name(), form, list_column: list_column.clone() }).copied()
    }

    #[inline]
    pub(crate) fn holds(&self, set: u16, bytes: &[u8]) -> bool {
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
                    composite: self.joined(parts, whole),
                },
            })
            .collect();
        Matcher { columns, rules }
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use sha2::{Digest, Sha256};

    use super::*;
    use crate::column_values::Placed;
    use crate::identifier::Canonical;
    use crate::job::Job;
    use crate::request::Entry;

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

    /// A value that was told ahead is answered as one that was not: with the slow twin for addresses that have no fingerprint.
    #[test]
    fn what_is_told_ahead_changes_no_answer() {
        let job = job(&column("email", ""), &rule("email", ""));
        let listed: Vec<String> = (0..200).map(|i| format!("{}{i}@x.org", "p".repeat(i % 70))).collect();
        let rows: Vec<[Option<&[u8]>; 1]> = listed.iter().map(|text| [Some(text.as_bytes())]).collect();
        let (index, _) = index(&job, &rows.iter().map(|row| row.as_slice()).collect::<Vec<_>>());
        let matcher = index.matcher(0, &job.datasets[0]);
        let Rule::Single { probe, .. } = &matcher.rules[0] else { panic!("a single rule") };
        let spellings = |text: &String| {
            [text.clone(), text.to_uppercase(), format!(" {text}"), format!("{text}g"), text.replace('@', "")]
        };
        let (mut scratch, mut matched) = (Scratch::default(), 0);
        for value in listed.iter().flat_map(spellings).chain(["a@b".into(), String::new(), "é@x.org".into()]) {
            let bytes = value.as_bytes();
            let ahead = probe.check_bytes(bytes, true, Some(probe.fetch(bytes)), &mut scratch);
            assert_eq!(ahead, probe.check_bytes(bytes, true, None, &mut scratch), "{value}");
            matched += usize::from(ahead == Check::Match);
        }
        assert_eq!(matched, 3 * listed.len());
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
