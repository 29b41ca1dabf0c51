//! A process that opens an untrusted model sandboxes itself first.
//!
//! Nothing here needs a privilege or a namespace, so it works in a pod under the
//! `restricted` standard: Landlock for files, seccomp for system calls,
//! resource limits for everything that can be exhausted.

mod calls;
mod files;
mod limits;

pub use limits::Limits;

use std::fmt;
use std::io;
use std::path::PathBuf;

/// The rights that this process keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cell {
    /// Files and folders that it may read besides its own libraries.
    pub read: Vec<PathBuf>,
    /// The one folder in which it may create and write files, if any.
    pub write: Option<PathBuf>,
    /// Its resource limits.
    pub limits: Limits,
}

/// What to do if the kernel lacks the sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strictness {
    /// Refuse.
    Required,
    /// Use what is available.
    WhatThereIs,
}

/// One half of the sandbox that the kernel lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// `Landlock` or `seccomp`.
    pub what: &'static str,
    /// The kernel's answer.
    pub why: String,
}

/// Why this process is not sandboxed. It must not open the model then.
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
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
}

/// Sandboxes this process for the rest of its life. Call it while there is one
/// thread. Returns what is missing if `strictness` allows that.
///
/// # Errors
/// See [`LockError`]; part of the sandbox may be in place then.
pub fn lock_up(cell: &Cell, strictness: Strictness) -> Result<Vec<Missing>, LockError> {
    limits::set(&cell.limits)?;
    // Files first: the second half does not allow the system calls for them.
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
