//! The compared variants.

use anyhow::Result;
use clap::ValueEnum;
use lamina_model::{Digest, Manifest, Tensor, ValueSpec};
use lamina_torchscript::baseline::{Way, Whole};
use lamina_torchscript::{LoadOptions, Slice};
use serde::Serialize;
use std::path::{Path, PathBuf};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Variant {
    /// The whole model, frozen and not optimized.
    Frozen,
    Folded,
    OptimizedForInference,
    ChannelsLast,
    OneDnnGraph,
    /// All blocks as one optimized slice.
    Merged,
    /// Each block as an optimized slice of its own.
    Chain,
}

impl Variant {
    pub(crate) const fn title(self) -> &'static str {
        match self {
            Self::Frozen => "whole: frozen",
            Self::Folded => "whole: `freeze`",
            Self::OptimizedForInference => "whole: `optimize_for_inference`",
            Self::ChannelsLast => "whole: `freeze`, channels last",
            Self::OneDnnGraph => "whole: `freeze`, oneDNN Graph",
            Self::Merged => "merged slice",
            Self::Chain => "chain of slices",
        }
    }

    pub(crate) const fn is_optimized_whole(self) -> bool {
        !matches!(self, Self::Frozen | Self::Merged | Self::Chain)
    }

    const fn way(self) -> Option<Way> {
        match self {
            Self::Frozen => Some(Way::Frozen),
            Self::Folded => Some(Way::Folded),
            Self::OptimizedForInference => Some(Way::OptimizedForInference),
            Self::ChannelsLast => Some(Way::ChannelsLast),
            Self::OneDnnGraph => Some(Way::OneDnnGraph),
            Self::Merged | Self::Chain => None,
        }
    }

    /// Reads it and warms it up.
    pub(crate) fn load(self, model: &Path, folder: &Path, manifest: &Manifest) -> Result<Loaded> {
        if let Some(way) = self.way() {
            let whole = Whole::load(model, way, &request(&manifest.inputs))?;
            return Ok(Loaded::Whole(whole));
        }
        let count = manifest.blocks.len();
        let borders: Vec<usize> = match self {
            Self::Chain => (0..=count).collect(),
            _ => vec![0, count],
        };
        Ok(Loaded::Slices(slices(folder, manifest, &borders)?))
    }
}

/// Ready to run.
pub(crate) enum Loaded {
    Whole(Whole),
    Slices(Vec<Slice>),
}

impl Loaded {
    pub(crate) fn run(&self, request: &[Tensor]) -> Result<Vec<Tensor>> {
        match self {
            Self::Whole(whole) => Ok(whole.run(request)?),
            Self::Slices(slices) => {
                let mut values = request.to_vec();
                for slice in slices {
                    values = slice.run(&values)?;
                }
                Ok(values)
            }
        }
    }
}

/// Slices between neighbours of `borders`, which count blocks.
pub(crate) fn slices(folder: &Path, manifest: &Manifest, borders: &[usize]) -> Result<Vec<Slice>> {
    let options = LoadOptions {
        threads: 1,
        lanes: 1,
        optimize: true,
        warmup_runs: 4,
    };
    let file = |digest: &Digest| folder.join(format!("{digest}.pt"));
    let mut slices = Vec::new();
    for ends in borders.windows(2) {
        let blocks = &manifest.blocks[ends[0]..ends[1]];
        let files: Vec<PathBuf> = blocks.iter().map(|b| file(&b.digest)).collect();
        let inputs: Vec<ValueSpec> = manifest.live_at(ends[0]).into_iter().cloned().collect();
        slices.push(Slice::load(&files, &inputs, &options)?.0);
    }
    Ok(slices)
}

/// A request of batch 1: a smooth pattern in the range of normalized images. With noise or zeros,
/// networks may get stuck in denormal numbers.
pub(crate) fn request(inputs: &[ValueSpec]) -> Vec<Tensor> {
    let tensor = |spec: &ValueSpec| {
        let shape: Vec<i64> = spec.shape.iter().map(|d| (*d).max(1)).collect();
        let count: i64 = shape.iter().product();
        let values = (0..count).map(|i| ((i as f64 * 0.013).sin() * 2.0) as f32);
        let data: Vec<u8> = values.flat_map(f32::to_le_bytes).collect();
        Tensor {
            datatype: spec.datatype,
            shape,
            data: data.into(),
        }
    };
    inputs.iter().map(tensor).collect()
}
