//! Which callers may send which requests. Pure.

use tonic::{Code, Status};

/// The sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Caller<'a> {
    /// The agent of this node, by its certificate.
    Agent(&'a str),
    /// Unknown: it showed no certificate.
    Nobody,
    /// Unknown: certificates are not required.
    Unchecked,
}

/// The caller may not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotAdmitted {
    #[error(
        "only agents may ask this, and no agent's certificate was shown; clients call ModelInfer"
    )]
    NoCertificate,
    #[error("the agent of `{0}` is not the one that sends requests for this segment")]
    NotOnPath(String),
}

impl From<NotAdmitted> for Status {
    fn from(reason: NotAdmitted) -> Self {
        let code = match reason {
            NotAdmitted::NoCertificate => Code::Unauthenticated,
            NotAdmitted::NotOnPath(_) => Code::PermissionDenied,
        };
        Self::new(code, reason.to_string())
    }
}

/// Whether `caller` may send a request for a slice with these `callers`. If none are named,
/// the slice was written by an older operator, or is not held here; any agent may be told
/// that.
///
/// # Errors
/// See [`NotAdmitted`].
pub(super) fn may_forward(
    caller: Caller<'_>,
    callers: Option<&[String]>,
) -> Result<(), NotAdmitted> {
    match (caller, callers) {
        (Caller::Nobody, _) => Err(NotAdmitted::NoCertificate),
        (Caller::Agent(node), Some(callers)) if !callers.iter().any(|c| c == node) => {
            Err(NotAdmitted::NotOnPath(node.to_owned()))
        }
        _ => Ok(()),
    }
}

/// Whether `caller` may measure its link to this host.
///
/// # Errors
/// See [`NotAdmitted`].
pub(super) fn may_ping(caller: Caller<'_>) -> Result<(), NotAdmitted> {
    match caller {
        Caller::Nobody => Err(NotAdmitted::NoCertificate),
        Caller::Agent(_) | Caller::Unchecked => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hop_is_taken_from_the_host_before_on_the_path_alone() {
        let callers = ["cam-1".to_owned()];
        let may = |caller| may_forward(caller, Some(&callers));
        assert_eq!(may(Caller::Agent("cam-1")), Ok(()));
        let other = NotAdmitted::NotOnPath("edge-9".into());
        assert_eq!(may(Caller::Agent("edge-9")), Err(other));
        assert_eq!(may(Caller::Nobody), Err(NotAdmitted::NoCertificate));
        assert_eq!(may(Caller::Unchecked), Ok(()));
        let nobody = may_forward(Caller::Agent("cam-1"), Some(&[]));
        assert!(nobody.is_err(), "{nobody:?}");
    }

    #[test]
    fn where_no_callers_are_named_every_agent_may_and_nobody_else() {
        assert_eq!(may_forward(Caller::Agent("edge-9"), None), Ok(()));
        let nobody = may_forward(Caller::Nobody, None);
        assert_eq!(nobody, Err(NotAdmitted::NoCertificate));
    }

    #[test]
    fn a_ping_is_answered_to_agents() {
        assert_eq!(may_ping(Caller::Agent("edge-9")), Ok(()));
        assert_eq!(may_ping(Caller::Unchecked), Ok(()));
        assert_eq!(may_ping(Caller::Nobody), Err(NotAdmitted::NoCertificate));
    }
}
