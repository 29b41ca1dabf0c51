use crate::{Bounds, DataType, LENGTH_BYTES, ValueSpec};
use bytes::Bytes;

/// A tensor outside torch: little-endian, row-major, without padding, like the raw contents of the
/// Open Inference Protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// Element type.
    pub datatype: DataType,
    /// Size of each dimension; empty for a scalar.
    pub shape: Vec<i64>,
    /// The elements.
    pub data: Bytes,
}

/// A tensor does not fit the model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // each message names its fields
pub enum ShapeError {
    #[error("input `{name}`: expected datatype {expected}, got {got}")]
    DataType {
        name: String,
        expected: DataType,
        got: DataType,
    },
    #[error("input `{name}`: expected shape {expected:?}, got {got:?} (-1 takes any size)")]
    Shape {
        name: String,
        expected: Vec<i64>,
        got: Vec<i64>,
    },
    #[error("input `{name}`: `{size}` is {got} (dimension {dimension}), but it may be {bounds}")]
    Bounds {
        name: String,
        size: String,
        dimension: usize,
        bounds: Bounds,
        got: i64,
    },
    #[error("input `{name}`: {got} bytes in a row; a file may have {most}")]
    File { name: String, got: i64, most: u64 },
    #[error(
        "`{size}` is one size in a request, but input `{one}` has {of_one} and `{other}` has \
         {of_other}"
    )]
    Sizes {
        size: String,
        one: String,
        of_one: i64,
        other: String,
        of_other: i64,
    },
    #[error("input `{name}`: a request without rows, shape {got:?}; send at least one row")]
    Empty { name: String, got: Vec<i64> },
    #[error("input `{name}`: shape {shape:?} of {datatype} needs {expected} bytes, got {got}")]
    Size {
        name: String,
        shape: Vec<i64>,
        datatype: DataType,
        expected: u64,
        got: u64,
    },
    #[error("input `{name}`: shape {shape:?} has a negative or an overflowing dimension")]
    Overflow { name: String, shape: Vec<i64> },
}

impl Tensor {
    /// Checks datatype, rank, shape and byte size against `spec`, before a
    /// forward: a wrong shape can corrupt memory inside a kernel.
    ///
    /// # Errors
    /// The difference, by the input's name.
    pub fn check(&self, spec: &ValueSpec) -> Result<(), ShapeError> {
        let name = || spec.name.clone();
        if self.datatype != spec.datatype {
            return Err(ShapeError::DataType {
                name: name(),
                expected: spec.datatype,
                got: self.datatype,
            });
        }
        let is_ranked = self.shape.len() == spec.shape.len();
        if is_ranked {
            // The error for an empty dimension includes its bounds too.
            self.check_bounds(spec)?;
        }
        let fits = is_ranked
            && self
                .shape
                .iter()
                .zip(&spec.shape)
                .enumerate()
                .all(|(place, (&got, &want))| {
                    // Inside a model a size may become 0.
                    let least = i64::from(spec.size_at(place).is_none());
                    got == want || (want == -1 && got >= least)
                });
        if !fits {
            let has_no_rows = is_ranked && spec.has_rows() && self.shape.first() == Some(&0);
            let got = self.shape.clone();
            return Err(if has_no_rows {
                ShapeError::Empty { name: name(), got }
            } else {
                let expected = spec.shape.clone();
                ShapeError::Shape {
                    name: name(),
                    expected,
                    got,
                }
            });
        }
        let Some(expected) = self.datatype.checked_bytes(&self.shape) else {
            return Err(ShapeError::Overflow {
                name: name(),
                shape: self.shape.clone(),
            });
        };
        if expected != self.data.len() as u64 {
            return Err(ShapeError::Size {
                name: name(),
                shape: self.shape.clone(),
                datatype: self.datatype,
                expected,
                got: self.data.len() as u64,
            });
        }
        Ok(())
    }

    fn check_bounds(&self, spec: &ValueSpec) -> Result<(), ShapeError> {
        for size in &spec.sizes {
            let Some(most) = size.file_bytes else {
                continue;
            };
            let got = self.shape.get(size.dimension).copied().unwrap_or_default();
            let row = most.saturating_add(LENGTH_BYTES as u64);
            if !u64::try_from(got).is_ok_and(|got| got <= row) {
                let name = spec.name.clone();
                return Err(ShapeError::File { name, got, most });
            }
        }
        for (dimension, bounds) in spec.bounds() {
            let got = self.shape.get(dimension).copied().unwrap_or_default();
            if !bounds.takes(got) {
                return Err(ShapeError::Bounds {
                    name: spec.name.clone(),
                    size: bounds.name.clone(),
                    dimension,
                    bounds: bounds.clone(),
                    got,
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FreeSize;

    fn spec() -> ValueSpec {
        ValueSpec {
            name: "image".into(),
            datatype: DataType::Fp32,
            shape: vec![-1, 2],
            sizes: Vec::new(),
        }
    }

    fn tensor(shape: &[i64], bytes: usize) -> Tensor {
        Tensor {
            datatype: DataType::Fp32,
            shape: shape.to_vec(),
            data: Bytes::from(vec![0; bytes]),
        }
    }

    #[test]
    fn a_tensor_that_fits_passes_at_any_batch() {
        assert_eq!(tensor(&[1, 2], 8).check(&spec()), Ok(()));
        assert_eq!(tensor(&[3, 2], 24).check(&spec()), Ok(()));
    }

    #[test]
    fn a_size_outside_its_bounds_is_named_with_them() {
        let spec = ValueSpec {
            shape: vec![-1, -1],
            sizes: vec![FreeSize::parse("seq:2..6/2", 1).unwrap()],
            ..spec()
        };
        assert_eq!(tensor(&[3, 4], 48).check(&spec), Ok(()));
        for size in [0, 1, 3, 8, -1] {
            let error = tensor(&[1, size], 4).check(&spec).unwrap_err().to_string();
            let wanted = format!(
                "input `image`: `seq` is {size} (dimension 1), but it may be 2 to 6, in \
                 multiples of 2"
            );
            assert_eq!(error, wanted);
        }
    }

    #[test]
    fn each_misfit_is_named() {
        let err = |t: Tensor| t.check(&spec()).unwrap_err().to_string();
        assert!(err(tensor(&[1, 3], 12)).contains("expected shape [-1, 2], got [1, 3]"));
        assert!(err(tensor(&[0, 2], 0)).contains("[0, 2]; send at least one row"));
        assert!(err(tensor(&[0], 0)).contains("expected shape"));
        assert!(err(tensor(&[1, 2], 7)).contains("needs 8 bytes, got 7"));
        assert!(err(tensor(&[i64::MAX, 2], 7)).contains("overflowing"));
        let wrong = Tensor {
            datatype: DataType::Int64,
            ..tensor(&[1, 2], 16)
        };
        assert!(err(wrong).contains("expected datatype FP32, got INT64"));
    }
}
