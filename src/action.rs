//! What happens to a matching row: it is removed, or some of its cells are redacted.

use crate::identifier::ColumnPath;

/// The action of a dataset, applied to matching rows only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    Delete,
    Redact(Vec<Redact>),
}

/// One column whose cells are redacted in matching rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redact {
    pub column: ColumnPath,
    pub with: Redaction,
}

/// What a redacted cell becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Redaction {
    Null,
    Constant(String),
    /// The keyed tag of the cell: pseudonymised, not erased, and labelled so in the manifest.
    Tag,
}

impl Action {
    pub fn name(&self) -> &'static str {
        match self {
            Action::Delete => "delete",
            Action::Redact(_) => "redact",
        }
    }
}
