//! Validation of a DnnModel, done once, beyond what the API server's schema can check.

use super::images;
use crate::state::cluster::tier;
use crate::state::ids::ObjectId;
use crate::state::wish::{Choice, Pin, ValidModel, Wish};
use lamina_crds::dnn_model::{
    ActivationType, Batching, Dimension, EarlyExits, InputDataType, LONGEST_PARAMETER, MOST_EXITS,
    MOST_PARAMETERS, ModelInput,
};
use lamina_crds::quantity::parse_bytes;
use lamina_crds::{DnnModel, DnnModelSpec};
use lamina_model::{
    DataType, Declared, Digest, FixedArgument, FreeSize, InputSpec, Manifest, ValueRange,
    ValueSpec, WireType, sizes_of,
};
use lamina_placement::{Parameters, SolveError, Tier, strategy};
use lamina_profile::{AUTO_MAX_ERROR, Activations};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Why a spec is invalid, for its author.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct SpecError(String);

fn wrong<T>(message: String) -> Result<T, SpecError> {
    Err(SpecError(message))
}

fn known_tier(field: &str, name: &str) -> Result<Tier, SpecError> {
    tier(name).ok_or_else(|| {
        SpecError(format!(
            "{field} names the tier `{name}`; use device, edge or cloud"
        ))
    })
}

/// The strategy that the spec names; `plugins` are the known ones.
///
/// # Errors
/// An unknown name, with the known ones, or a parameter that the strategy does not accept.
fn choice(spec: &DnnModelSpec, plugins: &BTreeSet<String>) -> Result<Choice, SpecError> {
    check_parameters(&spec.strategy.parameters)?;
    let name = &spec.strategy.name;
    let parameters: Parameters = spec
        .strategy
        .parameters
        .iter()
        .map(|(name, text)| (name.clone(), parameter(text)))
        .collect();
    let is_plugin = plugins.contains(name);
    if !is_plugin && let Err(e) = strategy(name, &parameters) {
        return wrong(format!("spec.strategy: {}", with_plugins(e, plugins)));
    }
    Ok(Choice {
        name: name.clone(),
        parameters,
        is_plugin,
    })
}

/// Longest name of a parameter.
const LONGEST_NAME: usize = 63;
/// Deepest nesting of lists and objects in a parameter.
const DEEPEST: usize = 4;

/// Limits the size of parameters, even if an older schema allowed more: a question holds them until
/// it is answered.
fn check_parameters(parameters: &BTreeMap<String, String>) -> Result<(), SpecError> {
    if parameters.len() > MOST_PARAMETERS {
        return wrong(format!(
            "spec.strategy.parameters has {} entries; give at most {MOST_PARAMETERS}",
            parameters.len()
        ));
    }
    for (name, text) in parameters {
        if name.chars().count() > LONGEST_NAME {
            let head: String = name.chars().take(LONGEST_NAME).collect();
            return wrong(format!(
                "spec.strategy.parameters: the name `{head}…` is too long; give at most {LONGEST_NAME} characters"
            ));
        }
        if text.chars().count() > LONGEST_PARAMETER {
            return wrong(format!(
                "spec.strategy.parameters: `{name}` is too long; give at most {LONGEST_PARAMETER} characters"
            ));
        }
        if depth(text) > DEEPEST {
            return wrong(format!(
                "spec.strategy.parameters: `{name}` is nested too deep; give at most {DEEPEST} levels"
            ));
        }
    }
    Ok(())
}

/// Nesting depth of a JSON text, by its brackets alone: an upper bound.
fn depth(text: &str) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    for c in text.chars() {
        match c {
            '[' | '{' => depth += 1,
            ']' | '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = depth.max(deepest);
    }
    deepest
}

/// The text of `error`, with plugins among the known names.
fn with_plugins(error: SolveError, plugins: &BTreeSet<String>) -> String {
    match error {
        SolveError::UnknownStrategy { name, known } => {
            let names = plugins.iter().map(String::as_str);
            let all: Vec<&str> = std::iter::once(known.as_str()).chain(names).collect();
            let known = all.join(", ");
            SolveError::UnknownStrategy { name, known }.to_string()
        }
        other => other.to_string(),
    }
}

/// `8` as a number, `true` as a boolean, anything else as text.
fn parameter(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap_or_else(|_| serde_json::Value::String(text.to_owned()))
}

/// Limits of slice bytes by tier.
///
/// # Errors
/// An unknown tier, or a text that is no quantity.
fn slice_limits(spec: &DnnModelSpec) -> Result<BTreeMap<Tier, u64>, SpecError> {
    let mut limits: BTreeMap<Tier, u64> = BTreeMap::new();
    for limit in &spec.constraints.slice_memory {
        let tier = known_tier("spec.constraints.sliceMemory", &limit.tier)?;
        let bytes = parse_bytes(&limit.limit)
            .map_err(|e| SpecError(format!("spec.constraints.sliceMemory: {e}")))?;
        let least = limits.entry(tier).or_insert(bytes);
        *least = bytes.min(*least);
    }
    Ok(limits)
}

/// Tiers that may compute; `None` allows all.
///
/// # Errors
/// An unknown tier.
fn allowed_tiers(spec: &DnnModelSpec) -> Result<Option<BTreeSet<Tier>>, SpecError> {
    let tiers = &spec.constraints.tiers;
    let known: Result<BTreeSet<Tier>, SpecError> = tiers
        .iter()
        .map(|t| known_tier("spec.constraints.tiers", t))
        .collect();
    known.map(|t| (!t.is_empty()).then_some(t))
}

/// The model, if its spec is consistent as far as that can be checked before preparation.
///
/// # Errors
/// The first contradiction.
pub(crate) fn validate(
    model: &DnnModel,
    plugins: &BTreeSet<String>,
) -> Result<ValidModel, SpecError> {
    Ok(ValidModel {
        id: ObjectId::of(&model.metadata),
        generation: model.metadata.generation.unwrap_or_default(),
        wish: Arc::new(wish(&model.spec, plugins)?),
    })
}

/// The wish of `spec`.
///
/// # Errors
/// The first contradiction.
pub(crate) fn wish(spec: &DnnModelSpec, plugins: &BTreeSet<String>) -> Result<Wish, SpecError> {
    check_inputs(&spec.inputs)?;
    check_arguments(&spec.arguments)?;
    let rate = spec.objective.requests_per_second;
    if !(rate > 0.0 && rate <= MOST_A_SECOND) {
        return wrong(format!(
            "spec.objective.requestsPerSecond must be above 0 and at most {MOST_A_SECOND}"
        ));
    }
    Ok(Wish {
        uri: spec.source.uri.clone(),
        sha256: spec.source.sha256.clone(),
        secret: spec.source.secret_ref.as_ref().map(|s| s.name.clone()),
        samples: spec.samples.clone(),
        source_hash: source_hash(spec),
        inputs: declared(spec)?,
        strategy: choice(spec, plugins)?,
        goal: spec.objective.goal,
        rate_per_second: rate,
        keep_on_entry: ordinal(spec.constraints.keep_on_entry),
        tiers: allowed_tiers(spec)?,
        slice_limits: slice_limits(spec)?,
        pins: pins(spec)?,
        latency_limit_seconds: latency_limit(spec)?,
        adaptation: spec.adaptation.clone(),
        exits: early_exits(spec)?,
        batching: batching(spec)?,
        activations: activations(spec)?,
    })
}

/// Highest rate that can be declared, in requests per second.
const MOST_A_SECOND: f64 = 100_000.0;
/// The largest dimension of a shape.
const LARGEST_DIMENSION: i64 = 2_147_483_647;

fn ordinal(block: u32) -> usize {
    usize::try_from(block).unwrap_or(usize::MAX)
}

/// Limits names and texts, as the API server's schema does.
fn check_arguments(arguments: &BTreeMap<String, String>) -> Result<(), SpecError> {
    if arguments.len() > MOST_PARAMETERS {
        return wrong(format!(
            "spec.arguments has {} entries; give at most {MOST_PARAMETERS}",
            arguments.len()
        ));
    }
    let is_long =
        |(name, text): &(&String, &String)| name.len().max(text.len()) > LONGEST_PARAMETER;
    match arguments.iter().find(is_long) {
        Some((name, _)) => wrong(format!(
            "spec.arguments: `{}` is too long; {LONGEST_PARAMETER} characters are the limit",
            name.chars().take(60).collect::<String>()
        )),
        None => Ok(()),
    }
}

fn check_inputs(inputs: &[ModelInput]) -> Result<(), SpecError> {
    let mut names = BTreeSet::new();
    for declared in inputs {
        if !names.insert(&declared.name) {
            return wrong(format!(
                "spec.inputs has two inputs named `{}`; give each a name of its own",
                declared.name
            ));
        }
        let shape = || {
            let dimensions: Vec<String> = declared.shape.iter().map(ToString::to_string).collect();
            format!(
                "spec.inputs: `{}` has shape [{}]",
                declared.name,
                dimensions.join(", ")
            )
        };
        for (place, dimension) in declared.shape.iter().enumerate() {
            match dimension {
                Dimension::Size(size) if *size > LARGEST_DIMENSION => {
                    return wrong(format!(
                        "{}; a dimension is at most {LARGEST_DIMENSION}",
                        shape()
                    ));
                }
                Dimension::Size(-1) if place > 0 => {
                    return wrong(format!(
                        "{}; -1 is the batch and stands first: give another free dimension a \
                         name with bounds, such as n:1..512",
                        shape()
                    ));
                }
                Dimension::Size(size) if *size < 1 && *size != -1 => {
                    return wrong(format!("{}; a dimension is at least 1", shape()));
                }
                Dimension::Size(_) => (),
                Dimension::Free(text) => {
                    FreeSize::parse(text, place).or_else(|e| wrong(format!("{}: {e}", shape())))?;
                }
            }
        }
    }
    let values: Vec<ValueSpec> = inputs.iter().map(|i| input(i).value).collect();
    sizes_of(&values).or_else(|e| wrong(format!("spec.inputs: {e}")))?;
    Ok(())
}

fn pins(spec: &DnnModelSpec) -> Result<Vec<Pin>, SpecError> {
    let pins = &spec.constraints.pins;
    for (i, a) in pins.iter().enumerate() {
        let clash = pins[i + 1..]
            .iter()
            .find(|b| a.node != b.node && a.first <= b.last && b.first <= a.last);
        if let Some(b) = clash {
            return wrong(format!(
                "spec.constraints.pins: block {} is pinned to {} and to {}; keep one of them",
                a.first.max(b.first),
                a.node,
                b.node
            ));
        }
    }
    let pin = pins.iter().map(|p| Pin {
        first: ordinal(p.first),
        last: ordinal(p.last),
        node: p.node.clone(),
    });
    Ok(pin.collect())
}

/// Longest latency limit.
const LONGEST_LATENCY_MS: u32 = 3_600_000;

fn latency_limit(spec: &DnnModelSpec) -> Result<Option<f64>, SpecError> {
    let Some(millis) = spec.constraints.latency_limit_ms else {
        return Ok(None);
    };
    if !(1..=LONGEST_LATENCY_MS).contains(&millis) {
        return wrong(format!(
            "spec.constraints.latencyLimitMs is {millis}; give 1 to {LONGEST_LATENCY_MS}"
        ));
    }
    Ok(Some(f64::from(millis) / 1e3))
}

fn early_exits(spec: &DnnModelSpec) -> Result<Option<EarlyExits>, SpecError> {
    let Some(exits) = &spec.exits else {
        return Ok(None);
    };
    if exits.thresholds.len() > MOST_EXITS {
        return wrong(format!(
            "spec.exits.thresholds has {} entries; a model has at most {MOST_EXITS} exits",
            exits.thresholds.len()
        ));
    }
    let outside = exits
        .thresholds
        .iter()
        .find(|(_, t)| !(0.0..=1.0).contains(*t));
    if let Some((name, threshold)) = outside {
        return wrong(format!(
            "spec.exits.thresholds: `{name}` is {threshold}; give 0 to 1"
        ));
    }
    if let Some(least) = exits.min_accuracy.filter(|a| !(0.0..=1.0).contains(a)) {
        return wrong(format!(
            "spec.exits.minAccuracy is {least}; give a share from 0 to 1"
        ));
    }
    Ok(Some(exits.clone()))
}

fn batching(spec: &DnnModelSpec) -> Result<Option<Batching>, SpecError> {
    let Some(batching) = spec.batching else {
        return Ok(None);
    };
    if !(2..=128).contains(&batching.max_rows) {
        return wrong(format!(
            "spec.batching.maxRows is {}; give 2 to 128",
            batching.max_rows
        ));
    }
    if batching.max_delay_ms > 1000 {
        return wrong(format!(
            "spec.batching.maxDelayMs is {}; give 0 to 1000",
            batching.max_delay_ms
        ));
    }
    Ok(Some(batching))
}

fn activations(spec: &DnnModelSpec) -> Result<Option<Activations>, SpecError> {
    let Some(asked) = &spec.activations else {
        return Ok(None);
    };
    if let Some(most) = asked.max_error.filter(|e| !(*e > 0.0 && *e <= 1.0)) {
        return wrong(format!(
            "spec.activations.maxError is {most}; give a share above 0 and at most 1"
        ));
    }
    let (dtype, default) = match asked.dtype {
        ActivationType::Fp32 => return Ok(None),
        ActivationType::Fp16 => (Some(WireType::Fp16), None),
        ActivationType::Bf16 => (Some(WireType::Bf16), None),
        ActivationType::Int8 => (Some(WireType::Int8), None),
        ActivationType::Auto => (None, Some(AUTO_MAX_ERROR)),
    };
    Ok(Some(Activations {
        dtype,
        max_error: asked.max_error.or(default),
    }))
}

/// Checks that need the prepared model.
///
/// # Errors
/// A block or an exit that the model does not have.
pub(crate) fn check_blocks(wish: &Wish, manifest: &Manifest) -> Result<(), SpecError> {
    let blocks = manifest.blocks.len();
    if let Some(pin) = wish.pins.iter().find(|p| p.last >= blocks) {
        return wrong(format!(
            "spec.constraints.pins: blocks {}..{} on {} go beyond the model, which has blocks 0..{}",
            pin.first,
            pin.last,
            pin.node,
            blocks.saturating_sub(1)
        ));
    }
    let keep = wish.keep_on_entry;
    if keep > blocks {
        return wrong(format!(
            "spec.constraints.keepOnEntry is {keep}, but the model has {blocks} blocks"
        ));
    }
    check_exits(wish, manifest)?;
    check_batching(wish, manifest)
}

fn check_batching(wish: &Wish, manifest: &Manifest) -> Result<(), SpecError> {
    if wish.batching.is_none() {
        return Ok(());
    }
    match manifest.rows_are_independent {
        Some(true) => Ok(()),
        Some(false) => wrong(
            "spec.batching: a row of this model gives a different result in a batch than alone; remove spec.batching".to_owned(),
        ),
        None => wrong(
            "spec.batching: nothing shows that the rows of this model have nothing to do with each other (its batch is fixed, or requests take different ways through it, or it was prepared by an older version); remove spec.batching, or give all inputs a free batch".to_owned(),
        ),
    }
}

fn check_exits(wish: &Wish, manifest: &Manifest) -> Result<(), SpecError> {
    let Some(exits) = &wish.exits else {
        return Ok(());
    };
    // All rows leave at the last exit.
    let [side @ .., _] = manifest.exits.as_slice() else {
        return match exits.thresholds.keys().next() {
            Some(name) => wrong(format!(
                "spec.exits.thresholds names `{name}`, but the model has no early exits; export it with the SDK, or remove spec.exits"
            )),
            None if exits.min_accuracy.is_some() => wrong(
                "spec.exits.minAccuracy: the model has no early exits; export it with the SDK, or remove spec.exits".to_owned(),
            ),
            None => Ok(()),
        };
    };
    if wish.min_accuracy().is_some() && !lamina_profile::can_choose(manifest) {
        return wrong(
            "spec.exits.minAccuracy: the model's file does not say how accurate its exits are; export it with a validation set, or remove spec.exits.minAccuracy".to_owned(),
        );
    }
    let unknown = |name: &&String| !side.iter().any(|exit| exit.name == **name);
    if let Some(name) = exits.thresholds.keys().find(unknown) {
        let names: Vec<&str> = side.iter().map(|exit| exit.name.as_str()).collect();
        return wrong(format!(
            "spec.exits.thresholds names `{name}`; the model's side exits are {}",
            names.join(", ")
        ));
    }
    Ok(())
}

const fn datatype(declared: InputDataType) -> DataType {
    match declared {
        InputDataType::Bool => DataType::Bool,
        // What travels of a file are its bytes.
        InputDataType::Uint8 | InputDataType::Bytes => DataType::Uint8,
        InputDataType::Int8 => DataType::Int8,
        InputDataType::Int16 => DataType::Int16,
        InputDataType::Int32 => DataType::Int32,
        InputDataType::Int64 => DataType::Int64,
        InputDataType::Fp16 => DataType::Fp16,
        InputDataType::Bf16 => DataType::Bf16,
        InputDataType::Fp32 => DataType::Fp32,
        InputDataType::Fp64 => DataType::Fp64,
    }
}

/// The declared arguments of `forward`, as preparing takes them.
///
/// # Errors
/// An image contradicts itself.
fn declared(spec: &DnnModelSpec) -> Result<Vec<Declared>, SpecError> {
    let inputs = spec.inputs.iter().map(|declared| {
        let input = input(declared);
        let image = images::image(declared, &input.value);
        let image = image.map_err(|e| SpecError(format!("spec.inputs: {e}")))?;
        Ok(image.map_or(Declared::Input(input), Declared::Image))
    });
    let fixed = spec.arguments.iter().map(|(name, fixed)| {
        Ok(Declared::Fixed(FixedArgument {
            name: name.clone(),
            fixed: fixed.clone(),
        }))
    });
    inputs.chain(fixed).collect()
}

fn input(declared: &ModelInput) -> InputSpec {
    InputSpec {
        value: ValueSpec {
            name: declared.name.clone(),
            datatype: datatype(declared.datatype),
            shape: declared.shape.iter().map(place).collect(),
            sizes: declared
                .shape
                .iter()
                .enumerate()
                .filter_map(|(place, dimension)| free_size(dimension, place))
                .collect(),
        },
        range: declared.range.map(|r| ValueRange {
            min: r.min,
            max: r.max,
        }),
    }
}

/// The size in a shape; -1 if it is free.
const fn place(dimension: &Dimension) -> i64 {
    match dimension {
        Dimension::Size(size) => *size,
        Dimension::Free(_) => -1,
    }
}

fn free_size(dimension: &Dimension, place: usize) -> Option<FreeSize> {
    match dimension {
        Dimension::Size(_) => None,
        Dimension::Free(text) => FreeSize::parse(text, place).ok(),
    }
}

/// Identifies what is prepared: another source, other inputs, arguments or samples give another
/// hash.
fn source_hash(spec: &DnnModelSpec) -> String {
    let text = match (&spec.samples, spec.arguments.is_empty()) {
        (None, true) => serde_json::json!([spec.source, spec.inputs]),
        (Some(samples), true) => serde_json::json!([spec.source, spec.inputs, samples]),
        (samples, false) => {
            serde_json::json!([spec.source, spec.inputs, samples, spec.arguments])
        }
    };
    let text = text.to_string();
    Digest::of(text.as_bytes()).short().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;
    use lamina_crds::dnn_model::{Pin, SliceMemory};

    fn message(change: impl Fn(&mut DnnModelSpec)) -> String {
        let mut spec = testing::model_spec();
        change(&mut spec);
        wish(&spec, &BTreeSet::new())
            .and_then(|w| check_blocks(&w, &testing::manifest(4)))
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn a_sound_spec_passes() {
        let spec = testing::model_spec();
        let wish = wish(&spec, &BTreeSet::new()).unwrap();
        assert_eq!(check_blocks(&wish, &testing::manifest(4)), Ok(()));
    }

    #[test]
    fn requests_are_computed_together_where_their_rows_are_independent() {
        let asked = |max_rows, max_delay_ms| {
            move |s: &mut DnnModelSpec| {
                s.batching = Some(Batching {
                    max_rows,
                    max_delay_ms,
                });
            }
        };
        assert!(message(asked(1, 0)).contains("maxRows is 1; give 2 to 128"));
        assert!(message(asked(8, 1001)).contains("maxDelayMs is 1001; give 0 to 1000"));
        let mut spec = testing::model_spec();
        asked(8, 5)(&mut spec);
        let wish = wish(&spec, &BTreeSet::new()).unwrap();
        let mut manifest = testing::manifest(4);
        assert_eq!(check_blocks(&wish, &manifest), Ok(()));
        for (rows, words) in [(Some(false), "than alone"), (None, "nothing shows")] {
            manifest.rows_are_independent = rows;
            let said = check_blocks(&wish, &manifest).unwrap_err().to_string();
            assert!(said.contains(words), "{said}");
        }
    }

    #[test]
    fn contradictions_are_told_to_their_author() {
        let said = message(|s| s.strategy.name = "magic".into());
        assert!(
            said.starts_with("spec.strategy: unknown strategy `magic`; use one of: "),
            "{said}"
        );
        assert!(said.contains("cloud-only"), "{said}");
        assert_eq!(
            message(|s| s.constraints.tiers = vec!["fog".into()]),
            "spec.constraints.tiers names the tier `fog`; use device, edge or cloud"
        );
        assert_eq!(
            message(|s| s.constraints.slice_memory = vec![SliceMemory {
                tier: "device".into(),
                limit: "8MB".into()
            }]),
            "spec.constraints.sliceMemory: `8MB` is not a quantity of bytes; write 8M, 612Mi or 1.5Gi"
        );
        assert_eq!(
            message(|s| s.inputs[0].shape = Dimension::sizes(&[1, -1])),
            "spec.inputs: `x` has shape [1, -1]; -1 is the batch and stands first: give another \
             free dimension a name with bounds, such as n:1..512"
        );
        let pin = |first, last, node: &str| Pin {
            first,
            last,
            node: node.into(),
        };
        assert_eq!(
            message(|s| s.constraints.pins = vec![pin(0, 2, "cam-1"), pin(2, 3, "edge-1")]),
            "spec.constraints.pins: block 2 is pinned to cam-1 and to edge-1; keep one of them"
        );
        assert_eq!(
            message(|s| s.constraints.pins = vec![pin(0, 9, "cam-1")]),
            "spec.constraints.pins: blocks 0..9 on cam-1 go beyond the model, which has blocks 0..3"
        );
    }

    #[test]
    fn free_dimensions_have_a_name_and_bounds() {
        let with = |dimensions: &[&str]| {
            let mut spec = testing::model_spec();
            let dimension = |text: &&str| match text.parse() {
                Ok(size) => Dimension::Size(size),
                Err(_) => Dimension::Free((*text).to_owned()),
            };
            spec.inputs[0].shape = dimensions.iter().map(dimension).collect();
            wish(&spec, &BTreeSet::new()).map(|w| match &w.inputs[0] {
                Declared::Input(input) => input.value.clone(),
                Declared::Image(_) | Declared::Fixed(_) => panic!("an input"),
            })
        };
        let value = with(&["-1", "3", "h:32..1024/32@224", "w:32..1024"]).unwrap();
        assert_eq!(value.shape, [-1, 3, -1, -1]);
        assert_eq!(value.typical_shape(), [-1, 3, 224, 181]);
        let said = |dimensions: &[&str]| with(dimensions).unwrap_err().to_string();
        let wrong = said(&["-1", "h:9..3"]);
        assert!(
            wrong.contains("`x` has shape [-1, h:9..3]: `h:9..3`: the bounds are empty"),
            "{wrong}"
        );
        let wrong = said(&["n:1..3", "n:1..4"]);
        assert!(wrong.contains("`n` is declared in two ways"), "{wrong}");
        let wrong = said(&["-1", "0"]);
        assert!(wrong.contains("a dimension is at least 1"), "{wrong}");
    }

    #[test]
    fn parameters_that_are_huge_never_reach_a_strategy() {
        let with = |name: String, text: String| {
            message(|s| {
                s.strategy.parameters.insert(name.clone(), text.clone());
            })
        };
        let said = message(|s| {
            let many = (0..1000).map(|n| (format!("p{n}"), String::new()));
            s.strategy.parameters.extend(many);
        });
        assert_eq!(
            said,
            "spec.strategy.parameters has 1000 entries; give at most 32"
        );
        let said = with("n".repeat(100_000), "1".into());
        assert!(said.len() < 250 && said.contains("too long"), "{said}");
        let said = with("weights".into(), "1".repeat(100_000));
        assert!(
            said.len() < 250 && said.contains("`weights` is too long"),
            "{said}"
        );
        let said = with("weights".into(), "[".repeat(1000));
        assert!(said.contains("`weights` is nested too deep"), "{said}");
    }

    #[test]
    fn numbers_of_an_older_schema_are_checked_again() {
        let said = message(|s| s.objective.requests_per_second = 1e300);
        assert!(
            said.starts_with("spec.objective.requestsPerSecond must be"),
            "{said}"
        );
        let said = message(|s| s.inputs[0].shape = Dimension::sizes(&[-1, i64::MAX]));
        assert!(said.contains("a dimension is at most 2147483647"), "{said}");
        let said = message(|s| s.constraints.keep_on_entry = u32::MAX);
        assert!(
            said.starts_with("spec.constraints.keepOnEntry is 4294967295"),
            "{said}"
        );
    }

    #[test]
    fn fewer_bits_are_asked_for_within_bounds() {
        let asked = |dtype, max_error| {
            let mut spec = testing::model_spec();
            spec.activations = Some(lamina_crds::dnn_model::Activations { dtype, max_error });
            wish(&spec, &BTreeSet::new()).map(|w| w.activations)
        };
        let some = |dtype, max_error| Ok(Some(Activations { dtype, max_error }));
        assert_eq!(asked(ActivationType::Fp32, Some(0.1)), Ok(None));
        assert_eq!(
            asked(ActivationType::Int8, None),
            some(Some(WireType::Int8), None)
        );
        assert_eq!(asked(ActivationType::Auto, None), some(None, Some(0.01)));
        assert_eq!(
            asked(ActivationType::Auto, Some(0.5)),
            some(None, Some(0.5))
        );
        for bad in [0.0, -1.0, 1.5, f64::NAN, f64::INFINITY] {
            let said = asked(ActivationType::Fp16, Some(bad))
                .unwrap_err()
                .to_string();
            assert!(said.starts_with("spec.activations.maxError is"), "{said}");
        }
    }

    #[test]
    fn the_hash_names_source_inputs_arguments_and_samples_only() {
        let spec = testing::model_spec();
        let mut other = spec.clone();
        other.constraints.keep_on_entry = 1;
        assert_eq!(source_hash(&spec), source_hash(&other));
        other.inputs[0].shape = Dimension::sizes(&[-1, 9]);
        assert_ne!(source_hash(&spec), source_hash(&other));
        other = spec.clone();
        other.source.uri.push('2');
        assert_ne!(source_hash(&spec), source_hash(&other));
        let samples = |sha256: &str| lamina_crds::dnn_model::Samples {
            uri: "http://files/samples.safetensors".into(),
            sha256: sha256.repeat(64),
        };
        other = spec.clone();
        other.arguments.insert("sr".into(), "16000".into());
        assert_ne!(source_hash(&spec), source_hash(&other));
        let mut with = spec.clone();
        with.samples = Some(samples("a"));
        assert_ne!(source_hash(&spec), source_hash(&with));
        other = spec.clone();
        other.samples = Some(samples("b"));
        assert_ne!(source_hash(&with), source_hash(&other));
    }
}
