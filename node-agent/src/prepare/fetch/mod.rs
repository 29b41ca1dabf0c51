//! Fetches the source of a model from one of several kinds of addresses to a file with a known
//! hash.

mod addresses;
mod args;
mod credentials;
mod dns;
mod download;
mod error;
mod local;
mod objects;
mod origin;
mod place;
mod registry;
mod web;
mod web_file;

pub use args::SourceArgs;
pub(super) use credentials::Credentials;
pub(super) use place::shown;

use super::{Failure, Step};
use addresses::AddressRules;
use download::{Bounds, download};
use error::FetchError;
use lamina_model::Digest;
use local::LocalFile;
use objects::Object;
use origin::Origin;
use place::Place;
use registry::Layer;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use web::{Web, certificates};
use web_file::WebFile;

/// Time limit for the head of an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// This many bytes must arrive in each window: two kilobytes a second are a very slow link.
const WINDOW: Duration = Duration::from_secs(30);
const WINDOW_BYTES: u64 = 64 << 10;
/// Pause before a reconnection.
const PAUSE: Duration = Duration::from_secs(1);

/// A file to be fetched.
#[derive(Debug)]
pub(super) struct Source<'a> {
    /// Its address.
    pub uri: &'a str,
    /// Its required digest.
    pub expected: Option<&'a Digest>,
    /// The credentials for its server.
    pub secret: &'a Credentials,
}

/// Fetches sources. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Fetcher {
    args: Arc<SourceArgs>,
    rules: Arc<AddressRules>,
    answer: Duration,
    bounds: Bounds,
}

impl Fetcher {
    pub(super) fn new(args: SourceArgs) -> Self {
        Self {
            rules: Arc::new(args.rules()),
            answer: ANSWER_TIMEOUT,
            bounds: Bounds {
                size_bytes: args.source_size_limit,
                room_bytes: 0,
                window: WINDOW,
                window_bytes: WINDOW_BYTES,
                total: Duration::from_secs(args.source_timeout_seconds),
                pause: PAUSE,
            },
            args: Arc::new(args),
        }
    }

    /// Writes `source` to `path`, within `room_bytes`.
    ///
    /// # Errors
    /// It cannot be fetched, is not the expected file, or does not fit.
    pub(super) async fn fetch(
        &self,
        source: Source<'_>,
        path: &Path,
        room_bytes: u64,
        progress: &mut (dyn FnMut(Step) + Send),
    ) -> Result<(), Failure> {
        let fetching = self.fetch_to(&source, path, room_bytes, progress);
        fetching.await.map_err(|error| {
            let failure = error.into_failure(&shown(source.uri));
            Failure {
                message: source.secret.redact(failure.message),
                ..failure
            }
        })
    }

    async fn fetch_to(
        &self,
        source: &Source<'_>,
        path: &Path,
        room_bytes: u64,
        progress: &mut (dyn FnMut(Step) + Send),
    ) -> Result<(), FetchError> {
        let bounds = Bounds {
            room_bytes,
            ..self.bounds
        };
        let found = self.find(Place::parse(source.uri)?, source.secret).await?;
        let got = download(found.origin.as_ref(), path, bounds, progress).await?;
        if found.content.is_some_and(|content| content != got) {
            return Err(FetchError::Content);
        }
        match source.expected {
            Some(expected) if *expected != got => Err(FetchError::Checksum),
            _ => Ok(()),
        }
    }

    /// The server of the file at `place`.
    async fn find(&self, place: Place, secret: &Credentials) -> Result<Found, FetchError> {
        let found = match place {
            Place::Web(url) => Found::of(WebFile {
                web: self.web(secret).await?,
                secret: secret.headers()?,
                url,
            }),
            Place::Hub(file) => Found::of(WebFile {
                web: self.web(secret).await?,
                secret: secret.hub_headers()?,
                url: file.at(&self.args.source_hub)?,
            }),
            Place::Object(cloud, url) => {
                let web = self.web(secret).await?;
                Found::of(Object::new(cloud, &url, web, secret)?)
            }
            Place::Registry(reference) => {
                let web = self.web(secret).await?;
                let is_plain = reference.is_of(&self.args.source_plain_registry);
                let layer = Layer::find(&reference, is_plain, &web, secret).await?;
                Found {
                    content: Some(layer.digest.clone()),
                    ..Found::of(layer)
                }
            }
            Place::File(path) => Found::of(LocalFile {
                root: folder(self.args.source_files.as_deref(), "agent.sources.hostPath")?,
                path,
            }),
            Place::Claim { claim, path } => Found::of(LocalFile {
                root: folder(self.args.source_claims.as_deref(), "agent.sources.claims")?
                    .join(claim),
                path,
            }),
        };
        Ok(found)
    }

    async fn web(&self, secret: &Credentials) -> Result<Web, FetchError> {
        let mut authorities = Vec::new();
        if let Some(file) = &self.args.source_ca_file {
            let unusable = |why: String| FetchError::Tls(format!("{}: {why}", file.display()));
            // Read each time: a mounted file follows its ConfigMap.
            let pem = tokio::fs::read(file).await;
            let pem = pem.map_err(|e| unusable(e.to_string()))?;
            let found = certificates(&pem);
            authorities.extend(found.ok_or_else(|| unusable("no certificates".to_owned()))?);
        }
        if let Some(pem) = secret.ca() {
            authorities.extend(certificates(pem).ok_or_else(|| {
                FetchError::Secret("has a `ca.crt` that holds no certificates in PEM".to_owned())
            })?);
        }
        let rules = Arc::clone(&self.rules);
        Web::new(rules, self.answer, authorities, self.args.source_proxy)
    }
}

fn folder(folder: Option<&Path>, value: &str) -> Result<PathBuf, FetchError> {
    folder.map(Path::to_owned).ok_or_else(|| {
        FetchError::Local(format!(
            "this agent has no folder for such sources; set the chart's value {value}"
        ))
    })
}

/// The origin of a file.
struct Found {
    origin: Box<dyn Origin>,
    /// Its digest, if the origin names one.
    content: Option<Digest>,
}

impl Found {
    fn of(origin: impl Origin + 'static) -> Self {
        Self {
            origin: Box::new(origin),
            content: None,
        }
    }
}

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
