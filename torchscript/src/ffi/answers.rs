//! The shim's answers, as JSON.

use serde::Deserialize;

/// An argument of a model's `forward`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Argument {
    pub(crate) name: String,
    /// TorchScript's name of the type: `Tensor`, `Optional[Tensor]`, `int`, …
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) has_default: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Signature {
    pub(crate) arguments: Vec<Argument>,
    /// Text of `lamina.json`, if the file has one.
    pub(crate) metadata: Option<String>,
}

/// The shim's analysis of a cleaned graph. Positions count top-level nodes in program order; a cut
/// at `p` is after node `p`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Analysis {
    /// The model keeps state, or reads attributes that could not be frozen.
    pub(crate) reads_self: bool,
    /// The model overwrites its own weights.
    pub(crate) writes_constants: bool,
    /// Bytes of its weights, each counted once.
    pub(crate) weight_bytes: u64,
    /// Number of nodes.
    pub(crate) nodes: usize,
    /// Positions of the heavy operations, ascending.
    pub(crate) heavy: Vec<usize>,
    /// For each heavy operation the stage whose weights it reads, if the file shows it.
    pub(crate) stages: Vec<Option<usize>>,
    /// Heads of the side exits, in order.
    pub(crate) heads: Vec<Head>,
    /// Positions after which all live values can be sent, as far as types show, ascending.
    pub(crate) cuts: Vec<Place>,
    /// Identities of the model's inputs.
    pub(crate) inputs: Vec<u64>,
    /// Identities of the leaves of `structure`, in order.
    pub(crate) outputs: Vec<u64>,
    /// The nest of the model's outputs.
    pub(crate) structure: Structure,
    /// Names of all operators, `aten::relu`.
    pub(crate) operators: Vec<String>,
}

/// The part that only a side exit needs.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Head {
    /// Position of the node that it branches from.
    pub(crate) from: usize,
    /// Position of its last node.
    pub(crate) to: usize,
    /// Positions of its heavy operations.
    pub(crate) heavy: Vec<usize>,
}

/// A legal cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Place {
    /// Its position.
    pub(crate) at: usize,
    /// A single tensor is live, besides the answers of side exits.
    pub(crate) direct: bool,
}

/// A nest of outputs in the graph; a leaf may be of any type.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind", deny_unknown_fields)]
pub(crate) enum Structure {
    /// The next of the outputs.
    Output,
    /// An output that exists only in training.
    None,
    /// A tuple, with names if it has them.
    Tuple {
        names: Vec<String>,
        fields: Vec<Self>,
    },
}

/// How a value consists of tensors.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Layout {
    pub(crate) kind: Kind,
    /// Of the one tensor that it is sent as.
    pub(crate) bytes: u64,
    /// Of a tensor, libtorch's name.
    pub(crate) datatype: Option<String>,
    /// Of a tensor.
    pub(crate) shape: Vec<i64>,
    /// Of a tensor, its dimensions from the outermost in memory to the innermost; empty if they are
    /// in order.
    pub(crate) order: Vec<usize>,
    /// Of a dictionary's entries or a named tuple's fields.
    pub(crate) names: Vec<String>,
    /// Of a tuple, list or dictionary.
    pub(crate) fields: Vec<Self>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Kind {
    Tensor,
    Int,
    Float,
    Bool,
    Ints,
    Floats,
    Bools,
    None,
    Tuple,
    List,
    Dict,
    /// Cannot be sent.
    Other,
}

impl Layout {
    /// The tensors that it is sent as, with kind and bytes.
    pub(crate) fn wires(&self) -> Vec<(Kind, u64)> {
        match self.kind {
            Kind::None => Vec::new(),
            Kind::Tuple | Kind::List | Kind::Dict => {
                self.fields.iter().flat_map(Self::wires).collect()
            }
            kind => vec![(kind, self.bytes)],
        }
    }

    /// The values that it is sent as, in the order of [`Self::wires`].
    pub(crate) fn leaves(&self) -> Vec<&Self> {
        match self.kind {
            Kind::None => Vec::new(),
            Kind::Tuple | Kind::List | Kind::Dict => {
                self.fields.iter().flat_map(Self::leaves).collect()
            }
            _ => vec![self],
        }
    }

    /// Whether both have the same structure, whatever their size.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        self.kind == other.kind
            && self.datatype == other.datatype
            && self.shape.len() == other.shape.len()
            && self.names == other.names
            && self.fields.len() == other.fields.len()
            && self
                .fields
                .iter()
                .zip(&other.fields)
                .all(|(a, b)| a.is_like(b))
    }
}

/// A value that is live at a cut.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Live {
    /// Its identity: the same at each cut that it is live at.
    pub(crate) value: u64,
    /// Some operation overwrites it: its contents may differ at the next cut.
    pub(crate) written: bool,
    pub(crate) layout: Layout,
}

/// The observations of one forward.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Observation {
    /// For each cut, the values live there.
    pub(crate) cuts: Vec<Vec<Live>>,
    /// For each output.
    pub(crate) outputs: Vec<Layout>,
}

/// Observations about the paths through a model.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Watched {
    /// Cuts where the structure or size of a live value depends on the request.
    pub(crate) unsteady: Vec<Unsteady>,
    /// Whether requests may take different paths, or produce tensors of different sizes.
    pub(crate) may_differ: bool,
    /// Why a trace would hold for only one batch size.
    pub(crate) fixes_trace: Option<String>,
    /// Why it would hold for only one value of another free size.
    pub(crate) sizes_fix_trace: Option<String>,
}

/// A cut that would not hold for every request.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Unsteady {
    pub(crate) at: usize,
    /// What varies there, and with what.
    pub(crate) reason: String,
}

/// The result of retracing a model.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Retraced {
    /// Why the trace holds only for batch 1; `None` if it holds for any, or no other was requested.
    pub(crate) fixed_batch: Option<String>,
}

/// Cost of one forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Cost {
    /// Floating-point operations, two per multiply-add.
    pub(crate) flops: u64,
    /// Those of the operation with the most.
    pub(crate) largest_flops: u64,
    /// Most bytes of inputs and activations held at once.
    pub(crate) peak_bytes: u64,
    /// Bytes of the weights, and of their packed copies if there are any.
    pub(crate) constant_bytes: u64,
}
