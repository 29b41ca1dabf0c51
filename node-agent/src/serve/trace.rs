//! W3C trace context: a client's header travels with its request, to the next host and into the
//! logs. Pure.

use tonic::metadata::MetadataMap;
use tracing::Span;

/// Its header, over gRPC and HTTP.
pub(crate) const TRACEPARENT: &str = "traceparent";
/// Version, trace, parent and flags of version 00, and the separators.
const BYTES: usize = 2 + 1 + 32 + 1 + 16 + 1 + 2;
/// Longest header accepted from later versions.
const MOST_BYTES: usize = 128;
/// Longest part of a client's ids that is logged.
const LOGGED_BYTES: usize = 128;

/// The `traceparent` of a call; `None` if there is none or it is invalid.
pub(crate) fn traceparent(metadata: &MetadataMap) -> Option<&str> {
    let mut given = metadata.get_all(TRACEPARENT).iter();
    let (first, more) = (given.next()?, given.next());
    let text = first.to_str().ok().filter(|_| more.is_none())?;
    is_valid(text).then_some(text)
}

/// Added to all log lines about the request `id` for `model`, which is a name or the UID of its
/// Placement.
pub(crate) fn span(id: &str, traceparent: &str, model: &str) -> Span {
    let [id, model] = [id, model].map(|text| {
        let end = text.floor_char_boundary(LOGGED_BYTES);
        text.get(..end).unwrap_or_default()
    });
    let traceparent = Some(traceparent).filter(|text| is_valid(text));
    tracing::info_span!("request", id, traceparent, model)
}

fn is_valid(text: &str) -> bool {
    let Some((known, later)) = text.split_at_checked(BYTES) else {
        return false;
    };
    let mut parts = known.split('-');
    let mut hex = |digits: usize| {
        let is_digit = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
        let part = parts.next().unwrap_or_default();
        let is_hex = part.len() == digits && part.bytes().all(is_digit);
        is_hex.then_some(part)
    };
    let (Some(version), Some(trace), Some(parent), Some(_flags)) =
        (hex(2), hex(32), hex(16), hex(2))
    else {
        return false;
    };
    let is_set = |part: &str| part.bytes().any(|b| b != b'0');
    let has_rest = match version {
        "ff" => return false,
        "00" => later.is_empty(),
        _ => later.is_empty() || later.starts_with('-') && text.len() <= MOST_BYTES,
    };
    is_set(trace) && is_set(parent) && has_rest
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIVEN: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn what_the_standard_says_is_taken_and_nothing_else() {
        let later = format!("01{}-more", &GIVEN[2..]);
        for good in [GIVEN, &later] {
            assert!(is_valid(good), "{good}");
        }
        for bad in [
            "".to_owned(),
            GIVEN[1..].to_owned(),
            format!("{GIVEN}-more"),
            format!("ff{}", &GIVEN[2..]),
            format!("01{}more", &GIVEN[2..]),
            format!("01{}-{}", &GIVEN[2..], "a".repeat(1000)),
            GIVEN.to_uppercase(),
            GIVEN.replace('-', "_"),
            GIVEN.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
            GIVEN.replace("b7ad6b7169203331", &"0".repeat(16)),
            "ä".repeat(40),
        ] {
            assert!(!is_valid(&bad), "{bad}");
        }
    }

    #[test]
    fn of_several_none_is_meant() {
        let mut metadata = MetadataMap::new();
        assert_eq!(traceparent(&metadata), None);
        metadata.append(TRACEPARENT, GIVEN.parse().unwrap());
        assert_eq!(traceparent(&metadata), Some(GIVEN));
        metadata.append(TRACEPARENT, GIVEN.parse().unwrap());
        assert_eq!(traceparent(&metadata), None);
    }
}
