//! Errors with their causes, in readable form.

pub(crate) use lamina_worker_link::with_causes;

use std::error::Error;

/// The innermost cause: `Connection refused` says more than `transport error`.
pub(crate) fn root_cause(error: &(dyn Error + 'static)) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
