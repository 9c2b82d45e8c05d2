//! What a person reads on stdout: the plan and the result as tables. Builds text; reads and decides nothing.

use std::collections::BTreeMap;
use std::fmt::Write;

use jiff::Timestamp;
use jiff::civil::Date;

use crate::error::Exit;
use crate::ledger_fold::{Holds, Request, Requests};
use crate::manifest::{ObjectCounts, Observations, Observed, Reappearance, Residue};
use crate::object_table::ObjectRow;
use crate::plan::{DatasetPlan, Plan, Step};
use crate::show_table;

/// Objects that are named one by one before the rest is only counted.
const OBJECTS_SHOWN: usize = 50;

/// The plan: totals by dataset, then every object that would change or could not be looked at, with the reason.
pub fn plan(plan: &Plan) -> String {
    let mut out = String::new();
    let totals = plan.datasets.iter().map(|dataset| {
        vec![
            dataset.name.clone(),
            dataset.steps.len().to_string(),
            dataset.objects("rewrite").to_string(),
            dataset.objects("drop").to_string(),
            (dataset.objects("keep") + dataset.objects("skip")).to_string(),
            dataset.objects("refuse").to_string(),
            dataset.rows().to_string(),
            dataset.rows_matched().to_string(),
            dataset.versions.as_ref().map_or_else(|| "-".to_owned(), |_| dataset.versions("purge").to_string()),
        ]
    });
    let heads = ["dataset", "objects", "rewrite", "drop", "keep", "refuse", "rows", "matched", "purge"];
    out += &show_table::numbers(&heads, &totals.collect::<Vec<_>>());
    for dataset in &plan.datasets {
        steps(&mut out, dataset);
    }
    line(&mut out, "nothing was written");
    out
}

fn steps(out: &mut String, dataset: &DatasetPlan) {
    for (column, count) in &dataset.not_comparable {
        line(out, &not_comparable(&dataset.name, column, *count));
    }
    if let Some(error) = &dataset.unlisted {
        line(out, &error.message);
    } else if dataset.steps.is_empty() {
        line(out, &format!("{}: no object matches {}", dataset.name, dataset.uri));
    }
    let strays: BTreeMap<String, u64> =
        dataset.strays().into_iter().map(|(column, cells)| (column.to_string(), cells)).collect();
    if !strays.is_empty() {
        let rows = plural(dataset.rows_strayed(), "row that does not match", "rows that do not match");
        line(out, &format!("{}: {}, with those in {rows}: to be redacted", dataset.name, stray_cells(&strays)));
    }
    let all = || dataset.steps.iter().chain(dataset.versions.iter().flatten());
    let changing: Vec<&Step> = all().filter(|step| step.decision.name() != "keep").collect();
    let objects = changing.iter().take(OBJECTS_SHOWN).map(|step| {
        let version = step.object.version_id.as_ref().map(|id| format!(" (version {id})")).unwrap_or_default();
        [format!("{}{version}", step.shown), step.decision.name().to_owned(), step.reason()]
    });
    let folder = folder(all().map(|step| step.shown.as_str()));
    titled(out, &dataset.name, folder, "step", objects.collect());
    if changing.len() > OBJECTS_SHOWN {
        line(out, &format!("and {} more objects; --json lists all", changing.len() - OBJECTS_SHOWN));
    }
}

/// Objects of one dataset, by their names below `folder`.
fn titled(out: &mut String, dataset: &str, folder: &str, head: &str, objects: Vec<[String; 3]>) {
    if objects.is_empty() {
        return;
    }
    line(out, &format!("{dataset}, in {}", if folder.is_empty() { "several places" } else { folder }));
    let short = |name: String| name.strip_prefix(folder).map(str::to_owned).unwrap_or(name);
    let rows: Vec<Vec<String>> =
        objects.into_iter().map(|[name, step, reason]| vec![short(name), step, reason]).collect();
    *out += &show_table::texts(&["object", head, "reason"], &rows);
}

/// The folder that all objects lie in, with its slash.
fn folder<'a>(mut names: impl Iterator<Item = &'a str>) -> &'a str {
    let Some(first) = names.next() else { return "" };
    let up_to_slash = |text: &'a str| &text[..text.rfind('/').map_or(0, |at| at + 1)];
    names.fold(up_to_slash(first), |folder, name| {
        let same = folder.bytes().zip(name.bytes()).take_while(|(a, b)| a == b).count();
        // A slash is one byte, so that this ends between two letters.
        &folder[..folder.as_bytes()[..same].iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1)]
    })
}

/// Cells that hold a stray identifier, by column.
fn stray_cells(columns: &BTreeMap<String, u64>) -> String {
    let cells = columns
        .iter()
        .map(|(column, cells)| format!("{} of column {column}", plural(*cells, "stray cell", "stray cells")));
    cells.collect::<Vec<_>>().join(", ")
}

/// A count with its noun.
pub fn counted(count: u64, noun: &str) -> String {
    plural(count, noun, &format!("{noun}s"))
}

/// What is shown of a request beside what the ledger says.
pub struct RequestRow {
    pub due: Option<Date>,
    /// What DROP is told; `None`: it is none of DROP's work items.
    pub drop: Option<String>,
}

/// Requests of the ledger with their rows, one a line.
pub fn requests(requests: &Requests, shown: &[&Request], rows: &[RequestRow], holds: &Holds, now: Timestamp) -> String {
    let mut out = String::new();
    let names = ["request", "state", "source", "kinds", "received", "due", "removed", "verified", "DROP"];
    let has_drop = rows.iter().any(|row| row.drop.is_some());
    let mut all: Vec<Vec<String>> = Vec::new();
    let day = |time: Timestamp| time.strftime("%Y-%m-%d").to_string();
    for (request, row) in shown.iter().zip(rows) {
        let mut kinds: Vec<&str> = requests.identifiers(request).map(|identifier| &*identifier.kind).collect();
        kinds.dedup();
        let cells = [
            plain(&request.id),
            match requests.held_by(request, holds).is_empty() {
                true => request.state(now).name().to_owned(),
                false => format!("{} (held)", request.state(now).name()),
            },
            plain(&request.source),
            kinds.join(" "),
            request.received_at.map_or_else(|| format!("recorded {}", day(request.recorded_at)), day),
            row.due.map_or_else(|| "-".to_owned(), |due| due.to_string()),
            request.rows_removed().to_string(),
            request.verified.as_ref().map_or_else(|| "-".to_owned(), |verified| day(verified.at)),
        ];
        let drop = has_drop.then(|| row.drop.clone().unwrap_or_else(|| "-".to_owned()));
        all.push(cells.into_iter().chain(drop).collect());
    }
    out += &show_table::records(&names[..names.len() - usize::from(!has_drop)], &all);
    line(&mut out, &format!("{} of {}", shown.len(), counted(requests.len() as u64, "request")));
    out
}

/// The result of a run that wrote a manifest: totals by dataset, what did not go well, the verdict.
pub fn result(observed: &Observations, rows: &[ObjectRow], exit: Exit) -> String {
    let mut out = String::new();
    let totals = observed.datasets.iter().map(|dataset| {
        let of_dataset = rows.iter().filter(|row| row.dataset == dataset.name && row.is_current);
        let verified: u64 = of_dataset.filter_map(|row| row.rows_scanned).sum();
        vec![
            dataset.name.clone(),
            count(in_scope(&dataset.objects)),
            count(dataset.objects.rewritten),
            count(dataset.objects.dropped),
            count(dataset.rows.before),
            count(dataset.rows.removed),
            count(dataset.rows.redacted),
            count(dataset.rows.after),
            verified.to_string(),
            count(dataset.versions.purged),
        ]
    });
    let heads = ["dataset", "objects", "written", "gone", "rows", "removed", "redacted", "after", "verified", "purged"];
    out += &show_table::numbers(&heads, &totals.collect::<Vec<_>>());
    for dataset in &observed.datasets {
        if let Observed::Seen(columns) = &dataset.strays_redacted
            && !columns.is_empty()
        {
            line(&mut out, &format!("{}: {} redacted", dataset.name, stray_cells(columns)));
        }
    }
    let mut room = OBJECTS_SHOWN;
    for dataset in &observed.datasets {
        let of_dataset = || rows.iter().filter(|row| row.dataset == dataset.name);
        let bad = of_dataset().filter(|row| !row.outcome.is_clean()).take(room).map(|row| {
            let noncurrent = row.version_id.as_ref().filter(|_| !row.is_current);
            let version = noncurrent.map(|id| format!(" (version {id})")).unwrap_or_default();
            [
                format!("{}{version}", row.location),
                row.outcome.name().to_owned(),
                row.reason.clone().unwrap_or_default(),
            ]
        });
        let bad: Vec<_> = bad.collect();
        room -= bad.len();
        titled(&mut out, &dataset.name, folder(of_dataset().map(|row| row.location.as_str())), "outcome", bad);
    }
    let bad = rows.iter().filter(|row| !row.outcome.is_clean()).count();
    if bad > OBJECTS_SHOWN {
        line(&mut out, &format!("and {} more objects; objects.parquet lists all", bad - OBJECTS_SHOWN));
    }
    for dataset in &observed.datasets {
        if let Observed::Seen(columns) = &dataset.not_comparable {
            columns.iter().for_each(|(column, count)| line(&mut out, &not_comparable(&dataset.name, column, *count)));
        }
    }
    let verification = &observed.verification;
    let counted = |count: Observed<u64>, one: &str, many: &str| match count {
        Observed::Seen(count) => plural(count, one, many),
        Observed::NotChecked => format!("- {many}"),
    };
    let verified = counted(verification.rows, "row", "rows");
    let objects = counted(verification.objects, "object", "objects");
    let (engine, engine_version) = (&verification.engine, &verification.engine_version);
    line(&mut out, &format!("lists     {}", plural(listed(observed), "identifier", "identifiers")));
    line(&mut out, &format!("verified  {verified} of {objects} with {engine} {engine_version}"));
    line(&mut out, &format!("residue   {}", residue(&verification.residue)));
    let canaries = &verification.canaries;
    if let (Observed::Seen(planted), Observed::Seen(found)) = (canaries.planted, canaries.found) {
        let removed = canaries.removed.or(0);
        line(&mut out, &format!("canaries  {planted} planted, {found} found, {removed} removed"));
    }
    for back in observed.ledger.iter().flat_map(|ledger| &ledger.reappearances) {
        let Reappearance { object, requests, request_ids, rows, since, written_by, .. } = back;
        let (requests, rows) = (plural(*requests, "request", "requests"), plural(*rows, "row", "rows"));
        let ids = request_ids.join(", ");
        let since = since.map(|since| format!(", last seen clean at {since}")).unwrap_or_default();
        let by = written_by.as_ref().map(|by| format!(", written by {by}")).unwrap_or_default();
        line(&mut out, &format!("back      {requests} ({ids}) in {rows} of {object}{since}{by}"));
    }
    line(&mut out, &format!("verdict   {} (exit {})", observed.verdict.name(), exit.code()));
    out
}

/// One line as a terminal may have it: what a list gives as an id must not move the cursor, or be a line of its own.
pub fn plain(text: &str) -> String {
    let escaped = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    if text.contains(char::is_control) { text.chars().map(escaped).collect() } else { text.to_owned() }
}

/// What was no identifier of a column's kind.
pub fn not_comparable(dataset: &str, column: &str, count: u64) -> String {
    format!("{dataset}: {}", no_identifiers(column, count))
}

pub fn no_identifiers(column: &str, count: u64) -> String {
    match count {
        1 => format!("1 value of column {column} is no identifier of its kind and was not compared"),
        _ => format!("{count} values of column {column} are no identifiers of its kind and were not compared"),
    }
}

/// Rows always; the other places only where something was found.
fn residue(residue: &Residue) -> String {
    let mut words = vec![format!("{} rows", count(residue.rows))];
    let places = [
        (residue.statistics, "statistics"),
        (residue.dictionaries, "dictionary entries"),
        (residue.filters, "bloom filters"),
        (residue.metadata, "metadata entries"),
        (residue.gaps, "gaps"),
        (residue.labels, "user metadata entries and tags"),
        (residue.paths, "names"),
        (residue.versions, "versions"),
        (residue.undeclared, "cells of undeclared columns"),
    ];
    words.extend(
        places.iter().filter(|(found, _)| found.or(0) > 0).map(|(found, name)| format!("{} {name}", count(*found))),
    );
    words.join(", ")
}

fn in_scope(objects: &ObjectCounts) -> Observed<u64> {
    match objects.listed {
        Observed::Seen(listed) => Observed::Seen(listed - objects.not_in_scope.or(0)),
        Observed::NotChecked => Observed::NotChecked,
    }
}

fn listed(observed: &Observations) -> u64 {
    observed.lists.iter().flat_map(|list| list.identifiers.values()).sum()
}

fn count(observed: Observed<u64>) -> String {
    match observed {
        Observed::Seen(count) => count.to_string(),
        Observed::NotChecked => "-".to_owned(),
    }
}

/// `1 row`, `2 rows`.
pub fn plural(count: u64, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

fn line(out: &mut String, text: &str) {
    writeln!(out, "{text}").expect("writing to a string cannot fail");
}
