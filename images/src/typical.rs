//! Images to measure with, where nobody gives any: like photographs in what decoding them
//! costs, and the same for the same seed.

use image::ExtendedColorType;
use image::codecs::jpeg::JpegEncoder;
use lamina_model::{
    Area, DataType, Files, FilesError, ImageInput, ImageSource, Tensor, files_in_rows,
};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

/// Tries to come near the number of bytes.
const TRIES: u32 = 6;
/// How far noise goes, in levels: as in a photograph in daylight.
const NOISE: i32 = 12;
/// Pixels between two changes of brightness.
const PATCH: u32 = 24;

/// No image can be made.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum TypicalError {
    #[error("an image to measure with cannot be encoded")]
    Encode(#[from] image::ImageError),
    #[error("an image to measure with is not what is declared: {0}")]
    Files(#[from] FilesError),
}

/// A request of what `image` takes, of one row where that is free, as it travels: JPEGs of its
/// typical size with about its typical bytes, or pixels.
///
/// # Errors
/// See [`TypicalError`].
pub fn typical(image: &ImageInput, seed: u64) -> Result<Tensor, TypicalError> {
    let area = image.typical();
    let rows = u64::try_from(image.rows).unwrap_or(1);
    // Far from the seeds of others.
    let seeds = (0..rows).map(|row| seed.wrapping_add(row << 32));
    match &image.source {
        ImageSource::Files(files) => {
            let images = seeds.map(|seed| jpeg(&pixels(area, seed), area, *files));
            let images: Vec<Vec<u8>> = images.collect::<Result<_, _>>()?;
            Ok(files_in_rows(&images, files.most_bytes)?)
        }
        ImageSource::Pixels(_) => {
            let pixels: Vec<u8> = seeds.flat_map(|seed| pixels(area, seed)).collect();
            Ok(Tensor {
                datatype: DataType::Uint8,
                shape: vec![rows.cast_signed(), area.height.into(), area.width.into(), 3],
                data: pixels.into(),
            })
        }
    }
}

/// Patches of changing brightness and colour, with noise.
fn pixels(area: Area, seed: u64) -> Vec<u8> {
    let mut random = StdRng::seed_from_u64(seed);
    let across = area.width.div_ceil(PATCH) + 1;
    let down = area.height.div_ceil(PATCH) + 1;
    let patches: Vec<[i32; 3]> = (0..u64::from(across) * u64::from(down))
        .map(|_| std::array::from_fn(|_| random.random_range(20..236)))
        .collect();
    let mut pixels = Vec::with_capacity(usize::try_from(area.pixels() * 3).unwrap_or(0));
    for y in 0..area.height {
        for x in 0..area.width {
            let patch = (y / PATCH * across + x / PATCH) as usize;
            let next = patch + 1;
            let share = i32::try_from(x % PATCH).unwrap_or(0);
            let width = i32::try_from(PATCH).unwrap_or(1);
            let noise = random.random_range(-NOISE..=NOISE);
            for colour in 0..3 {
                let of = |at: usize| patches.get(at).map_or(0, |patch| patch[colour]);
                let level = (of(patch) * (width - share) + of(next) * share) / width + noise;
                pixels.push(u8::try_from(level.clamp(0, 255)).unwrap_or(0));
            }
        }
    }
    pixels
}

/// A JPEG of about the typical bytes, by its quality; no more than a file may have.
fn jpeg(pixels: &[u8], area: Area, files: Files) -> Result<Vec<u8>, TypicalError> {
    let encoded = |quality: u8| -> Result<Vec<u8>, TypicalError> {
        let mut file = Vec::new();
        JpegEncoder::new_with_quality(&mut file, quality).encode(
            pixels,
            area.width,
            area.height,
            ExtendedColorType::Rgb8,
        )?;
        Ok(file)
    };
    let (mut low, mut high) = (1_u8, 95_u8);
    let mut best = encoded(low)?;
    for _ in 0..TRIES {
        let quality = low.midpoint(high);
        let file = encoded(quality)?;
        if file.len() as u64 > files.typical_bytes {
            high = quality;
        } else {
            low = quality;
            best = file;
        }
    }
    Ok(best)
}
