//! The whole model as libtorch itself runs it: the reference for slices.

use crate::ffi::Graph;
use crate::slice::forward;
use crate::tensors::to_torch;
use crate::{LoadError, RunError};
use lamina_model::Tensor;
use std::path::Path;

/// A way to run a model for inference in libtorch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Frozen, nothing else: weights are constants of one graph.
    Frozen,
    /// Frozen with batch normalization folded into convolutions, as
    /// `torch.jit.freeze` does.
    Folded,
    /// `torch.jit.optimize_for_inference`: folded, in oneDNN's blocked layout.
    OptimizedForInference,
    /// Folded, with weights in the channels-last layout, which activations follow.
    ChannelsLast,
    /// Folded, fused by oneDNN Graph, as `torch.jit.enable_onednn_fusion` does.
    OneDnnGraph,
}

impl Way {
    /// All, the plain one first.
    pub const ALL: [Self; 5] = [
        Self::Frozen,
        Self::Folded,
        Self::OptimizedForInference,
        Self::ChannelsLast,
        Self::OneDnnGraph,
    ];

    const fn number(self) -> i32 {
        match self {
            Self::Frozen => 0,
            Self::Folded => 1,
            Self::OptimizedForInference => 2,
            Self::ChannelsLast => 3,
            Self::OneDnnGraph => 4,
        }
    }
}

/// A whole model, on one thread.
#[derive(Debug)]
pub struct Whole(Graph);

impl Whole {
    /// Reads the model at `path` and warms it up with `request`.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub fn load(path: &Path, way: Way, request: &[Tensor]) -> Result<Self, LoadError> {
        let fails = |reason: String| LoadError::Block {
            path: path.to_owned(),
            reason,
        };
        let inputs: Result<Vec<_>, _> = request.iter().map(to_torch).collect();
        let inputs = inputs.map_err(|e| fails(e.0))?;
        Graph::whole(path, way.number(), &inputs)
            .map(Self)
            .map_err(|e| fails(e.reason()))
    }

    /// One forward, as [`crate::Slice::run`] does it but without checking the inputs.
    ///
    /// # Errors
    /// See [`RunError`].
    pub fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, RunError> {
        forward(&self.0, inputs, 1)
    }
}
