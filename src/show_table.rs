//! Tables as a terminal can show them: no word is broken, and what is too wide for the terminal stands in blocks, one a record.
//!
//! Knows nothing of what stands in the cells. Without a terminal a table is as wide as it is: whoever reads it has tools to cut it.

use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use comfy_table::{CellAlignment, ContentArrangement, Table, TableComponent};

/// A last column gets so many letters at least before the rows become blocks.
const TEXT_WIDTH_MIN: usize = 24;

/// A reason longer than this is told once, where rows one after the other have it.
const REPEATED_MAX: usize = 16;

/// Between two columns.
const GAP: usize = 1;

/// A name, then numbers.
pub fn numbers(heads: &[&str], rows: &[Vec<String>]) -> String {
    numbers_within(heads, rows, terminal_width())
}

/// Short texts, the last of which may be a long one: it is broken between words.
pub fn texts(heads: &[&str], rows: &[Vec<String>]) -> String {
    texts_within(heads, rows, terminal_width())
}

/// Texts of which none is broken, so that each can be copied.
pub fn records(heads: &[&str], rows: &[Vec<String>]) -> String {
    records_within(heads, rows, terminal_width())
}

/// Of stdout, if that is a terminal.
fn terminal_width() -> Option<usize> {
    Table::new().width().map(usize::from)
}

fn numbers_within(heads: &[&str], rows: &[Vec<String>], width: Option<usize>) -> String {
    match width {
        Some(width) if natural_width(heads, rows) > width => blocks(heads, rows, width, ""),
        Some(_) | None => drawn(heads, rows, true),
    }
}

fn records_within(heads: &[&str], rows: &[Vec<String>], width: Option<usize>) -> String {
    match width {
        Some(width) if natural_width(heads, rows) > width => blocks(heads, rows, width, "-"),
        Some(_) | None => drawn(heads, rows, false),
    }
}

fn texts_within(heads: &[&str], rows: &[Vec<String>], width: Option<usize>) -> String {
    let mut rows = rows.to_vec();
    // Bottom to top: each is compared with the one above it as it was.
    for number in (1..rows.len()).rev() {
        let (above, row) = (rows[number - 1].last().cloned(), &mut rows[number]);
        if let Some(text) = row.last_mut()
            && text.chars().count() > REPEATED_MAX
            && above.as_ref() == Some(text)
        {
            *text = "as above".to_owned();
        }
    }
    let Some(width) = width else { return drawn(heads, &rows, false) };
    let taken: usize = widths(heads, &rows).iter().rev().skip(1).map(|width| width + GAP).sum();
    let left = width.saturating_sub(taken);
    if left < TEXT_WIDTH_MIN && natural_width(heads, &rows) > width {
        return blocks(heads, &rows, width, "");
    }
    for text in rows.iter_mut().filter_map(|row| row.last_mut()) {
        *text = wrapped(text.split(' '), " ", left).join("\n");
    }
    drawn(heads, &rows, false)
}

fn widths(heads: &[&str], rows: &[Vec<String>]) -> Vec<usize> {
    let letters = |text: &str| text.chars().count();
    let column = |(number, head): (usize, &&str)| {
        rows.iter().map(|row| letters(&row[number])).chain([letters(head)]).max().unwrap_or(0)
    };
    heads.iter().enumerate().map(column).collect()
}

fn natural_width(heads: &[&str], rows: &[Vec<String>]) -> usize {
    widths(heads, rows).iter().map(|width| width + GAP).sum()
}

fn drawn(heads: &[&str], rows: &[Vec<String>], numbers: bool) -> String {
    let mut table = Table::new();
    // A rule below every row would double the length.
    table.load_preset(UTF8_HORIZONTAL_ONLY).set_content_arrangement(ContentArrangement::Disabled).set_header(heads);
    for inner in [TableComponent::HorizontalLines, TableComponent::MiddleIntersections] {
        table.remove_style(inner);
    }
    for row in rows {
        table.add_row(row);
    }
    for (number, column) in table.column_iter_mut().enumerate() {
        // The line between two columns, which is a space, is gap enough.
        column.set_padding((0, 0));
        if numbers && number > 0 {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    format!("{table}\n")
}

/// Each record under its first cell, which stands alone; the others with their heads, broken between them or between words. Cells that
/// are `nothing` are left out.
fn blocks(heads: &[&str], rows: &[Vec<String>], width: usize, nothing: &str) -> String {
    const INDENT: usize = 2;
    let mut out = String::new();
    for row in rows {
        out += &format!("{}\n", row[0]);
        let items: Vec<String> = heads
            .iter()
            .zip(row)
            .skip(1)
            .filter(|(_, cell)| *cell != nothing)
            .map(|(head, cell)| format!("{head} {cell}"))
            .collect();
        for line in wrapped(items.iter().map(String::as_str), "   ", width.saturating_sub(INDENT)) {
            for part in wrapped(line.split(' '), " ", width.saturating_sub(INDENT)) {
                out += &format!("{:INDENT$}{part}\n", "");
            }
        }
    }
    out
}

/// As many parts a line as fit; a part that is longer than a line has one of its own.
fn wrapped<'a>(parts: impl Iterator<Item = &'a str>, between: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for part in parts {
        match lines.last_mut() {
            Some(line) if line.chars().count() + between.len() + part.chars().count() <= width => {
                line.push_str(between);
                line.push_str(part);
            }
            Some(_) | None => lines.push(part.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(rows: &[&[&str]]) -> Vec<Vec<String>> {
        rows.iter().map(|row| row.iter().map(|cell| (*cell).to_owned()).collect()).collect()
    }

    #[test]
    fn an_id_is_never_broken_and_no_line_is_longer_than_the_terminal() {
        let id = "drop-2026-11-02-4821-AAAAAAAAAAAA";
        let heads = ["request", "state", "source", "received"];
        let all = rows(&[&[id, "open (held)", "drop", "2026-11-02"], &["T-1", "done", "-", "2026-11-03"]]);
        for width in [40, 59, 80] {
            let shown = records_within(&heads, &all, Some(width));
            assert!(shown.lines().any(|line| line.split(' ').any(|word| word == id)), "{shown}");
            assert!(shown.lines().all(|line| line.chars().count() <= width), "{width}: {shown}");
        }
        assert_eq!(
            records_within(&heads, &all, Some(40)),
            format!(
                "{id}\n  state open (held)   source drop\n  received 2026-11-02\nT-1\n  state done   received 2026-11-03\n"
            )
        );
    }

    #[test]
    fn a_long_reason_is_broken_between_words_and_told_once() {
        let why = "no row matches; a listed identifier is in 2 cells of column note";
        let all = rows(&[&["a.parquet", "rewrite", why], &["b.parquet", "rewrite", why]]);
        let shown = texts_within(&["object", "step", "reason"], &all, Some(60));
        assert!(shown.lines().all(|line| line.chars().count() <= 60), "{shown}");
        assert!(shown.contains("as above") && why.split(' ').all(|word| shown.contains(word)), "{shown}");
        let wide = texts_within(&["object", "step", "reason"], &all, None);
        assert!(wide.contains(why), "{wide}");
    }

    #[test]
    fn numbers_that_do_not_fit_keep_their_heads() {
        let all = rows(&[&["events", "33", "20000000"]]);
        let shown = numbers_within(&["dataset", "objects", "rows"], &all, Some(20));
        assert_eq!(shown, "events\n  objects 33\n  rows 20000000\n");
    }
}
