//! Whether a file is a TorchScript archive that may be passed to libtorch.
//!
//! Pure: bytes in, verdict out. Code and pickles are parsed, weights only
//! compared with their checksums, which libtorch does not do.

mod archive;
mod code;
mod error;
mod foreign;
mod pickle;
#[cfg(test)]
mod tests;

pub use code::{CodeError, check_code};
pub use error::ScanError;
pub use foreign::Foreign;
pub use pickle::{PickleError, check_pickle};

use archive::Archive;
use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::Path;

/// Size limits of a scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScanLimits {
    /// Bytes of the file.
    pub file_bytes: u64,
    /// Files inside it.
    pub entries: usize,
    /// Bytes of one file of code or of one pickle, decompressed.
    pub text_bytes: u64,
    /// Factor by which the archive may grow when decompressed. Weights are never compressed, code
    /// is, to a tenth or less.
    pub ratio: u64,
    /// Bytes to which any archive may decompress, whatever its size.
    pub inflated_bytes_at_least: u64,
}

impl Default for ScanLimits {
    fn default() -> Self {
        Self {
            file_bytes: 8 << 30,
            entries: 100_000,
            text_bytes: 32 << 20,
            ratio: 4,
            inflated_bytes_at_least: 64 << 20,
        }
    }
}

/// Contents of an accepted archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scanned {
    /// Files inside.
    pub entries: usize,
    /// Bytes of code and pickles read.
    pub read_bytes: u64,
}

/// Scans the file at `path`.
///
/// # Errors
/// It cannot be read, or may not be opened; see [`ScanError`].
pub fn scan_file(path: &Path, limits: &ScanLimits) -> Result<Scanned, ScanError> {
    let file = File::open(path).map_err(ScanError::Read)?;
    scan(BufReader::new(file), limits)
}

/// Scans an archive from its first byte to its last.
///
/// # Errors
/// It cannot be read, or may not be opened; see [`ScanError`].
pub fn scan<R: Read + Seek>(reader: R, limits: &ScanLimits) -> Result<Scanned, ScanError> {
    let mut archive = Archive::open(reader, limits)?;
    let texts = archive.texts();
    let mut read_bytes = 0;
    for text in &texts {
        let content = archive.read(text.index, limits.text_bytes)?;
        read_bytes += content.len() as u64;
        match text.kind {
            TextKind::Code => code::check(&text.name, &content)?,
            TextKind::Pickle => pickle::check(&text.name, &content)?,
        }
    }
    archive.check_sums()?;
    Ok(Scanned {
        entries: archive.len(),
        read_bytes,
    })
}

/// A file inside the archive that libtorch interprets.
struct Text {
    index: usize,
    name: String,
    kind: TextKind,
}

enum TextKind {
    Code,
    Pickle,
}
