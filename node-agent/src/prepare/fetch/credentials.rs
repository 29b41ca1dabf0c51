//! Credentials of a source from a Secret. They stay in memory for one job.

use super::error::FetchError;
use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use std::collections::BTreeMap;
use std::fmt;

/// Shorter values are not secrets, and redacting them would garble messages.
const SHORTEST_SECRET: usize = 4;
/// Entries that say where a source is and how to request it: not secret.
const SETTINGS: [&str; 11] = [
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_REGION",
    "AZURE_STORAGE_ENDPOINT",
    "S3_ENDPOINT",
    "S3_REGION",
    "S3_USER_VIRTUAL_BUCKET",
    "S3_USE_HTTPS",
    "S3_VERIFY_SSL",
    "awsAnonymousCredential",
    "ca.crt",
];
/// Headers that the Secret must not set.
const OUR_HEADERS: [&str; 9] = [
    "accept-encoding",
    "connection",
    "content-length",
    "expect",
    "host",
    "if-range",
    "range",
    "transfer-encoding",
    "upgrade",
];

/// The entries of a Secret.
#[derive(Clone, Default)]
pub(in crate::prepare) struct Credentials(BTreeMap<String, Vec<u8>>);

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Credentials {
    /// With these entries.
    pub(in crate::prepare) fn new(entries: impl IntoIterator<Item = (String, Vec<u8>)>) -> Self {
        Self(entries.into_iter().collect())
    }

    /// The first of `keys` that exists and is not empty, as text without surrounding white
    /// space: files from which secrets are made often end with a line break.
    ///
    /// # Errors
    /// It is not text.
    pub(super) fn text(&self, keys: &[&str]) -> Result<Option<&str>, FetchError> {
        for key in keys {
            if let Some(value) = self.0.get(*key) {
                let text = std::str::from_utf8(value)
                    .map_err(|_| FetchError::Secret(format!("has a `{key}` that is no text")))?
                    .trim();
                if !text.is_empty() {
                    return Ok(Some(text));
                }
            }
        }
        Ok(None)
    }

    /// Certificates of authorities, in PEM.
    pub(super) fn ca(&self) -> Option<&[u8]> {
        self.0.get("ca.crt").map(Vec::as_slice)
    }

    /// User and password of a Secret of type `kubernetes.io/basic-auth`.
    ///
    /// # Errors
    /// They are not text.
    pub(super) fn basic(&self) -> Result<Option<HeaderValue>, FetchError> {
        let Some(user) = self.text(&["username"])? else {
            return Ok(None);
        };
        let password = self.text(&["password"])?.unwrap_or_default();
        basic(user, password).map(Some)
    }

    /// Headers of a request to a web server: `token` as a bearer token, `username` and
    /// `password`, and those in `headers`, a JSON object.
    ///
    /// # Errors
    /// One of them cannot be read, or must not be set by a Secret.
    pub(super) fn headers(&self) -> Result<HeaderMap, FetchError> {
        let mut headers = HeaderMap::new();
        if let Some(basic) = self.basic()? {
            headers.insert(AUTHORIZATION, basic);
        }
        if let Some(token) = self.text(&["token"])? {
            headers.insert(AUTHORIZATION, bearer(token)?);
        }
        let Some(json) = self.text(&["headers"])? else {
            return Ok(headers);
        };
        // The parser's message would show a part of it.
        let wanted: BTreeMap<String, String> = serde_json::from_str(json).map_err(|_| {
            FetchError::Secret("has `headers` that are no JSON object of texts".to_owned())
        })?;
        for (name, value) in wanted {
            let name: HeaderName = name.parse().map_err(|_| {
                FetchError::Secret("names a header that there cannot be".to_owned())
            })?;
            if OUR_HEADERS.contains(&name.as_str()) {
                return Err(FetchError::Secret(format!(
                    "has the header `{name}`, which is not its to say"
                )));
            }
            headers.insert(name, sensitive(&value)?);
        }
        Ok(headers)
    }

    /// Headers of a request to the hub: `HF_TOKEN`, or those for a web server.
    ///
    /// # Errors
    /// As [`Credentials::headers`].
    pub(super) fn hub_headers(&self) -> Result<HeaderMap, FetchError> {
        let mut headers = self.headers()?;
        if let Some(token) = self.text(&["HF_TOKEN"])? {
            headers.insert(AUTHORIZATION, bearer(token)?);
        }
        Ok(headers)
    }

    /// `message` with every secret value redacted.
    pub(super) fn redact(&self, mut message: String) -> String {
        let secrets = self
            .0
            .iter()
            .filter(|(key, _)| !SETTINGS.contains(&key.as_str()));
        let values = secrets.filter_map(|(_, v)| std::str::from_utf8(v).ok());
        for value in values.map(str::trim) {
            if value.len() >= SHORTEST_SECRET && message.contains(value) {
                message = message.replace(value, "…");
            }
        }
        message
    }
}

/// `Bearer TOKEN`.
///
/// # Errors
/// It is not valid in a header.
pub(super) fn bearer(token: &str) -> Result<HeaderValue, FetchError> {
    sensitive(&format!("Bearer {token}"))
}

/// `Basic …`.
///
/// # Errors
/// None are known: base64 fits a header.
pub(super) fn basic(user: &str, password: &str) -> Result<HeaderValue, FetchError> {
    sensitive(&format!(
        "Basic {}",
        base64::Engine::encode(
            &base64::engine::general_purpose::STANDARD,
            format!("{user}:{password}")
        )
    ))
}

fn sensitive(text: &str) -> Result<HeaderValue, FetchError> {
    let mut value = HeaderValue::from_str(text)
        .map_err(|_| FetchError::Secret("has a value that cannot stand in a header".to_owned()))?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials(entries: &[(&str, &str)]) -> Credentials {
        let entries = entries.iter();
        Credentials::new(entries.map(|(k, v)| ((*k).to_owned(), v.as_bytes().to_vec())))
    }

    #[test]
    fn a_secret_becomes_headers_that_are_not_shown() {
        let secret = credentials(&[
            ("username", "me"),
            ("password", "pass\n"),
            ("headers", r#"{"X-Api-Key":"abc"}"#),
        ]);
        let headers = secret.headers().unwrap();
        assert_eq!(headers["authorization"], "Basic bWU6cGFzcw==");
        assert_eq!(headers["x-api-key"], "abc");
        assert!(headers.values().all(HeaderValue::is_sensitive));
        let headers = credentials(&[("token", "t0k")]).headers().unwrap();
        assert_eq!(headers["authorization"], "Bearer t0k");
    }

    #[test]
    fn what_is_ours_and_what_cannot_be_read_is_refused_without_its_value() {
        for (value, want) in [
            (r#"{"Host":"hidden"}"#, "`host`"),
            (r#"{"Range":"hidden"}"#, "`range`"),
            (r#"{"bad name":"hidden"}"#, "there cannot be"),
            (r#"{"x":"hidden\n"}"#, "cannot stand in a header"),
            ("hidden", "no JSON object"),
        ] {
            let error = credentials(&[("headers", value)]).headers().unwrap_err();
            let said = error.to_string();
            assert!(said.contains(want) && !said.contains("hidden"), "{said}");
        }
    }

    #[test]
    fn values_are_blackened_in_messages_and_absent_from_debug() {
        let secret = credentials(&[("AWS_REGION", "region"), ("token", "s3cret"), ("x", "a")]);
        let said = secret.redact("a server of a region said s3cret".to_owned());
        assert_eq!(said, "a server of a region said …");
        assert_eq!(format!("{secret:?}"), r#"{"AWS_REGION", "token", "x"}"#);
    }
}
