//! Size limits of the models known here, needed before a request is decoded.

use crate::serve::directory::Directory;
use crate::serve::guard::Models;
use crate::serve::routes::Routes;
use crate::serve::slices::Slices;
use lamina_model::ValueSpec;

/// A batch of this many rows always fits, if the sizes of the tensors are known.
const ROWS: u64 = 64;

/// The models that enter here or elsewhere, and those of which this host runs a part.
pub(super) struct Known {
    pub(super) routes: Routes,
    pub(super) directory: Directory,
    pub(super) slices: Slices,
}

impl Models for Known {
    fn knows(&self, full_name: &str) -> bool {
        let is_routed = !self.routes.find(full_name).is_empty();
        is_routed || self.directory.now().get(full_name).is_some()
    }

    fn runs(&self, placement_uid: &str) -> bool {
        self.slices.has_part_of(placement_uid)
    }

    fn largest_request(&self) -> u64 {
        self.routes.most_of_inputs(batch_bytes)
    }

    fn largest_hop(&self) -> u64 {
        self.slices.most_of_inputs(batch_bytes)
    }
}

/// Bytes of a batch of typical sizes for `specs`, or of one row of the largest.
fn batch_bytes(specs: &[ValueSpec]) -> u64 {
    let one = |spec: &ValueSpec| {
        let mut largest = spec.typical_shape();
        for (place, bounds) in spec.bounds() {
            if let Some(size) = largest.get_mut(place) {
                *size = bounds.max;
            }
        }
        for size in &mut largest {
            *size = (*size).max(1);
        }
        let largest = spec.datatype.checked_bytes(&largest);
        spec.bytes(ROWS).max(largest).unwrap_or(0)
    };
    specs.iter().map(one).fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lamina_model::{DataType, FreeSize};

    #[test]
    fn a_batch_takes_what_its_tensors_say() {
        let spec = |shape: &[i64]| ValueSpec {
            name: "x".into(),
            datatype: DataType::Fp32,
            shape: shape.to_vec(),
            sizes: Vec::new(),
        };
        let picture = spec(&[-1, 3, 224, 224]);
        assert_eq!(batch_bytes(std::slice::from_ref(&picture)), 64 * 602_112);
        let table = spec(&[10, 10]);
        assert_eq!(batch_bytes(&[picture, table]), 64 * 602_112 + 400);
        let sized = ValueSpec {
            sizes: vec![FreeSize::parse("seq:1..1000@10", 1).unwrap()],
            ..spec(&[-1, -1])
        };
        assert_eq!(batch_bytes(&[sized]), 1000 * 4);
        assert_eq!(batch_bytes(&[spec(&[i64::MAX, 8])]), 0);
    }
}
