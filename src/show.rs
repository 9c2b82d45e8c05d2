//! What a person reads on stdout: the plan and the result as tables. Builds text; reads and decides nothing.

use std::fmt::Write;

use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use comfy_table::{CellAlignment, Table};

use crate::plan::{DatasetPlan, Plan, Step};

/// Objects that are named one by one before the rest is only counted.
const OBJECTS_SHOWN: usize = 50;

/// The plan: totals by dataset, then every object that would change or could not be looked at, with the reason.
pub fn plan(plan: &Plan) -> String {
    let mut out = String::new();
    let mut totals = table(&["dataset", "objects", "rewrite", "drop", "keep", "refuse", "rows", "matched"]);
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
        line(out, &format!("{}: {count} values of column {column} could not be compared", dataset.name));
    }
    if dataset.steps.is_empty() {
        line(out, &format!("{}: no object matches {}", dataset.name, dataset.uri));
    }
    let changing: Vec<&Step> = dataset.steps.iter().filter(|step| step.decision.name() != "keep").collect();
    if changing.is_empty() {
        return;
    }
    let mut objects = table(&["object", "step", "reason"]);
    for step in changing.iter().take(OBJECTS_SHOWN) {
        objects.add_row([step.object.location.to_string(), step.decision.name().to_owned(), step.reason()]);
    }
    line(out, &objects.to_string());
    if changing.len() > OBJECTS_SHOWN {
        line(out, &format!("and {} more objects; --json lists all", changing.len() - OBJECTS_SHOWN));
    }
}

pub(crate) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(UTF8_HORIZONTAL_ONLY).set_header(header);
    table
}

pub(crate) fn numbers_right(table: &mut Table, from: usize) {
    for column in table.column_iter_mut().skip(from) {
        column.set_cell_alignment(CellAlignment::Right);
    }
}

fn line(out: &mut String, text: &str) {
    writeln!(out, "{text}").expect("writing to a string cannot fail");
}
