//! Requests the certificate from the operator and renews it in time.

use super::decide::{Own, Step, decide, is_good, trouble};
use super::files::{Files, Kept};
use crate::causes::with_causes;
use crate::net::{
    Backoff, DialError, FrontTls, OperatorEndpoint, Profile, Target, bearer, connect,
    connect_to_enroll,
};
use crate::telemetry::Telemetry;
use crate::uplink::JoinFile;
use futures::{Stream, StreamExt as _};
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::runtime::{WatchStreamExt as _, watcher};
use lamina_identity::authority::{self, AuthorityError};
use lamina_identity::{
    CertificateDer, CertificateError, Credentials, Reached, TlsError, certificates, is_issued_by,
    read,
};
use lamina_proto::control::EnrollRequest;
use lamina_proto::control::control_client::ControlClient;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};
use tonic::{Request, Status};

/// Key of the authorities in the ConfigMap.
const BUNDLE: &str = "ca.crt";
/// If the operator issues no certificate within this time, ask again.
const PATIENCE: Duration = Duration::from_secs(15);
/// Pauses after a failure.
const PAUSES: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(20));
/// Missing authorities are reported after this time: an operator installed at the same time needs
/// some seconds.
const AWAITED: Duration = Duration::from_secs(30);

/// Why there is no new certificate.
#[derive(Debug, thiserror::Error)]
enum EnrollError {
    #[error("the operator's address is not known yet")]
    NoOperator,
    #[error("the operator cannot be reached")]
    Connect(#[from] DialError),
    #[error("the operator refused: {}", .0.message())]
    Refused(Box<Status>),
    #[error("the operator did not answer within {} s", PATIENCE.as_secs())]
    Late,
    #[error("the request could not be created")]
    Request(#[from] AuthorityError),
    #[error("the operator's reply cannot be used")]
    Certificate(#[from] CertificateError),
    #[error("the operator's reply cannot be used")]
    Tls(#[from] TlsError),
    #[error("the certificate from the operator names `{0}`, not this host")]
    OtherName(String),
    #[error(
        "the certificate from the operator is signed by an authority that is not known here yet"
    )]
    NotBelieved,
    #[error(
        "what the operator gave does not name `{0}`; is the operator of the same release, with \
         the chart's `agent.front`?"
    )]
    Lacks(String),
    #[error(
        "the certificate from the operator is not valid by this host's clock; check both clocks"
    )]
    Clock,
}

/// The credentials for a certificate request.
pub(crate) enum Shown {
    /// The token of its pod, in this file.
    Pod(PathBuf),
    /// The join token once, and from then on the certificate itself.
    Join {
        /// As `authorization`.
        authorization: String,
        /// Key and request that were sent with the token: it is valid only for these, and the
        /// answer may be lost.
        asked: Option<(String, Vec<u8>)>,
    },
}

impl Shown {
    /// For a machine that joins by `file`.
    pub(crate) fn join(file: &JoinFile) -> Self {
        Self::Join {
            authorization: file.authorization(),
            asked: None,
        }
    }
}

/// Obtains and renews this host's certificate.
pub(crate) struct Keeper {
    /// Name of this node.
    node: String,
    files: Files,
    shown: Shown,
    endpoint: OperatorEndpoint,
    telemetry: Telemetry,
    /// Notified when the state of the certificate changes.
    changed: Arc<Notify>,
    authorities: Vec<CertificateDer<'static>>,
    bundle: String,
    held: Option<Held>,
    /// Clients that see the certificate, and the names by which they reach this host.
    front: FrontTls,
    reached: Reached,
}

/// The certificate.
struct Held {
    credentials: Credentials,
    own: Own,
    /// The names for clients in it.
    reached: Reached,
}

impl Keeper {
    /// Keeps the certificate of `node` in `files`, and requests it from the operator at `endpoint`
    /// with the credentials `shown`. A stored certificate is used at once; `told` is called with
    /// its expiry, and when its state changes.
    pub(crate) fn new(
        node: &str,
        files: Files,
        shown: Shown,
        endpoint: OperatorEndpoint,
        told: (Telemetry, Arc<Notify>),
    ) -> Self {
        let Kept { authorities, own } = files.read();
        let (telemetry, changed) = told;
        let mut keeper = Self {
            node: node.to_owned(),
            files,
            shown,
            endpoint,
            telemetry,
            changed,
            authorities: Vec::new(),
            bundle: String::new(),
            held: None,
            front: FrontTls::default(),
            reached: Reached::default(),
        };
        if authorities.is_empty() {
            return keeper;
        }
        if let Err(error) = keeper.restore(&authorities, &own) {
            let error = with_causes(&error);
            tracing::warn!(error, "the certificate on the disk is not used");
        }
        keeper
    }

    /// Uses the certificate for clients of `front` too, which reach this host by `reached`.
    pub(crate) fn for_clients(mut self, front: FrontTls, reached: Reached) -> Self {
        (self.front, self.reached) = (front, reached);
        if let Some(held) = &mut self.held {
            held.own.is_named = held.reached.lacks(&self.reached).is_none();
        }
        if let Err(error) = self.show() {
            let error = with_causes(&error);
            tracing::warn!(error, "the certificate on the disk is not used");
        }
        self
    }

    fn restore(&mut self, authorities: &str, own: &str) -> Result<(), EnrollError> {
        self.authorities = certificates(authorities.as_bytes())?;
        authorities.clone_into(&mut self.bundle);
        let held = match own {
            "" => Ok(None),
            own => self.judged(own).map(Some),
        };
        // The authorities are known all the same.
        match held {
            Ok(held) => {
                self.held = held;
                self.show()
            }
            Err(error) => self.show().and(Err(error)),
        }
    }

    /// Renews the certificate for the rest of the process. `bundles` yields the authorities, in
    /// PEM, whenever they change.
    pub(crate) async fn run(mut self, bundles: impl Stream<Item = String> + Send) {
        let mut bundles = pin!(bundles);
        let mut endpoint = self.endpoint.subscribe();
        let mut pauses = PAUSES;
        let mut waited = Duration::ZERO;
        loop {
            let pause = match decide(self.own(), !self.authorities.is_empty(), now()) {
                Step::Wait(pause) => {
                    self.tell(None);
                    pause
                }
                Step::AwaitAuthorities => {
                    let pause = AWAITED.saturating_sub(waited);
                    if pause.is_zero() {
                        self.tell(Some(
                            "the operator's ConfigMap names no certificate authority; does the operator run, and does it speak TLS?",
                        ));
                    }
                    waited += pause;
                    pause.max(Duration::from_secs(1))
                }
                Step::Enroll => match self.enroll().await {
                    Ok(()) => {
                        tracing::info!("this host has a new certificate");
                        pauses.reset();
                        continue;
                    }
                    Err(error) => {
                        let reason = with_causes(&error);
                        tracing::warn!(reason, "no certificate; trying again");
                        self.tell(Some(&reason));
                        pauses.next_wait()
                    }
                },
            };
            tokio::select! {
                bundle = bundles.next() => match bundle {
                    Some(bundle) => self.believe(bundle).await,
                    None => sleep(pause).await,
                },
                // If the operator moved, it may be reachable now.
                Ok(()) = endpoint.changed() => {}
                () = sleep(pause) => {}
            }
        }
    }

    fn own(&self) -> Option<Own> {
        self.held.as_ref().map(|held| held.own)
    }

    /// Reports why there is no certificate, if that matters.
    fn tell(&self, reason: Option<&str>) {
        let trust = self.endpoint.trust();
        let told = reason.filter(|_| trust.is_required());
        let told = told.and_then(|reason| trouble(self.own(), now(), reason));
        if trust.set_trouble(told) {
            self.changed.notify_one();
        }
    }

    /// Trusts the authorities in `bundle` from now on.
    async fn believe(&mut self, bundle: String) {
        if bundle == self.bundle {
            return;
        }
        let authorities = match certificates(bundle.as_bytes()) {
            Ok(authorities) => authorities,
            Err(error) => {
                let error = with_causes(&error);
                tracing::warn!(error, "the published authorities are not used");
                return;
            }
        };
        tracing::info!(
            authorities = authorities.len(),
            "whom to believe has changed"
        );
        self.authorities = authorities;
        self.bundle = bundle;
        if let Some(held) = &mut self.held {
            held.own.is_believed = is_believed(&held.credentials, &self.authorities);
        }
        if let Err(error) = self.show() {
            let error = with_causes(&error);
            tracing::warn!(error, "the published authorities are not used");
        }
        let (files, bundle) = (self.files.clone(), self.bundle.clone());
        written(spawn_blocking(move || files.write_authorities(&bundle)).await);
    }

    /// Uses the certificate from the next connection on.
    fn show(&self) -> Result<(), EnrollError> {
        let held = self.held.as_ref().filter(|held| held.own.is_believed);
        if let Some(held) = held {
            self.telemetry.certificate_ends(held.own.validity.not_after);
        }
        let own = held.map(|held| &held.credentials);
        if let Some(own) = own {
            self.front.set(own)?;
        }
        Ok(self.endpoint.trust().set(own, &self.authorities)?)
    }

    async fn enroll(&mut self) -> Result<(), EnrollError> {
        let asked = timeout(PATIENCE, self.ask()).await;
        let pem = asked.map_err(|_| EnrollError::Late)??;
        let held = self.judged(&pem)?;
        if !held.own.is_believed {
            return Err(EnrollError::NotBelieved);
        }
        let is_good = is_good(held.own, now());
        let lacking = held.reached.lacks(&self.reached);
        self.held = Some(held);
        self.show()?;
        let files = self.files.clone();
        written(spawn_blocking(move || files.write_own(&pem)).await);
        match lacking {
            // Others, whose clocks are right, may accept it.
            _ if !is_good => Err(EnrollError::Clock),
            // So do hosts, and clients that use another name.
            Some(name) => Err(EnrollError::Lacks(name)),
            None => Ok(()),
        }
    }

    /// A new certificate with its key, in PEM.
    async fn ask(&mut self) -> Result<String, EnrollError> {
        let address = self.endpoint.subscribe().borrow().clone();
        if address.is_empty() {
            return Err(EnrollError::NoOperator);
        }
        let is_known = self.own().is_some_and(|own| is_good(own, now()));
        let mut request = authority::request()?;
        let trust = self.endpoint.trust();
        let (channel, authorization) = match &mut self.shown {
            Shown::Join { .. } if is_known => {
                let operator = Target::Operator { address: &address };
                (connect(operator, &Profile::SESSION, trust).await?, None)
            }
            Shown::Join {
                authorization,
                asked,
            } => {
                request = asked.get_or_insert(request).clone();
                let value = authorization.parse().ok();
                let channel = connect_to_enroll(&address, &Profile::SESSION, trust).await?;
                (channel, value)
            }
            Shown::Pod(file) => {
                // Without one the operator returns its error.
                let token = bearer(file).await.inspect_err(|error| {
                    tracing::debug!(error = with_causes(error), "no token to show");
                });
                let channel = connect_to_enroll(&address, &Profile::SESSION, trust).await?;
                (channel, token.ok())
            }
        };
        let (key, csr) = request;
        let mut request = Request::new(EnrollRequest { csr: csr.into() });
        if let Some(authorization) = authorization {
            request
                .metadata_mut()
                .insert("authorization", authorization);
        }
        let reply = ControlClient::new(channel).enroll(request).await;
        let reply = reply.map_err(|status| EnrollError::Refused(Box::new(status)))?;
        Ok(format!("{}\n{key}", reply.into_inner().certificate.trim()))
    }

    /// Parses `pem`: a certificate for this host, with its key.
    fn judged(&self, pem: &str) -> Result<Held, EnrollError> {
        let credentials = Credentials::from_pem(pem.as_bytes(), pem.as_bytes())?;
        let certificate = credentials.certificate().ok_or(CertificateError::Empty)?;
        let facts = read(certificate)?;
        if facts.node.as_deref() != Some(self.node.as_str()) {
            return Err(EnrollError::OtherName(facts.node.unwrap_or_default()));
        }
        let is_believed = is_believed(&credentials, &self.authorities);
        Ok(Held {
            credentials,
            own: Own {
                validity: facts.validity,
                is_believed,
                is_named: facts.reached.lacks(&self.reached).is_none(),
            },
            reached: facts.reached,
        })
    }
}

fn is_believed(credentials: &Credentials, authorities: &[CertificateDer<'static>]) -> bool {
    let certificate = credentials.certificate();
    certificate.is_some_and(|own| authorities.iter().any(|by| is_issued_by(own, by)))
}

/// A certificate that could not be stored is used until this process ends.
fn written(outcome: Result<std::io::Result<()>, tokio::task::JoinError>) {
    match outcome {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "the certificate is not on the disk"),
        Err(error) => tracing::warn!(%error, "the certificate is not on the disk"),
    }
}

fn now() -> i64 {
    Timestamp::now().as_second()
}

/// The authorities in the ConfigMap `name`, in PEM. With a separate watch: the kubelet would update
/// a mounted ConfigMap minutes later.
pub(crate) fn bundles(
    api: Api<ConfigMap>,
    name: &str,
) -> impl Stream<Item = String> + Send + use<> {
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let objects = watcher(api, config).default_backoff().applied_objects();
    objects.filter_map(|object| async move {
        match object {
            Ok(object) => object
                .data?
                .remove(BUNDLE)
                .filter(|bundle| !bundle.is_empty()),
            Err(error) => {
                tracing::warn!(%error, "cannot watch whom to believe; trying again");
                None
            }
        }
    })
}
