//! Side exits: where their heads are, and the cuts that they rule out.

use crate::ffi::{Analysis, Structure};
use crate::metadata::{Criterion, Metadata};
use lamina_model::{Exit, ExitCriterion, ExitExpectation, ExitRow, ValueSpec};
use std::ops::Range;

/// Removes from `analysis` the cuts that would separate a head from its branch
/// point or lie where a stage must not be cut, and the heads' heavy operations:
/// blocks are made of the trunk's.
///
/// # Errors
/// The field of `lamina.json` that the model contradicts.
pub(crate) fn restrict(analysis: &mut Analysis, metadata: &Metadata) -> Result<(), String> {
    check_outputs(analysis, metadata)?;
    let in_head = |at: &usize| analysis.heads.iter().any(|head| head.heavy.contains(at));
    let (heavy, stages): (Vec<usize>, Vec<Option<usize>>) = analysis
        .heavy
        .iter()
        .zip(&analysis.stages)
        .filter(|(at, _)| !in_head(at))
        .unzip();
    let mut uncut: Vec<Range<usize>> = analysis.heads.iter().map(|h| h.from..h.to).collect();
    for (i, stage) in metadata.stages.iter().enumerate() {
        if !stage.distributable {
            uncut.push(zone(i, &heavy, &stages).ok_or_else(|| {
                format!("stages[{i}].distributable: the file does not show where the stage lies")
            })?);
        }
    }
    analysis
        .cuts
        .retain(|place| !uncut.iter().any(|zone| zone.contains(&place.at)));
    (analysis.heavy, analysis.stages) = (heavy, stages);
    Ok(())
}

fn check_outputs(analysis: &Analysis, metadata: &Metadata) -> Result<(), String> {
    let given = match &analysis.structure {
        Structure::Tuple { fields, .. } if fields.iter().all(|f| *f == Structure::Output) => {
            fields.len()
        }
        _ => 1,
    };
    if given != metadata.exits.len() {
        return Err(format!(
            "exits: there are {}, but the model gives {given} tensors",
            metadata.exits.len()
        ));
    }
    Ok(())
}

/// Where no cut may be, so that `stage` stays whole with no cut in front of it: from the last heavy
/// operation before it to its own last one, or to the first after it if it has none. `None` if the
/// stage cannot be identified.
fn zone(stage: usize, heavy: &[usize], stages: &[Option<usize>]) -> Option<Range<usize>> {
    let known = || {
        heavy
            .iter()
            .zip(stages)
            .filter_map(|(&at, s)| Some((at, (*s)?)))
    };
    known().next()?;
    let before = known().filter(|(_, s)| *s < stage).map(|(at, _)| at).max();
    let own = known().filter(|(_, s)| *s == stage).map(|(at, _)| at).max();
    let behind = known().filter(|(_, s)| *s > stage).map(|(at, _)| at).min();
    Some(before.unwrap_or(0)..own.or(behind).unwrap_or(usize::MAX))
}

/// The exits of a model that is cut at `cuts`.
///
/// # Errors
/// The field of `lamina.json` that the model contradicts.
pub(crate) fn place(
    analysis: &Analysis,
    metadata: &Metadata,
    cuts: &[usize],
    outputs: &[ValueSpec],
) -> Result<Vec<Exit>, String> {
    let exits = metadata.exits.iter().zip(outputs).enumerate();
    exits
        .map(|(i, (exit, output))| {
            if output.shape.get(1..) != Some(&[i64::from(exit.classes)]) {
                return Err(format!(
                    "exits[{i}].classes: {} do not fit the logits' shape {:?}",
                    exit.classes, output.shape
                ));
            }
            let block = match analysis.heads.get(i) {
                Some(head) => cuts.partition_point(|&cut| cut < head.to),
                None => cuts.len(),
            };
            let expected = metadata.expected.as_ref();
            Ok(Exit {
                name: exit.name.clone(),
                block: u32::try_from(block).unwrap_or(u32::MAX),
                output: output.name.clone(),
                within: exit.within.clone(),
                criterion: match metadata.criterion {
                    Criterion::Confidence => ExitCriterion::Confidence,
                    Criterion::Entropy => ExitCriterion::Entropy,
                },
                classes: exit.classes,
                temperature: exit.temperature,
                threshold: exit.threshold,
                table: exit
                    .table
                    .iter()
                    .map(|row| ExitRow {
                        threshold: row.threshold,
                        exit_rate: row.exit_rate,
                        accuracy: row.accuracy,
                    })
                    .collect(),
                expected: expected
                    .and_then(|e| e.exits.get(i))
                    .map(|share| ExitExpectation {
                        exit_rate: share.exit_rate,
                        accuracy: share.accuracy,
                        accuracy_alone: share.accuracy_alone,
                    }),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ffi::{Head, Place};
    use crate::metadata;
    use lamina_model::DataType;
    use serde_json::{Value, json};

    /// conv 0 | head 2 with conv 3 | conv 5 | conv 8, cuts everywhere.
    fn analysis() -> Analysis {
        Analysis {
            reads_self: false,
            writes_constants: false,
            weight_bytes: 0,
            nodes: 10,
            heavy: vec![0, 3, 5, 8],
            stages: vec![Some(0), None, Some(1), Some(3)],
            heads: vec![Head {
                from: 1,
                to: 4,
                heavy: vec![3],
            }],
            cuts: (0..9).map(|at| Place { at, direct: true }).collect(),
            inputs: vec![0],
            outputs: vec![10, 11],
            structure: Structure::Tuple {
                names: Vec::new(),
                fields: vec![Structure::Output; 2],
            },
            operators: Vec::new(),
        }
    }

    fn metadata(distributable: [bool; 4]) -> Metadata {
        let sample = include_str!("../../sdk/tests/data/lamina-1.json");
        let mut value: Value = serde_json::from_str(sample).unwrap();
        value["expected"] = Value::Null;
        let exits = value["exits"].as_array_mut().unwrap();
        exits.drain(1..4);
        exits[1]["output"] = json!(1);
        for (i, marked) in distributable.into_iter().enumerate() {
            value["stages"][i]["distributable"] = json!(marked);
        }
        metadata::parse(&value.to_string()).unwrap()
    }

    fn cuts(distributable: [bool; 4]) -> Vec<usize> {
        let mut analysis = analysis();
        restrict(&mut analysis, &metadata(distributable)).unwrap();
        assert_eq!(analysis.heavy, [0, 5, 8]);
        analysis.cuts.iter().map(|place| place.at).collect()
    }

    #[test]
    fn a_head_stays_with_what_it_hangs_on() {
        assert_eq!(cuts([true; 4]), [0, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn a_stage_that_is_not_distributable_has_no_cut_in_front_and_none_inside() {
        assert_eq!(cuts([true, false, true, true]), [5, 6, 7, 8]);
        assert_eq!(cuts([true, true, true, false]), [0, 4, 8]);
        // Stage 2 has no heavy operation: it may be anywhere between 1 and 3.
        assert_eq!(cuts([true, true, false, true]), [0, 4, 8]);
    }

    #[test]
    fn exits_are_placed_in_the_block_that_ends_behind_their_head() {
        let output = |name: &str, classes: i64| ValueSpec {
            name: name.into(),
            datatype: DataType::Fp32,
            shape: vec![-1, classes],
            sizes: Vec::new(),
        };
        let outputs = [output("output0", 5), output("output1", 5)];
        let metadata = metadata([true; 4]);
        let placed = place(&analysis(), &metadata, &[4, 7], &outputs).unwrap();
        let blocks: Vec<u32> = placed.iter().map(|exit| exit.block).collect();
        assert_eq!(blocks, [0, 2]);
        assert_eq!(placed[0].criterion, ExitCriterion::Entropy);
        let wrong = [output("output0", 6), output("output1", 5)];
        let reason = place(&analysis(), &metadata, &[4, 7], &wrong).unwrap_err();
        assert!(reason.contains("exits[0].classes: 5"), "{reason}");
    }

    #[test]
    fn a_model_that_gives_something_else_contradicts_its_exits() {
        let mut other = analysis();
        other.structure = Structure::Output;
        let reason = restrict(&mut other, &metadata([true; 4])).unwrap_err();
        assert!(
            reason.contains("exits: there are 2, but the model gives 1"),
            "{reason}"
        );
    }
}
