//! The bearer token of a call, as far as it can be checked locally.

use super::auth::AuthError;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use std::fmt;
use std::sync::Arc;

/// Longest token considered; Kubernetes' own have about 1.5 KiB.
const LONGEST_BYTES: usize = 8 << 10;

/// A token of valid form, not yet authenticated. It is never shown.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Token(Arc<str>);

impl Token {
    /// The token in `headers`.
    ///
    /// # Errors
    /// There is none, or it cannot be a service account's.
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, AuthError> {
        let value = headers.get(AUTHORIZATION).and_then(|v| v.to_str().ok());
        let (scheme, token) = value
            .and_then(|v| v.split_once(' '))
            .ok_or(AuthError::MissingToken)?;
        let token = token.trim();
        if !scheme.eq_ignore_ascii_case("bearer") || token.is_empty() {
            return Err(AuthError::MissingToken);
        }
        if is_signed(token) {
            Ok(Self(token.into()))
        } else {
            Err(AuthError::Malformed)
        }
    }

    /// For the code that checks it.
    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Three parts of base64url, as in every signed token.
fn is_signed(token: &str) -> bool {
    let is_digit = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    let is_part = |part: &str| !part.is_empty() && part.bytes().all(is_digit);
    token.len() <= LONGEST_BYTES && token.split('.').count() == 3 && token.split('.').all(is_part)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(value: &str) -> Result<String, AuthError> {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, value.parse().unwrap());
        Token::of(&headers).map(|t| t.expose().to_owned())
    }

    #[test]
    fn a_bearer_token_is_taken_whatever_the_case_of_its_scheme() {
        assert_eq!(token("Bearer a.b-.c_").unwrap(), "a.b-.c_");
        assert_eq!(token("bearer  a.b.c ").unwrap(), "a.b.c");
        for none in ["Basic a.b.c", "Bearer ", "Bearer"] {
            assert!(
                matches!(token(none), Err(AuthError::MissingToken)),
                "{none}"
            );
        }
        let nothing = Token::of(&HeaderMap::new());
        assert!(matches!(nothing, Err(AuthError::MissingToken)));
    }

    #[test]
    fn what_has_not_the_form_of_a_token_is_refused_unasked() {
        let long = format!("Bearer a.{}.c", "b".repeat(LONGEST_BYTES));
        let bad = [
            "Bearer abc",
            "Bearer a.b",
            "Bearer a.b.c.d",
            "Bearer a..c",
            "Bearer a.b=.c",
        ];
        for malformed in bad.into_iter().chain([long.as_str()]) {
            assert!(matches!(token(malformed), Err(AuthError::Malformed)));
        }
    }

    #[test]
    fn a_token_is_not_shown() {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, "Bearer a.secret.c".parse().unwrap());
        let shown = format!("{:?}", Token::of(&headers).unwrap());
        assert!(!shown.contains("secret"));
    }
}
