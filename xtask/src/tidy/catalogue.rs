//! docs/operations.md lists every condition, reason and metric in the code.

use super::tokens::{is_punct, text, without_tests};
use proc_macro2::{TokenStream, TokenTree};
use std::collections::BTreeSet;

/// The page.
const PAGE: &str = "docs/operations.md";
/// The files that define conditions and Events.
const WORDS: [&str; 2] = ["crds/src/conditions.rs", "crds/src/reasons.rs"];
/// Suffixes that exposing a metric adds to its name, by kind or unit.
const SUFFIXES: [&str; 4] = ["_total", "_seconds", "_bytes", "_info"];
/// Prefix of all metric names.
const PREFIX: &str = "lamina_";

/// Entries missing on the page, and listed metrics that do not exist.
pub(super) fn check(files: &[String], read: &dyn Fn(&str) -> Option<String>) -> Vec<String> {
    let Some(page) = read(PAGE) else {
        return vec![format!("{PAGE} is missing")];
    };
    let listed = listed(&page);
    let tokens = |file: &str| read(file).and_then(|code| without_tests(&code).ok());
    let mut wrong = Vec::new();
    for file in WORDS {
        let words = tokens(file).map(constants).unwrap_or_default();
        if words.is_empty() {
            wrong.push(format!("{file} defines no word for {PAGE}"));
        }
        let missing = words.iter().filter(|word| !listed.contains(*word));
        wrong.extend(missing.map(|word| format!("{PAGE} lacks {word} of {file}")));
    }
    let mut known = BTreeSet::new();
    for file in files
        .iter()
        .filter(|f| f.ends_with(".rs") && f.contains("/src/"))
    {
        // Tokenizing every file would take seconds.
        if !read(file).is_some_and(|code| code.contains("prometheus_client")) {
            continue;
        }
        for name in tokens(file).map(metrics).unwrap_or_default() {
            let whole = format!("{PREFIX}{name}");
            if !listed.iter().any(|one| is_name_of(one, &whole)) {
                wrong.push(format!("{PAGE} lacks the metric {whole} of {file}"));
            }
            known.insert(whole);
        }
    }
    let gone = listed
        .iter()
        .filter(|one| one.starts_with(PREFIX) && !known.iter().any(|name| is_name_of(one, name)));
    wrong.extend(gone.map(|one| format!("{PAGE} lists {one}, which no program exposes")));
    wrong
}

/// Whether `shown` is the exposed form of `name`.
fn is_name_of(shown: &str, name: &str) -> bool {
    let suffix = shown.strip_prefix(name);
    suffix.is_some_and(|suffix| suffix.is_empty() || SUFFIXES.contains(&suffix))
}

/// The contents of the cells of the page's tables, without markup.
fn listed(page: &str) -> BTreeSet<String> {
    let rows = page.lines().filter(|line| line.starts_with('|'));
    let words = rows.flat_map(|row| row.split(|c: char| !(c.is_alphanumeric() || c == '_')));
    words.filter(|w| !w.is_empty()).map(str::to_owned).collect()
}

/// The texts of `const NAME: &str = "Text";`.
fn constants(tokens: TokenStream) -> Vec<String> {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let ends = tokens
        .windows(3)
        .filter(|t| is_punct(Some(&t[0]), '=') && is_punct(Some(&t[2]), ';'));
    ends.filter_map(|t| text(Some(&t[1]))).collect()
}

/// Names of metrics: a text in snake case followed by its help, another text.
fn metrics(tokens: TokenStream) -> BTreeSet<String> {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let pairs = tokens.windows(3).filter(|t| is_punct(Some(&t[1]), ','));
    let mut names: BTreeSet<String> = pairs
        .filter(|t| {
            text(Some(&t[2]))
                .is_some_and(|help| help.starts_with(char::is_uppercase) || help.contains(' '))
        })
        .filter_map(|t| text(Some(&t[0])))
        .filter(|name| is_snake_case(name))
        .collect();
    for token in tokens {
        if let TokenTree::Group(g) = token {
            names.extend(metrics(g.stream()));
        }
    }
    names
}

fn is_snake_case(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase())
        && name
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONDITIONS: &str = "/// Docs.\npub const READY: &str = \"Ready\";";
    const REASONS: &str = "pub const LOST: &str = \"NodeLost\";";
    const METRICS: &str = "use prometheus_client::registry::Registry;
        fn all(r: &mut Registry) {
            r.register(\"looks\", \"Looks at the world\", 1);
            r.register_with_unit(\"look\", \"Time\", Unit::Seconds, 2);
            gauges(encoder, (\"node_gflops\", \"Speed of a host\"), [(\"node\", \"n\")]);
        }
        #[cfg(test)] mod tests { fn a() { r.register(\"other\", \"Not real\", 1); } }";
    const PAGE_TEXT: &str = "NodeLost and `Ready` in prose count for nothing.\n
| Ready | serves |\n| `NodeLost` | gone |
| `lamina_looks_total`, `lamina_look_seconds` | counter |\n| `lamina_node_gflops` | gauge |";

    fn checked(page: &str) -> Vec<String> {
        let page = page.to_owned();
        let read = move |file: &str| match file {
            PAGE => Some(page.clone()),
            "crds/src/conditions.rs" => Some(CONDITIONS.to_owned()),
            "crds/src/reasons.rs" => Some(REASONS.to_owned()),
            "operator/src/metrics.rs" => Some(METRICS.to_owned()),
            _ => None,
        };
        check(&["operator/src/metrics.rs".to_owned()], &read)
    }

    #[test]
    fn a_page_with_everything_is_right() {
        assert!(checked(PAGE_TEXT).is_empty(), "{:?}", checked(PAGE_TEXT));
    }

    #[test]
    fn what_the_page_lacks_is_named() {
        for (word, told) in [
            (
                "| Ready",
                "docs/operations.md lacks Ready of crds/src/conditions.rs",
            ),
            (
                "`NodeLost` |",
                "docs/operations.md lacks NodeLost of crds/src/reasons.rs",
            ),
            (
                "`lamina_look_seconds`",
                "docs/operations.md lacks the metric lamina_look of operator/src/metrics.rs",
            ),
            (
                "`lamina_node_gflops`",
                "docs/operations.md lacks the metric lamina_node_gflops of operator/src/metrics.rs",
            ),
        ] {
            assert_eq!(checked(&PAGE_TEXT.replace(word, "| ")), [told]);
        }
    }

    #[test]
    fn a_metric_that_is_gone_is_named() {
        let old = format!("{PAGE_TEXT}\n| `lamina_gone_total` |");
        assert_eq!(
            checked(&old),
            ["docs/operations.md lists lamina_gone_total, which no program exposes"]
        );
    }
}
