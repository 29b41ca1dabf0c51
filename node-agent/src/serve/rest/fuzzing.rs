//! Entry points for `fuzz/`.

use super::request;
use bytes::Bytes;

/// Reads a body. The result has no more bytes than the body can express.
pub(crate) fn read(body: &Bytes, header_length: Option<usize>) {
    let Ok(parsed) = request::parse(body, header_length) else {
        return;
    };
    let raw = parsed.request.raw_input_contents;
    let bytes: usize = raw.iter().map(Bytes::len).sum();
    // An element of eight bytes is written with at least two characters.
    assert!(bytes <= body.len() * 4 + 8, "{bytes} of {}", body.len());
}
