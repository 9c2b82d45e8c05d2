//! Which columns of a file are meant: names and paths resolved against what a Parquet footer says, or the head of a file of records.
//!
//! Invariant: a name that could mean two columns is a fault, and a column is read by its Parquet type: the embedded Arrow schema is
//! left aside.

use std::ops::Range;

use polars::prelude::*;
use polars_parquet::parquet::read::deserialize_metadata;
use polars_parquet::read::schema::parquet_to_arrow_schema;
use polars_parquet::read::{FileMetadata, RowGroupMetadata};

use crate::identifier::ColumnPath;
use crate::verify_batch::Fault;
use crate::verify_bytes::LeafType;

/// One column: its top-level field cut down to the one path, and which of that field's leaves belong to it.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) root: PlSmallStr,
    pub(crate) field: ArrowField,
    pub(crate) leaves: Range<usize>,
    /// Names of struct fields below the root, as the file spells them.
    pub(crate) path: Vec<PlSmallStr>,
    pub(crate) column: ColumnPath,
    /// Of the one leaf; a struct has several, whose values are never compared.
    pub(crate) leaf_type: Option<LeafType>,
}

/// What a footer tells, and where each column asked for stands; `None`: the file lacks it.
pub(crate) fn understand(
    footer: Vec<u8>,
    columns: &[ColumnPath],
) -> Result<(FileMetadata, Vec<Option<Source>>), Fault> {
    let metadata = deserialize_metadata(footer.into()).map_err(PolarsError::from)?;
    let fields = metadata.schema().fields();
    // The embedded Arrow schema is left aside: it may say other than what the Parquet types say.
    let schema = parquet_to_arrow_schema(fields);
    if schema.len() != fields.len() {
        return Err(Fault::unreadable("two of its columns have the same name, or one has no leaves"));
    }
    let top: Vec<ArrowField> = schema.iter_values().cloned().collect();
    let mut sources: Vec<Option<Source>> =
        columns.iter().map(|column| source(&top, column)).collect::<Result<_, _>>()?;
    for source in sources.iter_mut().flatten() {
        source.leaf_type = leaf_type(&metadata, source);
    }
    Ok((metadata, sources))
}

/// The sources of every leaf of text that no column asked for reads.
pub(crate) fn other_sources(metadata: &FileMetadata, asked: &[Option<Source>]) -> Result<Vec<Source>, Fault> {
    let schema = parquet_to_arrow_schema(metadata.schema().fields());
    let top: Vec<ArrowField> = schema.iter_values().cloned().collect();
    let mut paths = Vec::new();
    top.iter().for_each(|field| text_paths(field, &mut Vec::new(), &mut paths));
    let mut others = Vec::new();
    for path in paths {
        let Some(other) = source(&top, &path)? else { continue };
        let known = |source: &Source| source.root == other.root && source.leaves == other.leaves;
        if !asked.iter().flatten().any(known) {
            others.push(other);
        }
    }
    Ok(others)
}

/// Texts, and bytes that may be texts: older writers leave out the annotation.
fn text_paths(field: &ArrowField, names: &mut Vec<String>, paths: &mut Vec<ColumnPath>) {
    use ArrowDataType as T;
    names.push(field.name.to_string());
    let mut inner = &field.dtype;
    while let T::List(item) | T::LargeList(item) | T::Map(item, _) = inner {
        inner = &item.dtype;
    }
    match inner {
        T::Utf8 | T::LargeUtf8 | T::Utf8View | T::Binary | T::LargeBinary | T::BinaryView => {
            paths.push(ColumnPath(names.clone()));
        }
        T::Struct(fields) => fields.iter().for_each(|field| text_paths(field, names, paths)),
        _ => {}
    }
    names.pop();
}

/// The type of a source's one leaf.
fn leaf_type(metadata: &FileMetadata, source: &Source) -> Option<LeafType> {
    let mut dtype = &source.field.dtype;
    loop {
        dtype = match dtype {
            ArrowDataType::List(inner) | ArrowDataType::LargeList(inner) | ArrowDataType::Map(inner, _) => &inner.dtype,
            ArrowDataType::Struct(fields) if fields.len() == 1 => &fields[0].dtype,
            _ => break,
        };
    }
    let columns = metadata.schema().columns();
    let under_root = columns.iter().filter(|column| column.path_in_schema.first() == Some(&source.root));
    let mut leaves = under_root.skip(source.leaves.start).take(source.leaves.len());
    match (leaves.next(), leaves.next()) {
        (Some(leaf), None) => {
            let physical = leaf.descriptor.primitive_type.physical_type;
            Some(LeafType { physical, dtype: dtype.clone() })
        }
        _ => None,
    }
}

/// The numbers of a source's leaves among all of a row group.
pub(crate) fn leaf_numbers<'a>(group: &'a RowGroupMetadata, source: &Source) -> impl Iterator<Item = usize> + 'a {
    let all = group.columns_idxs_under_root_iter(&source.root).unwrap_or_default();
    all.iter().copied().skip(source.leaves.start).take(source.leaves.len())
}

fn source(top: &[ArrowField], column: &ColumnPath) -> Result<Option<Source>, Fault> {
    let names: Vec<&str> = top.iter().map(|field| field.name.as_str()).collect();
    let Some(root) = resolve(&names, &column.0[0]).map_err(|Ambiguous| ambiguous(column))? else {
        return Ok(None);
    };
    let mut path = Vec::new();
    let Some((field, leaves)) = cut(&top[root], &column.0[1..], &mut path).map_err(|Ambiguous| ambiguous(column))?
    else {
        return Ok(None);
    };
    let root = top[root].name.clone();
    Ok(Some(Source { root, field, leaves, path, column: column.clone(), leaf_type: None }))
}

pub fn ambiguous(column: &ColumnPath) -> Fault {
    Fault::unreadable(format!("column {column} is ambiguous: several names differ from it only in case"))
}

/// Several names could be meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ambiguous;

/// The index of `wanted`: the exact name first, else the only one that differs in case alone.
pub fn resolve(names: &[&str], wanted: &str) -> Result<Option<usize>, Ambiguous> {
    let alone = |mut found: Vec<usize>| match found.len() {
        0 | 1 => Ok(found.pop()),
        _ => Err(Ambiguous),
    };
    let indexes = |same: &dyn Fn(&str) -> bool| (0..names.len()).filter(|i| same(names[*i])).collect::<Vec<_>>();
    let exact = indexes(&|name| name == wanted);
    if exact.is_empty() { alone(indexes(&|name| name.to_lowercase() == wanted.to_lowercase())) } else { alone(exact) }
}

type Cut = Option<(ArrowField, Range<usize>)>;

/// `field` with nothing in it but what lies on `path`, and the range of its leaves that are left. Lists and maps are walked through.
fn cut(field: &ArrowField, path: &[String], spelled: &mut Vec<PlSmallStr>) -> Result<Cut, Ambiguous> {
    let with = |dtype| ArrowField::new(field.name.clone(), dtype, field.is_nullable);
    match (&field.dtype, path.first()) {
        (ArrowDataType::List(inner) | ArrowDataType::LargeList(inner) | ArrowDataType::Map(inner, _), _) => {
            let inner = cut(inner, path, spelled)?;
            Ok(inner.map(|(inner, leaves)| (with(ArrowDataType::LargeList(Box::new(inner))), leaves)))
        }
        (_, None) => Ok(Some((field.clone(), 0..leaf_count(&field.dtype)))),
        (ArrowDataType::Struct(fields), Some(name)) => {
            let names: Vec<&str> = fields.iter().map(|field| field.name.as_str()).collect();
            let Some(at) = resolve(&names, name)? else {
                return Ok(None);
            };
            spelled.push(fields[at].name.clone());
            let before: usize = fields[..at].iter().map(|field| leaf_count(&field.dtype)).sum();
            let inner = cut(&fields[at], &path[1..], spelled)?;
            Ok(inner.map(|(inner, leaves)| {
                (with(ArrowDataType::Struct(vec![inner])), before + leaves.start..before + leaves.end)
            }))
        }
        (_, Some(_)) => Ok(None),
    }
}

fn leaf_count(dtype: &ArrowDataType) -> usize {
    match dtype {
        ArrowDataType::Struct(fields) => fields.iter().map(|field| leaf_count(&field.dtype)).sum(),
        ArrowDataType::List(inner) | ArrowDataType::LargeList(inner) | ArrowDataType::Map(inner, _) => {
            leaf_count(&inner.dtype)
        }
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_resolve_exactly_first_and_by_case_only_when_alone() {
        for (names, wanted, found) in [
            (&["Email", "email"][..], "email", Ok(Some(1))),
            (&["Email", "EMAIL"], "email", Err(Ambiguous)),
            (&["x", "EMAIL"], "email", Ok(Some(1))),
            (&["x"], "email", Ok(None)),
            (&["a", "a"], "a", Err(Ambiguous)),
        ] {
            assert_eq!(resolve(names, wanted), found, "{names:?}");
        }
    }
}
