//! PNGs. Transparency is dropped and no profile applied, as in `convert("RGB")` of Pillow.

use crate::pixels::{COLOURS, DecodeError, Pixels, bytes, check, room};
use png::{BitDepth, ColorType, Decoder, DecodingError, Limits, Transformations};
use std::io::{Cursor, ErrorKind};

/// How a PNG begins.
pub(crate) const MAGIC: &[u8] = b"\x89PNG\r\n\x1a\n";

const FORMAT: &str = "PNG";
/// Memory beside the image that its chunks may take.
const CHUNK_BYTES: usize = 1 << 20;
/// Bytes of a pixel at most: four colours of 16 bits.
const PIXEL_BYTES: usize = 8;

/// # Errors
/// See [`DecodeError`].
pub(crate) fn decode(file: &[u8], most: u64) -> Result<Pixels, DecodeError> {
    let mut decoder = Decoder::new(Cursor::new(file));
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    let head = decoder.read_header_info().map_err(malformed)?;
    let (width, height) = (head.width, head.height);
    check(width, height, most)?;
    if (head.color_type, head.bit_depth) == (ColorType::Grayscale, BitDepth::Sixteen) {
        // Pillow would cut its values off at 255.
        return Err(DecodeError::Colours {
            colours: "16 bits of grey",
        });
    }
    let pixels = width as usize * height as usize;
    decoder.set_limits(Limits {
        bytes: pixels
            .saturating_mul(PIXEL_BYTES)
            .saturating_add(CHUNK_BYTES),
    });
    // Of 16 bits the upper eight.
    decoder.set_transformations(Transformations::EXPAND | Transformations::STRIP_16);
    let mut reader = decoder.read_info().map_err(malformed)?;
    let size = reader.output_buffer_size();
    let size = size.filter(|size| *size <= pixels.saturating_mul(4));
    let mut data = room(size.ok_or_else(|| no_image("its size is not that of its pixels"))?)?;
    let frame = reader.next_frame(&mut data).map_err(malformed)?;
    if (frame.width, frame.height, frame.bit_depth) != (width, height, BitDepth::Eight) {
        return Err(no_image("its image is not what its head says"));
    }
    data.truncate(frame.buffer_size());
    let data = match frame.color_type {
        ColorType::Rgb => data,
        ColorType::Rgba => coloured::<4>(&data, pixels, |p| [p[0], p[1], p[2]])?,
        ColorType::Grayscale => coloured::<1>(&data, pixels, |p| [p[0]; 3])?,
        ColorType::GrayscaleAlpha => coloured::<2>(&data, pixels, |p| [p[0]; 3])?,
        ColorType::Indexed => return Err(no_image("it has no palette")),
    };
    if data.len() != bytes(width, height) {
        return Err(no_image("its size is not that of its pixels"));
    }
    Ok(Pixels {
        width,
        height,
        data,
    })
}

/// Each pixel of `N` bytes as red, green and blue.
fn coloured<const N: usize>(
    data: &[u8],
    pixels: usize,
    of: impl Fn(&[u8; N]) -> [u8; COLOURS],
) -> Result<Vec<u8>, DecodeError> {
    let mut all = room(pixels * COLOURS)?;
    let (given, _) = data.as_chunks::<N>();
    for (to, pixel) in all.as_chunks_mut::<COLOURS>().0.iter_mut().zip(given) {
        *to = of(pixel);
    }
    Ok(all)
}

fn malformed(error: DecodingError) -> DecodeError {
    match error {
        DecodingError::IoError(error) if error.kind() == ErrorKind::UnexpectedEof => {
            DecodeError::Truncated { format: FORMAT }
        }
        error => no_image(&error.to_string()),
    }
}

fn no_image(reason: &str) -> DecodeError {
    DecodeError::malformed(FORMAT, reason)
}
