//! Files inside a tensor: as many rows as files, each with the file's length as four bytes,
//! little-endian, the file, and zeros up to the length of the longest. So a batch of files has
//! rows as any batch has, and goes where rows go.

use crate::{DataType, LENGTH_BYTES, Tensor, ValueSpec};
use bytes::Bytes;

/// Bytes of the rows of one request, which every host takes in one message: what shorter files are
/// filled up with counts.
const MOST_ROW_BYTES: u64 = 48 << 20;

/// Files that do not become rows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // each message names its fields
pub enum FilesError {
    #[error("file {number} has {bytes} bytes; one may have {most}")]
    Large {
        number: usize,
        bytes: u64,
        most: u64,
    },
    #[error("file {number} is empty")]
    Empty { number: usize },
    #[error("{count} files, the longest of {longest} bytes, are too many for one request")]
    Many { count: usize, longest: u64 },
}

/// The rows of `files`, UINT8 of shape `[files, 4 + the longest]`. `most` are the bytes that a
/// file may have; checked before any memory is taken.
///
/// # Errors
/// See [`FilesError`].
pub fn files_in_rows<F: AsRef<[u8]>>(files: &[F], most: u64) -> Result<Tensor, FilesError> {
    let mut longest = 0;
    for (number, file) in files.iter().enumerate() {
        let bytes = file.as_ref().len() as u64;
        if bytes == 0 {
            return Err(FilesError::Empty { number });
        }
        if bytes > most {
            return Err(FilesError::Large {
                number,
                bytes,
                most,
            });
        }
        longest = longest.max(bytes);
    }
    let many = || FilesError::Many {
        count: files.len(),
        longest,
    };
    let row = longest + LENGTH_BYTES as u64;
    let all = row.checked_mul(files.len() as u64);
    let all = all.filter(|all| *all <= MOST_ROW_BYTES).ok_or_else(many)?;
    let (row, all) = (
        usize::try_from(row).map_err(|_| many())?,
        usize::try_from(all).map_err(|_| many())?,
    );
    let mut data = Vec::with_capacity(all);
    for file in files {
        let file = file.as_ref();
        let length = u32::try_from(file.len()).map_err(|_| many())?;
        let end = data.len() + row;
        data.extend_from_slice(&length.to_le_bytes());
        data.extend_from_slice(file);
        data.resize(end, 0);
    }
    let size = |size: usize| i64::try_from(size).map_err(|_| many());
    Ok(Tensor {
        datatype: DataType::Uint8,
        shape: vec![size(files.len())?, size(row)?],
        data: Bytes::from(data),
    })
}

/// The file in a row; `None` where the row is none.
pub fn file_of_row(row: &[u8]) -> Option<&[u8]> {
    let (length, rest) = row.split_first_chunk::<LENGTH_BYTES>()?;
    rest.get(..usize::try_from(u32::from_le_bytes(*length)).ok()?)
}

impl ValueSpec {
    /// Whether its rows are files, which clients send as BYTES.
    pub fn is_file(&self) -> bool {
        self.file_bytes().is_some()
    }

    /// The type that clients send it as.
    pub fn public_datatype(&self) -> &'static str {
        if self.is_file() {
            "BYTES"
        } else {
            self.datatype.as_str()
        }
    }

    /// The shape that clients send it in.
    pub fn public_shape(&self) -> Vec<i64> {
        let mut shape = self.shape.clone();
        if self.is_file() {
            shape.truncate(1);
        }
        shape
    }

    /// Bytes that each of its files may have, where its rows are files.
    pub fn file_bytes(&self) -> Option<u64> {
        self.sizes.iter().find_map(|size| size.file_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_go_in_and_come_out() {
        let rows = files_in_rows(&[&b"abc"[..], b"d"], 3).unwrap();
        assert_eq!(rows.shape, [2, 7]);
        let files: Vec<_> = rows.data.chunks(7).map(file_of_row).collect();
        assert_eq!(files, [Some(&b"abc"[..]), Some(b"d")]);
        assert_eq!(file_of_row(&[4, 0, 0, 0, 1]), None);
        assert_eq!(file_of_row(&[4, 0]), None);
        assert_eq!(file_of_row(&[255; 9]), None);
    }

    #[test]
    fn what_is_too_much_is_refused_before_memory_is_taken() {
        let said = |files: &[&[u8]], most| files_in_rows(files, most).unwrap_err().to_string();
        assert_eq!(
            said(&[b"a", b"abcd"], 3),
            "file 1 has 4 bytes; one may have 3"
        );
        assert_eq!(said(&[b""], 3), "file 0 is empty");
        let long = vec![0; 1 << 20];
        let mut files: Vec<&[u8]> = vec![b"a"; 64];
        files[9] = &long;
        assert!(said(&files, 1 << 20).contains("64 files, the longest of 1048576 bytes"));
    }
}
