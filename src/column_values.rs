//! The values that a column path reaches in Arrow arrays: through structs, lists and maps, typed as they are stored.
//!
//! A null anywhere on the way yields no value. Knows nothing of identifiers beyond [`Value`].

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::*;

use crate::identifier::{ColumnPath, Value};

/// Where a column path leads in a schema: the root column and the struct fields below it; lists on the way are passed through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    pub root: usize,
    fields: Vec<usize>,
}

impl Route {
    /// The type of the values that the route leads to in `schema`.
    pub fn leaf_type<'s>(&self, schema: &'s Schema) -> &'s DataType {
        let mut here = element(schema.field(self.root).data_type());
        for field in &self.fields {
            let DataType::Struct(fields) = here else { return here };
            here = element(fields[*field].data_type());
        }
        here
    }
}

/// What lists and maps hold, at any depth.
fn element(data_type: &DataType) -> &DataType {
    match data_type {
        DataType::List(inner)
        | DataType::LargeList(inner)
        | DataType::FixedSizeList(inner, _)
        | DataType::Map(inner, _) => element(inner.data_type()),
        leaf => leaf,
    }
}

/// Why a path leads nowhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoRoute {
    #[error("has no column {0}")]
    Missing(ColumnPath),
    #[error("has several columns that differ from {0} only in case")]
    Ambiguous(ColumnPath),
    #[error("column {0} is a struct; name one of its fields")]
    Struct(ColumnPath),
}

/// Finds `path` in `schema`: exact names first, else without regard to case where only one fits.
pub fn route(schema: &Schema, path: &ColumnPath) -> Result<Route, NoRoute> {
    let (first, rest) = path.0.split_first().expect("a column path has a name");
    let root = position(schema.fields(), first, path)?;
    let mut here = schema.field(root).data_type();
    let mut fields = Vec::new();
    for name in rest {
        let inner = struct_fields(here).ok_or_else(|| NoRoute::Missing(path.clone()))?;
        let at = position(inner, name, path)?;
        fields.push(at);
        here = inner[at].data_type();
    }
    if struct_fields(here).is_some() {
        return Err(NoRoute::Struct(path.clone()));
    }
    Ok(Route { root, fields })
}

fn position(fields: &Fields, name: &str, path: &ColumnPath) -> Result<usize, NoRoute> {
    let at = |same: &dyn Fn(&str) -> bool| -> Vec<usize> {
        fields.iter().enumerate().filter(|(_, field)| same(field.name())).map(|(i, _)| i).collect()
    };
    let exact = at(&|field| field == name);
    let found = if exact.is_empty() { at(&|field| field.to_lowercase() == name.to_lowercase()) } else { exact };
    match found.as_slice() {
        [one] => Ok(*one),
        [] => Err(NoRoute::Missing(path.clone())),
        _ => Err(NoRoute::Ambiguous(path.clone())),
    }
}

/// The fields of a struct, or of the structs in a list or map.
fn struct_fields(data_type: &DataType) -> Option<&Fields> {
    match data_type {
        DataType::Struct(fields) => Some(fields),
        DataType::List(element)
        | DataType::LargeList(element)
        | DataType::FixedSizeList(element, _)
        | DataType::Map(element, _) => struct_fields(element.data_type()),
        _ => None,
    }
}

/// Which element of each list on its path a value stands in, outermost first: how many names of the path lead to the list, and a
/// number of the element that no other element of that nesting has in the row. Empty for a value in no list.
pub type Element = Vec<(usize, u32)>;

/// A value of a row and where in its lists it stands.
#[derive(Clone, Copy)]
pub struct Placed<'a> {
    pub value: Value<'a>,
    pub element: &'a [(usize, u32)],
}

/// A leaf array below a root column, and which row of the batch each of its values belongs to.
pub struct Leaf {
    array: ArrayRef,
    /// `None`: value `i` belongs to row `i`.
    rows: Option<Vec<u32>>,
    valid: Option<NullBuffer>,
    /// How many names of the path lead here.
    depth: usize,
    /// Of each list on the way: its depth, and its element by value.
    lists: Vec<(usize, Vec<u32>)>,
}

/// The row of an element that no list holds: lists that are null may still span some.
const NO_ROW: u32 = u32::MAX;

impl Leaf {
    /// Follows `route` from the array of its root column.
    pub fn reach(root: &ArrayRef, route: &Route) -> Leaf {
        let valid = root.logical_nulls();
        let mut leaf = Leaf { array: root.clone(), rows: None, valid, depth: 1, lists: Vec::new() };
        leaf.through_lists();
        for field in &route.fields {
            let child = leaf.array.as_struct().column(*field).clone();
            leaf.valid = NullBuffer::union(leaf.valid.as_ref(), child.logical_nulls().as_ref());
            leaf.array = child;
            leaf.depth += 1;
            leaf.through_lists();
        }
        leaf
    }

    fn through_lists(&mut self) {
        loop {
            let array = self.array.clone();
            match array.data_type() {
                DataType::List(_) => {
                    let list = array.as_list::<i32>();
                    self.enter(list.values(), &ranges(list.offsets()));
                }
                DataType::LargeList(_) => {
                    let list = array.as_list::<i64>();
                    self.enter(list.values(), &ranges(list.offsets()));
                }
                DataType::Map(_, _) => {
                    let map = array.as_map();
                    let entries: ArrayRef = std::sync::Arc::new(map.entries().clone());
                    self.enter(&entries, &ranges(map.offsets()));
                }
                DataType::FixedSizeList(_, size) => {
                    let list = array.as_fixed_size_list();
                    let size = *size as usize;
                    let spans: Vec<_> = (0..list.len()).map(|i| i * size..(i + 1) * size).collect();
                    self.enter(list.values(), &spans);
                }
                _ => return,
            }
        }
    }

    fn enter(&mut self, elements: &ArrayRef, spans: &[std::ops::Range<usize>]) {
        let mut rows = vec![NO_ROW; elements.len()];
        let mut lists: Vec<_> = self.lists.iter().map(|(depth, _)| (*depth, vec![0; elements.len()])).collect();
        for (i, span) in spans.iter().enumerate() {
            if self.is_valid(i) {
                rows[span.clone()].fill(self.row(i));
                for ((_, inner), (_, outer)) in lists.iter_mut().zip(&self.lists) {
                    inner[span.clone()].fill(outer[i]);
                }
            }
        }
        lists.push((self.depth, (0..elements.len() as u32).collect()));
        let valid = elements.logical_nulls();
        *self = Leaf { array: elements.clone(), rows: Some(rows), valid, depth: self.depth, lists };
    }

    fn row(&self, i: usize) -> u32 {
        self.rows.as_ref().map_or(i as u32, |rows| rows[i])
    }

    fn is_valid(&self, i: usize) -> bool {
        self.row(i) != NO_ROW && self.valid.as_ref().is_none_or(|valid| valid.is_valid(i))
    }

    /// Calls `seen` with the row and the answer of `ask` for every value that is not null. A value that a dictionary holds once
    /// is asked once.
    pub fn ask<A: Copy>(&self, ask: impl FnMut(Value<'_>) -> A, mut seen: impl FnMut(usize, A)) {
        self.ask_at(ask, |i, answer| seen(self.row(i) as usize, answer));
    }

    /// As [`Leaf::ask`], with the number of the value for its row.
    fn ask_at<A: Copy>(&self, mut ask: impl FnMut(Value<'_>) -> A, mut seen: impl FnMut(usize, A)) {
        if let Some(dictionary) = self.array.as_any_dictionary_opt() {
            if dictionary.values().is_empty() {
                return;
            }
            let mut answers: Vec<Option<A>> = vec![None; dictionary.values().len()];
            each(dictionary.values(), |i| dictionary.values().is_valid(i), |i, value| answers[i] = Some(ask(value)));
            for (i, key) in dictionary.normalized_keys().into_iter().enumerate() {
                if self.is_valid(i)
                    && let Some(answer) = answers[key]
                {
                    seen(i, answer);
                }
            }
            return;
        }
        each(&self.array, |i| self.is_valid(i), |i, value| seen(i, ask(value)));
    }

    /// The values by row, for rules that look at several columns of a row.
    pub fn by_row(&self, rows: usize) -> Vec<Vec<OwnedPlaced>> {
        let mut out = vec![Vec::new(); rows];
        let mut values = Vec::new();
        self.ask_at(
            |value| {
                values.push(OwnedValue::of(value));
                values.len() - 1
            },
            |i, at| out[self.row(i) as usize].push((i, at)),
        );
        let element = |i: usize| self.lists.iter().map(|(depth, elements)| (*depth, elements[i])).collect();
        let placed = |(i, at): (usize, usize)| OwnedPlaced { element: element(i), value: values[at].clone() };
        out.into_iter().map(|row: Vec<_>| row.into_iter().map(placed).collect()).collect()
    }
}

fn ranges<O: arrow::array::OffsetSizeTrait>(offsets: &OffsetBuffer<O>) -> Vec<std::ops::Range<usize>> {
    offsets.windows(2).map(|pair| pair[0].as_usize()..pair[1].as_usize()).collect()
}

/// A [`Value`] that outlives its array.
#[derive(Clone)]
pub struct OwnedValue {
    bytes: Vec<u8>,
    kind: OwnedKind,
}

/// A [`Placed`] that outlives its array.
#[derive(Clone)]
pub struct OwnedPlaced {
    pub element: Element,
    pub value: OwnedValue,
}

impl OwnedPlaced {
    pub fn of(placed: Placed<'_>) -> Self {
        OwnedPlaced { element: placed.element.to_vec(), value: OwnedValue::of(placed.value) }
    }

    pub fn as_placed(&self) -> Placed<'_> {
        Placed { element: &self.element, value: self.value.as_value() }
    }
}

#[derive(Clone, Copy)]
enum OwnedKind {
    Text,
    Bytes,
    Number(Value<'static>),
}

impl OwnedValue {
    pub fn of(value: Value<'_>) -> Self {
        match value {
            Value::Text(text) => OwnedValue { bytes: text.as_bytes().to_vec(), kind: OwnedKind::Text },
            Value::Bytes(bytes) => OwnedValue { bytes: bytes.to_vec(), kind: OwnedKind::Bytes },
            Value::Integer(n) => OwnedValue { bytes: Vec::new(), kind: OwnedKind::Number(Value::Integer(n)) },
            Value::Decimal { unscaled, scale } => {
                OwnedValue { bytes: Vec::new(), kind: OwnedKind::Number(Value::Decimal { unscaled, scale }) }
            }
            Value::Float(n) => OwnedValue { bytes: Vec::new(), kind: OwnedKind::Number(Value::Float(n)) },
            Value::Float32(n) => OwnedValue { bytes: Vec::new(), kind: OwnedKind::Number(Value::Float32(n)) },
            Value::Date(date) => OwnedValue { bytes: Vec::new(), kind: OwnedKind::Number(Value::Date(date)) },
            Value::Other => OwnedValue { bytes: Vec::new(), kind: OwnedKind::Number(Value::Other) },
        }
    }

    pub fn as_value(&self) -> Value<'_> {
        match self.kind {
            OwnedKind::Text => Value::Text(std::str::from_utf8(&self.bytes).expect("made from text")),
            OwnedKind::Bytes => Value::Bytes(&self.bytes),
            OwnedKind::Number(value) => value,
        }
    }
}

const MILLIS_A_DAY: i64 = 86_400_000;

/// A day counted from 1970-01-01.
fn date(days: i64) -> Value<'static> {
    let epoch = jiff::civil::date(1970, 1, 1);
    let date = jiff::Span::new().try_days(days).ok().and_then(|span| epoch.checked_add(span).ok());
    date.map_or(Value::Other, Value::Date)
}

/// The day of a moment. In a zone a moment is a certain day only at its midnight: elsewhere it may be another.
fn day(moment: i64, a_day: i64, in_zone: bool) -> Value<'static> {
    if in_zone && moment.rem_euclid(a_day) != 0 { Value::Other } else { date(moment.div_euclid(a_day)) }
}

/// Calls `each` with every value at which `valid` holds.
fn each(array: &ArrayRef, valid: impl Fn(usize) -> bool, mut each: impl FnMut(usize, Value<'_>)) {
    macro_rules! all {
        ($i:ident => $value:expr) => {
            for $i in (0..array.len()).filter(|i| valid(*i)) {
                each($i, $value);
            }
        };
    }
    macro_rules! integers {
        ($type:ty) => {{
            let values = array.as_primitive::<$type>().values();
            all!(i => Value::Integer(i128::from(values[i])))
        }};
    }
    macro_rules! decimals {
        ($type:ty, $scale:expr) => {{
            let values = array.as_primitive::<$type>().values();
            all!(i => Value::Decimal { unscaled: i128::from(values[i]), scale: *$scale })
        }};
    }
    macro_rules! slices {
        ($values:expr, $variant:path) => {{
            let values = $values;
            all!(i => $variant(values.value(i)))
        }};
    }
    match array.data_type() {
        DataType::Utf8View => slices!(array.as_string_view(), Value::Text),
        DataType::Utf8 => slices!(array.as_string::<i32>(), Value::Text),
        DataType::LargeUtf8 => slices!(array.as_string::<i64>(), Value::Text),
        DataType::BinaryView => slices!(array.as_binary_view(), Value::Bytes),
        DataType::Binary => slices!(array.as_binary::<i32>(), Value::Bytes),
        DataType::LargeBinary => slices!(array.as_binary::<i64>(), Value::Bytes),
        DataType::FixedSizeBinary(_) => slices!(array.as_fixed_size_binary(), Value::Bytes),
        DataType::Int8 => integers!(Int8Type),
        DataType::Int16 => integers!(Int16Type),
        DataType::Int32 => integers!(Int32Type),
        DataType::Int64 => integers!(Int64Type),
        DataType::UInt8 => integers!(UInt8Type),
        DataType::UInt16 => integers!(UInt16Type),
        DataType::UInt32 => integers!(UInt32Type),
        DataType::UInt64 => integers!(UInt64Type),
        DataType::Decimal32(_, scale) => decimals!(Decimal32Type, scale),
        DataType::Decimal64(_, scale) => decimals!(Decimal64Type, scale),
        DataType::Decimal128(_, scale) => decimals!(Decimal128Type, scale),
        DataType::Decimal256(_, scale) => {
            let values = array.as_primitive::<Decimal256Type>().values();
            let decimal = |unscaled| Value::Decimal { unscaled, scale: *scale };
            all!(i => values[i].to_i128().map_or(Value::Other, decimal))
        }
        DataType::Float16 => {
            let values = array.as_primitive::<Float16Type>().values();
            all!(i => Value::Float32(values[i].to_f32()))
        }
        DataType::Float32 => {
            let values = array.as_primitive::<Float32Type>().values();
            all!(i => Value::Float32(values[i]))
        }
        DataType::Float64 => {
            let values = array.as_primitive::<Float64Type>().values();
            all!(i => Value::Float(values[i]))
        }
        DataType::Date32 => {
            let values = array.as_primitive::<Date32Type>().values();
            all!(i => date(i64::from(values[i])))
        }
        DataType::Date64 => {
            let values = array.as_primitive::<Date64Type>().values();
            all!(i => day(values[i], MILLIS_A_DAY, false))
        }
        DataType::Timestamp(unit, zone) => {
            let a_day = match unit {
                TimeUnit::Second => 86_400,
                TimeUnit::Millisecond => MILLIS_A_DAY,
                TimeUnit::Microsecond => 1000 * MILLIS_A_DAY,
                TimeUnit::Nanosecond => 1_000_000 * MILLIS_A_DAY,
            };
            let values = array.to_data();
            let values = &values.buffer::<i64>(0)[..array.len()];
            all!(i => day(values[i], a_day, zone.is_some()))
        }
        // Booleans, times, intervals and what else there is hold no identifier.
        _ => all!(i => Value::Other),
    }
}
