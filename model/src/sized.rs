//! Values whose sizes depend on the request: their bounds, and checks of requests.

use crate::{Bounds, FreeSize, MOST_SIZES, ShapeError, ValueSpec};
use std::collections::BTreeMap;

impl ValueSpec {
    /// Whether it has one row for each row of the batch.
    pub fn has_rows(&self) -> bool {
        self.shape.first() == Some(&-1) && self.size_at(0).is_none()
    }

    /// The free size of a dimension, if it has one.
    pub fn size_at(&self, dimension: usize) -> Option<&FreeSize> {
        self.sizes.iter().find(|size| size.dimension == dimension)
    }

    /// The shape with its typical sizes: -1 stays for the batch.
    pub fn typical_shape(&self) -> Vec<i64> {
        let sized = |(place, &dim): (usize, &i64)| self.size_at(place).map_or(dim, |s| s.typical);
        self.shape.iter().enumerate().map(sized).collect()
    }

    /// Approximate size of `shape` relative to one row of typical sizes: each free dimension counts
    /// in proportion.
    pub fn times(&self, shape: &[i64]) -> f64 {
        let typical = self.typical_shape();
        let free = self.shape.iter().zip(shape).zip(typical);
        let free = free.enumerate().filter(|(place, ((wanted, _), _))| {
            // A file is as much work as its image, which does not follow its bytes.
            **wanted == -1 && self.size_at(*place).is_none_or(|s| s.file_bytes.is_none())
        });
        let times = free.map(|(_, ((_, &size), typical))| size as f64 / typical.max(1) as f64);
        times.product()
    }

    /// Its shape as declared: `[-1, 3, h:32..1024, 8]`.
    pub fn shape_text(&self) -> String {
        let dim = |(place, dim): (usize, &i64)| match self.size_at(place) {
            Some(FreeSize {
                bounds: Some(b), ..
            }) if b.step > 1 => {
                format!("{}:{}..{}/{}", b.name, b.min, b.max, b.step)
            }
            Some(FreeSize {
                bounds: Some(b), ..
            }) => format!("{}:{}..{}", b.name, b.min, b.max),
            _ => dim.to_string(),
        };
        let shape = self.public_shape();
        let dims: Vec<String> = shape.iter().enumerate().map(dim).collect();
        format!("[{}]", dims.join(", "))
    }

    /// Names and bounds of its free sizes.
    pub fn bounds(&self) -> impl Iterator<Item = (usize, &Bounds)> {
        let sizes = self.sizes.iter();
        sizes.filter_map(|s| Some((s.dimension, s.bounds.as_ref()?)))
    }
}

/// Checks that free sizes with the same name are equal in all values of a request; `shapes`
/// are in the order of `specs`.
///
/// # Errors
/// The first two that differ.
pub fn check_sizes<'a>(
    specs: &[ValueSpec],
    shapes: impl IntoIterator<Item = &'a [i64]>,
) -> Result<(), ShapeError> {
    let mut known: BTreeMap<&str, (&str, i64)> = BTreeMap::new();
    for (spec, shape) in specs.iter().zip(shapes) {
        for (place, bounds) in spec.bounds() {
            let Some(&got) = shape.get(place) else {
                continue;
            };
            let (one, of_one) = *known.entry(&bounds.name).or_insert((&spec.name, got));
            if of_one != got {
                return Err(ShapeError::Sizes {
                    size: bounds.name.clone(),
                    one: one.to_owned(),
                    of_one,
                    other: spec.name.clone(),
                    of_other: got,
                });
            }
        }
    }
    Ok(())
}

/// All free sizes of `inputs` with their bounds and typical values.
///
/// # Errors
/// A name has different bounds in two places, or there are more than [`MOST_SIZES`].
pub fn sizes_of(inputs: &[ValueSpec]) -> Result<Vec<FreeSize>, String> {
    let mut known: Vec<FreeSize> = Vec::new();
    for (input, size) in inputs
        .iter()
        .flat_map(|i| i.sizes.iter().map(move |s| (i, s)))
    {
        let Some(bounds) = &size.bounds else {
            return Err(format!(
                "input `{}` has a free size without bounds",
                input.name
            ));
        };
        let is_same = |k: &&FreeSize| k.bounds.as_ref().is_some_and(|b| b.name == bounds.name);
        match known.iter().find(is_same) {
            Some(first) if (&first.bounds, first.typical) != (&size.bounds, size.typical) => {
                return Err(format!(
                    "`{}` is declared in two ways; give it the same bounds in each place",
                    bounds.name
                ));
            }
            Some(_) => (),
            None => known.push(size.clone()),
        }
    }
    if known.len() > MOST_SIZES {
        return Err(format!(
            "{} free sizes are declared; give at most {MOST_SIZES}, or one name to those that \
             are equal",
            known.len()
        ));
    }
    Ok(known)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DataType;

    fn sized(name: &str, shape: &[&str]) -> ValueSpec {
        let mut spec = ValueSpec {
            name: name.into(),
            datatype: DataType::Fp32,
            shape: Vec::new(),
            sizes: Vec::new(),
        };
        for (place, dim) in shape.iter().enumerate() {
            spec.shape.push(dim.parse().unwrap_or(-1));
            spec.sizes.extend(FreeSize::parse(dim, place));
        }
        spec
    }

    #[test]
    fn bytes_are_those_of_typical_sizes_and_follow_in_proportion() {
        let image = sized("image", &["-1", "3", "h:10..1000@100", "w:10..1000@50"]);
        assert_eq!(image.typical_shape(), [-1, 3, 100, 50]);
        assert_eq!(image.bytes(1), Some(4 * 3 * 100 * 50));
        assert_eq!(image.bytes(2), Some(2 * 4 * 3 * 100 * 50));
        assert!((image.times(&[2, 3, 200, 25]) - 2.0).abs() < 1e-9);
        assert!(image.has_rows());
        assert_eq!(image.shape_text(), "[-1, 3, h:10..1000, w:10..1000]");
        assert!(!sized("waveform", &["n:1..9"]).has_rows());
    }

    #[test]
    fn equal_names_are_one_size() {
        let specs = [
            sized("ids", &["-1", "seq:1..9"]),
            sized("mask", &["seq:1..9"]),
        ];
        let check = |ids: &[i64], mask: &[i64]| check_sizes(&specs, [ids, mask]);
        assert_eq!(check(&[1, 4], &[4]), Ok(()));
        let error = check(&[1, 4], &[5]).unwrap_err().to_string();
        assert!(
            error.contains("`seq`") && error.contains("4") && error.contains("5"),
            "{error}"
        );
        assert_eq!(sizes_of(&specs).unwrap().len(), 1);
        let other = sized("mask", &["seq:1..8"]);
        assert!(
            sizes_of(&[specs[0].clone(), other])
                .unwrap_err()
                .contains("`seq`")
        );
        let many = sized("x", &["a:1..2", "b:1..2", "c:1..2", "d:1..2", "e:1..2"]);
        assert!(sizes_of(&[many]).unwrap_err().contains("at most 4"));
    }
}
