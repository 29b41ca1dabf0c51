//! The file by which a machine that is not a Node joins, as `kubectl lamina join` writes it.

use serde::Deserialize;
use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _, UdpSocket};
use std::path::{Path, PathBuf};

/// Largest file accepted: a bundle of authorities has some kilobytes.
const MOST_BYTES: u64 = 256 << 10;

/// A machine cannot join with that file.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each message names its fields
pub(crate) enum JoinError {
    #[error("cannot read {path}", path = path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} is too large for what `kubectl lamina join` writes", path = path.display())]
    Large { path: PathBuf },
    #[error("{path} is not what `kubectl lamina join` writes", path = path.display())]
    Content {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("no address of this machine leads to the operator at {operator}; give --pod-ip")]
    NoWay {
        operator: String,
        #[source]
        source: io::Error,
    },
}

/// Everything a machine needs to join.
#[derive(Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct JoinFile {
    /// Name of the host that it becomes.
    pub(crate) host: String,
    /// The operator's address, `edge.example:9000`.
    pub(crate) operator: String,
    /// Valid once, for a certificate.
    token: String,
    /// The authorities to trust, in PEM.
    pub(crate) authorities: String,
}

impl fmt::Debug for JoinFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinFile")
            .field("host", &self.host)
            .field("operator", &self.operator)
            .finish_non_exhaustive()
    }
}

impl JoinFile {
    /// Reads `path`. Blocks.
    ///
    /// # Errors
    /// See [`JoinError`].
    pub(crate) fn read(path: &Path) -> Result<Self, JoinError> {
        let failed = |source| JoinError::Read {
            path: path.to_owned(),
            source,
        };
        if fs::metadata(path).map_err(failed)?.len() > MOST_BYTES {
            let path = path.to_owned();
            return Err(JoinError::Large { path });
        }
        let text = fs::read(path).map_err(failed)?;
        serde_json::from_slice(&text).map_err(|source| JoinError::Content {
            path: path.to_owned(),
            source,
        })
    }

    /// The credentials for the first request, as `authorization`.
    pub(crate) fn authorization(&self) -> String {
        format!("Join {}.{}", self.host, self.token)
    }

    /// The address of this machine from which the operator is reached; sends nothing.
    /// Blocks while the operator's name is resolved.
    ///
    /// # Errors
    /// See [`JoinError::NoWay`].
    pub(crate) fn own_address(&self) -> Result<IpAddr, JoinError> {
        way_to(&self.operator).map_err(|source| JoinError::NoWay {
            operator: self.operator.clone(),
            source,
        })
    }
}

fn way_to(operator: &str) -> io::Result<IpAddr> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for to in operator.to_socket_addrs()? {
        let any: SocketAddr = match to {
            SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
            SocketAddr::V6(_) => ([0_u16; 8], 0).into(),
        };
        let socket = UdpSocket::bind(any)?;
        match socket.connect(to) {
            Ok(()) => return Ok(socket.local_addr()?.ip()),
            Err(error) => last = error,
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"{"host": "cam-9", "operator": "127.0.0.1:9000",
        "token": "secret", "authorities": "PEM"}"#;

    #[test]
    fn a_file_says_who_joins_where_and_is_shown_without_its_token() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cam-9.join");
        fs::write(&path, FILE).unwrap();
        let join = JoinFile::read(&path).unwrap();
        assert_eq!(join.authorization(), "Join cam-9.secret");
        assert!(!format!("{join:?}").contains("secret"));
        assert_eq!(join.own_address().unwrap(), IpAddr::from([127, 0, 0, 1]));
    }

    #[test]
    fn what_is_no_such_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cam-9.join");
        let refused = || JoinFile::read(&path).unwrap_err();
        assert!(matches!(refused(), JoinError::Read { .. }));
        fs::write(&path, r#"{"host": "cam-9"}"#).unwrap();
        assert!(matches!(refused(), JoinError::Content { .. }));
        fs::write(&path, " ".repeat(1 << 20)).unwrap();
        assert!(matches!(refused(), JoinError::Large { .. }));
    }
}
