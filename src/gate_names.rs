//! Names of objects, as the gate judges and shows them: by the very steps of [`verify_names`], so that it stops and hides what a
//! scrub would drop and hide.
//!
//! The verifier reads the whole ledger anew, which takes seconds; here the same questions go to the index that rows are matched with.

use std::collections::BTreeSet;
use std::mem::discriminant;
use std::sync::Arc;

use polars::prelude::{PolarsResult, Series};

use crate::identifier::{ColumnPath, Hashed, Kind, Value};
use crate::job::{DatasetSpec, Job, ListColumn, MatchPart, MatchRule};
use crate::match_index::{MatchIndex, Matcher};
use crate::residue::Named;
use crate::store::Location;
use crate::verify_names::{self, KnowsListed, is_named};
use crate::verify_tokens::{Around, tokens};
use crate::verify_words::{Hit, look_of, looks_of};

/// The datasets that the index is made for: the job's, and a made-up one behind them whose rules ask for whatever a name may hold.
pub fn datasets(job: &Job) -> Vec<DatasetSpec> {
    let words = job.datasets.first().map(|spec| DatasetSpec { rules: rules(job), ..spec.clone() });
    job.datasets.iter().cloned().chain(words).collect()
}

/// Asks for all that is listed of a look that can be told in running text, whatever the job's rules ask for: what
/// [`verify_list`](crate::verify_list) searches texts for. Each rule has a column of its own.
fn rules(job: &Job) -> Vec<MatchRule> {
    let compared = || job.datasets.iter().flat_map(|spec| &spec.rules).flat_map(MatchRule::compared);
    let listed = || job.lists.iter().flat_map(|list| &list.columns);
    let is_told = |kind: &Kind| !looks_of(kind).is_empty();
    let of_rules = compared().filter(|part| part.list_column.is_none()).map(|part| part.kind.clone());
    let of_lists = listed().filter(|column| column.hashed.is_some() || is_told(&column.kind));
    let of_ledger = Kind::NAMES.iter().filter(|_| job.ledger.is_some()).filter_map(|name| Kind::parse(name, None));
    let mut kinds: Vec<Kind> = Vec::new();
    for kind in of_rules.chain(of_lists.map(|column| column.kind.clone())).chain(of_ledger.filter(is_told)) {
        if !kinds.iter().any(|known| discriminant(known) == discriminant(&kind)) {
            kinds.push(kind);
        }
    }
    let mut rules = Vec::new();
    for kind in kinds {
        let is_like = |other: &Kind| discriminant(other) == discriminant(&kind);
        let in_lists = listed().filter(|ListColumn { kind, .. }| is_like(kind)).filter_map(|column| column.hashed);
        let in_data = compared().filter(|part| is_like(&part.kind)).filter_map(|part| part.hashed);
        let mut hashes: Vec<Hashed> = in_lists.chain(in_data).collect();
        hashes.sort_unstable_by_key(|hashed| look_of(*hashed));
        hashes.dedup();
        for hashed in is_told(&kind).then_some(None).into_iter().chain(hashes.into_iter().map(Some)) {
            let column = ColumnPath(vec![rules.len().to_string()]);
            rules.push(MatchRule::Single(MatchPart { column, kind: kind.clone(), hashed, list_column: None }));
        }
    }
    rules
}

/// What is listed, as the names of one dataset's objects are asked for it.
pub struct Names<'a> {
    spec: &'a DatasetSpec,
    /// Of the dataset's own rules.
    matcher: Arc<Matcher>,
    /// Of the made-up dataset.
    words: Matcher,
    parts: Vec<MatchPart>,
}

impl<'a> Names<'a> {
    /// For a dataset whose rules `matcher` has; `datasets` are those that the index was made for, see [`datasets`].
    pub fn new(
        index: &Arc<MatchIndex>,
        datasets: &[DatasetSpec],
        spec: &'a DatasetSpec,
        matcher: Arc<Matcher>,
    ) -> Names<'a> {
        let number = datasets.len() - 1;
        let parts = datasets[number].rules.iter().flat_map(MatchRule::parts).cloned().collect();
        Names { spec, matcher, words: index.matcher(number, &datasets[number]), parts }
    }

    /// The listed identifiers in an object's name. A name that cannot be looked into is hidden whole.
    pub fn named(&self, location: &Location) -> Vec<Named> {
        let whole = || Named { range: 0..location.to_string().len(), kind: "text", digest: [0; 32], is_certain: false };
        verify_names::named(self.spec.scope.root(), location, self).unwrap_or_else(|_| vec![whole()])
    }
}

impl KnowsListed for Names<'_> {
    fn in_partition(&self, name: &str, value: &Series) -> PolarsResult<Vec<(Kind, Option<Hashed>)>> {
        let value = value.str()?.get(0).unwrap_or_default();
        let columns = self.matcher.columns.iter().filter(|column| is_named(name, column));
        let listed = columns.filter(|column| self.matcher.matches(column, Value::Text(value)));
        let of_column = |column: &ColumnPath| {
            let singles = self.spec.rules.iter().filter(|rule| matches!(rule, MatchRule::Single(_)));
            let mut parts = singles.flat_map(MatchRule::parts).filter(|part| part.column == *column);
            parts.next().map(|part| (part.kind.clone(), part.hashed))
        };
        Ok(listed.filter_map(of_column).collect())
    }

    fn in_texts(&self, texts: &[&[u8]]) -> PolarsResult<Vec<Hit>> {
        let mut hits = Vec::new();
        for (text, bytes) in texts.iter().enumerate() {
            // Some are given several times, decoded and not.
            let mut asked = BTreeSet::new();
            tokens(bytes, Around::Text, &mut |token| {
                if !asked.insert((token.look, token.range.start, token.range.end, token.text.clone())) {
                    return;
                }
                let reads = |part: &&MatchPart| match part.hashed {
                    None => looks_of(&part.kind).contains(&token.look),
                    Some(hashed) => look_of(hashed) == token.look,
                };
                let value = Value::Text(&token.text);
                let listed = self.parts.iter().filter(reads).filter(|part| self.words.matches(&part.column, value));
                hits.extend(listed.map(|part| Hit {
                    text,
                    range: token.range.clone(),
                    kind: part.kind.clone(),
                    hashed: part.hashed,
                    token: token.text.clone(),
                    look: token.look,
                }));
            });
        }
        Ok(hits)
    }
}
