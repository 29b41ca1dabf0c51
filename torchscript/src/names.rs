//! Names of the tensors at cuts and of the model's outputs.

use crate::ffi::{Analysis, Kind, Layout, Observation, Structure};
use lamina_model::{OutputStructure, ValueKind, ValueSpec};
use std::collections::{BTreeSet, HashMap};

/// Names in the order of the tensors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Names {
    pub(crate) at_cuts: Vec<Vec<String>>,
    pub(crate) outputs: Vec<String>,
    /// The nest of the outputs.
    pub(crate) structure: OutputStructure,
}

/// Names all values that were `seen` at cuts and outputs.
///
/// An output is named by the keys and fields that lead to it (`logits`,
/// `boxes.0`), or by its number if there are none (`output0`). A value keeps its
/// name from cut to cut unless something writes to it; a new one is named by
/// its cut (`block3`, or `block3.0` among several).
pub(crate) fn name(analysis: &Analysis, declared: &[ValueSpec], seen: &Observation) -> Names {
    let mut taken: BTreeSet<String> = declared.iter().map(|v| v.name.clone()).collect();
    let mut outputs = Outputs {
        layouts: seen.outputs.iter(),
        names: Vec::new(),
        of_values: Vec::new(),
        taken: &mut taken,
    };
    let structure = outputs.nest(&analysis.structure, &Path::default());
    let (outputs, of_values) = (outputs.names, outputs.of_values);
    let mut known: HashMap<u64, Vec<String>> = HashMap::new();
    for (value, spec) in analysis.inputs.iter().zip(declared) {
        known.insert(*value, vec![spec.name.clone()]);
    }
    for (value, names) in analysis.outputs.iter().zip(of_values) {
        known.entry(*value).or_insert(names);
    }
    let at_cuts = seen.cuts.iter().enumerate().map(|(cut, live)| {
        let width: usize = live.iter().map(|l| l.layout.wires().len()).sum();
        let mut number = 0;
        let mut names = Vec::with_capacity(width);
        for l in live {
            let wires = l.layout.wires().len();
            let old = known.get(&l.value).filter(|_| !l.written);
            if let Some(old) = old.filter(|old| old.len() == wires) {
                names.extend_from_slice(old);
                number += wires;
                continue;
            }
            let new: Vec<String> = (number..number + wires)
                .map(|n| match width {
                    1 => format!("block{cut}"),
                    _ => format!("block{cut}.{n}"),
                })
                .map(|name| fresh(name, &mut taken))
                .collect();
            number += wires;
            names.extend_from_slice(&new);
            known.insert(l.value, new);
        }
        names
    });
    Names {
        at_cuts: at_cuts.collect(),
        outputs,
        structure,
    }
}

/// `name`, unless it is taken.
fn fresh(mut name: String, taken: &mut BTreeSet<String>) -> String {
    while !taken.insert(name.clone()) {
        name.push('_');
    }
    name
}

/// The path from the model's result to one of its tensors.
#[derive(Debug, Clone, Default)]
struct Path {
    steps: Vec<String>,
    is_named: bool,
}

impl Path {
    /// A step into field `index`, which has a name if `names` are given.
    fn into(&self, names: &[String], index: usize) -> Self {
        let mut path = self.clone();
        path.is_named |= names.get(index).is_some();
        let number = || index.to_string();
        path.steps
            .push(names.get(index).cloned().unwrap_or_else(number));
        path
    }
}

struct Outputs<'a, L> {
    layouts: L,
    names: Vec<String>,
    /// For each output of the graph, the names of its tensors.
    of_values: Vec<Vec<String>>,
    taken: &'a mut BTreeSet<String>,
}

impl<'l, L: Iterator<Item = &'l Layout>> Outputs<'_, L> {
    fn nest(&mut self, structure: &Structure, path: &Path) -> OutputStructure {
        match structure {
            Structure::None => OutputStructure::None,
            Structure::Output => {
                let before = self.names.len();
                let nest = match self.layouts.next() {
                    Some(layout) => self.leaf(layout, path),
                    None => OutputStructure::None,
                };
                self.of_values.push(self.names[before..].to_vec());
                nest
            }
            Structure::Tuple { names, fields } => OutputStructure::Tuple {
                names: names.clone(),
                fields: fields
                    .iter()
                    .enumerate()
                    .map(|(i, field)| self.nest(field, &path.into(names, i)))
                    .collect(),
            },
        }
    }

    fn leaf(&mut self, layout: &Layout, path: &Path) -> OutputStructure {
        let of = match layout.kind {
            Kind::Tensor | Kind::Other => ValueKind::Tensor,
            Kind::Int => ValueKind::Int,
            Kind::Float => ValueKind::Float,
            Kind::Bool => ValueKind::Bool,
            Kind::Ints => ValueKind::Ints,
            Kind::Floats => ValueKind::Floats,
            Kind::Bools => ValueKind::Bools,
            Kind::None => return OutputStructure::None,
            Kind::Tuple | Kind::List | Kind::Dict => return self.container(layout, path),
        };
        let name = if path.is_named {
            path.steps.join(".")
        } else {
            format!("output{}", self.names.len())
        };
        let name = fresh(name, self.taken);
        self.names.push(name.clone());
        OutputStructure::Value { name, of }
    }

    fn container(&mut self, layout: &Layout, path: &Path) -> OutputStructure {
        let names = layout.names.clone();
        let fields = layout
            .fields
            .iter()
            .enumerate()
            .map(|(i, field)| self.leaf(field, &path.into(&names, i)))
            .collect();
        match layout.kind {
            Kind::Dict => OutputStructure::Dict { names, fields },
            Kind::List => OutputStructure::List { fields },
            _ => OutputStructure::Tuple { names, fields },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ffi::Live;
    use lamina_model::DataType;

    fn leaf(kind: Kind) -> Layout {
        Layout {
            kind,
            bytes: 8,
            datatype: None,
            shape: Vec::new(),
            order: Vec::new(),
            names: Vec::new(),
            fields: Vec::new(),
        }
    }

    fn nest(kind: Kind, names: &[&str], fields: Vec<Layout>) -> Layout {
        Layout {
            kind,
            bytes: 0,
            datatype: None,
            shape: Vec::new(),
            order: Vec::new(),
            names: names.iter().map(ToString::to_string).collect(),
            fields,
        }
    }

    fn live(value: u64, layout: Layout) -> Live {
        Live {
            value,
            written: false,
            layout,
        }
    }

    /// One input `x` (value 1) and one output (value 9).
    fn analysis(structure: Structure) -> Analysis {
        Analysis {
            reads_self: false,
            writes_constants: false,
            weight_bytes: 0,
            nodes: 9,
            heavy: Vec::new(),
            stages: Vec::new(),
            heads: Vec::new(),
            cuts: Vec::new(),
            inputs: vec![1],
            outputs: vec![9],
            structure,
            operators: Vec::new(),
        }
    }

    fn x() -> Vec<ValueSpec> {
        vec![ValueSpec {
            name: "x".into(),
            datatype: DataType::Fp32,
            shape: vec![-1, 3],
            sizes: Vec::new(),
        }]
    }

    fn outputs(structure: Structure, layouts: Vec<Layout>) -> Vec<String> {
        let seen = Observation {
            cuts: Vec::new(),
            outputs: layouts,
        };
        name(&analysis(structure), &x(), &seen).outputs
    }

    #[test]
    fn outputs_are_called_by_the_way_to_them() {
        let two = || vec![leaf(Kind::Tensor), leaf(Kind::Tensor)];
        let dict = nest(
            Kind::Dict,
            &["out", "boxes"],
            vec![leaf(Kind::Tensor), nest(Kind::List, &[], two())],
        );
        assert_eq!(
            outputs(Structure::Output, vec![dict]),
            ["out", "boxes.0", "boxes.1"]
        );
        let pair = Structure::Tuple {
            names: vec!["logits".into(), "aux".into()],
            fields: vec![Structure::Output, Structure::None],
        };
        assert_eq!(outputs(pair, vec![leaf(Kind::Tensor)]), ["logits"]);
        let plain = Structure::Tuple {
            names: Vec::new(),
            fields: vec![Structure::None, Structure::Output, Structure::Output],
        };
        let layouts = vec![nest(Kind::Tuple, &[], two()), leaf(Kind::Int)];
        assert_eq!(outputs(plain, layouts), ["output0", "output1", "output2"]);
    }

    #[test]
    fn an_output_never_takes_the_name_of_an_input() {
        let dict = nest(Kind::Dict, &["x"], vec![leaf(Kind::Tensor)]);
        assert_eq!(outputs(Structure::Output, vec![dict]), ["x_"]);
    }

    #[test]
    fn a_value_keeps_its_name_from_cut_to_cut() {
        let pair = || nest(Kind::Tuple, &[], vec![leaf(Kind::Tensor), leaf(Kind::Int)]);
        let seen = Observation {
            cuts: vec![
                vec![live(1, leaf(Kind::Tensor)), live(2, pair())],
                vec![live(2, pair()), live(3, leaf(Kind::Tensor))],
                vec![live(9, leaf(Kind::Tensor))],
                vec![live(4, leaf(Kind::Tensor))],
            ],
            outputs: vec![leaf(Kind::Tensor)],
        };
        let names = name(&analysis(Structure::Output), &x(), &seen);
        assert_eq!(
            names.at_cuts,
            [
                vec!["x", "block0.1", "block0.2"],
                vec!["block0.1", "block0.2", "block1.2"],
                vec!["output0"],
                vec!["block3"],
            ]
        );
        assert_eq!(names.outputs, ["output0"]);
    }

    #[test]
    fn a_value_that_is_written_to_gets_a_new_name_at_each_cut() {
        let written = || Live {
            written: true,
            ..live(2, leaf(Kind::Tensor))
        };
        let seen = Observation {
            cuts: vec![vec![written()], vec![written()]],
            outputs: vec![leaf(Kind::Tensor)],
        };
        let names = name(&analysis(Structure::Output), &x(), &seen);
        assert_eq!(names.at_cuts, [["block0"], ["block1"]]);
    }
}
