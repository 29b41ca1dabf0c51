//! Rust code as tokens, without its tests.

use proc_macro2::{Delimiter, Group, LexError, Spacing, TokenStream, TokenTree};

/// The tokens of `code` without attributes, comments and code compiled only for tests.
pub(super) fn without_tests(code: &str) -> Result<TokenStream, LexError> {
    Ok(stripped(code.parse()?))
}

fn stripped(tokens: TokenStream) -> TokenStream {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut kept = Vec::new();
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        if let Some(next) = after_attribute(&tokens, at) {
            at = next;
            continue;
        }
        kept.push(match token {
            TokenTree::Group(g) => Group::new(g.delimiter(), stripped(g.stream())).into(),
            other => other.clone(),
        });
        at += 1;
    }
    kept.into_iter().collect()
}

/// The position after the attribute at `at`, or after the whole item if that is only for tests.
/// `None` if there is no attribute.
fn after_attribute(tokens: &[TokenTree], at: usize) -> Option<usize> {
    if !is_punct(tokens.get(at), '#') {
        return None;
    }
    let inner = usize::from(is_punct(tokens.get(at + 1), '!'));
    let attribute = group(tokens.get(at + 1 + inner), Delimiter::Bracket)?;
    let next = at + 2 + inner;
    if inner == 1 || !is_for_tests(attribute) {
        return Some(next);
    }
    let ends = |token: &TokenTree| {
        is_punct(Some(token), ';') || group(Some(token), Delimiter::Brace).is_some()
    };
    let end = (next..tokens.len()).find(|z| ends(&tokens[*z]));
    Some(end.map_or(tokens.len(), |end| end + 1))
}

/// `cfg(test)`, also within `all`; not `cfg(not(test))`.
fn is_for_tests(attribute: &Group) -> bool {
    let text = attribute.stream().to_string().replace(' ', "");
    let condition = text.strip_prefix("cfg(").and_then(|t| t.strip_suffix(')'));
    condition.is_some_and(|c| {
        let all = c.strip_prefix("all(").and_then(|t| t.strip_suffix(')'));
        all.unwrap_or(c).split(',').any(|one| one == "test")
    })
}

/// The group in `token`, if it has that delimiter.
pub(super) fn group(token: Option<&TokenTree>, delimiter: Delimiter) -> Option<&Group> {
    match token {
        Some(TokenTree::Group(g)) if g.delimiter() == delimiter => Some(g),
        _ => None,
    }
}

/// Whether `token` is that mark.
pub(super) fn is_punct(token: Option<&TokenTree>, wanted: char) -> bool {
    matches!(token, Some(TokenTree::Punct(p)) if p.as_char() == wanted)
}

/// Whether there is `::` at `at`, followed by a name, a group of names or `*`.
pub(super) fn is_path_separator(tokens: &[TokenTree], at: usize) -> bool {
    let first = matches!(tokens.get(at), Some(TokenTree::Punct(p))
        if p.as_char() == ':' && p.spacing() == Spacing::Joint);
    let goes_on = match tokens.get(at + 2) {
        Some(TokenTree::Ident(_)) => true,
        Some(TokenTree::Punct(p)) => p.as_char() == '*',
        Some(TokenTree::Group(g)) => g.delimiter() == Delimiter::Brace,
        _ => false,
    };
    first && is_punct(tokens.get(at + 1), ':') && goes_on
}

/// The text of a string literal.
pub(super) fn text(token: Option<&TokenTree>) -> Option<String> {
    let Some(TokenTree::Literal(literal)) = token else {
        return None;
    };
    let written = literal.to_string();
    let inside = written.strip_prefix('"')?.strip_suffix('"')?;
    Some(inside.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_and_attributes_are_dropped_and_nothing_else() {
        let code = "
            //! Docs.
            #![allow(x)]
            #[derive(Debug)]
            struct Kept { #[serde(default)] field: u8 }
            #[cfg(test)]
            #[path = \"far.rs\"]
            mod far;
            #[cfg(all(test, unix))]
            mod tests { fn gone() {} }
            #[cfg(not(test))]
            fn kept() { #[cfg(test)] gone(); call(\"#[cfg(test)]\") }
        ";
        let expected = "struct Kept { field: u8 } fn kept() { call(\"#[cfg(test)]\") }";
        let expected: TokenStream = expected.parse().unwrap();
        let found = without_tests(code).unwrap();
        assert_eq!(found.to_string(), expected.to_string());
    }
}
