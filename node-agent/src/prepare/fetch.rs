//! The source of a model by http or https.

use super::{Failure, Reason, Step, StepName};
use crate::causes::with_causes;
use lamina_model::Digest;
use reqwest::{Client, Response, Url};
use sha2::{Digest as _, Sha256};
use std::path::Path;
use tokio::fs::File;
use tokio::io::AsyncWriteExt as _;

/// Larger sources are refused.
const LIMIT_BYTES: u64 = 8 << 30;

/// Writes what is at `uri` to `path` and checks that its SHA-256 is `expected`,
/// where one is.
///
/// # Errors
/// No answer, an answer that is no file, a file that is too large, another file
/// than the expected one, or no room for it.
pub(super) async fn fetch(
    client: &Client,
    uri: &str,
    expected: Option<&Digest>,
    path: &Path,
    progress: &mut (dyn FnMut(Step) + Send),
) -> Result<(), Failure> {
    let url = parse(uri)?;
    let shown = shown(&url);
    let response = client.get(url).send().await;
    let response = response.map_err(|e| broken(&shown, e))?;
    if !response.status().is_success() {
        let status = response.status();
        return Err(Failure::retryable(
            Reason::FetchFailed,
            format!("{shown} answers {status}; check spec.source.uri and the server"),
        ));
    }
    let got = write(response, &shown, path, progress).await?;
    match expected {
        Some(expected) if *expected != got => Err(Failure::new(
            Reason::ChecksumMismatch,
            format!("{shown} has the SHA-256 {got}, declared is {expected}"),
        )),
        _ => Ok(()),
    }
}

async fn write(
    mut response: Response,
    shown: &str,
    path: &Path,
    progress: &mut (dyn FnMut(Step) + Send),
) -> Result<Digest, Failure> {
    let total = response.content_length().unwrap_or(0);
    if total > LIMIT_BYTES {
        return Err(too_large(shown));
    }
    let mut file = File::create(path).await.map_err(|e| no_room(&e))?;
    let mut hasher = Sha256::new();
    let mut done = 0;
    while let Some(data) = response.chunk().await.map_err(|e| broken(shown, e))? {
        done += data.len() as u64;
        if done > LIMIT_BYTES {
            return Err(too_large(shown));
        }
        hasher.update(&data);
        file.write_all(&data).await.map_err(|e| no_room(&e))?;
        progress(Step {
            step: StepName::Fetching,
            done,
            total,
        });
    }
    file.flush().await.map_err(|e| no_room(&e))?;
    Ok(Digest::from_bytes(&hasher.finalize()))
}

fn parse(uri: &str) -> Result<Url, Failure> {
    let refuse = |why: String| Failure::new(Reason::FetchFailed, why);
    let url = Url::parse(uri).map_err(|e| refuse(format!("`{uri}` is no URI: {e}")))?;
    match url.scheme() {
        "http" | "https" => Ok(url),
        scheme => Err(refuse(format!(
            "{} is a {scheme} URI; serve the model by http or https",
            shown(&url)
        ))),
    }
}

/// `uri` for people, see [`shown`]; as it is where it is no URI.
pub(super) fn without_secrets(uri: &str) -> String {
    Url::parse(uri).map_or_else(|_| uri.to_owned(), |url| shown(&url))
}

/// Without what may be a secret: user, password and the query of a signed URI.
fn shown(url: &Url) -> String {
    let mut url = url.clone();
    // Only URIs without a host refuse, and they hold no user.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_query(None);
    url.set_fragment(None);
    url.to_string()
}

fn broken(shown: &str, error: reqwest::Error) -> Failure {
    let why = with_causes(&error.without_url());
    Failure::retryable(Reason::FetchFailed, format!("cannot fetch {shown}: {why}"))
}

fn too_large(shown: &str) -> Failure {
    let limit = LIMIT_BYTES >> 30;
    Failure::new(
        Reason::FetchFailed,
        format!("{shown} is larger than {limit} GiB"),
    )
}

fn no_room(error: &std::io::Error) -> Failure {
    Failure::retryable(
        Reason::PrepareFailed,
        format!("cannot keep the model in the cache folder: {error}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_in_a_uri_are_not_shown() {
        let url = parse("https://me:secret@host:8443/m.pt?signature=1#x").unwrap();
        assert_eq!(shown(&url), "https://host:8443/m.pt");
    }

    #[test]
    fn only_http_is_fetched() {
        for uri in ["file:///etc/passwd", "ftp://host/m.pt", "m.pt"] {
            let failure = parse(uri).unwrap_err();
            assert_eq!(failure.reason, Reason::FetchFailed);
            assert!(!failure.retryable, "{uri}");
        }
    }
}
