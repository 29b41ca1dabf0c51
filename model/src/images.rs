//! Inputs that are declared as images: what clients send, and the steps from there to the
//! tensor that the model takes. They are block 0 of the prepared model, whose file is a
//! [`Preprocessing`].

mod declared;
mod files;
mod steps;

pub use declared::{DeclaredImage, DeclaredLimits, DeclaredResize, DeclaredTypical};
pub use files::{FilesError, file_of_row, files_in_rows};
pub use steps::{Area, ImageSteps, Interpolation, MOST_SIDE, Resize};

use crate::{DataType, FreeSize, InputSpec, LENGTH_BYTES, ValueRange, ValueSpec};
use serde::{Deserialize, Serialize};

/// Bytes of a block that prepares inputs at most: a few lines for each input.
pub const PREPROCESSING_BYTES: u64 = 64 << 10;

/// Pixels that an image may be declared to have.
const MOST_PIXELS: u64 = 1 << 26;
/// Bytes that a file may be declared to have; a request with it has to fit into a message.
const MOST_BYTES: u64 = 32 << 20;
/// Pixels that an image may have where nothing else is declared, unless four typical images
/// have more.
const USUAL_PIXELS: u64 = 1 << 22;
/// Bytes of a file where nothing else is declared, unless four typical ones have more.
const USUAL_BYTES: u64 = 4 << 20;
/// Memory that decoding takes for each pixel at most: the coefficients of a progressive JPEG
/// (two bytes for each of three colours), the pixels, and as many again while resizing.
const DECODING_BYTES: u64 = 12;
/// Images that each request may be declared to have: as many are made to measure with.
const MOST_FIXED_ROWS: i64 = 64;
/// Colours of a pixel; an image of any other kind is made into one of these.
const COLOURS: i64 = 3;

/// An input that clients send as images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ImageInput {
    /// Its name in requests.
    pub name: String,
    /// Images in a request; -1 where that is free.
    pub rows: i64,
    /// What an image comes as.
    pub source: ImageSource,
    /// What is done with it.
    pub steps: ImageSteps,
}

/// What an image comes as.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum ImageSource {
    /// A JPEG or a PNG, an element of a tensor of BYTES.
    Files(Files),
    /// Its pixels, UINT8 of shape `[rows, height, width, 3]`, red, green and blue, as many in
    /// each image.
    Pixels(Area),
}

/// Files of images: what most are like, and what none exceeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Files {
    /// Width and height of a typical image, for which times are told.
    pub typical: Area,
    /// Bytes of a typical file, for which a placement is planned.
    pub typical_bytes: u64,
    /// Pixels that an image may have.
    pub most_pixels: u64,
    /// Bytes that a file may have.
    pub most_bytes: u64,
}

/// What is declared of [`Files`]; what is not is that of a small photograph.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeclaredFiles {
    /// Width and height of a typical image, 640 by 480 by default.
    pub typical: Option<Area>,
    /// Bytes of a typical file; a quarter of a byte for each pixel by default, as photographs
    /// have.
    pub typical_bytes: Option<u64>,
    /// Pixels that an image may have; four million or four typical images by default.
    pub most_pixels: Option<u64>,
    /// Bytes that a file may have; 4 MiB or four typical files by default.
    pub most_bytes: Option<u64>,
}

impl DeclaredFiles {
    /// With defaults where nothing is declared.
    pub fn resolved(self) -> Files {
        let typical = self.typical.unwrap_or(Area {
            width: 640,
            height: 480,
        });
        let pixels = typical.pixels();
        let bytes = self.typical_bytes.unwrap_or((pixels / 4).max(64));
        let most_pixels = USUAL_PIXELS.max(pixels.saturating_mul(4).min(MOST_PIXELS));
        let most_bytes = USUAL_BYTES.max(bytes.saturating_mul(4).min(MOST_BYTES));
        Files {
            typical,
            typical_bytes: bytes,
            most_pixels: self.most_pixels.unwrap_or(most_pixels),
            most_bytes: self.most_bytes.unwrap_or(most_bytes),
        }
    }
}

/// A declaration of an image does not hold together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("input `{name}`: {reason}")]
pub struct ImageError {
    name: String,
    reason: String,
}

/// The file of a block that prepares inputs: what it takes, in order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Preprocessing {
    /// Says what the file is.
    lamina: Format,
    /// What is done with each value that comes in.
    pub inputs: Vec<Prepared>,
}

/// Which format a file has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Format {
    #[serde(rename = "preprocessing/1")]
    One,
}

/// What is done with one value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum Prepared {
    /// It goes on as it is.
    As {
        /// What it is.
        value: ValueSpec,
    },
    /// It is an image.
    Image {
        /// How it is declared.
        image: ImageInput,
    },
}

/// A file is no block that prepares inputs.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum PreprocessingError {
    #[error("{0} bytes are too many for a block that prepares inputs")]
    Large(u64),
    #[error("it is no block that prepares inputs: {0}")]
    Json(String),
    #[error(transparent)]
    Image(#[from] ImageError),
}

impl Preprocessing {
    /// What a file of this kind begins with.
    pub const MAGIC: &[u8] = br#"{"lamina":"preprocessing/"#;

    /// The block for `inputs`.
    pub const fn new(inputs: Vec<Prepared>) -> Self {
        Self {
            lamina: Format::One,
            inputs,
        }
    }

    /// The block's file; the same block gives the same bytes.
    ///
    /// # Errors
    /// A number that JSON does not have, which no checked declaration has.
    pub fn to_bytes(&self) -> Result<Vec<u8>, PreprocessingError> {
        serde_json::to_vec(self).map_err(|e| PreprocessingError::Json(e.to_string()))
    }

    /// Reads and checks a block's file.
    ///
    /// # Errors
    /// See [`PreprocessingError`].
    pub fn from_bytes(file: &[u8]) -> Result<Self, PreprocessingError> {
        let bytes = file.len() as u64;
        if bytes > PREPROCESSING_BYTES {
            return Err(PreprocessingError::Large(bytes));
        }
        let read: Result<Self, _> = serde_json::from_slice(file);
        let block = read.map_err(|e| PreprocessingError::Json(e.to_string()))?;
        for input in &block.inputs {
            if let Prepared::Image { image } = input {
                image.check()?;
            }
        }
        Ok(block)
    }

    /// The values that it gives, as the model takes them.
    pub fn gives(&self) -> Vec<ValueSpec> {
        let one = |input: &Prepared| match input {
            Prepared::As { value } => value.clone(),
            Prepared::Image { image } => image.taken().value,
        };
        self.inputs.iter().map(one).collect()
    }

    /// Its images, with their places among the values.
    pub fn images(&self) -> impl Iterator<Item = (usize, &ImageInput)> {
        let places = self.inputs.iter().enumerate();
        places.filter_map(|(place, input)| match input {
            Prepared::Image { image } => Some((place, image)),
            Prepared::As { .. } => None,
        })
    }

    /// Memory that it takes for one row at most, in bytes.
    pub fn peak_bytes(&self) -> u64 {
        let peaks = self.inputs.iter().map(|input| match input {
            Prepared::Image { image } => image.peak_bytes(),
            Prepared::As { value } => value.bytes(1).unwrap_or(0),
        });
        peaks.fold(0, u64::saturating_add)
    }

    /// The values that it takes, as they travel.
    pub fn takes(&self) -> Vec<ValueSpec> {
        let one = |input: &Prepared| match input {
            Prepared::As { value } => value.clone(),
            Prepared::Image { image } => image.sent(),
        };
        self.inputs.iter().map(one).collect()
    }
}

impl ImageInput {
    /// Checks that the steps give a tensor of one size, and that nothing is out of bounds.
    ///
    /// # Errors
    /// What does not hold together, in words for its author.
    pub fn check(&self) -> Result<(), ImageError> {
        let wrong = |reason: String| ImageError {
            name: self.name.clone(),
            reason,
        };
        if self.rows != -1 && !(1..=MOST_FIXED_ROWS).contains(&self.rows) {
            return Err(wrong(format!(
                "{} images in a request; give -1, or 1 to {MOST_FIXED_ROWS}",
                self.rows
            )));
        }
        let area = self.steps.check().map_err(wrong)?;
        match &self.source {
            ImageSource::Files(files) => check_files(*files, area).map_err(wrong),
            ImageSource::Pixels(own) => own.check("an image").map_err(wrong),
        }
    }

    /// The value as it travels: files of one request as rows of UINT8, see
    /// [`files_in_rows`]; pixels as they are.
    pub fn sent(&self) -> ValueSpec {
        let mut sizes = Vec::new();
        let mut shape = vec![self.rows];
        match &self.source {
            ImageSource::Files(files) => {
                shape.push(-1);
                sizes.push(FreeSize {
                    dimension: 1,
                    typical: whole(files.typical_bytes.saturating_add(LENGTH_BYTES as u64)),
                    bounds: None,
                    file_bytes: Some(files.most_bytes),
                });
            }
            ImageSource::Pixels(own) => {
                shape.extend([i64::from(own.height), i64::from(own.width), COLOURS]);
            }
        }
        ValueSpec {
            name: self.name.clone(),
            datatype: DataType::Uint8,
            shape,
            sizes,
        }
    }

    /// What a file of samples has for it: the file of one image, or the pixels of one.
    pub fn sample(&self) -> InputSpec {
        let mut value = self.sent();
        if value.is_file() {
            value.shape.remove(0);
            for size in &mut value.sizes {
                size.dimension = 0;
            }
        }
        InputSpec { value, range: None }
    }

    /// What the model takes in its place: FP32 of shape `[rows, 3, height, width]`, between
    /// what black and white become.
    pub fn taken(&self) -> InputSpec {
        let area = self.steps.area().unwrap_or(Area {
            width: 0,
            height: 0,
        });
        let colours = self.steps.mean.iter().zip(&self.steps.std);
        let ends = colours.flat_map(|(mean, std)| [(0.0 - mean) / std, (1.0 - mean) / std]);
        let (min, max) = ends.fold((f64::INFINITY, f64::NEG_INFINITY), |(min, max), end| {
            (min.min(end), max.max(end))
        });
        InputSpec {
            value: ValueSpec {
                name: self.name.clone(),
                datatype: DataType::Fp32,
                shape: vec![
                    self.rows,
                    COLOURS,
                    i64::from(area.height),
                    i64::from(area.width),
                ],
                sizes: Vec::new(),
            },
            range: Some(ValueRange { min, max }),
        }
    }

    /// Memory that preparing one image takes at most, in bytes: of the largest, since whoever
    /// sends it chooses.
    pub fn peak_bytes(&self) -> u64 {
        let decoding = match &self.source {
            ImageSource::Files(files) => files
                .most_pixels
                .saturating_mul(DECODING_BYTES)
                .saturating_add(files.most_bytes),
            // They are there already; resizing takes as many again.
            ImageSource::Pixels(_) => self.largest_pixels().saturating_mul(2 * 3),
        };
        let given = self.taken().value.bytes(1).unwrap_or(0);
        decoding.saturating_add(given)
    }

    /// Pixels of the largest image that is taken, and of what it becomes while it is resized.
    pub fn largest_pixels(&self) -> u64 {
        match &self.source {
            ImageSource::Files(files) => files.most_pixels,
            ImageSource::Pixels(own) => {
                let area = self.steps.area().map_or(0, Area::pixels);
                own.pixels().max(area).max(USUAL_PIXELS)
            }
        }
    }

    /// Width and height of a typical image.
    pub const fn typical(&self) -> Area {
        match &self.source {
            ImageSource::Files(files) => files.typical,
            ImageSource::Pixels(own) => *own,
        }
    }
}

fn check_files(files: Files, area: Area) -> Result<(), String> {
    files.typical.check("a typical image")?;
    if !(1..=MOST_PIXELS).contains(&files.most_pixels) {
        return Err(format!(
            "an image may be declared to have 1 to {MOST_PIXELS} pixels"
        ));
    }
    if !(1..=MOST_BYTES).contains(&files.most_bytes) {
        return Err(format!(
            "a file may be declared to have 1 to {MOST_BYTES} bytes"
        ));
    }
    if files.typical.pixels() > files.most_pixels {
        return Err(format!(
            "a typical image has {} pixels, more than the {} that one may have",
            files.typical.pixels(),
            files.most_pixels
        ));
    }
    if !(1..=files.most_bytes).contains(&files.typical_bytes) {
        return Err(format!(
            "a typical file has {} bytes; give 1 to the {} that one may have",
            files.typical_bytes, files.most_bytes
        ));
    }
    if area.pixels() > files.most_pixels {
        return Err(format!(
            "the model takes {} pixels, more than the {} that an image may have",
            area.pixels(),
            files.most_pixels
        ));
    }
    Ok(())
}

fn whole(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
