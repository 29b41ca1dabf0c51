//! Storage and publication of the authorities: only the leader reads, updates and writes them.

use super::Identity;
use super::rotate::{self, Keyed, LIFE, Old, State, Step, Times, decide};
use crate::health::Health;
use crate::text::with_causes;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use lamina_identity::authority::{Authority, AuthorityError};
use lamina_identity::{
    CertificateError, Credentials, TlsError, Validity, Workload, certificates, read, server_config,
};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Key of the authorities in the Secret.
const AUTHORITIES: &str = "authorities.json";
/// Key of their certificates in the ConfigMap.
const BUNDLE: &str = "ca.crt";
/// Annotation of the Secret that requests a new authority.
const ROTATE: &str = "serving.lamina.dev/rotate";
/// Annotation of the ConfigMap: until when the authorities after the first are trusted.
const BELIEVED_UNTIL: &str = "serving.lamina.dev/believed-until";
/// Time between two checks, and after a failed one.
const PERIOD: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_secs(2);
/// A request to the API server that takes longer has failed.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Authorities are backdated by this much, since clocks differ.
const BACKDATED: i64 = 24 * 3600;
/// Most earlier authorities from a folder that are trusted besides the current one.
const MOST_GIVEN: usize = 4;
/// Name of this part for `/readyz`.
const PART: &str = "certificates";

/// The source of the authority.
#[derive(Debug, Clone)]
pub enum Source {
    /// The operator creates it, and keeps it in the Secret of this name.
    Secret(String),
    /// It is given: a folder with `tls.crt` and `tls.key`, as cert-manager writes them for a
    /// certificate with `isCA`.
    Folder(PathBuf),
}

/// Options of the keeper.
#[derive(Debug, Clone)]
pub struct Options {
    /// Namespace of Secret and ConfigMap.
    pub namespace: String,
    /// The source of the authority.
    pub source: Source,
    /// Name of the ConfigMap with the authorities for agents to trust.
    pub bundle: String,
    /// The name in the operator's own certificate.
    pub operator: Workload,
    /// Where agents reach it.
    pub address: IpAddr,
}

/// The authorities could not be updated.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each message names its fields
pub enum IdentityError {
    #[error("{kind} `{name}` is not there; `helm upgrade` makes it")]
    Missing { kind: &'static str, name: String },
    #[error("the API server could not be reached for {0}; trying again")]
    Api(&'static str, #[source] Box<kube::Error>),
    #[error("the API server did not answer in time for {0}; trying again")]
    Late(&'static str),
    #[error(
        "the Secret `{0}` holds no authorities; restore it, or remove its data to have a new authority made, which ends all certificates of agents"
    )]
    Content(String, #[source] serde_json::Error),
    #[error("{} cannot be read; check the Secret that `tls.existingSecret` names", .0.display())]
    File(PathBuf, #[source] std::io::Error),
    #[error("the certificate authority cannot be used")]
    Authority(#[from] AuthorityError),
    #[error("a certificate of the authorities cannot be read")]
    Certificate(#[from] CertificateError),
    #[error("the operator's certificate cannot be used")]
    Tls(#[from] TlsError),
}

/// Called with the expiry of the authority and of the operator's own certificate, in seconds since
/// 1970.
pub type Told = Box<dyn Fn(i64, i64) + Send + Sync>;

/// Keeps authorities and certificates up to date.
pub struct Keeper {
    options: Options,
    identity: Identity,
    secrets: Api<Secret>,
    bundles: Api<ConfigMap>,
    health: Health,
    told: Told,
    shown: Option<Shown>,
}

/// The operator's own certificate.
struct Shown {
    bundle: String,
    authority: String,
    validity: Validity,
}

impl Keeper {
    /// Updates `identity`; calls `told` with the expiry of certificates.
    pub fn new(
        options: Options,
        identity: Identity,
        client: Client,
        health: Health,
        told: Told,
    ) -> Self {
        health.waits(PART, "the certificate authority was not read yet");
        Self {
            secrets: Api::namespaced(client.clone(), &options.namespace),
            bundles: Api::namespaced(client, &options.namespace),
            options,
            identity,
            health,
            told,
            shown: None,
        }
    }

    /// Keeps everything up to date while this process leads, until `shutdown`.
    pub async fn run(mut self, mut leads: watch::Receiver<bool>, shutdown: CancellationToken) {
        if !*leads.borrow() {
            // Without leadership nothing is required.
            self.health.ready(PART);
        }
        tokio::select! {
            held = leads.wait_for(|leads| *leads) => if held.is_err() { return },
            () = shutdown.cancelled() => return,
        }
        loop {
            let pause = match self.turn(Timestamp::now().as_second()).await {
                Ok(()) => {
                    self.health.ready(PART);
                    PERIOD
                }
                Err(error) => {
                    let error = with_causes(&error);
                    if self.shown.is_none() {
                        self.health.waits(PART, error.as_str());
                    }
                    tracing::warn!(error, "certificates are not up to date");
                    RETRY
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    async fn turn(&mut self, now: i64) -> Result<(), IdentityError> {
        let state = match &self.options.source {
            Source::Secret(name) => self.own(name, now).await?,
            Source::Folder(folder) => self.given(folder, now).await?,
        };
        // Publish first, then use.
        let bundle = state.bundle();
        let until = state.old.first().map(|old| old.until);
        self.publish(&bundle, until).await?;
        self.identity.set_bundle(&bundle);
        let Keyed { certificate, key } = &state.current;
        let authority = Authority::from_pem(certificate, key)?;
        self.show(&authority, &bundle, now)?;
        self.identity.set(Arc::new(authority));
        Ok(())
    }

    /// The operator's own authorities, after any step that is due at `now`.
    async fn own(&self, name: &str, now: i64) -> Result<State, IdentityError> {
        let missing = || IdentityError::Missing {
            kind: "Secret",
            name: name.to_owned(),
        };
        let read = within("the authorities", self.secrets.get_opt(name)).await?;
        let mut secret = read.ok_or_else(missing)?;
        let annotations = secret.metadata.annotations.as_ref();
        let is_asked = annotations.is_some_and(|all| all.contains_key(ROTATE));
        let kept = secret.data.as_ref().and_then(|data| data.get(AUTHORITIES));
        let before: Option<State> = match kept {
            None => None,
            Some(kept) => {
                let state = serde_json::from_slice(&kept.0);
                Some(state.map_err(|e| IdentityError::Content(name.to_owned(), e))?)
            }
        };
        let times = before.as_ref().map(times).transpose()?;
        let lifetime = seconds(self.identity.lifetime);
        let step = decide(times.as_ref(), is_asked, now, lifetime);
        let made = step.makes_one().then(|| new_authority(now)).transpose()?;
        let state = rotate::after(step, before, made, now, lifetime).ok_or_else(missing)?;
        if step == Step::Keep && !is_asked {
            return Ok(state);
        }
        let kept =
            serde_json::to_vec(&state).map_err(|e| IdentityError::Content(name.to_owned(), e))?;
        let data = secret.data.get_or_insert_default();
        data.insert(AUTHORITIES.to_owned(), ByteString(kept));
        if let Some(annotations) = &mut secret.metadata.annotations {
            annotations.remove(ROTATE);
        }
        // With the version that was read: of two concurrent writers one fails.
        let params = PostParams::default();
        within(
            "the authorities",
            self.secrets.replace(name, &params, &secret),
        )
        .await?;
        tracing::info!(
            secret = name,
            "the certificate authorities changed: {step:?}"
        );
        Ok(state)
    }

    /// The authority in a folder, with earlier ones that were published to agents.
    async fn given(&self, folder: &Path, now: i64) -> Result<State, IdentityError> {
        let key = text(folder, "tls.key").await?;
        // Only the signing one: its issuer signs for others too.
        let authority = Authority::from_pem(&text(folder, "tls.crt").await?, &key)?;
        let current = Keyed {
            certificate: authority.certificate().to_owned(),
            key,
        };
        let published = self.published().await?;
        let bundle = published.data.as_ref().and_then(|data| data.get(BUNDLE));
        let bundle = bundle.map(String::as_str).unwrap_or_default();
        let known = published.metadata.annotations.as_ref();
        let known = known.and_then(|all| all.get(BELIEVED_UNTIL)?.parse().ok());
        // A new one was given just now, unless this one was published as the first.
        let known = known.filter(|_| bundle.starts_with(current.certificate.trim()));
        let until = known.unwrap_or_else(|| now.saturating_add(seconds(self.identity.lifetime)));
        let old = still_good(bundle, &current.certificate, now, until);
        Ok(State {
            current,
            next: None,
            old,
        })
    }

    async fn published(&self) -> Result<ConfigMap, IdentityError> {
        let name = &self.options.bundle;
        let read = within("the bundle", self.bundles.get_opt(name)).await?;
        read.ok_or_else(|| IdentityError::Missing {
            kind: "ConfigMap",
            name: name.clone(),
        })
    }

    /// Makes agents trust `bundle`, the non-signing authorities until `until`.
    async fn publish(&self, bundle: &str, until: Option<i64>) -> Result<(), IdentityError> {
        let mut published = self.published().await?;
        let data = published.data.get_or_insert_default();
        if data.get(BUNDLE).is_some_and(|held| held == bundle) {
            return Ok(());
        }
        data.insert(BUNDLE.to_owned(), bundle.to_owned());
        let annotations = published.metadata.annotations.get_or_insert_default();
        annotations.remove(BELIEVED_UNTIL);
        annotations.extend(until.map(|until| (BELIEVED_UNTIL.to_owned(), until.to_string())));
        let params = PostParams::default();
        let written = self
            .bundles
            .replace(&self.options.bundle, &params, &published);
        within("the bundle", written).await?;
        Ok(())
    }

    /// Uses a certificate of `authority`, a new one if it is time.
    fn show(&mut self, authority: &Authority, bundle: &str, now: i64) -> Result<(), IdentityError> {
        let is_good = self.shown.as_ref().is_some_and(|shown| {
            let half = (shown.validity.not_after - shown.validity.not_before) / 2;
            shown.bundle == bundle
                && shown.authority == authority.certificate()
                && (shown.validity.not_before..shown.validity.not_before + half).contains(&now)
        });
        if !is_good {
            let validity = self.identity.validity(now, authority.validity());
            let Options {
                operator, address, ..
            } = &self.options;
            let pair = authority.issue_operator(operator, *address, validity)?;
            let own = Credentials::from_pem(pair.certificate.as_bytes(), pair.key.as_bytes())?;
            let config = server_config(&own, &certificates(bundle.as_bytes())?)?;
            self.identity.acceptor().set(config);
            self.shown = Some(Shown {
                bundle: bundle.to_owned(),
                authority: authority.certificate().to_owned(),
                validity,
            });
        }
        if let Some(shown) = &self.shown {
            (self.told)(authority.validity().not_after, shown.validity.not_after);
        }
        Ok(())
    }
}

fn new_authority(now: i64) -> Result<Keyed, AuthorityError> {
    let authority = Authority::new(Validity {
        not_before: now.saturating_sub(BACKDATED),
        not_after: now.saturating_add(LIFE),
    })?;
    Ok(Keyed {
        certificate: authority.certificate().to_owned(),
        key: authority.key().to_owned(),
    })
}

fn times(state: &State) -> Result<Times, IdentityError> {
    let validity = |keyed: &Keyed| -> Result<Validity, IdentityError> {
        let certificate = certificates(keyed.certificate.as_bytes())?.swap_remove(0);
        Ok(read(&certificate)?.validity)
    };
    let next = state.next.as_ref();
    let next = next.map(|next| Ok::<_, IdentityError>((validity(&next.authority)?, next.since)));
    Ok(Times {
        current: validity(&state.current)?,
        next: next.transpose()?,
        old: state.old.iter().map(|old| old.until).collect(),
    })
}

/// The authorities of `published`, other than `current`, that are trusted at `now`: until `until`,
/// or their own expiry.
fn still_good(published: &str, current: &str, now: i64, until: i64) -> Vec<Old> {
    let mut seen: BTreeSet<String> = BTreeSet::new();
    let mut found = Vec::new();
    for block in published.split_inclusive("-----END CERTIFICATE-----") {
        let certificate = block.trim();
        let validity = certificates(certificate.as_bytes())
            .ok()
            .and_then(|all| read(all.first()?).ok())
            .map(|facts| facts.validity);
        let Some(validity) = validity else { continue };
        let is_new = !current.contains(certificate) && seen.insert(certificate.to_owned());
        if is_new && now <= validity.not_after && now < until {
            found.push(Old {
                certificate: certificate.to_owned(),
                until,
            });
        }
    }
    found.truncate(MOST_GIVEN);
    found
}

async fn text(folder: &Path, name: &str) -> Result<String, IdentityError> {
    let path = folder.join(name);
    let read = tokio::fs::read_to_string(&path).await;
    read.map_err(|error| IdentityError::File(path, error))
}

fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

async fn within<T>(
    what: &'static str,
    request: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, IdentityError> {
    let answer = tokio::time::timeout(TIMEOUT, request).await;
    let answer = answer.map_err(|_| IdentityError::Late(what))?;
    answer.map_err(|error| IdentityError::Api(what, Box::new(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_700_000_000;

    fn authority(from: i64, until: i64) -> String {
        let validity = Validity {
            not_before: from,
            not_after: until,
        };
        Authority::new(validity).unwrap().certificate().to_owned()
    }

    #[test]
    fn authorities_that_were_given_before_are_believed_until_they_end() {
        let (now, before) = (authority(NOW, NOW + 10), authority(NOW - 5, NOW + 5));
        let ended = authority(NOW - 9, NOW - 1);
        let published = format!("{now}\n{before}{before}{ended}garbage");
        let old = still_good(&published, &now, NOW, NOW + 3);
        let expected = Old {
            certificate: before.trim().to_owned(),
            until: NOW + 3,
        };
        assert_eq!(old, [expected]);
        assert_eq!(still_good(&published, &now, NOW + 3, NOW + 3), []);
        assert_eq!(still_good("", &now, NOW, NOW + 3), []);
    }

    #[test]
    fn what_was_made_says_when_it_is_good() {
        let state = State {
            current: new_authority(NOW).unwrap(),
            next: None,
            old: Vec::new(),
        };
        let times = times(&state).unwrap();
        assert!(times.current.holds(NOW - BACKDATED) && times.current.holds(NOW + LIFE));
        assert!(!times.current.holds(NOW + LIFE + 1));
        assert_eq!(decide(Some(&times), false, NOW, 3600), Step::Keep);
    }
}
