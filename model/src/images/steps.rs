//! The steps from decoded pixels to a tensor, in the order in which they are done.

use serde::{Deserialize, Serialize};

/// The largest width or height of an image.
pub const MOST_SIDE: u32 = 16_384;

/// Width and height in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Area {
    /// Pixels in a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
}

/// To what an image is resized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Resize {
    /// Its shorter side has so many pixels; the other follows in proportion, rounded down.
    ShorterSide(u32),
    /// Whatever its proportions are.
    Exact(Area),
}

/// How pixels are weighed where an image is resized. All widen with the step from one size to
/// the other, as `antialias` of torchvision has it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Interpolation {
    /// A triangle.
    #[default]
    Bilinear,
    /// A cubic spline with a = -0.5.
    Bicubic,
    /// Lanczos with three lobes.
    Lanczos,
}

/// What is done with an image: resized, cut out of the middle, scaled to 0..1, normalised.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ImageSteps {
    /// Left as it is where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resize: Option<Resize>,
    /// Of resizing.
    #[serde(default)]
    pub interpolation: Interpolation,
    /// The part in the middle that is kept; black is added where the image is smaller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crop: Option<Area>,
    /// Taken from red, green and blue in 0..1.
    #[serde(default)]
    pub mean: [f64; 3],
    /// What they are divided by then.
    #[serde(default = "ones")]
    pub std: [f64; 3],
}

const fn ones() -> [f64; 3] {
    [1.0; 3]
}

impl Area {
    /// Width times height.
    pub fn pixels(self) -> u64 {
        u64::from(self.width) * u64::from(self.height)
    }

    /// Whether both sides are such as images may have; `what` is its name for people.
    pub(super) fn check(self, what: &str) -> Result<(), String> {
        let is_side = |side: u32| (1..=MOST_SIDE).contains(&side);
        if is_side(self.width) && is_side(self.height) {
            return Ok(());
        }
        Err(format!(
            "{what} is {} by {}; sides are 1 to {MOST_SIDE}",
            self.width, self.height
        ))
    }
}

impl ImageSteps {
    /// Width and height of what comes out; `None` where they follow the image.
    pub fn area(&self) -> Option<Area> {
        self.crop.or(match self.resize {
            Some(Resize::Exact(area)) => Some(area),
            _ => None,
        })
    }

    /// Checks the numbers, and that one size comes out, which is returned.
    ///
    /// # Errors
    /// What is wrong, in words for its author.
    pub fn check(&self) -> Result<Area, String> {
        match self.resize {
            Some(Resize::ShorterSide(side)) if !(1..=MOST_SIDE).contains(&side) => {
                return Err(format!(
                    "the shorter side has {side} pixels; give 1 to {MOST_SIDE}"
                ));
            }
            Some(Resize::Exact(area)) => area.check("resized, it")?,
            _ => (),
        }
        if let Some(crop) = self.crop {
            crop.check("its crop")?;
        }
        let mean = self.mean.iter().all(|m| m.is_finite() && m.abs() <= 1e6);
        let std = self.std.iter().all(|s| (1e-6..=1e6).contains(s));
        if !mean || !std {
            return Err(
                "mean and std are of numbers between 0 and 1, and no std is 0 or less".to_owned(),
            );
        }
        self.area().ok_or_else(|| {
            "each image would have a size of its own, but the model takes one: declare a crop, \
             or a width and height to resize to"
                .to_owned()
        })
    }
}
