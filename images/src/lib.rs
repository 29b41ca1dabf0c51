//! Images as models take them: a JPEG, a PNG or raw pixels become FP32 of shape
//! `[rows, 3, height, width]` by the steps that a user declares, as Pillow and torchvision's
//! `Resize`, `CenterCrop`, `ToTensor` and `Normalize` do it.
//!
//! The files are strangers': call this in a process that is locked up. Sizes are read from a
//! file's head and checked before memory is taken, and nothing here panics on any bytes.
//!
//! Pixels and PNGs become what Pillow makes of them up to one level of 255 for each of the two
//! passes of a resize. The values of JPEGs differ by more in single places, as decoders do
//! among each other; by how much is tested (`tests/goldens.rs`).

mod colours;
mod decode;
mod jpeg;
mod pixels;
mod png_file;
mod resize;
mod typical;

pub use pixels::DecodeError;
pub use resize::ResizeError;
pub use typical::{TypicalError, typical};

use bytes::Bytes;
use lamina_model::{DataType, ImageInput, ImageSource, Tensor, file_of_row};

/// An image is not what was declared.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // each message names its fields
pub enum ImageFault {
    #[error("input `{name}`: image {number}: {error}")]
    Decode {
        name: String,
        number: usize,
        error: DecodeError,
    },
    #[error("input `{name}`: image {number}: {error}")]
    Resize {
        name: String,
        number: usize,
        error: ResizeError,
    },
    /// The shape was checked before: this process makes no sense.
    #[error("input `{name}` does not have the shape that it was checked for")]
    Shape { name: String },
    #[error("not enough memory for {bytes} bytes of pixels")]
    Memory { bytes: usize },
}

/// What `image` makes of the value of one request, as it travels (see
/// [`ImageInput::sent`]): FP32 of shape `[rows, 3, height, width]`. One image after the other
/// is decoded, so that one at a time takes memory.
///
/// # Errors
/// See [`ImageFault`]; the first image that is not what was declared.
pub fn prepare(image: &ImageInput, shape: &[i64], data: &[u8]) -> Result<Tensor, ImageFault> {
    let name = || image.name.clone();
    let misshaped = || ImageFault::Shape { name: name() };
    let size = |place: usize| {
        shape
            .get(place)
            .and_then(|size| usize::try_from(*size).ok())
    };
    let rows = size(0).ok_or_else(misshaped)?;
    let row_bytes = match &image.source {
        ImageSource::Files(_) => size(1),
        ImageSource::Pixels(_) => size(1)
            .zip(size(2))
            .and_then(|(h, w)| h.checked_mul(w)?.checked_mul(pixels::COLOURS)),
    };
    let row_bytes = row_bytes.filter(|bytes| *bytes > 0).ok_or_else(misshaped)?;
    if rows.checked_mul(row_bytes) != Some(data.len()) {
        return Err(misshaped());
    }
    let mut given = image.taken().value;
    given.shape[0] = i64::try_from(rows).map_err(|_| misshaped())?;
    let bytes = given.bytes(1).and_then(|bytes| usize::try_from(bytes).ok());
    let bytes = bytes.ok_or_else(misshaped)?;
    let mut made = Vec::new();
    made.try_reserve_exact(bytes)
        .map_err(|_| ImageFault::Memory { bytes })?;
    for (number, row) in data.chunks_exact(row_bytes).enumerate() {
        let pixels = match &image.source {
            ImageSource::Files(files) => file_of_row(row)
                .ok_or(DecodeError::NoFile)
                .and_then(|file| decode::decode(file, files.most_pixels)),
            ImageSource::Pixels(_) => decode::raw(row, size(2), size(1)),
        };
        let pixels = pixels.map_err(|error| ImageFault::Decode {
            name: name(),
            number,
            error,
        })?;
        let resized = resize::resize(pixels, &image.steps, image.largest_pixels());
        let resized = resized.map_err(|error| ImageFault::Resize {
            name: name(),
            number,
            error,
        })?;
        colours::normalise(&resized, &image.steps, &mut made);
    }
    if made.len() != bytes {
        return Err(misshaped());
    }
    Ok(Tensor {
        datatype: DataType::Fp32,
        shape: given.shape,
        data: Bytes::from(made),
    })
}
