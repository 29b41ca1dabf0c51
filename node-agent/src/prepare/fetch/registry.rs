//! A file in a container registry: an artifact of one layer, by tag or by digest.

use super::credentials::{Credentials, basic, bearer};
use super::error::FetchError;
use super::origin::{Opened, Origin, Resume};
use super::web::Web;
use super::web_file::WebFile;
use async_trait::async_trait;
use http::StatusCode;
use http::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use lamina_model::Digest;
use reqwest::Url;
use serde::Deserialize;
use std::collections::BTreeMap;

/// Manifests and tokens are small.
const MOST_BYTES: usize = 1 << 20;
const MANIFESTS: &str = "application/vnd.oci.image.manifest.v1+json, \
                         application/vnd.docker.distribution.manifest.v2+json";

/// `oci://registry/repository:tag` or `…@sha256:…`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reference {
    registry: String,
    repository: String,
    /// Tag or digest.
    version: String,
}

impl Reference {
    /// Parses the part after `oci://`.
    ///
    /// # Errors
    /// It is not a reference.
    pub(super) fn parse(text: &str) -> Result<Self, FetchError> {
        let wrong = || {
            FetchError::Uri(
                "it is no reference of an artifact; write oci://REGISTRY/REPOSITORY:TAG or \
                 oci://REGISTRY/REPOSITORY@sha256:DIGEST"
                    .to_owned(),
            )
        };
        let (registry, rest) = text.split_once('/').ok_or_else(wrong)?;
        let (name, digest) = match rest.split_once('@') {
            Some((name, digest)) => (name, Some(digest)),
            None => (rest, None),
        };
        let (repository, tag) = match name.split_once(':') {
            Some((repository, tag)) => (repository, Some(tag)),
            None => (name, None),
        };
        let version = digest.or(tag).ok_or_else(wrong)?;
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let is_fine = match digest {
            Some(digest) => digest_of(digest).is_some(),
            None => !version.is_empty() && version.chars().all(is_plain),
        };
        let is_part = |part: &str| {
            !part.is_empty() && part.chars().all(is_plain) && !part.chars().all(|c| c == '.')
        };
        if !is_fine || registry.is_empty() || !repository.split('/').all(is_part) {
            return Err(wrong());
        }
        Ok(Self {
            registry: registry.to_owned(),
            repository: repository.to_owned(),
            version: version.to_owned(),
        })
    }

    /// Whether it is in one of `registries`.
    pub(super) fn is_of(&self, registries: &[String]) -> bool {
        registries.contains(&self.registry)
    }

    fn url(&self, is_plain: bool, what: &str, version: &str) -> Result<Url, FetchError> {
        let scheme = if is_plain { "http" } else { "https" };
        let text = format!(
            "{scheme}://{}/v2/{}/{what}/{version}",
            self.registry, self.repository
        );
        let url = Url::parse(&text).ok().filter(|url| {
            // The registry's name contains nothing else.
            url.username().is_empty() && url.query().is_none() && url.path().starts_with("/v2/")
        });
        url.ok_or_else(|| FetchError::Uri("its registry is no host".to_owned()))
    }
}

/// `sha256:…`.
fn digest_of(text: &str) -> Option<Digest> {
    text.strip_prefix("sha256:")?.parse().ok()
}

/// The artifact's layer.
#[derive(Debug)]
pub(super) struct Layer {
    file: WebFile,
    /// Its required digest.
    pub digest: Digest,
}

#[derive(Debug, Deserialize)]
struct Manifest {
    #[serde(default)]
    layers: Vec<Descriptor>,
    /// Only an index of several manifests has these.
    #[serde(default)]
    manifests: Vec<serde::de::IgnoredAny>,
}

#[derive(Debug, Deserialize)]
struct Descriptor {
    digest: String,
}

#[derive(Debug, Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

impl Layer {
    /// Finds the layer of `reference`; `is_plain` registries use http.
    ///
    /// # Errors
    /// No such artifact, or one that is not a single file.
    pub(super) async fn find(
        reference: &Reference,
        is_plain: bool,
        web: &Web,
        secret: &Credentials,
    ) -> Result<Self, FetchError> {
        let login = login(&reference.registry, secret)?;
        let url = reference.url(is_plain, "manifests", &reference.version)?;
        let mut accept = HeaderMap::new();
        accept.insert(ACCEPT, HeaderValue::from_static(MANIFESTS));
        let mut headers = HeaderMap::new();
        let mut response = web.get(&url, &headers, &accept).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            let challenge = response.headers().get(WWW_AUTHENTICATE).cloned();
            let right = authorize(challenge, &url, login, web).await?;
            headers.insert(AUTHORIZATION, right);
            response = web.get(&url, &headers, &accept).await?;
        }
        if response.status() != StatusCode::OK {
            return Err(FetchError::Status(response.status()));
        }
        let body = web.body(response, MOST_BYTES).await?;
        if digest_of(&reference.version).is_some_and(|wanted| wanted != Digest::of(&body)) {
            return Err(FetchError::Content);
        }
        let digest = single_layer(&body)?;
        let url = reference.url(is_plain, "blobs", &format!("sha256:{digest}"))?;
        Ok(Self {
            file: WebFile {
                web: web.clone(),
                url,
                secret: headers,
            },
            digest,
        })
    }
}

#[async_trait]
impl Origin for Layer {
    async fn open(&self, resume: Option<&Resume>) -> Result<Opened, FetchError> {
        self.file.open(resume).await
    }
}

/// The digest of the only layer.
fn single_layer(manifest: &[u8]) -> Result<Digest, FetchError> {
    let manifest: Manifest = serde_json::from_slice(manifest).map_err(|_| FetchError::Content)?;
    if !manifest.manifests.is_empty() {
        return Err(FetchError::Uri(
            "it is an index of several artifacts; name one of them by its digest".to_owned(),
        ));
    }
    match manifest.layers.as_slice() {
        [layer] => digest_of(&layer.digest).ok_or(FetchError::Content),
        layers => Err(FetchError::Uri(format!(
            "the artifact has {} layers; push the model's file as its only one",
            layers.len()
        ))),
    }
}

/// User and password for `registry`, from either kind of Secret.
fn login(registry: &str, secret: &Credentials) -> Result<Option<HeaderValue>, FetchError> {
    #[derive(Deserialize)]
    struct Config {
        auths: BTreeMap<String, Entry>,
    }
    #[derive(Deserialize)]
    struct Entry {
        auth: Option<String>,
        username: Option<String>,
        password: Option<String>,
    }
    let Some(json) = secret.text(&[".dockerconfigjson"])? else {
        return secret.basic();
    };
    // The parser's message would show a part of it.
    let wrong = || FetchError::Secret("has a .dockerconfigjson that cannot be read".to_owned());
    let config: Config = serde_json::from_str(json).map_err(|_| wrong())?;
    let is_it = |host: &str| {
        let host = host
            .trim_start_matches("https://")
            .trim_start_matches("http://");
        host.split('/').next() == Some(registry)
    };
    let found = config.auths.into_iter().find(|(host, _)| is_it(host));
    let Some((_, entry)) = found else {
        return Ok(None);
    };
    match entry {
        Entry {
            username: Some(user),
            password: Some(password),
            ..
        } => basic(&user, &password).map(Some),
        Entry {
            auth: Some(auth), ..
        } => {
            let mut value = HeaderValue::from_str(&format!("Basic {auth}")).map_err(|_| wrong())?;
            value.set_sensitive(true);
            Ok(Some(value))
        }
        _ => Err(wrong()),
    }
}

/// The `authorization` that the registry demands in its refusal.
async fn authorize(
    challenge: Option<HeaderValue>,
    registry: &Url,
    login: Option<HeaderValue>,
    web: &Web,
) -> Result<HeaderValue, FetchError> {
    let refused = || FetchError::Status(StatusCode::UNAUTHORIZED);
    let challenge = challenge.as_ref().and_then(|c| c.to_str().ok());
    let challenge = challenge.ok_or_else(refused)?;
    let Some(challenge) = challenge.strip_prefix("Bearer ") else {
        return login.ok_or_else(refused);
    };
    let fields = fields(challenge);
    let mut realm: Url = fields
        .get("realm")
        .and_then(|realm| realm.parse().ok())
        .ok_or_else(refused)?;
    let is_safe = realm.scheme() == "https" || realm.origin() == registry.origin();
    if !is_safe {
        return Err(FetchError::Downgrade);
    }
    for name in ["service", "scope"] {
        if let Some(value) = fields.get(name) {
            realm.query_pairs_mut().append_pair(name, value);
        }
    }
    let mut headers = HeaderMap::new();
    headers.extend(login.map(|login| (AUTHORIZATION, login)));
    let response = web.get(&realm, &headers, &HeaderMap::new()).await?;
    if response.status() != StatusCode::OK {
        return Err(FetchError::Status(response.status()));
    }
    let body = web.body(response, MOST_BYTES).await?;
    let token: Token = serde_json::from_slice(&body).map_err(|_| FetchError::Content)?;
    let token = token.token.or(token.access_token).ok_or_else(refused)?;
    bearer(&token)
}

/// `realm="https://auth",service="registry"`.
fn fields(challenge: &str) -> BTreeMap<&str, &str> {
    let mut fields = BTreeMap::new();
    let mut rest = challenge;
    while let Some((name, behind)) = rest.split_once("=\"") {
        let Some((value, behind)) = behind.split_once('"') else {
            break;
        };
        fields.insert(name.trim_start_matches([',', ' ']), value);
        rest = behind;
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_read() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let read = |text: &str| {
            let read = Reference::parse(text).ok()?;
            Some((read.registry, read.repository, read.version))
        };
        let parts = |a: &str, b: &str, c: &str| Some((a.to_owned(), b.to_owned(), c.to_owned()));
        assert_eq!(
            read("registry.example:5000/team/model:v1"),
            parts("registry.example:5000", "team/model", "v1")
        );
        for text in ["r.example/m@", "r.example/m:v1@"] {
            let text = format!("{text}{digest}");
            assert_eq!(read(&text), parts("r.example", "m", &digest), "{text}");
        }
        for text in [
            "r.example/m",
            "r.example/m:",
            "m:v1",
            "r.example/../m:v1",
            "r.example/m:v?1",
            "r.example/m@sha256:12",
            "/m:v1",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn nothing_hides_in_the_name_of_the_registry() {
        for text in ["me@r.example/m:v1", "r.example?x/m:v1", "r.example#x/m:v1"] {
            let url = Reference::parse(text).and_then(|r| r.url(false, "manifests", "v1"));
            assert!(url.is_err(), "{text}: {url:?}");
        }
    }

    #[test]
    fn a_challenge_is_read() {
        let fields = fields(r#"realm="https://a/token",service="r",scope="repository:m:pull""#);
        assert_eq!(fields["realm"], "https://a/token");
        assert_eq!(fields["scope"], "repository:m:pull");
    }

    #[test]
    fn one_layer_is_the_file_and_anything_else_is_told() {
        let layer = format!(r#"{{"digest":"sha256:{}"}}"#, "b".repeat(64));
        let read = |text: &str| single_layer(text.as_bytes()).map_err(|e| e.to_string());
        let manifest = format!(r#"{{"layers":[{layer}]}}"#);
        assert_eq!(read(&manifest).unwrap().as_str(), "b".repeat(64));
        let manifest = format!(r#"{{"layers":[{layer},{layer}]}}"#);
        assert!(read(&manifest).unwrap_err().contains("2 layers"));
        let index = r#"{"manifests":[{"digest":"x"}]}"#;
        assert!(read(index).unwrap_err().contains("index of several"));
    }
}
