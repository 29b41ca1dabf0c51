//! JPEGs. EXIF is not looked at: an image that it says to turn stays as it is, as in Pillow.

use crate::pixels::{DecodeError, Pixels, bytes, check, room};
use zune_jpeg::JpegDecoder;
use zune_jpeg::errors::DecodeErrors;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

/// How a JPEG begins.
pub(crate) const MAGIC: &[u8] = &[0xff, 0xd8, 0xff];

const FORMAT: &str = "JPEG";
/// Passes over a progressive image; each costs time. Encoders make a dozen.
const MOST_SCANS: usize = 64;

/// # Errors
/// See [`DecodeError`].
pub(crate) fn decode(file: &[u8], most: u64) -> Result<Pixels, DecodeError> {
    let side = lamina_model::MOST_SIDE as usize;
    let options = DecoderOptions::default()
        // What is missing would else be grey.
        .set_strict_mode(true)
        .set_max_width(side)
        .set_max_height(side)
        .jpeg_set_max_scans(MOST_SCANS)
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(file), options);
    decoder.decode_headers().map_err(malformed)?;
    let info = decoder.info().ok_or_else(|| no_image("it has no image"))?;
    let (width, height) = (u32::from(info.width), u32::from(info.height));
    check(width, height, most)?;
    match decoder.input_colorspace() {
        Some(ColorSpace::YCbCr | ColorSpace::Luma | ColorSpace::RGB) => (),
        Some(ColorSpace::CMYK | ColorSpace::YCCK) => {
            return Err(DecodeError::Colours { colours: "CMYK" });
        }
        _ => return Err(DecodeError::Colours { colours: "unusual" }),
    }
    if !has_end(file) {
        return Err(DecodeError::Truncated { format: FORMAT });
    }
    if decoder.output_buffer_size() != Some(bytes(width, height)) {
        return Err(no_image("its colours are not what its head says"));
    }
    let mut data = room(bytes(width, height))?;
    decoder.decode_into(&mut data).map_err(malformed)?;
    Ok(Pixels {
        width,
        height,
        data,
    })
}

/// Whether its end is marked behind the begin of its image: an image inside its head, such as
/// a small preview, has an end of its own.
fn has_end(file: &[u8]) -> bool {
    const SCAN: u8 = 0xda;
    let mut at = 2;
    // Segments with their lengths, up to the one that begins the image.
    while let Some([0xff, kind, high, low]) = file.get(at..at + 4) {
        if *kind == 0xff {
            // A byte to fill up with.
            at += 1;
            continue;
        }
        if *kind == SCAN {
            break;
        }
        at += 2 + usize::from(u16::from_be_bytes([*high, *low]));
    }
    let image = file.get(at..).unwrap_or_default();
    image.windows(2).any(|pair| pair == [0xff, 0xd9])
}

fn malformed(error: DecodeErrors) -> DecodeError {
    match error {
        DecodeErrors::ExhaustedData | DecodeErrors::IoErrors(_) => {
            DecodeError::Truncated { format: FORMAT }
        }
        error => no_image(&error.to_string()),
    }
}

fn no_image(reason: &str) -> DecodeError {
    DecodeError::malformed(FORMAT, reason)
}
