//! Which objects a gate looks at, and with the rules of which datasets.
//!
//! A scope is listed once for all datasets that its objects may be meant for; here what was listed is divided among them. Invariant:
//! whatever is listed is looked at with the rules of some candidate, or told by the first.

use crate::dataset::listing;
use crate::error::{Error, Result};
use crate::job::{DatasetSpec, Job, Scope};
use crate::store::{Location, Object, Store, StoreError};

/// What becomes of listed objects with one candidate.
#[derive(Debug, Default)]
pub struct Share {
    /// Looked at with its rules.
    pub objects: Vec<Object>,
    /// No candidate's: told, and not looked at.
    pub others: Vec<Object>,
}

/// The datasets that objects may be meant for: the one named, those under whose folder they lie or that lie under theirs, or the only one.
pub fn datasets_of(job: &Job, scope: &Scope, named: Option<&str>) -> Result<Vec<usize>> {
    if let Some(name) = named {
        let number = job.datasets.iter().position(|spec| spec.name == name);
        let number = number.ok_or_else(|| Error::usage(format!("--dataset {name} is no dataset of the job")))?;
        return Ok(vec![number]);
    }
    let root = scope.root();
    let is_meant = |spec: &DatasetSpec| is_below(spec.scope.root(), root) || is_below(root, spec.scope.root());
    let meant: Vec<usize> = (0..job.datasets.len()).filter(|number| is_meant(&job.datasets[*number])).collect();
    match job.datasets.len() {
        _ if !meant.is_empty() => Ok(meant),
        1 => Ok(vec![0]),
        _ => {
            let names: Vec<&str> = job.datasets.iter().map(|spec| spec.name.as_str()).collect();
            Err(Error::usage(format!("{root} lies under no dataset of the job"))
                .hint(format!("say whose rules to look with: --dataset {}", names.join(" or --dataset "))))
        }
    }
}

/// All that `scope` names, whatever the dataset.
pub async fn list(store: &dyn Store, scope: &Scope) -> std::result::Result<Vec<Object>, StoreError> {
    let listing = listing::list(store, scope, &|_| true).await?;
    Ok(listing.in_scope.into_iter().chain(listing.not_in_scope).collect())
}

/// A share for each of the candidates. An object is looked at with the rules of all datasets that it belongs to, and when it belongs to
/// none, of all candidates that would list it.
pub fn divide(scope: &Scope, listed: Vec<Object>, candidates: &[&DatasetSpec]) -> Vec<Share> {
    let mut shares: Vec<Share> = candidates.iter().map(|_| Share::default()).collect();
    for object in listed {
        let (location, is_marker) = (&object.location, is_marker(&object));
        let belongs: Vec<bool> = candidates.iter().map(|spec| is_of(spec, location)).collect();
        let is_homeless = !belongs.contains(&true);
        let takes = |(spec, belongs): (&&DatasetSpec, &bool)| {
            let would_list = listing::is_in_scope(scope, location, &|name| listing::belongs(name, spec.format));
            (*belongs || (is_homeless && would_list)) && (would_list || !is_marker)
        };
        let takes: Vec<bool> = candidates.iter().zip(&belongs).map(takes).collect();
        for (share, _) in shares.iter_mut().zip(&takes).filter(|(_, takes)| **takes) {
            share.objects.push(object.clone());
        }
        if !takes.contains(&true)
            && !is_marker
            && let Some(first) = shares.first_mut()
        {
            first.others.push(object);
        }
    }
    shares
}

/// Whether the dataset lists objects of this name.
pub fn is_of(spec: &DatasetSpec, location: &Location) -> bool {
    let is_named = |name: &str| listing::belongs(name, spec.format);
    is_below(spec.scope.root(), location) && listing::is_in_scope(&spec.scope, location, &is_named)
}

fn is_below(outer: &Location, inner: &Location) -> bool {
    let (outer, inner) = (outer.to_string(), inner.to_string());
    inner == outer || inner.starts_with(&format!("{}/", outer.trim_end_matches('/')))
}

/// Holds no rows: empty, or what Hadoop and Spark write beside data to say that it is whole.
fn is_marker(object: &Object) -> bool {
    let name = object.location.file_name();
    let is_checksum = name.starts_with('.') && name.ends_with(".crc");
    object.size_bytes == 0
        || name == "_SUCCESS"
        || name.starts_with("_committed_")
        || name.starts_with("_started_")
        || is_checksum
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::store::Etag;

    const LISTS: &str = "version = 1\n[[list]]\nname = \"all\"\nuri = \"ledger\"\n";

    fn job(datasets: &[(&str, &str)]) -> Job {
        let dataset = |(uri, format): &(&str, &str)| {
            format!(
                "[[dataset]]\nname = \"{uri}\"\nuri = \"{uri}\"\nformat = \"{format}\"\n[[dataset.match]]\ncolumn = \"e\"\nkind = \"email\"\n"
            )
        };
        let datasets: String = datasets.iter().map(dataset).collect();
        Job::parse(&format!("{LISTS}{datasets}"), Path::new("/"), &[]).unwrap()
    }

    /// By dataset the names that are looked at, and behind a `!` those that are told.
    fn check(datasets: &[(&str, &str)], scope: &str, names: &[(&str, u64)], wish: &[&str]) {
        let job = job(datasets);
        let object = |(name, size_bytes): &(&str, u64)| Object {
            location: Location::Local(Path::new("/").join(name)),
            size_bytes: *size_bytes,
            etag: Etag("1".to_owned()),
            version_id: None,
            storage_class: None,
        };
        let scope = crate::job::scope_of(&format!("/{scope}")).unwrap();
        let candidates: Vec<&DatasetSpec> = job.datasets.iter().collect();
        let shares = divide(&scope, names.iter().map(object).collect(), &candidates);
        let told = |share: &Share| {
            let names = |objects: &[Object], sign: &str| -> Vec<String> {
                objects.iter().map(|object| format!("{sign}{}", object.location.file_name())).collect()
            };
            [names(&share.objects, ""), names(&share.others, "!")].concat().join(" ")
        };
        let shares: Vec<String> = shares.iter().map(told).collect();
        assert_eq!(shares, wish, "{scope:?} {names:?}");
    }

    #[test]
    fn whatever_is_listed_is_looked_at_by_some_dataset_or_told() {
        let two = [("lake/*_users.csv", "csv"), ("lake/*_calls.csv", "csv")];
        check(&two, "lake/", &[("lake/1_calls.csv", 9), ("lake/1_users.csv", 9)], &["1_users.csv", "1_calls.csv"]);
        // Of no dataset: whoever would list it looks at it.
        check(&two, "lake/", &[("lake/x.csv", 9), ("lake/x.bz2", 9)], &["x.csv !x.bz2", "x.csv"]);
        check(&two, "landing/", &[("landing/_x.csv", 9)], &["!_x.csv", ""]);
        // The format that only the second one has.
        let formats = [("a/", "csv"), ("b/", "parquet")];
        check(&formats, "landing/", &[("landing/x.parquet", 9), ("landing/x.csv", 9)], &["x.csv", "x.parquet"]);
        // What says that the data are whole holds no rows; an empty object of a dataset is looked at.
        let markers = [("a/_SUCCESS", 0), ("a/.x.csv.crc", 8), ("a/_started_1", 3), ("a/empty", 0), ("a/x.csv", 0)];
        check(&[("a/", "csv")], "a/", &markers, &["empty x.csv"]);
        check(&[("a/", "csv")], "a/", &[("a/x.bin", 0)], &[""]);
        // Named exactly, or by a glob.
        check(&formats, "a/x.bin", &[("a/x.bin", 9)], &["x.bin", "x.bin"]);
        check(&formats, "a/*.bin", &[("a/x.bin", 9)], &["x.bin", "x.bin"]);
        check(&[("a/", "csv"), ("a/sub/", "csv")], "a/", &[("a/sub/x.csv", 9)], &["x.csv", "x.csv"]);
    }

    #[test]
    fn objects_are_meant_for_the_dataset_named_or_around_or_below_them_or_the_only_one() {
        let check = |datasets: &[(&str, &str)], uri: &str, named: Option<&str>, wish: Option<&[usize]>| {
            let scope = crate::job::scope_of(uri).unwrap();
            assert_eq!(datasets_of(&job(datasets), &scope, named).ok().as_deref(), wish, "{uri} {named:?}");
        };
        let two = [("lake/a/", "csv"), ("lake/b/", "csv")];
        check(&two, "/lake/a/x.csv", None, Some(&[0]));
        check(&two, "/lake/", None, Some(&[0, 1]));
        check(&two, "/lake/ab/", None, None);
        check(&two, "/landing/", None, None);
        check(&two, "/landing/", Some("lake/b/"), Some(&[1]));
        check(&two, "/lake/a/", Some("none"), None);
        check(&two[..1], "/landing/", None, Some(&[0]));
    }
}
