//! The projected token that identifies this host to the operator.

use std::io;
use std::path::{Path, PathBuf};
use tonic::metadata::{Ascii, MetadataValue};

/// `Bearer …`, for `authorization`.
pub(crate) type Bearer = MetadataValue<Ascii>;

/// There is no token to show.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TokenError {
    #[error("cannot read the token {path}", path = path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} holds no token", path = path.display())]
    Content { path: PathBuf },
}

/// The token in `file`. Read each time, because the kubelet replaces it before it
/// expires.
///
/// # Errors
/// See [`TokenError`].
pub(crate) async fn bearer(file: &Path) -> Result<Bearer, TokenError> {
    let token = tokio::fs::read_to_string(file).await;
    let token = token.map_err(|source| TokenError::Read {
        path: file.to_owned(),
        source,
    })?;
    let bearer = format!("Bearer {}", token.trim()).parse();
    bearer.map_err(|_| TokenError::Content {
        path: file.to_owned(),
    })
}
