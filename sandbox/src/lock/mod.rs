//! A process that opens an untrusted model locks itself up before.
//!
//! Nothing here needs a right or a namespace, so that it works in a pod that
//! the `restricted` standard admits: Landlock for files, seccomp for system
//! calls, resource limits for everything that runs out.

mod calls;
mod files;
mod limits;

pub use limits::Limits;

use std::fmt;
use std::io;
use std::path::PathBuf;

/// What this process keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cell {
    /// The files and folders that it may read besides its own libraries.
    pub read: Vec<PathBuf>,
    /// The one folder in which it may make and write files, if any.
    pub write: Option<PathBuf>,
    /// What it may use up.
    pub limits: Limits,
}

/// What to do where the kernel cannot lock a process up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strictness {
    /// Refuse.
    Required,
    /// Take what there is.
    WhatThereIs,
}

/// One half of the lock that the kernel does not give.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// `Landlock` or `seccomp`.
    pub what: &'static str,
    /// The kernel's answer.
    pub why: String,
}

/// Why this process is not locked up. It must not open the model then.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// The kernel lacks something.
    #[error(
        "this host cannot lock up a process that opens an untrusted model: {}",
        list(.0)
    )]
    Unsupported(Vec<Missing>),
    /// A limit could not be set.
    #[error("cannot limit {what} of the process")]
    Limit {
        /// Which one.
        what: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// Locks this process up for the rest of its life. Call it while there is one
/// thread. What is missing comes back where `strictness` lets it pass.
///
/// # Errors
/// See [`LockError`]; part of the lock may hold then.
pub fn lock_up(cell: &Cell, strictness: Strictness) -> Result<Vec<Missing>, LockError> {
    limits::set(&cell.limits)?;
    // Files first: its own system calls are none that the second half allows.
    let halves = [files::confine(cell), calls::confine()];
    let missing = halves.into_iter().filter_map(Result::err).collect();
    decide(missing, strictness)
}

fn decide(missing: Vec<Missing>, strictness: Strictness) -> Result<Vec<Missing>, LockError> {
    if missing.is_empty() || strictness == Strictness::WhatThereIs {
        Ok(missing)
    } else {
        Err(LockError::Unsupported(missing))
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no {} ({})", self.what, self.why)
    }
}

fn list(missing: &[Missing]) -> String {
    let missing: Vec<String> = missing.iter().map(ToString::to_string).collect();
    missing.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn missing(what: &'static str) -> Missing {
        Missing {
            what,
            why: "why".into(),
        }
    }

    #[test]
    fn a_kernel_that_lacks_something_is_refused_unless_told_otherwise() {
        let both = || vec![missing("Landlock"), missing("seccomp")];
        let error = decide(both(), Strictness::Required).unwrap_err();
        let text = error.to_string();
        assert!(
            text.ends_with("no Landlock (why), no seccomp (why)"),
            "{text}"
        );
        assert_eq!(decide(both(), Strictness::WhatThereIs).unwrap(), both());
        assert_eq!(decide(Vec::new(), Strictness::Required).unwrap(), []);
    }
}
