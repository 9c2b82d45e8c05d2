//! The names of columns, as the job file spells them.
//!
//! Invariant: a path that was parsed is shown as what is parsed to it again.

use std::fmt;

/// A column by its path into structs (and through lists): `user.email` is two names, `"a.b"` in double quotes is one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ColumnPath(pub Vec<String>);

impl ColumnPath {
    /// Parses the job file's spelling. `None`: an empty name or an unclosed quote.
    pub fn parse(text: &str) -> Option<ColumnPath> {
        let mut names = Vec::new();
        let mut rest = text;
        loop {
            let (name, after) = match rest.strip_prefix('"') {
                Some(quoted) => {
                    let end = quoted.find('"')?;
                    (&quoted[..end], &quoted[end + 1..])
                }
                None => rest.split_at(rest.find('.').unwrap_or(rest.len())),
            };
            if name.is_empty() {
                return None;
            }
            names.push(name.to_owned());
            match after.strip_prefix('.') {
                Some(next) => rest = next,
                None if after.is_empty() => return Some(ColumnPath(names)),
                None => return None,
            }
        }
    }
}

impl fmt::Display for ColumnPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, name) in self.0.iter().enumerate() {
            let dot = if i > 0 { "." } else { "" };
            if name.contains('.') { write!(f, "{dot}\"{name}\"")? } else { write!(f, "{dot}{name}")? }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn column_paths_split_at_dots_outside_quotes() {
        let names = |text| ColumnPath::parse(text).map(|path| path.0);
        assert_eq!(names("user.email"), Some(vec!["user".into(), "email".into()]));
        assert_eq!(names("\"a.b\".c"), Some(vec!["a.b".into(), "c".into()]));
        assert_eq!(ColumnPath::parse("\"a.b\".c").unwrap().to_string(), "\"a.b\".c");
        for broken in ["", "a..b", ".a", "a.", "\"a", "\"a\"b"] {
            assert_eq!(names(broken), None, "{broken}");
        }
    }
}
