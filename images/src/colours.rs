//! From pixels to the numbers that a model takes.

use crate::pixels::{COLOURS, Pixels};
use lamina_model::ImageSteps;

/// Levels of a colour.
const LEVELS: usize = 256;

/// Appends what the crop, the scale and the normalisation of `steps` make of `pixels`: all of
/// red, then all of green, then all of blue, as little-endian FP32.
pub(crate) fn normalise(pixels: &Pixels, steps: &ImageSteps, to: &mut Vec<u8>) {
    let (width, height) = steps
        .crop
        .map_or((pixels.width, pixels.height), |c| (c.width, c.height));
    let left = offset(pixels.width, width);
    let top = offset(pixels.height, height);
    let row_bytes = pixels.width as usize * COLOURS;
    for colour in 0..COLOURS {
        let levels = levels(steps, colour);
        for y in 0..height {
            let row = inside(top, y, pixels.height)
                .and_then(|y| pixels.data.get(y * row_bytes..(y + 1) * row_bytes));
            for x in 0..width {
                let at = inside(left, x, pixels.width);
                let value = row
                    .zip(at)
                    .and_then(|(row, x)| row.get(x * COLOURS + colour));
                // Black where there is no image.
                let level = levels[usize::from(value.copied().unwrap_or(0))];
                to.extend_from_slice(&level.to_le_bytes());
            }
        }
    }
}

/// What each of the 256 levels of a colour becomes, in the arithmetic of torch.
fn levels(steps: &ImageSteps, colour: usize) -> [f32; LEVELS] {
    #[allow(clippy::cast_possible_truncation)] // as torch makes FP32 of the numbers
    let (mean, std) = (steps.mean[colour] as f32, steps.std[colour] as f32);
    std::array::from_fn(|level| (level as f32 / 255.0 - mean) / std)
}

/// Where the part in the middle begins: torchvision rounds half to even, and fills up with one
/// less before than behind where the image is smaller.
fn offset(size: u32, part: u32) -> i64 {
    let (size, part) = (i64::from(size), i64::from(part));
    let spare = size - part;
    if spare < 0 {
        return -((part - size) / 2);
    }
    let half = spare / 2;
    half + i64::from(spare % 2 == 1 && half % 2 == 1)
}

fn inside(offset: i64, at: u32, size: u32) -> Option<usize> {
    let at = offset + i64::from(at);
    (0..i64::from(size))
        .contains(&at)
        .then_some(at)?
        .try_into()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_is_where_torchvision_has_it() {
        // round((size - part) / 2.0) in Python.
        for (size, part, wanted) in [(5, 4, 0), (7, 4, 2), (9, 4, 2), (11, 4, 4), (8, 4, 2)] {
            assert_eq!(offset(size, part), wanted, "{size} {part}");
        }
        assert_eq!(offset(4, 4), 0);
        assert_eq!(offset(3, 4), 0);
        assert_eq!(offset(3, 6), -1);
    }
}
