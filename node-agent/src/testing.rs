//! Objects for the tests of this crate.

use lamina_crds::compute_node::{Blob, Route, RouteRevision, Slice};
use lamina_crds::{Hop, TensorSpec};
use lamina_model::Digest;

pub(crate) fn hop(node: &str) -> Hop {
    Hop {
        node: node.into(),
        address: format!("{node}:8001"),
    }
}

pub(crate) fn image(name: &str) -> TensorSpec {
    TensorSpec {
        name: name.into(),
        datatype: "FP32".into(),
        shape: vec![-1, 2],
    }
}

pub(crate) fn blob(content: &[u8]) -> Blob {
    Blob {
        digest: Digest::of(content).to_string(),
        bytes: content.len() as u64,
    }
}

pub(crate) fn slice(placement_uid: &str, revision: i64, segment: u32) -> Slice {
    Slice {
        placement_uid: placement_uid.into(),
        model: "default/m".into(),
        revision,
        segment,
        blocks: vec![blob(&[1])],
        inputs: vec![image("image")],
        outputs: vec![image("scores")],
        next: Some(hop("edge-1")),
    }
}

pub(crate) fn route(placement_uid: &str, name: &str, active_revision: i64) -> Route {
    Route {
        placement_uid: placement_uid.into(),
        namespace: "default".into(),
        name: name.into(),
        active_revision,
        verify_revision: None,
        refuse: None,
        revisions: vec![revision(active_revision, "cam-1")],
    }
}

/// A revision that begins at `node`.
pub(crate) fn revision(revision: i64, node: &str) -> RouteRevision {
    RouteRevision {
        revision,
        first: hop(node),
        path: format!("{node}[0-{revision}]"),
        inputs: vec![image("image")],
        outputs: vec![image("scores")],
        probe: blob(b"probe"),
        manifest: blob(b"manifest"),
    }
}
