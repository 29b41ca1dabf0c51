//! Pixels, and the memory that they take.

/// Red, green and blue.
pub(crate) const COLOURS: usize = 3;

/// Pixels of an image: red, green and blue, row by row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pixels {
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) data: Vec<u8>,
}

/// A file holds no image that can be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // each message names its fields
pub enum DecodeError {
    #[error("there is no file in its row")]
    NoFile,
    #[error("it is neither a JPEG nor a PNG")]
    Unknown,
    #[error("it is no {format} that can be read: {reason}")]
    Malformed {
        format: &'static str,
        reason: String,
    },
    #[error("the {format} ends before its image does")]
    Truncated { format: &'static str },
    #[error("it has {width} by {height} pixels; {most} are the most that are taken")]
    Large { width: u32, height: u32, most: u64 },
    #[error("its colours are {colours}, which are not taken; convert it to RGB")]
    Colours { colours: &'static str },
    #[error("not enough memory for {bytes} bytes of pixels")]
    Memory { bytes: usize },
}

impl DecodeError {
    /// A file of `format` that cannot be read, for `reason`.
    pub(crate) fn malformed(format: &'static str, reason: &str) -> Self {
        Self::Malformed {
            format,
            reason: reason.to_owned(),
        }
    }
}

/// Refuses sizes that are not taken.
pub(crate) fn check(width: u32, height: u32, most: u64) -> Result<(), DecodeError> {
    let sides = 1..=lamina_model::MOST_SIDE;
    let is_inside = sides.contains(&width)
        && sides.contains(&height)
        && u64::from(width) * u64::from(height) <= most;
    let large = DecodeError::Large {
        width,
        height,
        most,
    };
    is_inside.then_some(()).ok_or(large)
}

/// Bytes of so many pixels.
pub(crate) fn bytes(width: u32, height: u32) -> usize {
    // Both were checked: the product is far below what a usize holds.
    width as usize * height as usize * COLOURS
}

/// So many zeros.
///
/// # Errors
/// There is no memory for them.
pub(crate) fn room(bytes: usize) -> Result<Vec<u8>, DecodeError> {
    let mut room = Vec::new();
    room.try_reserve_exact(bytes)
        .map_err(|_| DecodeError::Memory { bytes })?;
    room.resize(bytes, 0);
    Ok(room)
}
