//! Files of strangers to pixels.

use crate::pixels::{DecodeError, Pixels, room};
use crate::{jpeg, png_file};

/// The pixels of a JPEG or PNG, told apart by how they begin.
///
/// # Errors
/// See [`DecodeError`]. `most` is the number of pixels that it may have.
pub(crate) fn decode(file: &[u8], most: u64) -> Result<Pixels, DecodeError> {
    if file.starts_with(jpeg::MAGIC) {
        jpeg::decode(file, most)
    } else if file.starts_with(png_file::MAGIC) {
        png_file::decode(file, most)
    } else {
        Err(DecodeError::Unknown)
    }
}

/// Pixels that came as such.
pub(crate) fn raw(
    data: &[u8],
    width: Option<usize>,
    height: Option<usize>,
) -> Result<Pixels, DecodeError> {
    let side = |side: Option<usize>| side.and_then(|s| u32::try_from(s).ok());
    let (width, height) = side(width).zip(side(height)).ok_or(DecodeError::NoFile)?;
    let mut copy = room(data.len())?;
    copy.copy_from_slice(data);
    Ok(Pixels {
        width,
        height,
        data: copy,
    })
}
