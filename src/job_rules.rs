//! The tables of a job file that say who matches: rules, their parts, and the columns of DROP's list types.
//!
//! Invariant: a rule whose parts cannot all be read is no rule at all, never one of fewer parts.

use crate::drop_files::ListType;
use crate::identifier::{ColumnPath, DateFormat, Hashed, Kind, known_region};
use crate::job::{MatchPart, MatchRule};
use crate::toml_reader::{Field, Table, flatten};

pub(crate) fn match_rule(mut table: Table<'_>) -> Option<MatchRule> {
    if let Some(columns) = table.take("columns") {
        return joined_rule(table, columns);
    }
    let Some(all) = table.take("all") else {
        return match_part(table, false).map(MatchRule::Single);
    };
    let parts: Vec<_> = all.array().into_iter().filter_map(Field::table).map(|part| match_part(part, true)).collect();
    if parts.len() < 2 {
        table.fault("all", "needs at least two parts");
    }
    table.finish();
    Some(MatchRule::All(parts.into_iter().collect::<Option<_>>()?))
}

fn joined_rule(mut table: Table<'_>, columns: Field<'_>) -> Option<MatchRule> {
    let kind = table.required("kind").and_then(|field| {
        field.one_of(&["ndz", "namevin"], |name| Kind::parse(name, None).filter(|kind| !kind.parts().is_empty()))
    });
    let date_format = date_format(&mut table);
    let list_column = flatten(table.take("list_column").map(Field::string));
    let columns = kind.as_ref().and_then(|kind| joined_columns(&table, "columns", kind, columns));
    table.finish();
    Some(MatchRule::joined(kind?, columns?, date_format?, list_column?))
}

/// The columns that make up an identifier of `kind`, which must be as many as it has parts.
fn joined_columns(table: &Table<'_>, key: &str, kind: &Kind, columns: Field<'_>) -> Option<Vec<ColumnPath>> {
    let columns: Vec<ColumnPath> = columns.array().into_iter().map(column_path).collect::<Option<_>>()?;
    let parts: Vec<&str> = kind.parts().iter().map(Kind::name).collect();
    if columns.len() != parts.len() {
        let names = parts.join(", ");
        table.fault(key, format!("must name {} columns, of {names} in this order, not {}", parts.len(), columns.len()));
        return None;
    }
    Some(columns)
}

/// What `[dataset.drop]` says: a rule for each column of a list type, or for all columns of a joined one.
pub(crate) struct DropColumns {
    pub(crate) rules: Vec<MatchRule>,
    pub(crate) consumer_key: Option<ColumnPath>,
}

pub(crate) fn drop_columns(mut table: Table<'_>) -> Option<DropColumns> {
    let date_format = date_format(&mut table);
    let consumer_key = flatten(table.take("consumer_key").map(column_path));
    let mut rules = Some(Vec::new());
    for list_type in ListType::ALL {
        let Some(columns) = table.take(list_type.name()) else { continue };
        let of_type = drop_rules(&table, list_type, date_format.clone().flatten(), columns);
        rules = rules.zip(of_type).map(|(mut rules, of_type)| {
            rules.extend(of_type);
            rules
        });
    }
    table.finish();
    date_format?;
    Some(DropColumns { rules: rules?, consumer_key: consumer_key? })
}

fn drop_rules(
    table: &Table<'_>,
    list_type: ListType,
    date_format: Option<DateFormat>,
    columns: Field<'_>,
) -> Option<Vec<MatchRule>> {
    let kind = list_type.kind();
    if !kind.parts().is_empty() {
        let columns = joined_columns(table, list_type.name(), &kind, columns)?;
        return Some(vec![MatchRule::joined(kind, columns, date_format, None)]);
    }
    let columns: Vec<ColumnPath> = columns.array().into_iter().map(column_path).collect::<Option<_>>()?;
    if columns.is_empty() {
        table.fault(list_type.name(), "names no column");
    }
    let single = |column| MatchRule::Single(MatchPart { column, kind: kind.clone(), hashed: None, list_column: None });
    Some(columns.into_iter().map(single).collect())
}

fn match_part(mut table: Table<'_>, composite: bool) -> Option<MatchPart> {
    let column = table.required("column").and_then(|field| column_path(field));
    let kind = kind(&mut table);
    let hashed = hashed(&mut table);
    let list_column = if composite { table.required("list_column") } else { table.take("list_column") };
    let list_column = flatten(list_column.map(Field::string));
    table.finish();
    Some(MatchPart { column: column?, kind: kind?, hashed: hashed?, list_column: list_column? })
}

fn column_path(field: Field<'_>) -> Option<ColumnPath> {
    field.one_of(&["a column path such as user.email or \"a.b\""], ColumnPath::parse)
}

pub(crate) fn kind(table: &mut Table<'_>) -> Option<Kind> {
    let region = table.string("region");
    if let Some(region) = region.as_ref().filter(|region| !known_region(region)) {
        table.fault("region", format!("\"{region}\" is no ISO 3166-1 alpha-2 region"));
    }
    let date_format = date_format(table);
    let mut kind = table.required("kind")?.one_of(&Kind::NAMES, |name| Kind::parse(name, region.as_deref()))?;
    if region.is_some() && !matches!(kind, Kind::PhoneE164 { .. }) {
        table.fault("region", "belongs to kind phone-e164 only");
    }
    match (&mut kind, date_format?) {
        (Kind::Date { format }, date_format) => *format = date_format,
        (_, Some(_)) => table.fault("date_format", "belongs to kind date only"),
        (_, None) => {}
    }
    Some(kind)
}

fn date_format(table: &mut Table<'_>) -> Option<Option<DateFormat>> {
    let allowed = "a format that tells %Y, %m and %d (or %b, %B for the month) once each, such as \"%m/%d/%Y\"";
    flatten(table.take("date_format").map(|field| field.one_of(&[allowed], DateFormat::parse)))
}

pub(crate) fn hashed(table: &mut Table<'_>) -> Option<Option<Hashed>> {
    flatten(table.take("hashed").map(|field| field.one_of(&Hashed::NAMES, Hashed::parse)))
}
