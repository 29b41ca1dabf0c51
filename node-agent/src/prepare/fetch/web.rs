//! Requests to web servers, whose addresses are checked at every step.

use super::addresses::{AddressRules, DeniedAddress};
use super::dns::CheckedNames;
use super::error::FetchError;
use crate::causes::with_causes;
use http::header::{HeaderMap, LOCATION};
use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, Request, Response, Url};
use std::error::Error;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// Most redirects followed.
pub(super) const MOST_REDIRECTS: usize = 5;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A client that connects only to allowed addresses. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Web {
    client: Client,
    rules: Arc<AddressRules>,
    /// Time limit for the head of an answer.
    answer: Duration,
}

impl Web {
    /// One that trusts the system's authorities and `authorities`. With `is_proxied` it uses the
    /// proxy of the environment, which may connect anywhere.
    ///
    /// # Errors
    /// The system's authorities cannot be read.
    pub(super) fn new(
        rules: Arc<AddressRules>,
        answer: Duration,
        authorities: Vec<Certificate>,
        is_proxied: bool,
    ) -> Result<Self, FetchError> {
        // Fails if the process has one already, which is fine.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .redirect(Policy::none())
            .referer(false)
            .dns_resolver(Arc::new(CheckedNames(Arc::clone(&rules))));
        if !authorities.is_empty() {
            builder = builder.tls_certs_merge(authorities);
        }
        if !is_proxied {
            builder = builder.no_proxy();
        }
        let client = builder
            .build()
            .map_err(|e| FetchError::Tls(with_causes(&e)))?;
        Ok(Self {
            client,
            rules,
            answer,
        })
    }

    /// The answer to a GET of `url`, after redirects. `secret` is sent only to the server of
    /// `url`.
    ///
    /// # Errors
    /// A denied address, too many or bad redirects, no answer.
    pub(super) async fn get(
        &self,
        url: &Url,
        secret: &HeaderMap,
        open: &HeaderMap,
    ) -> Result<Response, FetchError> {
        let mut at = url.clone();
        let mut is_home = true;
        for _ in 0..=MOST_REDIRECTS {
            let mut request = self.client.get(at.clone()).headers(open.clone());
            if is_home {
                request = request.headers(secret.clone());
            }
            let request = request.build().map_err(|e| transport(&e.without_url()))?;
            let response = self.send(request).await?;
            let Some(next) = redirect(&at, &response)? else {
                return Ok(response);
            };
            is_home &= next.origin() == url.origin();
            at = next;
        }
        Err(FetchError::Redirects)
    }

    /// The head of the answer to `request`, without redirects.
    ///
    /// # Errors
    /// A denied address, no answer.
    pub(super) async fn send(&self, request: Request) -> Result<Response, FetchError> {
        // Names are checked when resolved; literal addresses are not resolved.
        if let Some(address) = literal(request.url()) {
            self.rules.check(address)?;
        }
        match timeout(self.answer, self.client.execute(request)).await {
            Ok(answer) => answer.map_err(|e| transport(&e.without_url())),
            Err(_) => Err(FetchError::NoAnswer(self.answer)),
        }
    }

    /// The whole body of a small answer.
    ///
    /// # Errors
    /// It is larger than `most` bytes, does not arrive, or breaks off.
    pub(super) async fn body(
        &self,
        mut response: Response,
        most: usize,
    ) -> Result<Vec<u8>, FetchError> {
        let reading = async {
            let mut body = Vec::new();
            while let Some(part) = response
                .chunk()
                .await
                .map_err(|e| transport(&e.without_url()))?
            {
                if body.len() + part.len() > most {
                    return Err(FetchError::Content);
                }
                body.extend_from_slice(&part);
            }
            Ok(body)
        };
        timeout(self.answer, reading)
            .await
            .unwrap_or(Err(FetchError::NoAnswer(self.answer)))
    }
}

/// The certificates in `pem`; `None` if there are none.
pub(super) fn certificates(pem: &[u8]) -> Option<Vec<Certificate>> {
    let certificates = Certificate::from_pem_bundle(pem).ok()?;
    (!certificates.is_empty()).then_some(certificates)
}

/// The literal address in `url`, which has been normalized: `0x7f.1` is 127.0.0.1.
fn literal(url: &Url) -> Option<IpAddr> {
    let host = url.host_str()?;
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    bare.unwrap_or(host).parse().ok()
}

/// The redirect in `response`.
fn redirect(from: &Url, response: &Response) -> Result<Option<Url>, FetchError> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let location = response.headers().get(LOCATION);
    let target = location
        .and_then(|location| from.join(location.to_str().ok()?).ok())
        .ok_or(FetchError::RedirectTarget)?;
    match (from.scheme(), target.scheme()) {
        ("https", "http") => Err(FetchError::Downgrade),
        (_, "http" | "https") => Ok(Some(target)),
        _ => Err(FetchError::RedirectTarget),
    }
}

/// `error` for people; its address has been removed.
pub(super) fn transport(error: &reqwest::Error) -> FetchError {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(inner) = cause {
        if let Some(denied) = inner.downcast_ref::<DeniedAddress>() {
            return FetchError::Denied(*denied);
        }
        cause = inner.source();
    }
    FetchError::Transport(with_causes(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_known_in_every_way_of_writing_it() {
        for text in [
            "http://127.0.0.1/",
            "http://0x7f.1/",
            "http://2130706433/",
            "http://127.1:80/",
            "http://[::ffff:127.0.0.1]/",
        ] {
            let address = literal(&text.parse().unwrap()).unwrap();
            assert!(address.to_canonical().is_loopback(), "{text}");
        }
        assert_eq!(literal(&"http://localhost/".parse().unwrap()), None);
    }
}
