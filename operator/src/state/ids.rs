//! Names and identifiers.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::fmt;
use std::str::FromStr;

/// One object of the API server: its place and its UID.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub(crate) struct ObjectId {
    /// Its namespace; empty if cluster-scoped.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID: a recreated object of the same name has another.
    pub uid: String,
}

impl ObjectId {
    /// The object with this `meta`.
    pub(crate) fn of(meta: &ObjectMeta) -> Self {
        Self {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
        }
    }
}

/// A Secret, which is read when needed and never stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SecretId {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// UID of an object from the API server; empty only in tests.
pub(crate) fn uid(meta: &ObjectMeta) -> &str {
    meta.uid.as_deref().unwrap_or_default()
}

/// One model at one entry; its Placement may not exist yet.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct PlacementKey {
    /// UID of the DnnModel.
    pub model_uid: String,
    /// The entry's node.
    pub entry: String,
}

impl PlacementKey {
    /// `entry` of the model with `model_uid`.
    pub(crate) fn new(model_uid: &str, entry: &str) -> Self {
        Self {
            model_uid: model_uid.to_owned(),
            entry: entry.to_owned(),
        }
    }

    /// A number in `0..1`, constant for this key, that spreads periodic work.
    pub(crate) fn spread(&self) -> f64 {
        // FNV-1a: spreads well and is the same in every build.
        let bytes = self.model_uid.bytes().chain(self.entry.bytes());
        let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        (hash >> 11) as f64 / (1_u64 << 53) as f64
    }
}

impl fmt::Display for PlacementKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.model_uid, self.entry)
    }
}

/// One job of preparing: a model's source and inputs.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub(crate) struct JobId {
    /// UID of the DnnModel.
    pub model_uid: String,
    /// Identifies source and inputs, as [`super::wish::Wish::source_hash`].
    pub source: String,
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.model_uid, self.source)
    }
}

/// A name that is not one of our jobs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` names no job")]
pub(crate) struct NoJob(String);

impl FromStr for JobId {
    type Err = NoJob;

    fn from_str(text: &str) -> Result<Self, NoJob> {
        let (model_uid, source) = text.split_once('/').ok_or_else(|| NoJob(text.to_owned()))?;
        Ok(Self {
            model_uid: model_uid.to_owned(),
            source: source.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_survives_its_way_over_the_wire() {
        let job = JobId {
            model_uid: "uid".into(),
            source: "hash".into(),
        };
        assert_eq!(job.to_string().parse(), Ok(job));
        assert!("nonsense".parse::<JobId>().is_err());
    }

    #[test]
    fn keys_spread_evenly() {
        let keys = (0..1000).map(|i| PlacementKey::new(&format!("uid-{i}"), "cam-1").spread());
        let mut tenths = [0; 10];
        for spread in keys {
            assert!((0.0..1.0).contains(&spread));
            tenths[(spread * 10.0) as usize] += 1;
        }
        assert!(tenths.iter().all(|n| (60..140).contains(n)), "{tenths:?}");
    }
}
