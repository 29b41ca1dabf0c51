//! Prepared models that a fleet can put into a store: manifests with the times and sizes of real
//! models, but small blobs.

use lamina_model::{Digest, Manifest};
use std::collections::BTreeMap;

/// Real profiles of two networks, as `lamina-node-agent prepare` wrote them.
const PROFILES: [(&str, &str); 2] = [
    (
        "mobilenet-v2",
        include_str!("../../../examples/plan/mobilenet-v2.json"),
    ),
    (
        "googlenet",
        include_str!("../../../examples/plan/googlenet.json"),
    ),
];

/// A model that is ready to be stored.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// The file's name, `mobilenet-v2-0.pt`.
    pub file: String,
    /// Digest of the manifest.
    pub manifest: Digest,
    /// Every blob with its digest, the manifest last.
    pub blobs: Vec<(Digest, Vec<u8>)>,
    /// Its inputs, as in a DnnModel's `spec.inputs`.
    pub inputs: serde_json::Value,
}

/// All models of a fleet.
#[derive(Debug, Default)]
pub struct Library {
    models: Vec<Prepared>,
    /// Milliseconds of each block on a host of 1 GFLOP/s, by its digest.
    times: BTreeMap<String, f64>,
}

impl Library {
    /// Models of `variants` different files of each network.
    ///
    /// # Errors
    /// A profile is malformed.
    pub fn of_variants(variants: usize) -> serde_json::Result<Self> {
        let mut library = Self::default();
        for (name, profile) in PROFILES {
            let profile: Manifest = serde_json::from_str(profile)?;
            for variant in 0..variants {
                library.add(format!("{name}-{variant}.pt"), &profile)?;
            }
        }
        Ok(library)
    }

    /// The models, grouped by network.
    pub fn models(&self) -> &[Prepared] {
        &self.models
    }

    /// The model behind an address, by its file name.
    pub(super) fn find(&self, uri: &str) -> Option<&Prepared> {
        let file = uri.rsplit('/').next()?;
        self.models.iter().find(|model| model.file == file)
    }

    /// Milliseconds of a block on a host of `gflops`.
    pub(super) fn milliseconds(&self, block: &str, gflops: f64) -> f64 {
        self.times.get(block).map_or(1.0, |ms| ms / gflops)
    }

    fn add(&mut self, file: String, profile: &Manifest) -> serde_json::Result<()> {
        let mut manifest = profile.clone();
        let mut blobs = Vec::new();
        let mut blob = |what: &str| {
            let content = format!("{file} {what}").into_bytes();
            let digest = Digest::of(&content);
            blobs.push((digest.clone(), content));
            digest
        };
        manifest.source = Digest::of(file.as_bytes());
        manifest.probe = blob("probe");
        for (index, block) in manifest.blocks.iter_mut().enumerate() {
            block.digest = blob(&format!("block {index}"));
            let ms = block.time.p50 * 1e3 * manifest.prepared_gflops;
            self.times.insert(block.digest.to_string(), ms);
        }
        let text = serde_json::to_vec(&manifest)?;
        let digest = Digest::of(&text);
        blobs.push((digest.clone(), text));
        self.models.push(Prepared {
            file,
            manifest: digest,
            blobs,
            inputs: serde_json::to_value(&manifest.inputs)?,
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_file_is_a_model_of_its_own_with_real_times_and_true_hashes() {
        let library = Library::of_variants(2).unwrap();
        assert_eq!(library.models().len(), 4);
        let model = library.find("http://files/mobilenet-v2-1.pt").unwrap();
        let (digest, text) = model.blobs.last().unwrap();
        assert_eq!((digest, digest), (&Digest::of(text), &model.manifest));
        let manifest: Manifest = serde_json::from_slice(text).unwrap();
        manifest.validate().unwrap();
        // Blocks, probe and manifest.
        assert_eq!(model.blobs.len(), manifest.blocks.len() + 2);
        for block in &manifest.blocks {
            assert!(model.blobs.iter().any(|(d, _)| *d == block.digest));
            let as_prepared = library.milliseconds(block.digest.as_str(), manifest.prepared_gflops);
            assert!((as_prepared / 1e3 - block.time.p50).abs() < 1e-9);
        }
        let other = library.find("http://files/mobilenet-v2-0.pt").unwrap();
        assert_ne!(other.manifest, model.manifest);
        assert!(library.find("http://files/other.pt").is_none());
    }
}
