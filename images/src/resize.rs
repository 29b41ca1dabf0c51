//! Resizing as Pillow does it: rows first, then columns, each with weights that widen with the
//! step, and values rounded to 8 bits in between.

use crate::pixels::{Pixels, bytes};
use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use lamina_model::{ImageSteps, Interpolation, MOST_SIDE, Resize};

/// An image cannot be resized.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // each message names its fields
pub enum ResizeError {
    #[error(
        "of {width} by {height} pixels, it would be resized to {to_width} by {to_height}; \
         {most} pixels are the most that are taken"
    )]
    Large {
        width: u32,
        height: u32,
        to_width: u64,
        to_height: u64,
        most: u64,
    },
    #[error("it cannot be resized: {reason}")]
    Failed { reason: String },
}

/// `pixels` as `steps` want them. `most` are the pixels that there may be in between.
///
/// # Errors
/// See [`ResizeError`].
pub(crate) fn resize(pixels: Pixels, steps: &ImageSteps, most: u64) -> Result<Pixels, ResizeError> {
    let (width, height) = (u64::from(pixels.width), u64::from(pixels.height));
    let (to_width, to_height) = match steps.resize {
        None => return Ok(pixels),
        Some(Resize::Exact(area)) => (u64::from(area.width), u64::from(area.height)),
        // Rounded down, as torchvision has it.
        Some(Resize::ShorterSide(side)) if width <= height => {
            (side.into(), u64::from(side) * height / width.max(1))
        }
        Some(Resize::ShorterSide(side)) => (u64::from(side) * width / height.max(1), side.into()),
    };
    let large = || ResizeError::Large {
        width: pixels.width,
        height: pixels.height,
        to_width,
        to_height,
        most,
    };
    // Rows are resized first, so both are there for a moment.
    if to_width.saturating_mul(height.max(to_height)) > most {
        return Err(large());
    }
    let side = |side: u64| {
        u32::try_from(side)
            .ok()
            .filter(|s| (1..=MOST_SIDE).contains(s))
    };
    let (to_width, to_height) = side(to_width).zip(side(to_height)).ok_or_else(large)?;
    let filter = match steps.interpolation {
        Interpolation::Bilinear => FilterType::Bilinear,
        // That with a = -0.5.
        Interpolation::Bicubic => FilterType::CatmullRom,
        Interpolation::Lanczos => FilterType::Lanczos3,
    };
    let height = pixels.height;
    let rows = pass(pixels, to_width, height, filter)?;
    pass(rows, to_width, to_height, filter)
}

fn pass(
    pixels: Pixels,
    width: u32,
    height: u32,
    filter: FilterType,
) -> Result<Pixels, ResizeError> {
    if (pixels.width, pixels.height) == (width, height) {
        return Ok(pixels);
    }
    let failed = |reason: String| ResizeError::Failed { reason };
    let from = ImageRef::new(pixels.width, pixels.height, &pixels.data, PixelType::U8x3);
    let from = from.map_err(|e| failed(e.to_string()))?;
    let mut data = Vec::new();
    data.try_reserve_exact(bytes(width, height))
        .map_err(|e| failed(e.to_string()))?;
    data.resize(bytes(width, height), 0);
    let to = Image::from_vec_u8(width, height, data, PixelType::U8x3);
    let mut to = to.map_err(|e| failed(e.to_string()))?;
    let options = ResizeOptions::new()
        .resize_alg(ResizeAlg::Convolution(filter))
        .use_alpha(false);
    let resized = Resizer::new().resize(&from, &mut to, &options);
    resized.map_err(|e| failed(e.to_string()))?;
    Ok(Pixels {
        width,
        height,
        data: to.into_vec(),
    })
}
