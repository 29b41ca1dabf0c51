//! A client's credentials, as far as they can be read locally.

use super::denial::Denial;
use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use lamina_model::Digest;
use std::fmt;

/// The header for keys alone, as other servers have it.
pub(crate) const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
/// Longest secret considered; tokens of Kubernetes have about 1.5 KiB.
const LONGEST_BYTES: usize = 8 << 10;

/// A key or a token that a client sent. It is never shown.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Shown {
    secret: String,
    /// Hash of the secret, used wherever something is remembered.
    digest: Digest,
    is_bearer: bool,
}

impl Shown {
    /// The credentials in `headers`; `None` if there are none.
    ///
    /// # Errors
    /// There are several, or they are malformed.
    pub(super) fn of(headers: &HeaderMap) -> Result<Option<Self>, Denial> {
        let (key, bearer) = (one(headers, &API_KEY)?, one(headers, &AUTHORIZATION)?);
        let bearer = bearer.map(after_scheme).transpose()?;
        let (secret, is_bearer) = match (key, bearer) {
            (None, None) => return Ok(None),
            (Some(key), None) => (key, false),
            (None, Some(token)) => (token, true),
            (Some(key), Some(token)) if key == token => (token, true),
            (Some(_), Some(_)) => return Err(Denial::Malformed),
        };
        if !is_secret(secret) {
            return Err(Denial::Malformed);
        }
        Ok(Some(Self {
            digest: Digest::of(secret.as_bytes()),
            secret: secret.to_owned(),
            is_bearer,
        }))
    }

    /// Its SHA-256.
    pub(super) const fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Whether it came as a bearer token.
    pub(super) const fn is_bearer(&self) -> bool {
        self.is_bearer
    }

    /// For the code that checks it.
    pub(super) fn expose(&self) -> &str {
        &self.secret
    }

    /// For forwarding to the model's entry, which decides again.
    pub(crate) fn header_value(&self) -> Option<HeaderValue> {
        let mut value = HeaderValue::from_str(&format!("Bearer {}", self.secret)).ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shown(…)")
    }
}

fn one<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Denial> {
    let mut values = headers.get_all(name).iter();
    let (first, more) = (values.next(), values.next());
    match (first, more) {
        (None, _) => Ok(None),
        (Some(value), None) => value.to_str().map(Some).map_err(|_| Denial::Malformed),
        (Some(_), Some(_)) => Err(Denial::Malformed),
    }
}

fn after_scheme(value: &str) -> Result<&str, Denial> {
    let (scheme, token) = value.split_once(' ').ok_or(Denial::Malformed)?;
    if scheme.eq_ignore_ascii_case("bearer") {
        Ok(token.trim())
    } else {
        Err(Denial::Malformed)
    }
}

fn is_secret(text: &str) -> bool {
    !text.is_empty() && text.len() <= LONGEST_BYTES && text.bytes().all(|b| b.is_ascii_graphic())
}

/// Three parts of base64url, as in every signed token: anything else is refused without a question.
pub(super) fn is_signed(token: &str) -> bool {
    let is_digit = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    let is_part = |part: &str| !part.is_empty() && part.bytes().all(is_digit);
    token.split('.').count() == 3 && token.split('.').all(is_part)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(headers: &[(&'static str, &str)]) -> Result<Option<(String, bool)>, Denial> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        let shown = Shown::of(&map)?;
        Ok(shown.map(|s| (s.expose().to_owned(), s.is_bearer())))
    }

    #[test]
    fn a_secret_is_read_from_either_header() {
        let is = |secret: &str, bearer| Ok(Some((secret.to_owned(), bearer)));
        assert_eq!(shown(&[]), Ok(None));
        assert_eq!(shown(&[("x-api-key", "k")]), is("k", false));
        assert_eq!(shown(&[("authorization", "Bearer a.b")]), is("a.b", true));
        assert_eq!(shown(&[("authorization", "bearer  k ")]), is("k", true));
        let both = [("authorization", "Bearer k"), ("x-api-key", "k")];
        assert_eq!(shown(&both), is("k", true));
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let long = format!("Bearer {}", "a".repeat(LONGEST_BYTES + 1));
        for headers in [
            &[("authorization", "Basic a")][..],
            &[("authorization", "Bearer")],
            &[("authorization", "Bearer ")],
            &[("authorization", "Bearer a b")],
            &[("authorization", long.as_str())],
            &[("x-api-key", "a"), ("x-api-key", "a")],
            &[("x-api-key", "a"), ("authorization", "Bearer b")],
        ] {
            assert_eq!(shown(headers), Err(Denial::Malformed), "{headers:?}");
        }
    }

    #[test]
    fn nothing_shows_a_secret() {
        let mut headers = HeaderMap::new();
        headers.insert(API_KEY, "secret".parse().unwrap());
        let shown = Shown::of(&headers).unwrap().unwrap();
        assert!(!format!("{shown:?}").contains("secret"));
        assert!(!format!("{:?}", shown.header_value()).contains("secret"));
    }

    #[test]
    fn tokens_have_three_parts() {
        assert!(is_signed("a.b-.c_"));
        for other in ["", "a", "a.b", "a..c", "a.b.c.d", "a.b=.c"] {
            assert!(!is_signed(other), "{other}");
        }
    }
}
