//! Objects for the tests of this crate, and what they run with.

use crate::net::{TlsMode, Trust};
use lamina_crds::compute_node::{Blob, Route, RouteRevision, Slice};
use lamina_crds::{Hop, TensorSpec};
use lamina_identity::authority::{Authority, request};
use lamina_identity::{Credentials, Reached, Validity, Workload};
use lamina_model::{
    Block, BlockKind, BoundaryCheck, DataType, Digest, MANIFEST_VERSION, Manifest, Rung, Seconds,
    ValueSpec,
};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use tempfile::TempDir;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/crashing.py");

/// Harmful models, and `good.pt`; exported once.
static MODELS: LazyLock<TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let python = std::env::var_os("LAMINA_PYTHON");
    let python = python.expect("LAMINA_PYTHON names no Python with torch: run `cargo xtask test`");
    let mut command = Command::new(python);
    command.args(["-W", "ignore", SCRIPT]).arg(folder.path());
    let output = command.env("OMP_NUM_THREADS", "1").output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    folder
});

/// The folder of the models that `crashing.py` exports.
pub(crate) fn models() -> &'static Path {
    MODELS.path()
}

/// The built worker: cargo puts it beside the folder of this test's program.
pub(crate) fn worker_program() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let path = own.ancestors().nth(2).unwrap().join("lamina-worker");
    assert!(
        path.exists(),
        "{} is not there: run `cargo build --workspace --bins`",
        path.display()
    );
    path
}

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
        sizes: Vec::new(),
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
        callers: None,
        batching: None,
        encoding: None,
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
        exits: None,
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
        exits: None,
        encoding: None,
        error: None,
        probe: blob(b"probe"),
        manifest: blob(b"manifest"),
    }
}

/// The manifest of a model of one block, with this memory per row.
pub(crate) fn manifest(block: &Blob, peak_activation_bytes: u64) -> Manifest {
    let value = |name: &str| ValueSpec {
        name: name.into(),
        datatype: DataType::Fp32,
        shape: vec![-1, 2],
        sizes: Vec::new(),
    };
    let block = Block {
        kind: BlockKind::TorchScript,
        digest: block.digest.parse().unwrap(),
        file_bytes: block.bytes,
        weight_bytes: 8,
        peak_activation_bytes,
        flops: 100,
        time: Seconds {
            p50: 0.01,
            p10: 0.01,
            p90: 0.02,
        },
        cut_penalty_seconds: 0.0,
        inputs: vec!["image".into()],
        outputs: vec![value("scores")],
    };
    Manifest {
        version: MANIFEST_VERSION,
        source: Digest::of(b"source"),
        runtime: "libtorch 2.13.0".into(),
        rung: Rung::Direct,
        rung_reason: None,
        inputs: vec![value("image")],
        outputs: vec![value("scores")],
        arguments: Vec::new(),
        output_structure: None,
        exits: Vec::new(),
        blocks: vec![block],
        probe: Digest::of(b"probe"),
        probe_bytes: 5,
        check: BoundaryCheck {
            compared: 1,
            max_abs_diff: 0.0,
            telling_diff: 1.0,
            sizes: std::collections::BTreeMap::new(),
        },
        prepared_gflops: 1.0,
        weight_bytes: None,
        lopsided_share: None,
        rows_are_independent: None,
        encoding_errors: Vec::new(),
    }
}

/// Valid for an hour, since an hour ago.
pub(crate) fn lasting() -> Validity {
    let now = k8s_openapi::jiff::Timestamp::now().as_second();
    Validity {
        not_before: now - 3600,
        not_after: now + 3600,
    }
}

pub(crate) fn authority() -> Authority {
    Authority::new(lasting()).unwrap()
}

pub(crate) fn agents() -> Workload {
    Workload {
        trust_domain: "lamina".into(),
        namespace: "lamina-system".into(),
        account: "lamina-agent".into(),
    }
}

/// A certificate with its key for the agent of `node`.
pub(crate) fn credentials(by: &Authority, node: &str) -> Credentials {
    let (key, csr) = request().unwrap();
    let issued = by.issue_agent(&agents(), node, &csr, lasting()).unwrap();
    Credentials::from_pem(issued.as_bytes(), key.as_bytes()).unwrap()
}

/// A certificate with its key for an agent reached by clients at `names`.
pub(crate) fn front_credentials(by: &Authority, names: &[&str]) -> Credentials {
    let (key, csr) = request().unwrap();
    let reached = Reached::parse(names.iter().copied()).unwrap();
    let issued = by.issue_front(&agents(), "cam-1".into(), &csr, lasting(), &reached);
    Credentials::from_pem(issued.unwrap().as_bytes(), key.as_bytes()).unwrap()
}

/// The agent of `node`'s credentials and trusted authorities.
pub(crate) fn trust(mode: TlsMode, by: &Authority, node: &str, believes: &[&Authority]) -> Trust {
    let trust = Trust::new(mode);
    let believed: Vec<_> = believes.iter().map(|one| one.der().clone()).collect();
    trust.set(Some(&credentials(by, node)), &believed).unwrap();
    trust
}
