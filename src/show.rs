//! What a person reads on stdout: the plan and the result as tables. Builds text; reads and decides nothing.

use std::fmt::Write;

use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, Table, TableComponent, Width};
use jiff::Timestamp;
use jiff::civil::Date;

use crate::error::Exit;
use crate::ledger_fold::{Holds, Request, Requests};
use crate::manifest::{ObjectCounts, Observations, Observed, Reappearance, Residue};
use crate::object_table::ObjectRow;
use crate::plan::{DatasetPlan, Plan, Step};

/// Objects that are named one by one before the rest is only counted.
const OBJECTS_SHOWN: usize = 50;

/// The plan: totals by dataset, then every object that would change or could not be looked at, with the reason.
pub fn plan(plan: &Plan) -> String {
    let mut out = String::new();
    let mut totals = table(&["dataset", "objects", "rewrite", "drop", "keep", "refuse", "rows", "matched", "purge"]);
    for dataset in &plan.datasets {
        totals.add_row([
            dataset.name.clone(),
            dataset.steps.len().to_string(),
            dataset.objects("rewrite").to_string(),
            dataset.objects("drop").to_string(),
            (dataset.objects("keep") + dataset.objects("skip")).to_string(),
            dataset.objects("refuse").to_string(),
            dataset.rows().to_string(),
            dataset.rows_matched().to_string(),
            dataset.versions.as_ref().map_or_else(|| "-".to_owned(), |_| dataset.versions("purge").to_string()),
        ]);
    }
    numbers_right(&mut totals, 1);
    line(&mut out, &totals.to_string());
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
    let all = dataset.steps.iter().chain(dataset.versions.iter().flatten());
    let changing: Vec<&Step> = all.filter(|step| step.decision.name() != "keep").collect();
    if changing.is_empty() {
        return;
    }
    let mut objects = table(&["object", "step", "reason"]);
    for step in changing.iter().take(OBJECTS_SHOWN) {
        let version = step.object.version_id.as_ref().map(|id| format!(" (version {id})")).unwrap_or_default();
        objects.add_row([format!("{}{version}", step.shown), step.decision.name().to_owned(), step.reason()]);
    }
    line(out, &objects.to_string());
    if changing.len() > OBJECTS_SHOWN {
        line(out, &format!("and {} more objects; --json lists all", changing.len() - OBJECTS_SHOWN));
    }
}

/// A count with its noun.
pub fn counted(count: u64, noun: &str) -> String {
    plural(count, noun, &format!("{noun}s"))
}

/// The column of the requests from which on there are dates.
const DATES_FROM: usize = 4;

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
    let mut all = table(&names[..names.len() - usize::from(!has_drop)]);
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
        all.add_row(cells.into_iter().chain(drop));
    }
    // A date is not broken.
    for column in all.column_iter_mut().skip(DATES_FROM).take(2) {
        column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(11)));
    }
    line(&mut out, &all.to_string());
    line(&mut out, &format!("{} of {}", shown.len(), counted(requests.len() as u64, "request")));
    out
}

/// The result of a run that wrote a manifest: totals by dataset, what did not go well, the verdict.
pub fn result(observed: &Observations, rows: &[ObjectRow], exit: Exit) -> String {
    let mut out = String::new();
    let mut totals = table(&[
        "dataset",
        "objects",
        "rewritten",
        "dropped",
        "rows before",
        "removed",
        "redacted",
        "after",
        "verified",
        "purged",
    ]);
    for dataset in &observed.datasets {
        let verified: u64 = rows
            .iter()
            .filter(|row| row.dataset == dataset.name && row.is_current)
            .filter_map(|row| row.rows_scanned)
            .sum();
        totals.add_row([
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
        ]);
    }
    numbers_right(&mut totals, 1);
    line(&mut out, &totals.to_string());
    let bad: Vec<&ObjectRow> = rows.iter().filter(|row| !row.outcome.is_clean()).collect();
    if !bad.is_empty() {
        let mut objects = table(&["object", "outcome", "reason"]);
        for row in bad.iter().take(OBJECTS_SHOWN) {
            let noncurrent = row.version_id.as_ref().filter(|_| !row.is_current);
            let version = noncurrent.map(|id| format!(" (version {id})")).unwrap_or_default();
            objects.add_row([
                format!("{}{version}", row.location),
                row.outcome.name().to_owned(),
                row.reason.clone().unwrap_or_default(),
            ]);
        }
        line(&mut out, &objects.to_string());
        if bad.len() > OBJECTS_SHOWN {
            line(&mut out, &format!("and {} more objects; objects.parquet lists all", bad.len() - OBJECTS_SHOWN));
        }
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

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    // To the terminal's width, where there is one. A rule below every row would double the length.
    table.load_preset(UTF8_HORIZONTAL_ONLY).set_content_arrangement(ContentArrangement::Dynamic).set_header(header);
    for column in table.column_iter_mut() {
        column.set_padding((0, 1));
    }
    for inner in [TableComponent::HorizontalLines, TableComponent::MiddleIntersections] {
        table.remove_style(inner);
    }
    table
}

fn numbers_right(table: &mut Table, from: usize) {
    for column in table.column_iter_mut().skip(from) {
        column.set_cell_alignment(CellAlignment::Right);
    }
}

/// `1 row`, `2 rows`.
pub fn plural(count: u64, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

fn line(out: &mut String, text: &str) {
    writeln!(out, "{text}").expect("writing to a string cannot fail");
}
