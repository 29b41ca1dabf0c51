//! Parses the path of a call.

/// The question about a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    Metadata,
    Ready,
    Config,
    Statistics,
    Infer,
}

/// A model, and the question about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ModelPath {
    /// `name` or `namespace/name`.
    pub(super) model: String,
    /// Empty if none is named.
    pub(super) version: String,
    pub(super) asked: Asked,
}

/// Parses the part after `/v2/models/`; `None` if it is not a path of the protocol.
///
/// The slash of a full name may be plain or `%2F`.
pub(super) fn parse(rest: &str) -> Option<ModelPath> {
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let mut parts: Vec<&str> = rest.split('/').collect();
    let asked = match parts.last() {
        _ if parts.len() == 1 => Asked::Metadata,
        Some(&"ready") => Asked::Ready,
        Some(&"config") => Asked::Config,
        Some(&"stats") => Asked::Statistics,
        Some(&"infer") => Asked::Infer,
        _ => Asked::Metadata,
    };
    if asked != Asked::Metadata {
        parts.pop();
    }
    let version = match parts.as_slice() {
        [.., _, "versions", version] => {
            let version = decode(version)?;
            parts.truncate(parts.len() - 2);
            version
        }
        _ => String::new(),
    };
    let names = parts.iter().map(|part| decode(part));
    let names: Vec<String> = names.collect::<Option<_>>()?;
    let is_name = names.len() <= 2 && names.iter().all(|name| !name.is_empty());
    is_name.then(|| ModelPath {
        model: names.join("/"),
        version,
        asked,
    })
}

/// Percent-decoded: `%41` becomes `A`.
fn decode(part: &str) -> Option<String> {
    let mut decoded = Vec::with_capacity(part.len());
    let mut bytes = part.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => 16 * digit(bytes.next()?)? + digit(bytes.next()?)?,
            other => other,
        });
    }
    String::from_utf8(decoded).ok()
}

fn digit(byte: u8) -> Option<u8> {
    let digit = char::from(byte).to_digit(16)?;
    u8::try_from(digit).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(rest: &str) -> Option<(String, String, Asked)> {
        parse(rest).map(|p| (p.model, p.version, p.asked))
    }

    #[test]
    fn models_have_one_name_or_two_and_a_version() {
        for (rest, model, version, asked) in [
            ("m", "m", "", Asked::Metadata),
            ("m/", "m", "", Asked::Metadata),
            ("m/infer", "m", "", Asked::Infer),
            ("m/versions/1", "m", "1", Asked::Metadata),
            ("m/versions/1/ready", "m", "1", Asked::Ready),
            ("a/m/versions/1/infer", "a/m", "1", Asked::Infer),
            ("a/m/config", "a/m", "", Asked::Config),
            ("a/m/stats", "a/m", "", Asked::Statistics),
            ("m/versions/1/stats", "m", "1", Asked::Statistics),
            ("a%2Fm/infer", "a/m", "", Asked::Infer),
            ("a%2fm", "a/m", "", Asked::Metadata),
            ("ready", "ready", "", Asked::Metadata),
            ("ready/ready", "ready", "", Asked::Ready),
            ("%6D", "m", "", Asked::Metadata),
            ("versions/1", "versions/1", "", Asked::Metadata),
        ] {
            let wanted = (model.to_owned(), version.to_owned(), asked);
            assert_eq!(parsed(rest), Some(wanted), "{rest}");
        }
    }

    #[test]
    fn other_paths_name_nothing() {
        for rest in [
            "",
            "/",
            "//",
            "m//infer",
            "a/b/c",
            "a/b/c/infer",
            "m%",
            "m%4",
            "m%zz",
            "m%ff/infer",
            "/infer",
        ] {
            assert_eq!(parsed(rest), None, "{rest}");
        }
    }
}
