//! An image as a user declares it, with what is left open.

use super::steps::{Area, ImageSteps, Interpolation, Resize};
use super::{COLOURS, DeclaredFiles, ImageError, ImageInput, ImageSource};
use crate::ValueSpec;
use serde::{Deserialize, Serialize};

/// What is declared of an input that clients send as images, in the words of a DnnModel.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DeclaredImage {
    /// Left as it is where absent.
    pub resize: Option<DeclaredResize>,
    /// Bilinear where absent.
    pub interpolation: Option<Interpolation>,
    /// Nothing is cut off where absent.
    pub crop: Option<Area>,
    /// Zeros where absent.
    pub mean: Option<[f64; 3]>,
    /// Ones where absent.
    pub std: Option<[f64; 3]>,
    /// What most images are like.
    pub typical: Option<DeclaredTypical>,
    /// What none exceeds.
    pub limits: Option<DeclaredLimits>,
}

/// The shorter side, or both sides.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DeclaredResize {
    /// Pixels of the shorter side.
    pub shorter_side: Option<u32>,
    /// Pixels in a row.
    pub width: Option<u32>,
    /// Rows.
    pub height: Option<u32>,
}

/// What most images are like.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DeclaredTypical {
    /// Pixels in a row.
    pub width: Option<u32>,
    /// Rows.
    pub height: Option<u32>,
    /// Bytes of a file.
    pub bytes: Option<u64>,
}

/// What no image exceeds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DeclaredLimits {
    /// Width times height.
    pub pixels: Option<u64>,
    /// Bytes of a file.
    pub bytes: Option<u64>,
}

impl DeclaredImage {
    /// The input whose images come as files, where `are_files`, or else as the pixels of
    /// `value`, which has its name and its declared shape: `[N]` for files, `[N, height, width,
    /// 3]` for pixels.
    ///
    /// # Errors
    /// The first contradiction, in words for its author.
    pub fn input(&self, value: &ValueSpec, are_files: bool) -> Result<ImageInput, ImageError> {
        let wrong = |reason: &str| ImageError {
            name: value.name.clone(),
            reason: reason.to_owned(),
        };
        let source = if are_files {
            self.files(value).map_err(wrong)?
        } else {
            self.pixels(value).map_err(wrong)?
        };
        let input = ImageInput {
            name: value.name.clone(),
            rows: value.shape.first().copied().unwrap_or(-1),
            source,
            steps: ImageSteps {
                resize: self.resize().map_err(wrong)?,
                interpolation: self.interpolation.unwrap_or_default(),
                crop: self.crop,
                mean: self.mean.unwrap_or([0.0; 3]),
                std: self.std.unwrap_or([1.0; 3]),
            },
        };
        input.check()?;
        Ok(input)
    }

    fn resize(&self) -> Result<Option<Resize>, &'static str> {
        let Some(resize) = self.resize else {
            return Ok(None);
        };
        match (resize.shorter_side, resize.width, resize.height) {
            (Some(side), None, None) => Ok(Some(Resize::ShorterSide(side))),
            (None, Some(width), Some(height)) => Ok(Some(Resize::Exact(Area { width, height }))),
            _ => Err("resize has a shorterSide, or a width and a height"),
        }
    }

    fn files(&self, value: &ValueSpec) -> Result<ImageSource, &'static str> {
        if value.shape.len() != 1 || !value.sizes.is_empty() {
            return Err("an image of BYTES has the shape [-1], or [N] for a fixed batch");
        }
        let typical = self.typical.unwrap_or_default();
        let area = match (typical.width, typical.height) {
            (None, None) => None,
            (Some(width), Some(height)) => Some(Area { width, height }),
            _ => return Err("typical has a width and a height, or neither"),
        };
        let limits = self.limits.unwrap_or_default();
        let declared = DeclaredFiles {
            typical: area,
            typical_bytes: typical.bytes,
            most_pixels: limits.pixels,
            most_bytes: limits.bytes,
        };
        Ok(ImageSource::Files(declared.resolved()))
    }

    fn pixels(&self, value: &ValueSpec) -> Result<ImageSource, &'static str> {
        if self.typical.is_some() || self.limits.is_some() {
            return Err("typical and limits are of BYTES: pixels have one size");
        }
        let side = |size: i64| u32::try_from(size).ok();
        let area = match value.shape.as_slice() {
            &[_, height, width, COLOURS] => side(width).zip(side(height)),
            _ => None,
        };
        let (width, height) = area.ok_or(
            "an image of UINT8 has the shape [-1, HEIGHT, WIDTH, 3], with numbers; of other \
             sizes it is a PNG",
        )?;
        Ok(ImageSource::Pixels(Area { width, height }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DataType, FreeSize};

    fn value(shape: &[&str]) -> ValueSpec {
        ValueSpec {
            name: "image".into(),
            datatype: DataType::Uint8,
            shape: shape.iter().map(|dim| dim.parse().unwrap_or(-1)).collect(),
            sizes: shape
                .iter()
                .enumerate()
                .filter_map(|(place, dim)| FreeSize::parse(dim, place).ok())
                .collect(),
        }
    }

    fn declared(text: &str) -> DeclaredImage {
        serde_json::from_str(text).unwrap()
    }

    const CROP: &str = r#""crop":{"width":224,"height":224}"#;

    #[test]
    fn what_is_left_open_is_that_of_a_photograph() {
        let text = format!(r#"{{"resize":{{"shorterSide":256}},{CROP},"mean":[0.5,0.5,0.5]}}"#);
        let image = declared(&text).input(&value(&["-1"]), true).unwrap();
        assert_eq!(image.rows, -1);
        assert_eq!(image.steps.resize, Some(Resize::ShorterSide(256)));
        assert_eq!(image.steps.std, [1.0; 3]);
        assert_eq!(image.sent().bytes(1), Some(76_804));
        let text = format!(r#"{{{CROP},"typical":{{"width":1920,"height":1080,"bytes":300000}}}}"#);
        let image = declared(&text).input(&value(&["2"]), true).unwrap();
        assert_eq!(image.sent().shape, [2, -1]);
        assert_eq!(image.sent().bytes(1), Some(600_008));
        assert_eq!(image.largest_pixels(), 4 * 1920 * 1080);
    }

    #[test]
    fn pixels_have_their_sizes_in_the_shape() {
        let value = value(&["-1", "480", "640", "3"]);
        let image = declared(&format!("{{{CROP}}}"))
            .input(&value, false)
            .unwrap();
        assert_eq!(image.sent(), value);
    }

    #[test]
    fn contradictions_are_named() {
        let files = |text: &str| declared(text).input(&value(&["-1"]), true).unwrap_err();
        let pixels = |text: &str, shape: &[&str]| {
            let input = declared(text).input(&value(shape), false);
            input.unwrap_err().to_string()
        };
        for (text, about) in [
            (r#"{"resize":{"width":1}}"#, "a shorterSide, or"),
            (
                r#"{"resize":{"width":1,"height":1,"shorterSide":1}}"#,
                "a shorterSide, or",
            ),
            (
                r#"{"typical":{"width":1}}"#,
                "a width and a height, or neither",
            ),
            ("{}", "a size of its own"),
        ] {
            let said = files(text).to_string();
            assert!(said.contains(about), "{said}");
        }
        let shape = ["-1", "8", "8", "3"];
        assert!(pixels(r#"{"limits":{"pixels":1}}"#, &shape).contains("are of BYTES"));
        for shape in [["-1", "3", "8", "8"], ["-1", "h:1..8", "8", "3"]] {
            assert!(pixels("{}", &shape).contains("[-1, HEIGHT, WIDTH, 3]"));
        }
        let shape = declared(&format!("{{{CROP}}}")).input(&value(&["-1", "8"]), true);
        assert!(shape.unwrap_err().to_string().contains("the shape [-1]"));
        assert!(serde_json::from_str::<DeclaredImage>(r#"{"resise":1}"#).is_err());
    }
}
