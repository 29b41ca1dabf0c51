use super::*;
use crate::testing::{MODEL_UID, manifest, model, prepared_model, world};
use std::sync::Arc;

fn look(
    snapshot: &Snapshot,
    model: &DnnModel,
    memory: &mut ModelMemory,
) -> (Preparation, Decisions) {
    let mut out = Decisions::default();
    let valid = crate::prepare::spec::validate(model, &snapshot.plugins);
    let valid = valid.map(Arc::new).map_err(|e| e.to_string());
    let preparation = prepare(snapshot, model, &valid, memory, &mut out);
    queue::assign(snapshot, &mut out);
    (preparation, out)
}

fn is_nothing(out: &Decisions) -> bool {
    out.prepares.is_empty() && out.forget_prepares.is_empty() && out.writes.is_empty()
}

fn failed(node: &str) -> PrepareView {
    PrepareView::Failed {
        node: node.into(),
        reason: "FetchFailed".into(),
        message: "no route to host".into(),
        retryable: true,
    }
}

#[test]
fn what_was_prepared_is_known_after_a_restart() {
    let (snapshot, model) = (world(), prepared_model());
    let (preparation, out) = look(&snapshot, &model, &mut ModelMemory::default());
    assert!(matches!(
        preparation,
        Preparation::Ready { fresh: false, .. }
    ));
    assert!(is_nothing(&out));
    // Another generation that changes neither source nor inputs.
    let mut newer = model.clone();
    newer.metadata.generation = Some(7);
    newer.spec.constraints.keep_on_entry = 1;
    let (preparation, _) = look(&snapshot, &newer, &mut ModelMemory::default());
    assert!(matches!(preparation, Preparation::Ready { .. }));
}

#[test]
fn what_was_accepted_is_fetched_again_and_nothing_else() {
    let (mut snapshot, mut model) = (world(), prepared_model());
    model.spec.source.sha256 = None;
    let wish = crate::prepare::spec::wish(&model.spec, &snapshot.plugins).unwrap();
    let profile = model.status.as_mut().unwrap().profile.as_mut().unwrap();
    profile.wish = wish.source_hash;
    let accepted = profile.source.clone();
    // The store is lost, and no host holds the blocks.
    snapshot.manifests.clear();
    let (_, out) = look(&snapshot, &model, &mut ModelMemory::default());
    assert_eq!(out.prepares[0].sha256, accepted, "another file is refused");
    // Blocks on hosts are recovered before anything is prepared.
    snapshot.recovering.insert(crate::testing::digest());
    let (preparation, out) = look(&snapshot, &model, &mut ModelMemory::default());
    assert!(matches!(preparation, Preparation::Working { .. }));
    assert!(is_nothing(&out));
    // On request, the address is read again.
    model.spec.source.refresh = Some("monday".into());
    let (_, out) = look(&snapshot, &model, &mut ModelMemory::default());
    assert_eq!(out.prepares[0].sha256, "");
}

#[test]
fn samples_go_with_the_job_and_others_are_prepared_anew() {
    let (snapshot, mut model) = (world(), model());
    let samples = lamina_crds::dnn_model::Samples {
        uri: "http://files/samples.safetensors".into(),
        sha256: "a".repeat(64),
    };
    model.spec.samples = Some(samples.clone());
    let (_, out) = look(&snapshot, &model, &mut ModelMemory::default());
    assert_eq!(out.prepares[0].samples, Some(samples));
    let job = out.prepares[0].job.clone();
    model.spec.samples.as_mut().unwrap().sha256 = "b".repeat(64);
    let (_, out) = look(&snapshot, &model, &mut ModelMemory::default());
    assert_ne!(out.prepares[0].job, job);
}

#[test]
fn other_inputs_are_prepared_anew_and_the_old_job_is_forgotten() {
    let (mut snapshot, mut memory) = (world(), ModelMemory::default());
    let mut model = model();
    let (_, first) = look(&snapshot, &model, &mut memory);
    let old = first.prepares[0].job.clone();
    snapshot.prepares.insert(
        old.clone(),
        PrepareView::Running {
            node: "cloud-1".into(),
            step: String::new(),
            done: 0,
            total: 0,
            bytes: false,
        },
    );
    model.spec.inputs[0].shape = lamina_crds::dnn_model::Dimension::sizes(&[-1, 3]);
    let (_, second) = look(&snapshot, &model, &mut memory);
    assert_eq!(second.forget_prepares, std::slice::from_ref(&old));
    assert_ne!(second.prepares[0].job, old);
    assert_eq!(old.model_uid, MODEL_UID);
}

#[test]
fn hosts_take_turns_and_pauses_grow() {
    let (mut snapshot, mut memory, model) = (world(), ModelMemory::default(), model());
    let mut hosts = Vec::new();
    let mut pauses = Vec::new();
    for _ in 0..8 {
        let (_, out) = look(&snapshot, &model, &mut memory);
        let job = out.prepares[0].clone();
        hosts.push(job.node.clone());
        snapshot.prepares.insert(job.job.clone(), failed(&job.node));
        let (preparation, out) = look(&snapshot, &model, &mut memory);
        assert!(matches!(
            preparation,
            Preparation::Failed {
                permanent: false,
                fresh: true,
                ..
            }
        ));
        assert_eq!(out.forget_prepares, std::slice::from_ref(&job.job));
        snapshot.prepares.clear();
        let (preparation, out) = look(&snapshot, &model, &mut memory);
        assert!(matches!(
            preparation,
            Preparation::Failed { fresh: false, .. }
        ));
        assert!(is_nothing(&out), "nothing before its time");
        let again = memory.tries.not_before.unwrap();
        pauses.push(again.since(snapshot.now).round() as i64);
        snapshot.now = again;
    }
    assert_eq!(hosts[..4], ["cloud-1", "edge-1", "cam-1", "cloud-1"]);
    assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 300, 300]);
}

#[test]
fn a_host_without_memory_or_benchmark_does_not_prepare() {
    let (mut snapshot, model) = (world(), model());
    snapshot.live.get_mut("cloud-1").unwrap().memory_free_bytes = 1 << 20;
    let node = snapshot.compute_nodes.get_mut("edge-1").unwrap();
    Arc::make_mut(node)
        .status
        .as_mut()
        .unwrap()
        .conditions
        .clear();
    let (_, out) = look(&snapshot, &model, &mut ModelMemory::default());
    assert_eq!(out.prepares[0].node, "cam-1");
    for live in snapshot.live.values_mut() {
        live.alive = false;
    }
    let (preparation, out) = look(&snapshot, &model, &mut ModelMemory::default());
    assert_eq!(out.prepares, []);
    let Preparation::Working { message, .. } = preparation else {
        panic!("{preparation:?}");
    };
    assert_eq!(
        message,
        "waiting for an agent that can prepare the model: 0/3 connected"
    );
}

#[test]
fn a_lost_host_hands_over() {
    let (mut snapshot, mut memory, model) = (world(), ModelMemory::default(), model());
    let (_, out) = look(&snapshot, &model, &mut memory);
    let job = out.prepares[0].clone();
    let lost = PrepareView::Lost { node: job.node };
    snapshot.prepares.insert(job.job.clone(), lost);
    let (_, out) = look(&snapshot, &model, &mut memory);
    assert_eq!(out.forget_prepares, [job.job]);
    snapshot.prepares.clear();
    let (_, out) = look(&snapshot, &model, &mut memory);
    assert_eq!(out.prepares[0].node, "edge-1");
}

#[test]
fn a_manifest_that_the_store_lacks_is_a_failure() {
    let (mut snapshot, mut memory, model) = (world(), ModelMemory::default(), model());
    let (_, out) = look(&snapshot, &model, &mut memory);
    let job = out.prepares[0].job.clone();
    let done = PrepareView::Done {
        node: "cloud-1".into(),
        manifest: "gone".into(),
    };
    snapshot.prepares.insert(job, done);
    let (preparation, _) = look(&snapshot, &model, &mut memory);
    let Preparation::Failed {
        reason, message, ..
    } = preparation
    else {
        panic!("{preparation:?}");
    };
    assert_eq!(reason, reasons::PREPARE_FAILED);
    assert!(
        message.contains("the manifest gone, which cannot be read from the store"),
        "{message}"
    );
}

#[test]
fn the_summary_adds_up() {
    let valid = crate::prepare::spec::validate(&model(), &world().plugins).unwrap();
    let summary = summary(&valid, &manifest(4), "digest", "edge-1");
    assert_eq!((summary.blocks, summary.size.as_str()), (4, "4.0Mi"));
    assert_eq!(
        (summary.flops, summary.rung.as_str()),
        (4_000_000, "direct")
    );
}

#[test]
fn a_weight_that_all_blocks_use_is_counted_once() {
    let valid = crate::prepare::spec::validate(&model(), &world().plugins).unwrap();
    let shared = Manifest {
        weight_bytes: Some(1 << 20),
        ..manifest(4)
    };
    let summary = summary(&valid, &shared, "digest", "edge-1");
    assert_eq!(
        (summary.size.as_str(), summary.weight_bytes),
        ("1.0Mi", 1 << 20)
    );
}

#[test]
fn progress_reads_well() {
    let text = |done, total, bytes| progress(done, total, bytes).map(|p| p.text);
    assert_eq!(text(0, 0, true), None);
    assert_eq!(text(9, 13, false).as_deref(), Some("9/13"));
    assert_eq!(text(3 << 20, 12 << 20, true).as_deref(), Some("3.0Mi/12Mi"));
    assert_eq!(text(3 << 20, 0, true).as_deref(), Some("3.0Mi"));
}
