//! What the shim answers, as JSON.

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
    /// Text of `lamina.json`, where the file has one.
    pub(crate) metadata: Option<String>,
}

/// What the shim found in a cleaned graph. Positions count top-level nodes in
/// program order; a cut at `p` lies behind node `p`.
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
    /// Positions of the operations that do the work, ascending.
    pub(crate) heavy: Vec<usize>,
    /// Per heavy operation the stage whose weights it reads, where the file
    /// shows it.
    pub(crate) stages: Vec<Option<usize>>,
    /// Heads of the side exits, in order.
    pub(crate) heads: Vec<Head>,
    /// Positions behind which all that is live can be sent, as far as types
    /// tell, ascending.
    pub(crate) cuts: Vec<Place>,
    /// Identities of the model's inputs.
    pub(crate) inputs: Vec<u64>,
    /// Identities of the leaves of `structure`, in order.
    pub(crate) outputs: Vec<u64>,
    /// The nest that the model gives its outputs in.
    pub(crate) structure: Structure,
    /// Names of all operators, `aten::relu`.
    pub(crate) operators: Vec<String>,
}

/// What a side exit alone needs.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Head {
    /// Position of the node that it hangs on.
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
    /// One tensor alone is live, beside the answers of side exits.
    pub(crate) direct: bool,
}

/// A nest of outputs as the graph builds it; a leaf may be of any type.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind", deny_unknown_fields)]
pub(crate) enum Structure {
    /// The next of the outputs.
    Output,
    /// An output that exists in training only.
    None,
    /// A tuple; names where it has them.
    Tuple {
        names: Vec<String>,
        fields: Vec<Self>,
    },
}

/// How a value is made up of tensors.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Layout {
    pub(crate) kind: Kind,
    /// Of the one tensor that it is sent as.
    pub(crate) bytes: u64,
    /// Of a tensor, in libtorch's words.
    pub(crate) datatype: Option<String>,
    /// Of a tensor.
    pub(crate) shape: Vec<i64>,
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
    /// The tensors that it is sent as, each with its kind and bytes.
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

    /// Whether the two are made up alike, whatever their size.
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
    /// Some operation overwrites it: it may be another one at the next cut.
    pub(crate) written: bool,
    pub(crate) layout: Layout,
}

/// What one forward showed.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Observation {
    /// Per cut what is live there.
    pub(crate) cuts: Vec<Vec<Live>>,
    /// Per output.
    pub(crate) outputs: Vec<Layout>,
}

/// What forwards showed of the ways through a model.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Watched {
    /// Cuts at which what crosses is of another make or size for some requests.
    pub(crate) unsteady: Vec<Unsteady>,
    /// Whether requests may take different ways, or give tensors of different sizes.
    pub(crate) may_differ: bool,
    /// Why a trace would hold for one batch size alone.
    pub(crate) fixes_trace: Option<String>,
    /// Why it would hold for one of the other free sizes alone.
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

/// What came of tracing a model again.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Retraced {
    /// Why the trace holds for batch 1 alone; `None` where it holds for any,
    /// or no other was asked for.
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
    /// Most bytes of inputs and activations held at a time.
    pub(crate) peak_bytes: u64,
    /// Bytes of the weights, and of their packed copies where there are any.
    pub(crate) constant_bytes: u64,
}
