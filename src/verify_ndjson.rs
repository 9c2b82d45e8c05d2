//! How the verifier sees NDJSON: line by line through serde_json.
//!
//! Not through Polars, for Polars gives a column one type (so a record with a number where the first had text is lost or printed) and a
//! repeated key one value. Here every value keeps its type and every repetition counts. Nothing here knows identifiers.

use std::collections::BTreeMap;
use std::io::BufRead;

use polars::prelude::*;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::identifier::ColumnPath;
use crate::verify_batch::{Batch, Element, Fault, Leaf, Scanned, Work};
use crate::verify_columns::{Ambiguous, ambiguous, resolve};
use crate::verify_records::each_block_of_lines;

/// Gives the records of an NDJSON object to `work`. A path that no record has is missing.
pub fn scan_ndjson(
    content: &mut dyn BufRead,
    columns: &[ColumnPath],
    work: &Work,
    others: bool,
) -> Result<Scanned, Fault> {
    let mut scanned = Scanned::default();
    let mut seen = vec![false; columns.len()];
    each_block_of_lines(content, &mut |lines| {
        let mut found: Vec<Found> = columns.iter().map(|_| Found::default()).collect();
        let mut unasked: BTreeMap<Vec<String>, Found> = BTreeMap::new();
        for (row, (number, line)) in lines.iter().enumerate() {
            let node: Node =
                serde_json::from_slice(line).map_err(|_| Fault::unreadable(format!("line {number} is no JSON")))?;
            let Node::Object(_) = node else {
                return Err(Fault::unreadable(format!("line {number} is no JSON object")));
            };
            for ((column, found), seen) in columns.iter().zip(&mut found).zip(&mut seen) {
                let at = At { row: row as u32, element: Element::new() };
                *seen |= walk(&node, &column.0, 0, &at, found).map_err(|Ambiguous| ambiguous(column))?;
            }
            if others {
                texts(&node, columns, &mut Vec::new(), row as u32, &mut unasked);
            }
        }
        let others = unasked
            .into_iter()
            .flat_map(|(path, found)| found.leaves().into_iter().map(move |leaf| (ColumnPath(path.clone()), leaf)));
        let (rows, others) = (lines.len(), others.collect());
        let columns = found.into_iter().map(Found::leaves).collect();
        scanned.tally.follow(work(&Batch { rows, columns, others })?);
        Ok(())
    })?;
    if scanned.tally.rows > 0 {
        scanned.missing = (0..columns.len()).filter(|column| !seen[*column]).collect();
    }
    Ok(scanned)
}

/// A JSON value that keeps repeated keys.
enum Node {
    Null,
    Boolean,
    Integer(i128),
    Float(f64),
    Text(String),
    Array(Vec<Node>),
    Object(Vec<(String, Node)>),
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Node, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Node, E> {
        Ok(Node::Boolean)
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Integer(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Integer(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        // 2 to the 53: larger numbers have lost digits and would be taken for their neighbours. Not comparable, as a truth value.
        Ok(if value.abs() < 9_007_199_254_740_992.0 { Node::Float(value) } else { Node::Boolean })
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let mut nodes = Vec::new();
        while let Some(node) = items.next_element()? {
            nodes.push(node);
        }
        Ok(Node::Array(nodes))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Node, A::Error> {
        let mut nodes = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            nodes.push(entry);
        }
        Ok(Node::Object(nodes))
    }
}

/// The values of one column in some lines, by type.
#[derive(Default)]
struct Found {
    texts: (Vec<At>, Vec<String>),
    integers: (Vec<At>, Vec<i128>),
    floats: (Vec<At>, Vec<f64>),
    /// Booleans and objects: never an identifier.
    others: Vec<At>,
    /// By nesting: how many elements of arrays were walked.
    walked: Vec<u32>,
}

/// The row of a value, and its place in arrays.
#[derive(Clone)]
struct At {
    row: u32,
    element: Element,
}

impl Found {
    /// Numbers the next element of an array that stands in `element`, `depth` names down the path.
    fn element(&mut self, element: &Element, depth: usize) -> Element {
        let nesting = element.len();
        self.walked.resize(self.walked.len().max(nesting + 1), 0);
        let number = self.walked[nesting];
        self.walked[nesting] += 1;
        element.iter().copied().chain([(depth, number)]).collect()
    }
}

impl Found {
    fn leaves(self) -> Vec<Leaf> {
        let texts = StringChunked::from_iter_values("v".into(), self.texts.1.iter()).into_series();
        let integers = Int128Chunked::from_vec("v".into(), self.integers.1).into_series();
        let floats = Float64Chunked::from_vec("v".into(), self.floats.1).into_series();
        let others = BooleanChunked::full("v".into(), true, self.others.len()).into_series();
        let places = [self.texts.0, self.integers.0, self.floats.0, self.others];
        let leaves = places.into_iter().zip([texts, integers, floats, others]).map(|(places, values)| {
            let (rows, elements) = places.into_iter().map(|at| (at.row, at.element)).unzip();
            Leaf { rows: Some(rows), elements: Some(elements), values }
        });
        leaves.filter(|leaf| !leaf.values.is_empty()).collect()
    }
}

/// Notes what lies on `path`; whether the path exists.
fn walk(node: &Node, path: &[String], depth: usize, at: &At, found: &mut Found) -> Result<bool, Ambiguous> {
    match (node, path.split_first()) {
        (Node::Array(items), _) => {
            let mut seen = items.is_empty();
            for item in items {
                let at = At { row: at.row, element: found.element(&at.element, depth) };
                seen |= walk(item, path, depth, &at, found)?;
            }
            Ok(seen)
        }
        (Node::Object(entries), Some((name, rest))) => {
            let mut names: Vec<&str> = entries.iter().map(|(name, _)| name.as_str()).collect();
            // A key that is repeated is one name with several values.
            names.sort_unstable();
            names.dedup();
            let Some(meant) = resolve(&names, name)? else {
                return Ok(false);
            };
            let mut seen = false;
            for (_, node) in entries.iter().filter(|(name, _)| name == names[meant]) {
                seen |= walk(node, rest, depth + 1, at, found)?;
            }
            Ok(seen)
        }
        // Of a null parent nothing is known, so it is no sign of a misspelt path.
        (Node::Null, _) => Ok(true),
        (_, Some(_)) => Ok(false),
        (Node::Object(_) | Node::Boolean, None) => {
            found.others.push(at.clone());
            Ok(true)
        }
        (Node::Text(text), None) => {
            found.texts.0.push(at.clone());
            found.texts.1.push(text.clone());
            Ok(true)
        }
        (Node::Integer(value), None) => {
            found.integers.0.push(at.clone());
            found.integers.1.push(*value);
            Ok(true)
        }
        (Node::Float(value), None) => {
            found.floats.0.push(at.clone());
            found.floats.1.push(*value);
            Ok(true)
        }
    }
}

/// Notes every text that no column asked for reads, by its path.
fn texts(
    node: &Node,
    asked: &[ColumnPath],
    path: &mut Vec<String>,
    row: u32,
    found: &mut BTreeMap<Vec<String>, Found>,
) {
    let same = |column: &ColumnPath| {
        column.0.len() == path.len() && column.0.iter().zip(&*path).all(|(a, b)| a.to_lowercase() == b.to_lowercase())
    };
    match node {
        Node::Array(items) => items.iter().for_each(|item| texts(item, asked, path, row, found)),
        Node::Object(entries) => {
            for (name, node) in entries {
                path.push(name.clone());
                texts(node, asked, path, row, found);
                path.pop();
            }
        }
        Node::Text(text) if !asked.iter().any(same) => {
            let found = found.entry(path.clone()).or_default();
            found.texts.0.push(At { row, element: Element::new() });
            found.texts.1.push(text.clone());
        }
        Node::Text(_) | Node::Null | Node::Boolean | Node::Integer(_) | Node::Float(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the path is there, and how many texts, numbers and others lie on it.
    fn check(json: &str, path: &[&str], wanted: Result<(bool, usize, usize, usize), ()>) {
        let node: Node = serde_json::from_str(json).unwrap();
        let path: Vec<String> = path.iter().map(|name| (*name).to_owned()).collect();
        let mut found = Found::default();
        let got = walk(&node, &path, 0, &At { row: 0, element: Element::new() }, &mut found)
            .map(|seen| (seen, found.texts.0.len(), found.integers.0.len() + found.floats.0.len(), found.others.len()));
        assert_eq!(got.map_err(|Ambiguous| ()), wanted, "{json}");
    }

    #[test]
    fn a_whole_number_with_a_fraction_is_itself_and_not_its_neighbour() {
        for number in [7_336_156_665_533_964_i64, 1_800_000_000_000_001, 42, (1 << 53) - 1] {
            let node: Node = serde_json::from_str(&format!("{number}.0")).unwrap();
            assert!(matches!(node, Node::Float(float) if float.to_string() == number.to_string()), "{number}");
        }
    }

    #[test]
    fn values_are_found_with_their_type() {
        check(r#"{"a":{"b":"x"}}"#, &["a", "b"], Ok((true, 1, 0, 0)));
        check(r#"{"a":[{"b":["x",1,2.5]},{"b":true}]}"#, &["a", "b"], Ok((true, 1, 2, 1)));
        check(r#"{"a":"x","a":"y"}"#, &["a"], Ok((true, 2, 0, 0)));
        check(r#"{"A":"x"}"#, &["a"], Ok((true, 1, 0, 0)));
        check(r#"{"A":"x","Ä":1,"a":"y"}"#, &["a"], Ok((true, 1, 0, 0)));
        check(r#"{"A":"x","a ":"y"}"#, &["b"], Ok((false, 0, 0, 0)));
        check(r#"{"AB":"x","Ab":"y"}"#, &["ab"], Err(()));
        check(r#"{"a":null}"#, &["a", "b"], Ok((true, 0, 0, 0)));
        check(r#"{"a":"x"}"#, &["a", "b"], Ok((false, 0, 0, 0)));
    }
}
