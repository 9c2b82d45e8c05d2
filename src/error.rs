//! The exit codes of the contract and the error every command ends with.
//!
//! Exit codes live here and nowhere else. An [`Error`] says what was tried, on which object, file or key, and why; what
//! to do next stands apart as the hint. Neither may hold an identifier.

use std::fmt;

/// How a command ended, as the process exit code (contract, section 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Exit {
    Clean,
    Internal,
    Usage,
    Incomplete,
    Residue,
    Blocked,
    Conflict,
    Unavailable,
    Untrusted,
    Overdue,
    Refused,
    Interrupted,
    Terminated,
}

impl Exit {
    /// The number the process returns.
    pub fn code(self) -> u8 {
        match self {
            Exit::Clean => 0,
            Exit::Internal => 1,
            Exit::Usage => 2,
            Exit::Incomplete => 3,
            Exit::Residue => 4,
            Exit::Blocked => 5,
            Exit::Conflict => 6,
            Exit::Unavailable => 7,
            Exit::Untrusted => 8,
            Exit::Overdue => 9,
            Exit::Refused => 10,
            Exit::Interrupted => 130,
            Exit::Terminated => 143,
        }
    }

    /// The contract's name of the code.
    pub fn name(self) -> &'static str {
        match self {
            Exit::Clean => "clean",
            Exit::Internal => "internal",
            Exit::Usage => "usage",
            Exit::Incomplete => "incomplete",
            Exit::Residue => "residue",
            Exit::Blocked => "blocked",
            Exit::Conflict => "conflict",
            Exit::Unavailable => "unavailable",
            Exit::Untrusted => "untrusted",
            Exit::Overdue => "overdue",
            Exit::Refused => "refused",
            Exit::Interrupted => "interrupted",
            Exit::Terminated => "terminated",
        }
    }

    /// When several hold, the one that is returned: the first of 1, 8, 4, 5, 6, 3, 7, 9. What ends a run at once
    /// (usage, a guard, a signal) stands before them all.
    pub fn gravest(exits: impl IntoIterator<Item = Exit>) -> Exit {
        exits.into_iter().min_by_key(|exit| exit.rank()).unwrap_or(Exit::Clean)
    }

    fn rank(self) -> u8 {
        match self {
            Exit::Terminated => 0,
            Exit::Interrupted => 1,
            Exit::Usage => 2,
            Exit::Refused => 3,
            Exit::Internal => 4,
            Exit::Untrusted => 5,
            Exit::Residue => 6,
            Exit::Blocked => 7,
            Exit::Conflict => 8,
            Exit::Incomplete => 9,
            Exit::Unavailable => 10,
            Exit::Overdue => 11,
            Exit::Clean => 12,
        }
    }
}

/// Why a command stopped. `message` is lower case without a full stop; `hint` says what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    pub exit: Exit,
    pub message: String,
    pub hint: Option<String>,
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Error { exit, message: message.into(), hint: None }
    }

    pub fn usage(message: impl Into<String>) -> Self {
        Error::new(Exit::Usage, message)
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Error::new(Exit::Internal, message)
    }

    /// Whether a dataset that cannot be listed for this reason leaves the others to go on: a store that is out of reach stops the run.
    pub fn is_of_one_dataset(&self) -> bool {
        matches!(self.exit, Exit::Incomplete | Exit::Blocked)
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gravest_exit_follows_the_order_of_the_contract() {
        let order = [
            Exit::Internal,
            Exit::Untrusted,
            Exit::Residue,
            Exit::Blocked,
            Exit::Conflict,
            Exit::Incomplete,
            Exit::Unavailable,
            Exit::Overdue,
        ];
        for (i, graver) in order.iter().enumerate() {
            for lesser in &order[i..] {
                assert_eq!(Exit::gravest([*lesser, Exit::Clean, *graver]), *graver);
            }
        }
        assert_eq!(Exit::gravest([]), Exit::Clean);
    }
}
