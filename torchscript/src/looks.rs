//! Observed values at cuts and outputs: whether they can be sent, and at what cost.

use crate::PrepareError;
use crate::ffi::{Kind, Layout, Live, Observation};
use lamina_model::ValueSpec;
use std::collections::BTreeMap;

/// Most tensors at one cut, without numbers: a sanity limit, since their cost is weighed.
/// `kMostTensors` in source.cpp.
const MOST_TENSORS: usize = 32;
/// Most values at one cut, as tensors: far below the limit of a hop.
const MOST_WIRES: usize = 64;
/// Cost of one more value at a cut, in bytes: its name and shape on the wire, and its copy.
const VALUE_BYTES: u64 = 1024;

/// Observations of the values at some cuts, and of the outputs.
pub(crate) struct Looks {
    pub(crate) first: Observation,
    /// With other requests of batch 1: the second request is the first of them.
    pub(crate) at_one: Vec<Observation>,
    /// With batches.
    pub(crate) batches: Vec<Observation>,
    /// With other than typical sizes.
    pub(crate) sized: Vec<Observation>,
}

impl Looks {
    fn others(&self) -> impl Iterator<Item = &Observation> {
        let batched = self.at_one.iter().chain(&self.batches);
        batched.chain(&self.sized)
    }

    /// Whether the live values at a cut have the same structure in all, the same size in all of
    /// batch 1, and the same order in memory in all of these and in all batches.
    pub(crate) fn agree(&self, cut: usize) -> bool {
        let live = &self.first.cuts[cut];
        self.others().all(|o| are_like(live, &o.cuts[cut]))
            && self.at_one.iter().all(|o| are_as_large(live, &o.cuts[cut]))
            && are_in_one_order(self.at_one.iter().map(|o| &o.cuts[cut]).chain([live]))
            && are_in_one_order(self.batches.iter().map(|o| &o.cuts[cut]))
    }
}

fn wires(live: &[Live]) -> impl Iterator<Item = (Kind, u64)> + '_ {
    live.iter().flat_map(|l| l.layout.wires())
}

/// Cost of a cut for each request, in bytes.
pub(crate) fn price(live: &[Live]) -> u64 {
    wires(live).map(|(_, bytes)| bytes + VALUE_BYTES).sum()
}

/// The type of the first tensor in `layout` that cannot be sent.
pub(crate) fn unsent(layout: &Layout) -> Option<&str> {
    if layout.kind == Kind::Other {
        return layout.datatype.as_deref();
    }
    layout.fields.iter().find_map(unsent)
}

fn are_like(a: &[Live], b: &[Live]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.layout.is_like(&b.layout))
}

/// Whether the tensors of both have the same shapes.
fn are_as_large(a: &[Live], b: &[Live]) -> bool {
    let shapes = |live: &[Live]| -> Vec<Vec<i64>> {
        let leaves = live.iter().flat_map(|l| l.layout.leaves());
        leaves.map(|leaf| leaf.shape.clone()).collect()
    };
    shapes(a) == shapes(b)
}

/// Whether no two dimensions of a tensor change places in memory from one observation to another: a
/// block restores one order, and libtorch may compute the last digits differently in another. A
/// dimension of size 1 has no place.
fn are_in_one_order<'a>(observations: impl Iterator<Item = &'a Vec<Live>>) -> bool {
    let mut outer = BTreeMap::new();
    for live in observations {
        let leaves = live.iter().flat_map(|l| l.layout.leaves());
        for (number, leaf) in leaves.enumerate() {
            let rank = leaf.shape.len();
            let place = |dimension: usize| {
                let found = leaf.order.iter().position(|&d| d == dimension);
                found.unwrap_or(dimension)
            };
            for (a, b) in (0..rank).flat_map(|b| (0..b).map(move |a| (a, b))) {
                if leaf.shape[a] > 1 && leaf.shape[b] > 1 {
                    let before = place(a) < place(b);
                    if *outer.entry((number, a, b)).or_insert(before) != before {
                        return false;
                    }
                }
            }
        }
    }
    true
}

/// Frees the dimensions of `outputs` whose size differed with another request.
pub(crate) fn loosen(outputs: &mut [ValueSpec], looks: &Looks) {
    let leaves = |o: &Observation| -> Vec<Layout> {
        let leaves = o.outputs.iter().flat_map(Layout::leaves);
        leaves.cloned().collect()
    };
    let first = leaves(&looks.first);
    let at_one = looks.at_one.iter().map(|o| (0, leaves(o)));
    // The first dimension is the batch.
    let others = at_one.chain(looks.batches.iter().map(|o| (1, leaves(o))));
    for (from, other) in others {
        for ((spec, one), two) in outputs.iter_mut().zip(&first).zip(&other) {
            if one.shape.len() != two.shape.len() || spec.shape.len() != one.shape.len() {
                continue;
            }
            for place in from..one.shape.len() {
                if one.shape[place] != two.shape[place] {
                    spec.shape[place] = -1;
                }
            }
        }
    }
}

pub(crate) fn can_cross<'a>(live: impl IntoIterator<Item = &'a Live>) -> bool {
    let wires: Vec<Kind> = live
        .into_iter()
        .flat_map(|l| l.layout.wires())
        .map(|(kind, _)| kind)
        .collect();
    let count = |wanted: Kind| wires.iter().filter(|kind| **kind == wanted).count();
    let tensors = count(Kind::Tensor);
    count(Kind::Other) == 0 && (1..=MOST_TENSORS).contains(&tensors) && wires.len() <= MOST_WIRES
}

/// The outputs must have the same structure for every request; the first `must` of batch 1 after
/// the first one are users' requests.
pub(crate) fn check_outputs(looks: &Looks, must: usize) -> Result<(), PrepareError> {
    let first = &looks.first;
    let unsupported = |reason: &str| {
        Err(PrepareError::Unsupported {
            reason: reason.into(),
        })
    };
    let has = |wanted: Kind| {
        let wires = first.outputs.iter().flat_map(Layout::wires);
        wires.into_iter().any(|(kind, _)| kind == wanted)
    };
    if has(Kind::Other) {
        return unsupported("an output holds something else than tensors, numbers and None");
    }
    if !has(Kind::Tensor) {
        return unsupported("it gives no tensor");
    }
    let alike = |o: &Observation| {
        let mut pairs = first.outputs.iter().zip(&o.outputs);
        pairs.all(|(a, b)| a.is_like(b))
    };
    // Others may be unlike any real request, and are refused by the block that produces them.
    let must = looks.at_one.iter().take(must);
    if !must.chain(&looks.sized).all(alike) {
        return unsupported(
            "the number of tensors that it gives depends on the request; give a fixed number, \
             padded where needed",
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(kind: Kind, bytes: u64) -> Layout {
        Layout {
            kind,
            bytes,
            datatype: None,
            shape: Vec::new(),
            order: Vec::new(),
            names: Vec::new(),
            fields: Vec::new(),
        }
    }

    fn live(layout: Layout) -> Live {
        Live {
            value: 1,
            written: false,
            layout,
        }
    }

    #[test]
    fn numbers_cross_beside_a_tensor_but_not_alone() {
        let number = || live(layout(Kind::Int, 8));
        let one = || live(layout(Kind::Tensor, 40));
        assert!(can_cross(&[one(), number()]));
        assert_eq!(price(&[one(), number()]), 48 + 2 * VALUE_BYTES);
        assert!(!can_cross(&[number()]));
        assert!(!can_cross(&[]));
        assert!(!can_cross(&[one(), live(layout(Kind::Other, 0))]));
        let many = |count: usize| {
            live(Layout {
                fields: vec![layout(Kind::Tensor, 4); count],
                ..layout(Kind::List, 0)
            })
        };
        assert!(can_cross(&[many(MOST_TENSORS)]));
        assert!(!can_cross(&[many(MOST_TENSORS + 1)]));
        let numbers = vec![number(); MOST_WIRES - 1];
        let with = |more: Live| [numbers.as_slice(), &[more]].concat();
        assert!(can_cross(&with(one())));
        assert!(!can_cross(&with(many(2))));
    }

    #[test]
    fn what_cannot_be_sent_is_called_by_its_type() {
        let other = |datatype: Option<&str>| Layout {
            datatype: datatype.map(str::to_owned),
            ..layout(Kind::Other, 0)
        };
        assert_eq!(unsent(&other(Some("QUInt8"))), Some("QUInt8"));
        assert_eq!(unsent(&other(None)), None);
        assert_eq!(unsent(&layout(Kind::Tensor, 4)), None);
    }

    #[test]
    fn lists_of_another_length_are_not_alike() {
        let list = |n: usize| {
            live(Layout {
                fields: vec![layout(Kind::Tensor, 4); n],
                ..layout(Kind::List, 0)
            })
        };
        assert!(are_like(&[list(2)], &[list(2)]));
        assert!(!are_like(&[list(2)], &[list(3)]));
        // The size of a tensor may depend on the batch, its rank may not.
        let sized = |shape: &[i64]| {
            live(Layout {
                shape: shape.to_vec(),
                ..layout(Kind::Tensor, 4)
            })
        };
        assert!(are_like(&[sized(&[1, 4])], &[sized(&[2, 4])]));
        assert!(!are_as_large(&[sized(&[1, 4])], &[sized(&[2, 4])]));
        assert!(!are_like(&[sized(&[1, 4])], &[sized(&[4])]));
    }

    #[test]
    fn a_tensor_that_lies_otherwise_in_memory_is_not_the_same() {
        let lying = |shape: &[i64], order: &[usize]| {
            vec![live(Layout {
                shape: shape.to_vec(),
                order: order.to_vec(),
                ..layout(Kind::Tensor, 4)
            })]
        };
        let are = |all: &[Vec<Live>]| are_in_one_order(all.iter());
        let rows = lying(&[4, 8], &[]);
        let columns = lying(&[4, 8], &[1, 0]);
        assert!(are(&[rows.clone(), rows.clone()]));
        assert!(are(&[columns.clone(), columns.clone()]));
        assert!(!are(&[rows.clone(), columns.clone()]));
        // One row lies like one column.
        assert!(are(&[lying(&[1, 8], &[]), columns]));
        assert!(are(&[lying(&[1, 8], &[]), rows]));
    }

    #[test]
    fn outputs_of_another_size_for_another_request_are_declared_free() {
        let seen = |shape: &[i64]| Observation {
            cuts: Vec::new(),
            outputs: vec![Layout {
                shape: shape.to_vec(),
                ..layout(Kind::Tensor, 4)
            }],
        };
        let looks = Looks {
            first: seen(&[1, 5, 4]),
            at_one: vec![seen(&[1, 7, 4])],
            batches: vec![seen(&[2, 5, 4])],
            sized: Vec::new(),
        };
        let spec = |shape: &[i64]| ValueSpec {
            name: "y".into(),
            datatype: lamina_model::DataType::Fp32,
            shape: shape.to_vec(),
            sizes: Vec::new(),
        };
        let mut outputs = [spec(&[-1, 5, 4])];
        loosen(&mut outputs, &looks);
        assert_eq!(outputs, [spec(&[-1, -1, 4])]);
    }
}
