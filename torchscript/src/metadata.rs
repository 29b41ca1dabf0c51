//! `lamina.json`, which the SDK puts into a multi-exit model's archive. `sdk/lamina/metadata.py`,
//! which writes it, describes the format.

use serde::Deserialize;
use std::collections::BTreeSet;

/// Version of the format; a newer one is refused.
const FORMAT: u32 = 1;
/// A longer file is refused unread.
const MAX_BYTES: usize = 1 << 20;
/// Tolerance of the sum of all exits' rates.
const RATES_TOLERANCE: f64 = 1e-6;

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Metadata {
    #[serde(rename = "version")]
    _version: u32,
    #[serde(rename = "producer")]
    _producer: String,
    #[serde(rename = "inputs")]
    _inputs: Vec<Input>,
    pub(crate) stages: Vec<Stage>,
    pub(crate) criterion: Criterion,
    pub(crate) exits: Vec<Exit>,
    #[serde(deserialize_with = "present")]
    pub(crate) expected: Option<Expected>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    #[serde(rename = "name")]
    _name: String,
    #[serde(rename = "datatype")]
    _datatype: lamina_model::DataType,
    #[serde(rename = "shape")]
    _shape: Vec<i64>,
}

/// A part of the trunk.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Stage {
    pub(crate) name: String,
    /// If false, no cut is in front of it or inside.
    pub(crate) distributable: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Criterion {
    Confidence,
    Entropy,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Exit {
    pub(crate) name: String,
    /// Its position in the output tuple.
    pub(crate) output: usize,
    pub(crate) stage: usize,
    /// The exit at the end of its branch.
    #[serde(deserialize_with = "present")]
    pub(crate) within: Option<String>,
    pub(crate) classes: u32,
    pub(crate) temperature: f64,
    #[serde(deserialize_with = "present")]
    pub(crate) threshold: Option<f64>,
    pub(crate) table: Vec<Row>,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Row {
    pub(crate) threshold: f64,
    pub(crate) exit_rate: f64,
    pub(crate) accuracy: f64,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Expected {
    pub(crate) accuracy: f64,
    pub(crate) exits: Vec<Share>,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Share {
    pub(crate) exit_rate: f64,
    #[serde(deserialize_with = "present")]
    pub(crate) accuracy: Option<f64>,
    pub(crate) accuracy_alone: f64,
}

/// A field that may be null but must be present.
fn present<'de, T: Deserialize<'de>, D: serde::Deserializer<'de>>(
    from: D,
) -> Result<Option<T>, D::Error> {
    Option::deserialize(from)
}

/// Parses and checks the file's text; the error names the field.
pub(crate) fn parse(text: &str) -> Result<Metadata, String> {
    if text.len() > MAX_BYTES {
        return Err(format!(
            "it has {} bytes, at most {MAX_BYTES} are read",
            text.len()
        ));
    }
    check_version(text)?;
    let mut reader = serde_json::Deserializer::from_str(text);
    let metadata: Metadata = serde_path_to_error::deserialize(&mut reader)
        .map_err(|e| format!("{}: {}", e.path(), e.inner()))?;
    reader.end().map_err(|e| e.to_string())?;
    check(&metadata)?;
    Ok(metadata)
}

/// A newer format has other fields, and is refused as such.
fn check_version(text: &str) -> Result<(), String> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let versioned: Versioned = serde_json::from_str(text).map_err(|e| format!("version: {e}"))?;
    match versioned.version {
        1..=FORMAT => Ok(()),
        version => Err(format!(
            "version: {version} is not known, this version of Lamina reads up to {FORMAT}"
        )),
    }
}

fn check(metadata: &Metadata) -> Result<(), String> {
    unique("stages", metadata.stages.iter().map(|s| &s.name))?;
    unique("exits", metadata.exits.iter().map(|e| &e.name))?;
    let Some(last_stage) = metadata.stages.len().checked_sub(1) else {
        return Err("stages: there must be one at least".into());
    };
    let [.., end] = metadata.exits.as_slice() else {
        return Err("exits: there must be two at least".into());
    };
    let mut previous = 0;
    for (i, exit) in metadata.exits.iter().enumerate() {
        check_exit(exit, i).map_err(|reason| format!("exits[{i}].{reason}"))?;
        if !(previous..=last_stage).contains(&exit.stage) {
            return Err(format!(
                "exits[{i}].stage: {} must be within {previous}..={last_stage}",
                exit.stage
            ));
        }
        previous = exit.stage;
        let later = metadata.exits[i + 1..].iter();
        let is_host = |e: &&Exit| Some(&e.name) == exit.within.as_ref() && e.stage == exit.stage;
        if exit.within.is_some() && later.filter(|e| is_host(e)).count() == 0 {
            return Err(format!(
                "exits[{i}].within: must be a later exit of the same stage"
            ));
        }
    }
    if metadata.exits.len() < 2 {
        return Err("exits: there must be two at least".into());
    }
    if end.stage != last_stage || end.within.is_some() || end.threshold.is_some() {
        return Err(format!(
            "exits[{}]: the last one is the network's end, with the last stage ({last_stage}), \
             `within` null and `threshold` null",
            metadata.exits.len() - 1
        ));
    }
    check_expected(metadata)
}

fn check_exit(exit: &Exit, index: usize) -> Result<(), String> {
    if exit.output != index {
        return Err(format!(
            "output: must be {index}, exits are in the order of the outputs"
        ));
    }
    if exit.classes < 2 {
        return Err("classes: must be 2 or more".into());
    }
    if !(exit.temperature.is_finite() && exit.temperature > 0.0) {
        return Err("temperature: must be above 0".into());
    }
    if let Some(threshold) = exit.threshold {
        share("threshold", threshold)?;
    }
    for (i, row) in exit.table.iter().enumerate() {
        for (field, value) in [
            ("threshold", row.threshold),
            ("exitRate", row.exit_rate),
            ("accuracy", row.accuracy),
        ] {
            share(&format!("table[{i}].{field}"), value)?;
        }
    }
    Ok(())
}

fn check_expected(metadata: &Metadata) -> Result<(), String> {
    let Some(expected) = &metadata.expected else {
        return Ok(());
    };
    share("expected.accuracy", expected.accuracy)?;
    for (i, exit) in expected.exits.iter().enumerate() {
        let at = |field: &str| format!("expected.exits[{i}].{field}");
        share(&at("exitRate"), exit.exit_rate)?;
        share(&at("accuracy"), exit.accuracy.unwrap_or(0.0))?;
        share(&at("accuracyAlone"), exit.accuracy_alone)?;
    }
    let sum: f64 = expected.exits.iter().map(|e| e.exit_rate).sum();
    if expected.exits.len() != metadata.exits.len() || (sum - 1.0).abs() > RATES_TOLERANCE {
        return Err(format!(
            "expected.exits: needs one for each of {} exits, with exit rates that add up to 1",
            metadata.exits.len()
        ));
    }
    Ok(())
}

fn share(field: &str, value: f64) -> Result<(), String> {
    if (0.0..=1.0).contains(&value) {
        return Ok(());
    }
    Err(format!("{field}: {value} must be within 0..=1"))
}

fn unique<'a>(field: &str, names: impl Iterator<Item = &'a String>) -> Result<(), String> {
    let mut known = BTreeSet::new();
    for name in names {
        if name.is_empty() || !known.insert(name) {
            return Err(format!(
                "{field}: the name `{name}` is empty or occurs twice"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// The sample of the SDK's own test of the format.
    const SAMPLE: &str = include_str!("../../sdk/tests/data/lamina-1.json");

    fn sample() -> Value {
        serde_json::from_str(SAMPLE).unwrap()
    }

    #[test]
    fn the_sdks_sample_is_read() {
        let metadata = parse(SAMPLE).unwrap();
        assert_eq!(metadata.criterion, Criterion::Entropy);
        assert_eq!(metadata.exits.len(), 5);
        assert_eq!(metadata.exits[1].within.as_deref(), Some("side-tip"));
        assert_eq!(metadata.exits[4].threshold, None);
        assert_eq!(metadata.expected.unwrap().exits.len(), 5);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_field() {
        type Change = fn(&mut Value);
        let reason = |change: Change| {
            let mut value = sample();
            change(&mut value);
            parse(&value.to_string()).unwrap_err()
        };
        let cases: [(Change, &str); 12] = [
            (|v| v["version"] = json!(2), "version: 2 is not known"),
            (|v| v["more"] = json!(1), "unknown field `more`"),
            (
                |v| v["criterion"] = json!("luck"),
                "criterion: unknown variant `luck`",
            ),
            (
                |v| v["exits"][1]["classes"] = json!("5"),
                "exits[1].classes: invalid type",
            ),
            (
                |v| v["exits"][2]["threshold"] = json!(1.5),
                "exits[2].threshold: 1.5 must be",
            ),
            (
                |v| v["exits"][1]["within"] = json!("exit0"),
                "exits[1].within: must be a later",
            ),
            (
                |v| v["exits"][0]["output"] = json!(1),
                "exits[0].output: must be 0",
            ),
            (
                |v| v["exits"][0]["stage"] = json!(9),
                "exits[0].stage: 9 must be within 0..=3",
            ),
            (
                |v| v["exits"][4]["threshold"] = json!(0.5),
                "exits[4]: the last one",
            ),
            (
                |v| v["stages"][1]["name"] = json!("stage0"),
                "stages: the name `stage0`",
            ),
            (
                |v| v["expected"]["exits"][0]["exitRate"] = json!(0.9),
                "expected.exits: needs one",
            ),
            (
                |v| {
                    v["exits"][0].as_object_mut().unwrap().remove("threshold");
                },
                "exits[0]: missing field `threshold`",
            ),
        ];
        for (change, want) in cases {
            let got = reason(change);
            assert!(got.contains(want), "{got}, not {want}");
        }
        assert!(parse("{").unwrap_err().contains("version"));
        assert!(
            parse(&" ".repeat(MAX_BYTES + 1))
                .unwrap_err()
                .contains("bytes")
        );
    }
}
