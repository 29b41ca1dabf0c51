//! Human-readable text.

use std::error::Error;
use std::fmt::Write as _;

/// `error` with all its causes: `cannot store: disk full`.
pub(crate) fn with_causes(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let words = inner.to_string();
        // Some errors print their cause themselves.
        if !text.contains(&words) {
            // Writing to a String cannot fail.
            let _ = write!(text, ": {words}");
        }
        cause = inner.source();
    }
    text
}

/// `address` without user, password, query and fragment, which may be secrets.
pub(crate) fn without_secrets(address: &str) -> String {
    let end = address.find(['?', '#']).unwrap_or(address.len());
    let (address, is_cut) = (&address[..end], end < address.len());
    let shown = match address.split_once("://") {
        Some((scheme, rest)) => {
            let host = rest.find('/').unwrap_or(rest.len());
            let (authority, path) = rest.split_at(host);
            let authority = authority.rsplit('@').next().unwrap_or(authority);
            format!("{scheme}://{authority}{path}")
        }
        None => address.to_owned(),
    };
    if is_cut {
        format!("{shown}?…")
    } else {
        shown
    }
}

/// `text` with the secrets removed from each address in it.
pub(crate) fn without_secrets_in(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(middle) = rest.find("://") {
        let is_scheme = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
        let scheme = rest[..middle].trim_end_matches(is_scheme).len();
        let is_end =
            |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '`' | '(' | ')' | '<' | '>');
        let end = rest[middle..]
            .find(is_end)
            .map_or(rest.len(), |i| middle + i);
        let (address, behind) = (&rest[scheme..end], &rest[end..]);
        // Punctuation after an address is not part of it.
        let bare = address.trim_end_matches([':', ',', ';', '.']);
        shown.push_str(&rest[..scheme]);
        shown.push_str(&without_secrets(bare));
        shown.push_str(&address[bare.len()..]);
        rest = behind;
    }
    shown.push_str(rest);
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] std::fmt::Error);

    #[test]
    fn every_cause_is_named() {
        let cause = std::fmt::Error;
        assert_eq!(with_causes(&Outer(cause)), format!("outer: {cause}"));
    }

    #[test]
    fn addresses_in_a_text_are_shown_without_their_secrets() {
        let cases = [
            ("nothing to hide: 4/2", "nothing to hide: 4/2"),
            (
                "https://me:pa:ss@files/m.pt?sig=abc: 404 Not Found",
                "https://files/m.pt?…: 404 Not Found",
            ),
            (
                "cannot fetch (http://u:p@a/x?y) nor `http://b/z#q`; check it",
                "cannot fetch (http://a/x?…) nor `http://b/z?…`; check it",
            ),
            ("odd ://x?y", "odd ://x?…"),
        ];
        for (text, shown) in cases {
            assert_eq!(without_secrets_in(text), shown);
        }
    }

    #[test]
    fn an_address_is_shown_without_its_secrets() {
        let cases = [
            ("http://files/model.pt", "http://files/model.pt"),
            (
                "https://me:pass@files:80/a@b.pt?token=1#x",
                "https://files:80/a@b.pt?…",
            ),
            ("http://host#x@y", "http://host?…"),
            ("nonsense", "nonsense"),
        ];
        for (address, shown) in cases {
            assert_eq!(without_secrets(address), shown);
        }
    }
}
