//! A certificate for clients that is issued and replaced by others, such as cert-manager:
//! re-read from a folder periodically.

use crate::causes::with_causes;
use crate::net::FrontTls;
use crate::telemetry::Telemetry;
use lamina_identity::{CertificateError, Credentials, TlsError, read};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::sleep;

/// The files, as Secrets of the type `kubernetes.io/tls` have them.
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
/// The folder is read this often. The kubelet updates a Secret within about a minute.
const LOOK: Duration = Duration::from_secs(5);

/// The certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GivenError {
    #[error("{} cannot be read", .0.display())]
    File(PathBuf, #[source] io::Error),
    #[error("certificate and key cannot be used")]
    Tls(#[from] TlsError),
    #[error("the certificate cannot be used")]
    Certificate(#[from] CertificateError),
}

/// Follows the folder.
pub(crate) struct Given {
    folder: PathBuf,
    front: FrontTls,
    telemetry: Telemetry,
    look: Duration,
    /// The files last read, usable or not; `None` if they could not be read.
    seen: Option<Files>,
}

/// Certificate and key on disk.
#[derive(PartialEq, Eq)]
struct Files {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl Given {
    /// Uses the files in `folder` for clients of `front`.
    ///
    /// # Errors
    /// They cannot be used.
    pub(crate) async fn open(
        folder: &Path,
        front: FrontTls,
        telemetry: Telemetry,
    ) -> Result<Self, GivenError> {
        let mut given = Self {
            folder: folder.to_owned(),
            front,
            telemetry,
            look: LOOK,
            seen: None,
        };
        let files = files(folder).await?;
        given.show(files)?;
        Ok(given)
    }

    /// Checks the folder `every` so often.
    #[cfg(test)]
    pub(super) const fn looking(mut self, every: Duration) -> Self {
        self.look = every;
        self
    }

    /// Follows the folder for the rest of the process. Unusable files are logged once, and the
    /// previous certificate stays.
    pub(crate) async fn follow(mut self) {
        loop {
            sleep(self.look).await;
            match self.look().await {
                Ok(false) => {}
                Ok(true) => tracing::info!("clients are shown a new certificate"),
                Err(error) => {
                    let error = with_causes(&error);
                    tracing::warn!(error, "clients are shown the certificate of before");
                }
            }
        }
    }

    /// Returns whether there was a new certificate. An error is reported once for each state of the
    /// folder.
    async fn look(&mut self) -> Result<bool, GivenError> {
        let files = files(&self.folder).await;
        if files.as_ref().ok() == self.seen.as_ref() {
            return Ok(false);
        }
        self.seen = None;
        self.show(files?)?;
        Ok(true)
    }

    fn show(&mut self, files: Files) -> Result<(), GivenError> {
        let files = self.seen.insert(files);
        let own = Credentials::from_pem(&files.certificate, &files.key)?;
        let certificate = own.certificate().ok_or(CertificateError::Empty)?;
        let ends = read(certificate)?.validity.not_after;
        self.front.set(&own)?;
        self.telemetry.clients_certificate_ends(ends);
        Ok(())
    }
}

async fn files(folder: &Path) -> Result<Files, GivenError> {
    let file = |name: &str| {
        let path = folder.join(name);
        async move {
            let read = tokio::fs::read(&path).await;
            read.map_err(|error| GivenError::File(path, error))
        }
    };
    Ok(Files {
        certificate: file(CERTIFICATE).await?,
        key: file(KEY).await?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{FrontMode, Trust};
    use crate::testing::{agents, authority, lasting};
    use lamina_identity::authority::{Authority, request};
    use lamina_identity::{Reached, client_config, connect};
    use tokio::net::{TcpListener, TcpStream};
    use tokio_util::task::AbortOnDropHandle;

    /// Writes a certificate of `by` for the name `front.example` into `folder`; with another one's
    /// key if it is `mixed`.
    fn write(folder: &Path, by: &Authority, mixed: bool) {
        let (key, csr) = request().unwrap();
        let reached = Reached::parse(["front.example"]).unwrap();
        let issued = by.issue_front(&agents(), "cam-1".into(), &csr, lasting(), &reached);
        let key = if mixed { request().unwrap().0 } else { key };
        std::fs::write(folder.join(CERTIFICATE), issued.unwrap()).unwrap();
        std::fs::write(folder.join(KEY), key).unwrap();
    }

    /// Accepts connections as for HTTP clients.
    async fn serve(front: &FrontTls) -> (String, AbortOnDropHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let acceptor = front.grpc(&Trust::default()).unwrap();
        let serving = async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let _ = acceptor.accept(stream).await;
            }
        };
        (address, AbortOnDropHandle::new(tokio::spawn(serving)))
    }

    async fn is_shown(address: &str, by: &Authority) -> bool {
        let config = client_config(None, &[by.der().clone()]).unwrap();
        let stream = TcpStream::connect(address).await.unwrap();
        connect(config, "front.example", stream).await.is_ok()
    }

    async fn until_shown(address: &str, by: &Authority) {
        for _ in 0..500 {
            if is_shown(address, by).await {
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
        panic!("the new certificate is not shown");
    }

    #[tokio::test]
    async fn a_certificate_that_is_replaced_is_shown_and_a_bad_one_costs_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let front = FrontTls::new(FrontMode::Given, false, &Trust::default());
        let open = |front: &FrontTls| {
            let folder = folder.path().to_owned();
            let front = front.clone();
            async move { Given::open(&folder, front, Telemetry::default()).await }
        };
        let missing = open(&front).await.err().unwrap();
        assert!(with_causes(&missing).contains("tls.crt"), "{missing}");
        let (old, new) = (authority(), authority());
        write(folder.path(), &old, true);
        assert!(open(&front).await.is_err(), "the key is another one's");
        write(folder.path(), &old, false);
        let given = open(&front).await.unwrap();
        let given = given.looking(Duration::from_millis(20));
        let _following = AbortOnDropHandle::new(tokio::spawn(given.follow()));
        front.ready().await;
        let (address, _serving) = serve(&front).await;
        assert!(is_shown(&address, &old).await);
        // Half replaced, then damaged, then missing.
        for damage in ["mixed", "garbage", "gone"] {
            match damage {
                "mixed" => write(folder.path(), &new, true),
                "garbage" => std::fs::write(folder.path().join(CERTIFICATE), "x").unwrap(),
                _ => std::fs::remove_file(folder.path().join(KEY)).unwrap(),
            }
            sleep(Duration::from_millis(100)).await;
            assert!(is_shown(&address, &old).await, "{damage}");
        }
        write(folder.path(), &new, false);
        until_shown(&address, &new).await;
        assert!(!is_shown(&address, &old).await);
    }
}
