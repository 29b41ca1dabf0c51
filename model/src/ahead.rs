//! A block ahead of a prepared model that makes what the model takes of what clients send.

use crate::{
    Block, BlockKind, Digest, EncodingErrors, ImageInput, Manifest, PREPROCESSING_VERSION,
    Prepared, Preprocessing, Seconds, ValueSpec,
};
use std::collections::{BTreeMap, BTreeSet};

/// The first block of a model with images, and the probe that begins with it.
#[derive(Debug, Clone, PartialEq)]
pub struct Ahead {
    /// Content address of the block's file.
    pub digest: Digest,
    /// Its size in bytes.
    pub file_bytes: u64,
    /// What it does.
    pub block: Preprocessing,
    /// Time of one row of typical images.
    pub time: Seconds,
    /// Content address of the probe, whose inputs are images.
    pub probe: Digest,
    /// Size of its file in bytes.
    pub probe_bytes: u64,
}

/// The block for a model that was prepared with `inputs`, of which those in `images`, by their
/// places, are made of images. Rows are as many as the model turned out to take.
pub fn prepared_inputs(
    inputs: &[ValueSpec],
    images: &BTreeMap<usize, ImageInput>,
) -> Preprocessing {
    let one = |(place, value): (usize, &ValueSpec)| match images.get(&place) {
        Some(image) => Prepared::Image {
            image: ImageInput {
                rows: value.shape.first().copied().unwrap_or(image.rows),
                ..image.clone()
            },
        },
        None => Prepared::As {
            value: value.clone(),
        },
    };
    Preprocessing::new(inputs.iter().enumerate().map(one).collect())
}

impl Manifest {
    /// This model with a block ahead of it.
    ///
    /// What the model takes gets a name of its own where it is made of an image: a name is one
    /// value everywhere, and that of the input is the image.
    pub fn behind(mut self, ahead: Ahead) -> Self {
        let renamed = self.renamed(&ahead.block);
        let own = |name: &mut String| {
            if let Some(to) = renamed.get(name.as_str()) {
                name.clone_from(to);
            }
        };
        let mut given = std::mem::replace(&mut self.inputs, ahead.block.takes());
        given.iter_mut().for_each(|value| own(&mut value.name));
        for block in &mut self.blocks {
            block.inputs.iter_mut().for_each(own);
            for value in &mut block.outputs {
                own(&mut value.name);
            }
        }
        let first = Block {
            kind: BlockKind::Preprocessing,
            digest: ahead.digest,
            file_bytes: ahead.file_bytes,
            weight_bytes: 0,
            peak_activation_bytes: ahead.block.peak_bytes(),
            flops: 0,
            time: ahead.time,
            cut_penalty_seconds: 0.0,
            inputs: self.inputs.iter().map(|value| value.name.clone()).collect(),
            outputs: given,
        };
        self.blocks.insert(0, first);
        for exit in &mut self.exits {
            exit.block += 1;
        }
        if !self.encoding_errors.is_empty() {
            self.encoding_errors.insert(0, EncodingErrors::default());
        }
        self.version = PREPROCESSING_VERSION;
        self.probe = ahead.probe;
        self.probe_bytes = ahead.probe_bytes;
        self
    }

    /// By the names of inputs that are images, those of what is made of them.
    fn renamed(&self, block: &Preprocessing) -> BTreeMap<String, String> {
        let outputs = self.blocks.iter().flat_map(|block| &block.outputs);
        let values = self.inputs.iter().chain(outputs);
        let mut known: BTreeSet<String> = values.map(|value| value.name.clone()).collect();
        let mut renamed = BTreeMap::new();
        for (_, image) in block.images() {
            let mut name = format!("{}.pixels", image.name);
            while !known.insert(name.clone()) {
                name.push('_');
            }
            renamed.insert(image.name.clone(), name);
        }
        renamed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Area, BoundaryCheck, DataType, DeclaredFiles, Exit, ExitCriterion, ImageSource, ImageSteps,
        Interpolation, Rung, TORCH_SCRIPT_VERSION,
    };

    fn value(name: &str, shape: &[i64]) -> ValueSpec {
        ValueSpec {
            name: name.into(),
            datatype: DataType::Fp32,
            shape: shape.to_vec(),
            sizes: Vec::new(),
        }
    }

    fn image() -> ImageInput {
        ImageInput {
            name: "image".into(),
            rows: -1,
            source: ImageSource::Files(DeclaredFiles::default().resolved()),
            steps: ImageSteps {
                resize: None,
                interpolation: Interpolation::Bilinear,
                crop: Some(Area {
                    width: 4,
                    height: 2,
                }),
                mean: [0.0; 3],
                std: [1.0; 3],
            },
        }
    }

    fn block(inputs: &[&str], outputs: Vec<ValueSpec>) -> Block {
        Block {
            kind: BlockKind::TorchScript,
            digest: Digest::of(b"block"),
            file_bytes: 10,
            weight_bytes: 8,
            peak_activation_bytes: 4,
            flops: 100,
            time: Seconds::default(),
            cut_penalty_seconds: 0.0,
            inputs: inputs.iter().map(ToString::to_string).collect(),
            outputs,
        }
    }

    /// The image goes past the first block to the second; the model takes one at a time.
    fn manifest() -> Manifest {
        let inputs = vec![value("image", &[1, 3, 2, 4]), value("age", &[1, 1])];
        let past = vec![inputs[0].clone(), value("image.pixels", &[1])];
        Manifest {
            version: TORCH_SCRIPT_VERSION,
            source: Digest::of(b"source"),
            runtime: "libtorch 2.13.0".into(),
            rung: Rung::Direct,
            rung_reason: None,
            blocks: vec![
                block(&["image", "age"], past),
                block(&["image", "image.pixels"], vec![value("y", &[1, 1])]),
            ],
            inputs,
            outputs: vec![value("y", &[1, 1])],
            arguments: Vec::new(),
            output_structure: None,
            exits: vec![Exit {
                name: "final".into(),
                block: 1,
                output: "y".into(),
                within: None,
                criterion: ExitCriterion::Confidence,
                classes: 1,
                temperature: 1.0,
                threshold: None,
                table: Vec::new(),
                expected: None,
            }],
            probe: Digest::of(b"probe"),
            probe_bytes: 5,
            check: BoundaryCheck {
                compared: 3,
                max_abs_diff: 0.0,
                telling_diff: 1.0,
                sizes: BTreeMap::new(),
            },
            prepared_gflops: 10.0,
            weight_bytes: None,
            lopsided_share: None,
            rows_are_independent: None,
            encoding_errors: vec![EncodingErrors::default(); 2],
        }
    }

    #[test]
    fn a_block_ahead_takes_what_clients_send_and_gives_what_the_model_takes() {
        let plain = manifest();
        let block = prepared_inputs(&plain.inputs, &BTreeMap::from([(0, image())]));
        let whole = plain.behind(Ahead {
            digest: Digest::of(b"ahead"),
            file_bytes: 3,
            block,
            time: Seconds::default(),
            probe: Digest::of(b"other"),
            probe_bytes: 9,
        });
        whole.validate().unwrap();
        assert_eq!(whole.version, PREPROCESSING_VERSION);
        let names = |at: usize| -> Vec<&str> {
            let live = whole.live_at(at).into_iter();
            live.map(|value| value.name.as_str()).collect()
        };
        // Another value has the name that the tensor would have.
        assert_eq!(names(0), ["image", "age"]);
        assert_eq!(names(1), ["image.pixels_", "age"]);
        assert_eq!(names(2), ["image.pixels_", "image.pixels"]);
        assert_eq!(names(3), ["y"]);
        assert_eq!(whole.inputs[0].shape, [1, -1]);
        assert_eq!(whole.live_bytes(0), 640 * 480 / 4 + 4 + 4);
        assert_eq!(whole.exits[0].block, 2);
        assert_eq!(whole.encoding_errors.len(), 3);
        let text = serde_json::to_string(&whole).unwrap();
        assert_eq!(Manifest::from_json(text.as_bytes()).unwrap(), whole);
    }
}
