//! Which leaf columns of a Parquet schema a column path names.
//!
//! The wrapper groups of lists and maps (three-level, two-level and legacy names alike) are passed through.

use parquet::basic::{ConvertedType, LogicalType, Repetition};
use parquet::schema::types::{SchemaDescriptor, Type};

use crate::column_values::NoRoute;
use crate::identifier::ColumnPath;

/// The number of the leaf that `path` names: exact names first, else without regard to case where only one fits.
pub fn resolve(schema: &SchemaDescriptor, path: &ColumnPath) -> Result<usize, NoRoute> {
    let mut here = schema.root_schema();
    let mut first_leaf = 0;
    for name in &path.0 {
        let (group, before) = through_lists(here).ok_or_else(|| NoRoute::Missing(path.clone()))?;
        first_leaf += before;
        let at = position(group, name, path)?;
        first_leaf += group.get_fields()[..at].iter().map(|field| leaves(field)).sum::<usize>();
        here = &group.get_fields()[at];
    }
    match element(here) {
        leaf if leaf.is_primitive() => Ok(first_leaf),
        _ => Err(NoRoute::Struct(path.clone())),
    }
}

fn position(group: &Type, name: &str, path: &ColumnPath) -> Result<usize, NoRoute> {
    let at = |same: &dyn Fn(&str) -> bool| -> Vec<usize> {
        group.get_fields().iter().enumerate().filter(|(_, field)| same(field.name())).map(|(i, _)| i).collect()
    };
    let exact = at(&|field| field == name);
    let found = if exact.is_empty() { at(&|field| field.to_lowercase() == name.to_lowercase()) } else { exact };
    match found.as_slice() {
        [one] => Ok(*one),
        [] => Err(NoRoute::Missing(path.clone())),
        _ => Err(NoRoute::Ambiguous(path.clone())),
    }
}

fn leaves(field: &Type) -> usize {
    if field.is_primitive() { 1 } else { field.get_fields().iter().map(|field| leaves(field)).sum() }
}

fn is_list(field: &Type) -> bool {
    let info = field.get_basic_info();
    info.converted_type() == ConvertedType::LIST || info.logical_type_ref() == Some(&LogicalType::List)
}

fn is_map(field: &Type) -> bool {
    let info = field.get_basic_info();
    matches!(info.converted_type(), ConvertedType::MAP | ConvertedType::MAP_KEY_VALUE)
        || info.logical_type_ref() == Some(&LogicalType::Map)
}

/// What a list or map holds, at any depth; the field itself when it is neither. The rules for two-level lists are those of
/// the Parquet format's LogicalTypes.md, "Backward-compatibility rules".
fn element(field: &Type) -> &Type {
    if field.is_primitive() || field.get_fields().len() != 1 || !(is_list(field) || is_map(field)) {
        return field;
    }
    let repeated = &field.get_fields()[0];
    if repeated.is_primitive() || is_map(field) {
        return repeated;
    }
    let tuple = repeated.name() == "array" || repeated.name() == format!("{}_tuple", field.name());
    let wrapped =
        repeated.get_fields().len() == 1 && !tuple && repeated.get_basic_info().repetition() == Repetition::REPEATED;
    if wrapped { element(&repeated.get_fields()[0]) } else { repeated }
}

/// The group whose fields the next name is among. The second value counts leaves before it: lists and maps have none.
fn through_lists(field: &Type) -> Option<(&Type, usize)> {
    let inner = element(field);
    inner.is_group().then_some((inner, 0))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parquet::schema::parser::parse_message_type;

    use super::*;

    #[test]
    fn paths_reach_leaves_through_every_wrapper() {
        let message = "message m {
            required int64 id;
            optional group user { optional binary email (UTF8); optional binary Phone (UTF8); optional binary phone (UTF8); }
            optional group tags (LIST) { repeated group list { optional binary element (UTF8); } }
            optional group old (LIST) { repeated binary array (UTF8); }
            optional group items (LIST) { repeated group bag { optional group array_element { optional binary mail (UTF8); optional int32 n; } } }
            optional group attributes (MAP) { repeated group key_value { required binary key (UTF8); optional binary value (UTF8); } }
            optional binary A (UTF8); optional binary a (UTF8);
            repeated int32 plain;
        }";
        let schema = SchemaDescriptor::new(Arc::new(parse_message_type(message).unwrap()));
        for (path, wanted) in [
            ("id", Some("id")),
            ("user.email", Some("user.email")),
            ("USER.EMAIL", Some("user.email")),
            ("user.phone", Some("user.phone")),
            ("tags", Some("tags.list.element")),
            ("old", Some("old.array")),
            ("items.mail", Some("items.bag.array_element.mail")),
            ("items.n", Some("items.bag.array_element.n")),
            ("attributes.value", Some("attributes.key_value.value")),
            ("a", Some("a")),
            ("plain", Some("plain")),
            ("user", None),
            ("user.fax", None),
        ] {
            let found = resolve(&schema, &ColumnPath::parse(path).unwrap()).ok();
            let found = found.map(|leaf| schema.column(leaf).path().string());
            assert_eq!(found.as_deref(), wanted, "{path}");
        }
        let ambiguous = resolve(&schema, &ColumnPath::parse("user.PHONE").unwrap());
        assert!(matches!(ambiguous, Err(NoRoute::Ambiguous(_))));
    }
}
