//! gzip and deflate, in both directions. Bodies are in memory as a whole on either side, so they
//! are compressed and decompressed whole, off the threads that serve.

use super::body::Held;
use super::error::RestError;
use axum::http::{HeaderMap, header};
use bytes::Bytes;
use flate2::Compression;
use flate2::read::{MultiGzDecoder, ZlibDecoder};
use flate2::write::{GzEncoder, ZlibEncoder};
use std::io::{self, Read, Write};

/// Below this size compression costs more than it saves.
const SMALLEST_PACKED: usize = 1 << 10;
/// Bytes decompressed at a time.
const PIECE_BYTES: usize = 64 << 10;

/// A compression, by its name in HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coding {
    Gzip,
    /// zlib's format, as in HTTP.
    Deflate,
}

impl Coding {
    const ALL: [Self; 2] = [Self::Gzip, Self::Deflate];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Deflate => "deflate",
        }
    }

    fn named(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|coding| coding.name().eq_ignore_ascii_case(name))
    }

    /// The compression of a request's body; `None` if it is not compressed.
    ///
    /// # Errors
    /// It is unknown, or there are several.
    pub(super) fn of_request(headers: &HeaderMap) -> Result<Option<Self>, RestError> {
        let mut given = headers.get_all(header::CONTENT_ENCODING).iter();
        let (first, more) = (given.next(), given.next());
        let Some(first) = first else { return Ok(None) };
        let name = first.to_str().unwrap_or("?").trim();
        if more.is_none() && (name.is_empty() || name.eq_ignore_ascii_case("identity")) {
            return Ok(None);
        }
        match Self::named(name) {
            Some(coding) if more.is_none() => Ok(Some(coding)),
            _ => Err(RestError::Encoding(name.to_owned())),
        }
    }

    /// The client's preferred one of those supported; `None` if it wants none.
    pub(super) fn for_response(headers: &HeaderMap) -> Option<Self> {
        let given = headers.get_all(header::ACCEPT_ENCODING).iter();
        let listed = given.filter_map(|value| value.to_str().ok());
        let wishes = listed.flat_map(|value| value.split(',')).filter_map(wish);
        // The first of those with the highest weight.
        wishes
            .filter(|(_, weight)| *weight > 0.0)
            .reduce(|best, next| if next.1 > best.1 { next } else { best })
            .map(|(coding, _)| coding)
    }

    /// Decompresses `packed`. `held` is charged as the result grows, besides the body: a
    /// small body may become large.
    ///
    /// # Errors
    /// It is not in this format, is larger than `limit` bytes, or there is no memory.
    pub(super) fn unpack(
        self,
        packed: &[u8],
        limit: usize,
        held: &mut Held,
    ) -> Result<Vec<u8>, RestError> {
        let mut decoder: Box<dyn Read + '_> = match self {
            Self::Gzip => Box::new(MultiGzDecoder::new(packed)),
            Self::Deflate => Box::new(ZlibDecoder::new(packed)),
        };
        let mut unpacked = Vec::new();
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            let read = decoder.read(&mut piece);
            let read = read.map_err(|error| RestError::Packed {
                coding: self.name(),
                reason: error.to_string(),
            })?;
            let bytes = unpacked.len() + read;
            if read == 0 {
                return Ok(unpacked);
            }
            if bytes > limit {
                return Err(RestError::TooLarge { limit });
            }
            held.hold(packed.len() + bytes)?;
            unpacked.extend_from_slice(&piece[..read]);
        }
    }

    /// Fast rather than small; unchanged if it is small already.
    pub(super) fn pack(self, parts: &[Bytes]) -> io::Result<Vec<u8>> {
        let bytes: usize = parts.iter().map(Bytes::len).sum();
        let packed = Vec::with_capacity(bytes / 2);
        match self {
            Self::Gzip => {
                let mut encoder = GzEncoder::new(packed, Compression::fast());
                parts.iter().try_for_each(|part| encoder.write_all(part))?;
                encoder.finish()
            }
            Self::Deflate => {
                let mut encoder = ZlibEncoder::new(packed, Compression::fast());
                parts.iter().try_for_each(|part| encoder.write_all(part))?;
                encoder.finish()
            }
        }
    }

    /// Whether `bytes` are worth compressing.
    pub(super) const fn is_worth(bytes: usize) -> bool {
        bytes >= SMALLEST_PACKED
    }
}

/// `gzip;q=0.5`.
fn wish(text: &str) -> Option<(Coding, f32)> {
    let mut parts = text.split(';');
    let coding = Coding::named(parts.next()?.trim())?;
    let weight = parts.find_map(|part| part.trim().strip_prefix("q="));
    let weight = weight.map_or(Some(1.0), |q| q.parse().ok())?;
    Some((coding, weight))
}

#[cfg(test)]
mod tests {
    use super::super::body::testing::{alone, origin, room};
    use super::*;
    use crate::serve::guard::Full;

    const ROOM: u64 = 256 << 20;

    fn headers(name: header::HeaderName, values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(name.clone(), value.parse().unwrap());
        }
        headers
    }

    #[tokio::test]
    async fn what_is_packed_comes_out_as_it_was() {
        let parts = [Bytes::from(vec![7; 5000]), Bytes::from_static(b"end")];
        let whole = parts.concat();
        for coding in Coding::ALL {
            let packed = coding.pack(&parts).unwrap();
            assert!(packed.len() < 200);
            let mut held = alone(ROOM).await;
            let unpacked = coding.unpack(&packed, whole.len(), &mut held);
            assert_eq!(unpacked.unwrap(), whole);
        }
    }

    #[tokio::test]
    async fn a_bomb_stops_at_the_limit() {
        let zeros = [Bytes::from(vec![0; 10 << 20])];
        for coding in Coding::ALL {
            let packed = coding.pack(&zeros).unwrap();
            let mut held = alone(ROOM).await;
            let error = coding.unpack(&packed, 1 << 20, &mut held).unwrap_err();
            assert!(matches!(error, RestError::TooLarge { limit } if limit == 1 << 20));
        }
    }

    #[tokio::test]
    async fn what_unpacks_to_more_than_there_is_room_for_stops_there() {
        let zeros = [Bytes::from(vec![0; 10 << 20])];
        let room = room(16 << 20);
        let mut others = room.begin(origin(2), "default/other").await.unwrap();
        others.hold(8 << 20).unwrap();
        for coding in Coding::ALL {
            let packed = coding.pack(&zeros).unwrap();
            let mut held = room.begin(origin(1), "default/m").await.unwrap();
            let error = coding.unpack(&packed, 64 << 20, &mut held).unwrap_err();
            assert!(matches!(error, RestError::Full(Full::Client)), "{error}");
        }
    }

    #[tokio::test]
    async fn other_bytes_are_refused_by_name() {
        let good = Coding::Gzip.pack(&[Bytes::from(vec![1; 100])]).unwrap();
        for (coding, packed) in [
            (Coding::Gzip, &b"{}"[..]),
            (Coding::Gzip, &good[..good.len() - 3]),
            (Coding::Deflate, &good[..]),
        ] {
            let error = coding
                .unpack(packed, 1000, &mut alone(ROOM).await)
                .unwrap_err()
                .to_string();
            assert!(error.contains(coding.name()), "{error}");
        }
    }

    #[test]
    fn a_request_is_packed_in_one_known_way() {
        let of = |values: &[&str]| Coding::of_request(&headers(header::CONTENT_ENCODING, values));
        assert_eq!(of(&[]).unwrap(), None);
        assert_eq!(of(&["identity"]).unwrap(), None);
        assert_eq!(of(&["GZIP"]).unwrap(), Some(Coding::Gzip));
        assert_eq!(of(&["deflate"]).unwrap(), Some(Coding::Deflate));
        for values in [&["br"][..], &["gzip, gzip"], &["gzip", "gzip"], &["x"]] {
            assert!(of(values).is_err(), "{values:?}");
        }
    }

    #[test]
    fn the_client_gets_what_it_likes_best() {
        let of = |values: &[&str]| Coding::for_response(&headers(header::ACCEPT_ENCODING, values));
        assert_eq!(of(&[]), None);
        assert_eq!(of(&["br, *"]), None);
        assert_eq!(of(&["gzip;q=0, deflate;q=nonsense"]), None);
        assert_eq!(of(&["gzip, deflate"]), Some(Coding::Gzip));
        assert_eq!(of(&["gzip;q=0.5, deflate"]), Some(Coding::Deflate));
        assert_eq!(of(&["br", "deflate; q=0.1"]), Some(Coding::Deflate));
    }
}
