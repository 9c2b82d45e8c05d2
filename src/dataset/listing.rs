//! A dataset as a plain listing of objects: which of those under its `uri` are in scope, which are not, and whether they
//! are really the files of a table format, which must not be rewritten under its log.

use std::collections::{BTreeMap, BTreeSet};

use globset::{GlobBuilder, GlobMatcher};

use crate::format::{Compression, Format};
use crate::job::Scope;
use crate::store::{self, Alias, Location, Object, Store, StoreError};

/// What a listing showed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    pub in_scope: Vec<Object>,
    /// In the prefix, but by their names no objects of the dataset: hidden ones (a segment that starts with `_` or `.`), folder
    /// markers, and other file endings.
    pub not_in_scope: Vec<Object>,
    /// Symbolic links, in scope by their names, to files that are not: no folder of the dataset is where a rewrite would take place.
    pub linked: Vec<Object>,
    /// Those in scope that have other names as well (hard links).
    pub hard_linked: BTreeSet<Location>,
    /// The table format whose live files these are, if any.
    pub table_format: Option<&'static str>,
}

/// [`list`] for a dataset, whose objects may be a part of a table that lies around `scope`.
pub async fn list_dataset(
    store: &dyn Store,
    scope: &Scope,
    endings: &(dyn Fn(&str) -> bool + Sync),
) -> Result<Listing, StoreError> {
    let mut listing = list(store, scope, endings).await?;
    take_aliases(&mut listing, store.aliases(scope.root()).await?);
    if listing.table_format.is_none() && !listing.in_scope.is_empty() {
        listing.table_format = table_around(store, scope).await?;
    }
    Ok(listing)
}

/// A link to an object of the dataset is that object once more, and needs no look of its own.
fn take_aliases(listing: &mut Listing, aliases: BTreeMap<Location, Alias>) {
    if aliases.is_empty() {
        return;
    }
    let (links, files): (Vec<_>, Vec<_>) = std::mem::take(&mut listing.in_scope)
        .into_iter()
        .partition(|object| matches!(aliases.get(&object.location), Some(Alias::LinkTo(_))));
    let there: BTreeSet<&Location> = files.iter().map(|object| &object.location).collect();
    let is_known = |object: &Object| match aliases.get(&object.location) {
        Some(Alias::LinkTo(target)) => there.contains(target),
        Some(Alias::HardLinks) | None => false,
    };
    listing.linked = links.into_iter().filter(|object| !is_known(object)).collect();
    let has_other_names = |location: &&&Location| matches!(aliases.get(**location), Some(Alias::HardLinks));
    listing.hard_linked = there.iter().filter(has_other_names).map(|location| (*location).clone()).collect();
    listing.in_scope = files;
}

/// Why a link is left alone, and what to do instead.
pub const LINKED: &str = "is no file, or a symbolic link to nothing or to a file outside the dataset; \
                          make its target a dataset, or remove it";

/// Why the files of a live table are left alone, and what to do instead.
pub fn table_reason(table: &str) -> String {
    format!(
        "belongs to a live {table} table, whose log a rewrite would break; \
         delete through the table's own engine, or take the table out of the dataset's uri"
    )
}

/// Lists `scope`. An object that is named exactly or by a glob is in scope whatever its ending. `endings` says which names
/// belong in a prefix.
pub async fn list(
    store: &dyn Store,
    scope: &Scope,
    endings: &(dyn Fn(&str) -> bool + Sync),
) -> Result<Listing, StoreError> {
    match scope {
        Scope::Object(location) => Ok(Listing { in_scope: vec![store.head(location).await?], ..Listing::default() }),
        Scope::Prefix(root) => {
            let objects = store::list(store, root).await?;
            let table_format = objects.iter().find_map(|object| table_format(below(root, &object.location)));
            let (in_scope, not_in_scope) =
                objects.into_iter().partition(|object| is_in_scope(scope, &object.location, endings));
            Ok(Listing { in_scope, not_in_scope, table_format, ..Listing::default() })
        }
        Scope::Glob { root, pattern } => {
            let glob = matcher(pattern);
            let objects = store::list(store, root).await?;
            let table_format = objects.iter().find_map(|object| table_format(below(root, &object.location)));
            let in_scope = objects.into_iter().filter(|object| glob.is_match(name(&object.location))).collect();
            Ok(Listing { in_scope, table_format, ..Listing::default() })
        }
    }
}

/// Whether a name means an object of the dataset; for what a listing of current objects does not show.
pub fn is_in_scope(scope: &Scope, location: &Location, endings: &(dyn Fn(&str) -> bool + Sync)) -> bool {
    match scope {
        Scope::Object(wanted) => location == wanted,
        Scope::Prefix(root) => {
            let name = below(root, location);
            !is_hidden(name) && !name.ends_with('/') && endings(location.file_name())
        }
        Scope::Glob { pattern, .. } => matcher(pattern).is_match(name(location)),
    }
}

/// `*` and `?` stop at a slash, `**` does not.
fn matcher(pattern: &str) -> GlobMatcher {
    let glob = GlobBuilder::new(pattern).literal_separator(true).build();
    glob.expect("the job file's globs are compiled when it is parsed").compile_matcher()
}

fn name(location: &Location) -> &str {
    match location {
        Location::Local(path) => path.to_str().unwrap_or(""),
        Location::S3 { key, .. } => key,
    }
}

/// The part of the name after the prefix.
fn below<'a>(root: &Location, location: &'a Location) -> &'a str {
    let (root, name) = (name(root), name(location));
    name.strip_prefix(root).unwrap_or(name).trim_start_matches('/')
}

/// The Hive partition values in the name below `root`, percent-decoded: `day=1/email=a%40b.c/x.parquet` has two.
pub fn partitions(root: &Location, location: &Location) -> Vec<(String, String)> {
    let name = below(root, location);
    let folders = name.rsplit_once('/').map_or("", |(folders, _)| folders);
    let pair = |segment: &str| {
        let (name, value) = segment.split_once('=').filter(|(name, _)| !name.is_empty())?;
        Some((decoded(name), decoded(value)))
    };
    folders.split('/').filter_map(pair).collect()
}

fn decoded(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let escape = after.split_at_checked(2).filter(|_| *first == b'%');
        let byte = escape.and_then(|(digits, after)| {
            let digits =
                std::str::from_utf8(digits).ok().filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()))?;
            Some((u8::from_str_radix(digits, 16).ok()?, after))
        });
        let (byte, after) = byte.unwrap_or((*first, after));
        out.push(byte);
        rest = after;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Hive and Spark keep what is no row under names that start with `_` or `.`; a partition folder `_year=2024` is none of them.
fn is_hidden(name: &str) -> bool {
    name.split('/').any(|segment| segment.starts_with(['_', '.']) && !segment.contains('='))
}

/// Where each table format keeps its log below the table's folder, and the folder beside it that holds the data where all of them
/// lie in one: `metadata/` alone is a name that many a large prefix has, which must not be listed for nothing.
const TABLE_LOGS: [(&str, Option<&str>); 4] =
    [("_delta_log/", None), (".hoodie/", None), ("metadata/", Some("data")), ("_versions/", Some("data"))];

/// The table format of which `scope` is a part: one partition of a table, or one of its files, is under the log as well. A folder
/// above that may not be listed shows no table.
async fn table_around(store: &dyn Store, scope: &Scope) -> Result<Option<&'static str>, StoreError> {
    let root = match scope {
        Scope::Object(location) | Scope::Prefix(location) => location,
        Scope::Glob { root, .. } => root,
    };
    // A table may lie around the files that a link leads to.
    let really = match root {
        Location::Local(path) => std::fs::canonicalize(path).ok().map(Location::Local).filter(|really| really != root),
        Location::S3 { .. } => None,
    };
    let ways = [Some(root), really.as_ref()].into_iter().flatten();
    for (folder, root) in ways.flat_map(|root| folders_above(root).into_iter().map(move |folder| (folder, root))) {
        let next = below(&folder, root).split('/').next();
        for (log, _) in TABLE_LOGS.iter().filter(|(_, data)| data.is_none() || *data == next) {
            let listed = match store::list(store, &folder.join(log)).await {
                Ok(listed) => listed,
                // A log that cannot be looked for now may be there.
                Err(error @ StoreError::Unavailable { .. }) => return Err(error),
                // Who may list the dataset often may not list what is around it.
                Err(_) => Vec::new(),
            };
            let found = listed.iter().find_map(|object| table_format(below(&folder, &object.location)));
            if found.is_some() {
                return Ok(found);
            }
        }
    }
    Ok(None)
}

/// The folders that `root` lies in, the nearest first.
fn folders_above(root: &Location) -> Vec<Location> {
    match root {
        Location::Local(path) => path.ancestors().skip(1).map(|folder| Location::Local(folder.to_owned())).collect(),
        Location::S3 { bucket, key } => {
            let key = key.trim_end_matches('/');
            let above = key.match_indices('/').rev().map(|(slash, _)| &key[..=slash]).chain([""]);
            above.map(|key| Location::S3 { bucket: bucket.clone(), key: key.to_owned() }).collect()
        }
    }
}

fn table_format(name: &str) -> Option<&'static str> {
    let mut segments = name.split('/').rev();
    let file = segments.next().unwrap_or("");
    let folder = segments.next().unwrap_or("");
    if folder == "_delta_log" {
        return Some("Delta Lake");
    }
    if folder == "metadata" && file.ends_with(".metadata.json") {
        return Some("Iceberg");
    }
    if name.split('/').any(|segment| segment == ".hoodie") {
        return Some("Hudi");
    }
    (folder == "_versions" && file.ends_with(".manifest")).then_some("Lance")
}

/// The format a file name tells, and its compression: `x.csv.gz`, `part-0.snappy.parquet`.
pub fn infer(file_name: &str) -> (Option<Format>, Compression) {
    let lower = file_name.to_ascii_lowercase();
    let (stem, compression) = match lower.rsplit_once('.') {
        Some((stem, "gz" | "gzip")) => (stem, Compression::Gzip),
        Some((stem, "zst" | "zstd")) => (stem, Compression::Zstd),
        _ => (lower.as_str(), Compression::None),
    };
    let format = match stem.rsplit_once('.').map(|(_, ending)| ending) {
        Some("parquet" | "parq" | "pq") => Some(Format::Parquet),
        Some("csv") => Some(Format::Csv),
        Some("tsv" | "tab") => Some(Format::Tsv),
        Some("ndjson" | "jsonl" | "json") => Some(Format::Ndjson),
        _ => None,
    };
    (format, compression)
}

/// Whether an object in a prefix belongs to a dataset of `format`: its ending says so, or it has none and the format is declared.
pub fn belongs(file_name: &str, format: Option<Format>) -> bool {
    let (inferred, _) = infer(file_name);
    match format {
        None => inferred.is_some(),
        Some(format) => inferred == Some(format) || (inferred.is_none() && !file_name.contains('.')),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_format_compression_and_belonging() {
        use Compression::*;
        for (name, format, compression) in [
            ("a.parquet", Some(Format::Parquet), None),
            ("part-0.c000.snappy.PARQUET", Some(Format::Parquet), None),
            ("a.csv.gz", Some(Format::Csv), Gzip),
            ("a.jsonl.zst", Some(Format::Ndjson), Zstd),
            ("part-00000", Option::None, None),
            ("a.csv.bak", Option::None, None),
        ] {
            assert_eq!(infer(name), (format, compression), "{name}");
        }
        assert!(belongs("part-00000", Some(Format::Parquet)));
        assert!(!belongs("part-00000", Option::None));
        assert!(!belongs("a.csv.bak", Some(Format::Csv)));
        assert!(!belongs("a.csv", Some(Format::Parquet)));
    }

    #[test]
    fn partition_values_are_decoded_and_the_file_name_is_none() {
        let at = |key: &str| Location::S3 { bucket: "b".into(), key: key.into() };
        for (key, wanted) in [
            ("lake/day=1/email=a%40b.c/x=y.parquet", vec![("day", "1"), ("email", "a@b.c")]),
            ("lake/a%3Db=100%/e=%4/x", vec![("a=b", "100%"), ("e", "%4")]),
            ("lake/x.parquet", vec![]),
            ("lake/=1/x", vec![]),
        ] {
            let found = partitions(&at("lake/"), &at(key));
            let found: Vec<_> = found.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            assert_eq!(found, wanted, "{key}");
        }
    }

    #[test]
    fn hidden_names_and_table_formats_are_seen() {
        assert!(is_hidden("_temporary/0/a.parquet"));
        assert!(!is_hidden("_day=1/a.parquet"));
        assert_eq!(table_format("t/_delta_log/00000000000000000000.json"), Some("Delta Lake"));
        assert_eq!(table_format("metadata/v1.metadata.json"), Some("Iceberg"));
        assert_eq!(table_format(".hoodie/hoodie.properties"), Some("Hudi"));
        assert_eq!(table_format("day=1/a.parquet"), Option::None);
    }

    #[test]
    fn the_folders_above_end_at_the_root() {
        let above = |root| folders_above(&root).iter().map(Location::to_string).collect::<Vec<_>>();
        assert_eq!(above(Location::Local("/lake/t/day=1".into())), ["/lake/t", "/lake", "/"]);
        let s3 = |key: &str| Location::S3 { bucket: "b".into(), key: key.into() };
        assert_eq!(above(s3("lake/t/day=1/")), ["s3://b/lake/t/", "s3://b/lake/", "s3://b/"]);
        assert_eq!(above(s3("a.csv")), ["s3://b/"]);
    }

    #[test]
    fn a_star_stops_at_a_slash() {
        assert!(matcher("lake/*.csv").is_match("lake/a.csv"));
        assert!(!matcher("lake/*.csv").is_match("lake/b/a.csv"));
        assert!(matcher("lake/**/*.csv").is_match("lake/b/a.csv"));
    }
}
