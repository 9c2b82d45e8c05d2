//! What only a whole job shows to be wrong: its parts beside one another.
//!
//! Invariant: a job that could never come out clean, or would scrub its own lists or state, is a fault before anything is read.

use crate::action::Action;
use crate::deadline::Regimes;
use crate::identifier::HashFunction;
use crate::job::{DatasetSpec, LedgerList, ListColumn, ListSpec, MatchPart, MatchRule, Scope, State};
use crate::store::Location;
use crate::toml_reader::Table;

pub(crate) fn check_names<'a>(top: &Table<'_>, key: &str, names: impl Iterator<Item = &'a str>) {
    let mut seen = std::collections::HashSet::new();
    for name in names.filter(|name| !seen.insert(*name)) {
        top.fault(key, format!("two are named \"{name}\""));
    }
}

pub(crate) fn check_regimes(top: &Table<'_>, lists: &[ListSpec], regimes: &Regimes) {
    for list in lists {
        if let Some(regime) = list.regime.as_ref().filter(|regime| regimes.get(regime).is_none()) {
            top.fault("list", format!("{}: regime \"{regime}\" is none of {}", list.name, regimes.ids().join(", ")));
        }
    }
}

/// A pair that can never be compared is a fault, never "clean": a list of one hash function against a column of another, and a
/// composite whose list columns no list has.
pub(crate) fn check_comparable(top: &Table<'_>, lists: &[ListSpec], datasets: &[DatasetSpec]) {
    for dataset in datasets {
        for rule in &dataset.rules {
            for part in rule.compared() {
                let columns = || lists.iter().flat_map(|list| list.columns.iter().map(move |column| (list, column)));
                let feeds = |column: &ListColumn| part.list_column.as_ref().is_none_or(|name| *name == column.column);
                for (list, column) in
                    columns().filter(|(_, column)| feeds(column) && column.kind.same_family(&part.kind))
                {
                    if let (Some(listed), Some(stored)) = (column.hashed, part.hashed)
                        && listed.function() != stored.function()
                    {
                        top.fault(
                            "dataset",
                            format!(
                                "{}: column {} holds {} but list {} column {} holds {}: they can never be compared",
                                dataset.name,
                                part.column,
                                stored.name(),
                                list.name,
                                column.column,
                                listed.name()
                            ),
                        );
                    }
                }
                if let Some(name) = &part.list_column
                    && !columns().any(|(_, column)| column.column == *name && column.kind.same_family(&part.kind))
                {
                    top.fault(
                        "dataset",
                        format!("{}: no list has a column \"{name}\" of kind {}", dataset.name, part.kind.name()),
                    );
                }
            }
        }
    }
}

/// The ledger's tags are made from SHA-256: a column of another hash function can never be compared with them.
pub(crate) fn check_ledger(top: &Table<'_>, ledgers: &[LedgerList], datasets: &[DatasetSpec]) {
    let Some(ledger) = ledgers.first() else { return };
    if ledgers.len() > 1 {
        top.fault("list", "only one can be the ledger: it holds the requests of all sources");
    }
    for dataset in datasets {
        for part in dataset.rules.iter().flat_map(MatchRule::compared).filter(|part| part.list_column.is_none()) {
            let Some(hashed) = part.hashed.filter(|hashed| hashed.function() != HashFunction::Sha256) else { continue };
            top.fault(
                "dataset",
                format!(
                    "{}: column {} holds {} but list {} is the ledger, whose tags are made from SHA-256: they can never be compared",
                    dataset.name,
                    part.column,
                    hashed.name(),
                    ledger.name
                ),
            );
        }
    }
}

/// A list inside a dataset would be scrubbed empty, and a state inside one would be scanned as data; what is hidden by its name
/// (`.lakescrub/`) is no part of a dataset.
pub(crate) fn check_apart(top: &Table<'_>, lists: &[ListSpec], datasets: &[DatasetSpec], state: Option<&State>) {
    let is_inside = |dataset: &DatasetSpec, inner: &Location| {
        let Scope::Prefix(root) = &dataset.scope else { return dataset.scope == Scope::Object(inner.clone()) };
        let (root, inner) = (root.to_string(), inner.to_string());
        let below = inner.trim_end_matches('/').strip_prefix(root.trim_end_matches('/'));
        // The dataset's root itself is in it.
        let below = below.and_then(|rest| if rest.is_empty() { Some(rest) } else { rest.strip_prefix('/') });
        below.is_some_and(|below| !below.split('/').any(|segment| segment.starts_with(['_', '.'])))
    };
    for dataset in datasets {
        for list in lists.iter().filter(|list| is_inside(dataset, list.scope.root())) {
            top.fault("list", format!("{} lies in dataset {}, which would be scrubbed of it", list.name, dataset.name));
        }
        if state.is_some_and(|state| is_inside(dataset, &state.location)) {
            top.fault("state.uri", format!("lies in dataset {}, where it would be read as data", dataset.name));
        }
    }
}

/// A redacted row must not match again: every rule needs a redacted column, or the identifier stays and each run finds it anew.
pub(crate) fn check_redaction(top: &Table<'_>, dataset: &DatasetSpec) {
    let Action::Redact(columns) = &dataset.action else { return };
    for rule in &dataset.rules {
        let covered = |part: &MatchPart| columns.iter().any(|redact| redact.column == part.column);
        if !rule.parts().iter().any(covered) {
            let columns: Vec<String> = rule.parts().iter().map(|part| part.column.to_string()).collect();
            top.fault(
                "dataset",
                format!(
                    "{}: {} is matched but not redacted, so its identifiers would stay",
                    dataset.name,
                    columns.join(" and ")
                ),
            );
        }
    }
}
