//! Models with side exits, as exported by the SDK.

use crate::common::*;
use lamina_model::{DataType, ExitCriterion, InputSpec, Rung};

fn digit() -> Vec<InputSpec> {
    vec![input("image", DataType::Fp32, &[-1, 1, 8, 8])]
}

/// Names of the exits, and the blocks to which they are attached.
fn exits(p: &Prepared) -> Vec<(&str, u32)> {
    let exits = p.manifest.exits.iter();
    exits.map(|e| (e.name.as_str(), e.block)).collect()
}

/// Each exit's logits leave its block first, and pass from there to the end.
fn assert_logits_begin_where_the_exit_hangs(p: &Prepared) {
    for exit in &p.manifest.exits {
        for block in 0..p.manifest.blocks.len() {
            let given = outputs_of(p, block).contains(&exit.output);
            let behind = block >= usize::try_from(exit.block).unwrap();
            assert_eq!(given, behind, "{} of block {block}", exit.name);
        }
    }
}

#[test]
fn heads_lie_in_the_blocks_that_they_hang_on() {
    let p = prepared("exits", &digit());
    assert_eq!(
        p.manifest.rung,
        Rung::Direct,
        "{:?}",
        p.manifest.rung_reason
    );
    // Two convolutions with their exits, two more, and the end.
    assert_eq!(p.manifest.blocks.len(), 5);
    assert_eq!(exits(&p), [("exit0", 0), ("exit1", 1), ("final", 4)]);
    assert_eq!(p.manifest.exits[0].criterion, ExitCriterion::Confidence);
    assert_eq!(p.manifest.exits[0].classes, 10);
    assert_logits_begin_where_the_exit_hangs(&p);
    assert_chain_and_merge_are_exact(&p);
    assert_a_batch_of_three_holds(&p);
}

#[test]
fn a_stage_that_is_not_distributable_stays_with_the_one_before_it() {
    let p = prepared("exits_marked", &digit());
    assert_eq!(exits(&p), [("exit0", 0), ("exit1", 1), ("final", 2)]);
    assert_chain_and_merge_are_exact(&p);
}

#[test]
fn exits_within_a_side_branch_hang_on_its_block() {
    let p = prepared("exits_nested", &digit());
    let want = [("side-exit0", 0), ("side", 0), ("final", 2)];
    assert_eq!(exits(&p), want, "{:?}", p.manifest.rung_reason);
    assert_eq!(p.manifest.exits[0].within.as_deref(), Some("side"));
    assert_logits_begin_where_the_exit_hangs(&p);
    assert_chain_and_merge_are_exact(&p);
    assert_a_batch_of_three_holds(&p);
}

#[test]
fn a_head_that_is_computed_late_is_brought_up_to_its_block() {
    let p = prepared("exits_late", &digit());
    assert_eq!(exits(&p), [("side", 0), ("final", 2)]);
    assert_logits_begin_where_the_exit_hangs(&p);
    assert_chain_and_merge_are_exact(&p);
}

#[test]
fn googlenet_keeps_its_two_side_classifiers() {
    let p = prepared("exits_googlenet", &image());
    assert_eq!(
        p.manifest.rung,
        Rung::Direct,
        "{:?}",
        p.manifest.rung_reason
    );
    assert_eq!(p.manifest.blocks.len(), 13);
    assert_eq!(exits(&p), [("aux1", 5), ("aux2", 8), ("final", 12)]);
    assert_logits_begin_where_the_exit_hangs(&p);
    let probe = p.probe();
    let every: Vec<usize> = (1..13).collect();
    assert_eq!(p.chain(&every, false, &probe.inputs), probe.outputs);
    assert!(difference(&p.chain(&[6, 9], true, &probe.inputs), &probe.outputs) < 1e-4);
}

#[test]
fn a_broken_lamina_json_is_named_with_its_field() {
    let reason = |name: &str| {
        try_prepare(&model(name), &digit())
            .err()
            .unwrap()
            .to_string()
    };
    let broken = reason("exits_broken");
    assert!(
        broken.contains("lamina.json is wrong: exits[0].classes: invalid type"),
        "{broken}"
    );
    let wrong = reason("exits_wrong");
    assert!(wrong.contains("exits[0].classes: 11 do not fit"), "{wrong}");
}
