//! Bounded decompression of messages.

use super::rope::Rope;
use flate2::write::{GzDecoder, ZlibDecoder};
use std::io::{self, Write};

/// Size that every message may decompress to; an empty image is all zeros.
const ALWAYS_BYTES: usize = 4 << 20;
/// Ratio above that. Real tensors stay far below.
const RATIO: usize = 100;

/// The supported compressions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    Gzip,
    Deflate,
}

/// Why a message is not decompressed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum InflateError {
    #[error(
        "the compressed message unpacks to more than {limit} bytes, which is more than is taken \
         here; send a smaller batch, or send it uncompressed"
    )]
    TooLarge { limit: usize },
    #[error("the compressed message cannot be decompressed: {0}")]
    Broken(String),
}

impl Packing {
    /// By its name in gRPC.
    pub(super) fn of(encoding: &[u8]) -> Option<Self> {
        match encoding {
            b"gzip" => Some(Self::Gzip),
            b"deflate" => Some(Self::Deflate),
            _ => None,
        }
    }
}

/// Decompresses data as it arrives.
#[derive(Debug)]
pub(super) struct Inflater {
    decoder: Decoder,
    came: usize,
    limit: usize,
}

#[derive(Debug)]
enum Decoder {
    Gzip(GzDecoder<Sink>),
    Deflate(ZlibDecoder<Sink>),
}

#[derive(Debug, Default)]
struct Sink {
    rope: Rope,
    /// The current limit in bytes.
    allowed: usize,
    is_full: bool,
}

impl Inflater {
    /// With a limit of `limit` bytes.
    pub(super) fn new(packing: Packing, limit: usize) -> Self {
        let sink = Sink::default();
        Self {
            decoder: match packing {
                Packing::Gzip => Decoder::Gzip(GzDecoder::new(sink)),
                Packing::Deflate => Decoder::Deflate(ZlibDecoder::new(sink)),
            },
            came: 0,
            limit,
        }
    }

    /// The output so far.
    pub(super) fn rope(&self) -> &Rope {
        match &self.decoder {
            Decoder::Gzip(decoder) => &decoder.get_ref().rope,
            Decoder::Deflate(decoder) => &decoder.get_ref().rope,
        }
    }

    /// # Errors
    /// See [`InflateError`].
    pub(super) fn push(&mut self, piece: &[u8]) -> Result<(), InflateError> {
        self.came += piece.len();
        let allowed = self.came.saturating_mul(RATIO).max(ALWAYS_BYTES);
        let allowed = allowed.min(self.limit);
        self.sink().allowed = allowed;
        let written = match &mut self.decoder {
            Decoder::Gzip(decoder) => decoder.write_all(piece),
            Decoder::Deflate(decoder) => decoder.write_all(piece),
        };
        written.map_err(|error| self.judged(&error))
    }

    /// All of it.
    ///
    /// # Errors
    /// See [`InflateError`].
    pub(super) fn finish(mut self) -> Result<Rope, InflateError> {
        let finished = match &mut self.decoder {
            Decoder::Gzip(decoder) => decoder.try_finish(),
            Decoder::Deflate(decoder) => decoder.try_finish(),
        };
        finished.map_err(|error| self.judged(&error))?;
        Ok(std::mem::take(&mut self.sink().rope))
    }

    fn sink(&mut self) -> &mut Sink {
        match &mut self.decoder {
            Decoder::Gzip(decoder) => decoder.get_mut(),
            Decoder::Deflate(decoder) => decoder.get_mut(),
        }
    }

    fn judged(&mut self, error: &io::Error) -> InflateError {
        let sink = self.sink();
        if sink.is_full {
            return InflateError::TooLarge {
                limit: sink.allowed,
            };
        }
        InflateError::Broken(error.to_string())
    }
}

impl Write for Sink {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        if self.rope.len() + piece.len() > self.allowed {
            self.is_full = true;
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        self.rope.push_slice(piece);
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::{GzEncoder, ZlibEncoder};

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn unpacked(packing: Packing, packed: &[u8], limit: usize) -> Result<Vec<u8>, InflateError> {
        let mut inflater = Inflater::new(packing, limit);
        for piece in packed.chunks(100) {
            inflater.push(piece)?;
        }
        Ok(inflater.finish()?.into_pieces().concat())
    }

    #[test]
    fn ordinary_messages_come_out_as_they_were() {
        let bytes: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
        let limit = 1 << 20;
        assert_eq!(
            unpacked(Packing::Gzip, &gzip(&bytes), limit).unwrap(),
            bytes
        );
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(&bytes).unwrap();
        let packed = encoder.finish().unwrap();
        assert_eq!(unpacked(Packing::Deflate, &packed, limit).unwrap(), bytes);
        // A black image.
        let black = vec![0; 3 << 20];
        assert_eq!(
            unpacked(Packing::Gzip, &gzip(&black), 4 << 20).unwrap(),
            black
        );
    }

    #[test]
    fn a_bomb_goes_off_at_the_ratio_and_at_the_limit() {
        let bomb = gzip(&vec![0; 64 << 20]);
        assert!(bomb.len() < 70_000);
        let limit = |limit| unpacked(Packing::Gzip, &bomb, limit).unwrap_err();
        let InflateError::TooLarge { limit: at } = limit(1 << 30) else {
            panic!("{:?}", limit(1 << 30));
        };
        assert!(at < 8 << 20, "{at}");
        assert_eq!(limit(1000), InflateError::TooLarge { limit: 1000 });
    }

    #[test]
    fn what_is_no_archive_is_told_as_such() {
        let packed = gzip(b"something that is long enough");
        for bad in [
            &b"something else"[..],
            &packed[..20],
            &packed[..packed.len() - 3],
        ] {
            let error = unpacked(Packing::Gzip, bad, 1000).unwrap_err();
            assert!(matches!(error, InflateError::Broken(_)), "{error}");
        }
    }
}
