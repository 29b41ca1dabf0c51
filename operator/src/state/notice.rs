//! Events before they are published.

use super::ids::ObjectId;

/// An object that an Event is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Regarding {
    /// `DnnModel`, `Placement`, `ComputeNode` or `Secret`.
    pub kind: &'static str,
    /// Which one.
    pub id: ObjectId,
}

impl Regarding {
    /// The DnnModel `id`.
    pub(crate) const fn model(id: ObjectId) -> Self {
        Self {
            kind: "DnnModel",
            id,
        }
    }
}

/// An Event to publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Notice {
    /// What it is about.
    pub regarding: Regarding,
    /// It is a Warning.
    pub warning: bool,
    /// A reason of [`lamina_crds::reasons`].
    pub reason: &'static str,
    /// The action, in one word.
    pub action: &'static str,
    /// What happened, with numbers.
    pub note: String,
}

impl Notice {
    /// An Event of type Warning.
    pub(crate) const fn warning(
        regarding: Regarding,
        reason: &'static str,
        action: &'static str,
        note: String,
    ) -> Self {
        Self {
            regarding,
            warning: true,
            reason,
            action,
            note,
        }
    }

    /// An Event of type Normal.
    pub(crate) const fn normal(
        regarding: Regarding,
        reason: &'static str,
        action: &'static str,
        note: String,
    ) -> Self {
        Self {
            regarding,
            warning: false,
            reason,
            action,
            note,
        }
    }
}
