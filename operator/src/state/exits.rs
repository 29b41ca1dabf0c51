//! Early exits of a model, as hosts get them.

use lamina_crds::compute_node::{Exit, ExitCriterion, Exits};
use lamina_model::{DataType, Manifest};
use std::collections::BTreeMap;

/// The exits of `manifest`. `None` if it has none, or if their answers do not fit one tensor,
/// because the number of classes or the datatype differs.
pub(crate) fn of(manifest: &Manifest) -> Option<Exits> {
    let [first, .., _] = manifest.exits.as_slice() else {
        return None;
    };
    let shape = |exit: &lamina_model::Exit| {
        let output = manifest.outputs.iter().find(|v| v.name == exit.output)?;
        Some((output.datatype, output.shape.clone()))
    };
    let common = shape(first)?;
    let is_number = matches!(
        common.0,
        DataType::Fp16 | DataType::Bf16 | DataType::Fp32 | DataType::Fp64
    );
    let alike = manifest
        .exits
        .iter()
        .all(|exit| exit.criterion == first.criterion && shape(exit).as_ref() == Some(&common));
    if !is_number || !alike {
        return None;
    }
    let exits = manifest.exits.iter().map(|exit| Exit {
        name: exit.name.clone(),
        output: exit.output.clone(),
        temperature: exit.temperature,
        threshold: exit.threshold,
    });
    Some(Exits {
        criterion: match first.criterion {
            lamina_model::ExitCriterion::Confidence => ExitCriterion::Confidence,
            lamina_model::ExitCriterion::Entropy => ExitCriterion::Entropy,
        },
        exits: exits.collect(),
    })
}

/// `exits` with the thresholds that a strategy chose, by their names.
pub(crate) fn with(mut exits: Exits, chosen: &BTreeMap<String, f64>) -> Exits {
    for exit in &mut exits.exits {
        if let Some(threshold) = chosen.get(&exit.name) {
            exit.threshold = Some(*threshold);
        }
    }
    exits
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn exits_whose_answers_stand_in_one_tensor_are_told() {
        let manifest = testing::manifest_with_exits();
        let exits = of(&manifest).unwrap();
        let told: Vec<(&str, &str, Option<f64>)> = exits
            .exits
            .iter()
            .map(|e| (e.name.as_str(), e.output.as_str(), e.threshold))
            .collect();
        assert_eq!(
            told,
            [("early", "side", Some(0.9)), ("final", "scores", None)]
        );
        let chosen = BTreeMap::from([("early".to_owned(), 0.7)]);
        assert_eq!(with(exits, &chosen).exits[0].threshold, Some(0.7));
        let mut other = manifest.clone();
        other.outputs[1].shape = vec![-1, 7];
        assert_eq!(of(&other), None);
        other = manifest;
        other.exits.clear();
        assert_eq!(of(&other), None);
    }
}
