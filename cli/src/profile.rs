//! The profile: a model's blocks and their costs. Either the manifest of `lamina-node-agent
//! prepare`, or a file written by a user.

use crate::input::{self, Bounded, Limited};
use crate::mistake::{Found, Mistakes, Range, line_of};
use crate::topology::{Speed, Topology};
use crate::units::{Kind, Scalar};
use lamina_model::Manifest;
use lamina_placement::{
    Block, BlockCost, Constraints, Exit, ExitPoint, MAX_BLOCKS, Value, Workload,
};
use serde::Deserialize;
use serde_saphyr::Spanned;
use std::collections::BTreeMap;

type Quantity = Spanned<Scalar>;

const OPERATIONS_PER_GFLOP: f64 = 1e9;
/// Name of the input of a profile that gives only its size.
const INPUT: &str = "input";

/// A model's blocks with their costs.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Profile {
    /// Made by `prepare`.
    Prepared(Box<Manifest>),
    /// Written by hand or by a script.
    Written(Written),
}

/// A profile written by a user.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Written {
    name: Option<String>,
    gflops: Option<f64>,
    values: Vec<Value>,
    outputs: Vec<String>,
    blocks: Vec<WrittenBlock>,
    exits: Exits,
}

#[derive(Debug, Clone, PartialEq)]
struct WrittenBlock {
    inputs: Vec<String>,
    outputs: Vec<String>,
    weight_bytes: u64,
    activation_bytes: u64,
    work: Work,
    penalty_seconds: f64,
    /// Measured on a node itself.
    times: BTreeMap<String, f64>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Work {
    /// On the host of the profile.
    Seconds(f64),
    Operations(f64),
    /// Only the node's own times count.
    Unknown,
}

/// The exits of a model.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Exits {
    /// Accuracy of a request that runs to the end.
    pub final_accuracy: Option<f64>,
    /// In order of their blocks.
    pub exits: Vec<Exit>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    name: Option<String>,
    gflops: Option<Quantity>,
    input: Option<Quantity>,
    #[serde(default)]
    inputs: Vec<ValueEntry>,
    outputs: Option<Vec<String>>,
    blocks: Bounded<BlockEntry>,
    accuracy: Option<Quantity>,
    #[serde(default)]
    exits: Vec<ExitEntry>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ValueEntry {
    name: String,
    bytes: Quantity,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct BlockEntry {
    inputs: Option<Vec<String>>,
    output: Option<Quantity>,
    #[serde(default)]
    outputs: Vec<ValueEntry>,
    time: Option<Quantity>,
    flops: Option<Quantity>,
    #[serde(default)]
    times: BTreeMap<String, Quantity>,
    weights: Quantity,
    activations: Option<Quantity>,
    cut_penalty: Option<Quantity>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ExitEntry {
    after_block: usize,
    reply: Quantity,
    table: Vec<ExitRow>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ExitRow {
    threshold: Quantity,
    rate: Quantity,
    accuracy: Quantity,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ExitsFile {
    accuracy: Option<Quantity>,
    exits: Vec<ExitEntry>,
}

impl Limited for BlockEntry {
    const LIST: &'static str = "blocks";
    const MOST: usize = MAX_BLOCKS;
}

/// Reads a profile: a manifest, the lines that `prepare --json` prints, or a
/// profile file.
///
/// # Errors
/// All mistakes in it, with their lines.
pub(crate) fn parse(place: &str, text: &str) -> Result<Profile, Mistakes> {
    match manifest_in(text) {
        Some(json) => prepared(place, json),
        None => written(place, text).map(Profile::Written),
    }
}

/// The manifest's text, if there is one.
fn manifest_in(text: &str) -> Option<&str> {
    const LINE: &str = "{\"manifest\":";
    let last = text.lines().rev().find(|l| !l.trim().is_empty())?.trim();
    if let Some(rest) = last.strip_prefix(LINE) {
        return rest.strip_suffix('}');
    }
    let is_manifest = text.trim_start().starts_with('{') && text.contains("\"preparedGflops\"");
    is_manifest.then_some(text)
}

fn prepared(place: &str, text: &str) -> Result<Profile, Mistakes> {
    let manifest: Manifest = input::json(place, text)?;
    manifest
        .validate()
        .map_err(|e| Mistakes::whole(place, e.to_string()))?;
    if manifest.blocks.len() > MAX_BLOCKS {
        let reason = format!("{} blocks, at most {MAX_BLOCKS}", manifest.blocks.len());
        return Err(Mistakes::whole(place, reason));
    }
    Ok(Profile::Prepared(Box::new(manifest)))
}

fn written(place: &str, text: &str) -> Result<Written, Mistakes> {
    let file: File = input::yaml(place, text)?;
    let mut found = Found::default();
    if file.blocks.0.is_empty() {
        found.add(None, "blocks", "is empty; give at least one");
    }
    let gflops = file
        .gflops
        .as_ref()
        .and_then(|g| found.quantity(|| "gflops".into(), g, Kind::Number, Range::AboveZero));
    let mut values = inputs(&file, &mut found);
    let mut before: Vec<String> = values.iter().map(|v| v.name.clone()).collect();
    let mut blocks = Vec::new();
    for (b, entry) in file.blocks.0.iter().enumerate() {
        let block = read_block(b, entry, &before, &mut values, &mut found);
        before.clone_from(&block.outputs);
        blocks.push(block);
    }
    let outputs = file.outputs.unwrap_or(before);
    let exits = read_exits(file.accuracy.as_ref(), &file.exits, &mut found);
    found.into_result(place)?;
    Ok(Written {
        name: file.name,
        gflops,
        values,
        outputs,
        blocks,
        exits,
    })
}

fn inputs(file: &File, found: &mut Found) -> Vec<Value> {
    let sized = file.input.iter().map(|bytes| (INPUT, bytes));
    let named = file.inputs.iter().map(|v| (v.name.as_str(), &v.bytes));
    let values: Vec<Value> = sized
        .chain(named)
        .map(|(name, bytes)| Value {
            name: name.to_owned(),
            bytes: found
                .bytes(|| format!("inputs[{name}].bytes"), bytes)
                .unwrap_or(0),
        })
        .collect();
    if values.is_empty() {
        let reason = "is needed: the size of what a request carries, such as 147KiB";
        found.add(None, "input", reason);
    }
    values
}

fn read_block(
    b: usize,
    entry: &BlockEntry,
    before: &[String],
    values: &mut Vec<Value>,
    found: &mut Found,
) -> WrittenBlock {
    let at = |field: &str| format!("blocks[{b}].{field}");
    let line = line_of(&entry.weights);
    let own = format!("block{b}");
    let sized = entry.output.iter().map(|bytes| (own.as_str(), bytes));
    let named = entry.outputs.iter().map(|v| (v.name.as_str(), &v.bytes));
    let given: Vec<Value> = sized
        .chain(named)
        .map(|(name, bytes)| Value {
            name: name.to_owned(),
            bytes: found.bytes(|| at("output"), bytes).unwrap_or(0),
        })
        .collect();
    if given.is_empty() {
        found.add(line, at("output"), "is needed: the size of what it gives");
    }
    let zero = Range::AtLeastZero;
    let time = entry.time.as_ref();
    let seconds = time.map(|t| found.quantity(|| at("time"), t, Kind::Time, zero));
    let flops = entry.flops.as_ref();
    let operations = flops.map(|f| found.quantity(|| at("flops"), f, Kind::Operations, zero));
    let times: BTreeMap<String, f64> = entry
        .times
        .iter()
        .filter_map(|(node, t)| {
            let field = || at(&format!("times[{node}]"));
            let seconds = found.quantity(field, t, Kind::Time, zero)?;
            Some((node.clone(), seconds))
        })
        .collect();
    if time.is_none() && flops.is_none() && entry.times.is_empty() {
        let reason = "is needed (or flops, or times by node)";
        found.add(line, at("time"), reason);
    }
    let work = match (seconds.flatten(), operations.flatten()) {
        (Some(seconds), _) => Work::Seconds(seconds),
        (None, Some(operations)) => Work::Operations(operations),
        (None, None) => Work::Unknown,
    };
    let penalty = entry
        .cut_penalty
        .as_ref()
        .and_then(|p| found.quantity(|| at("cutPenalty"), p, Kind::Time, zero));
    let activations = entry.activations.as_ref();
    let block = WrittenBlock {
        inputs: entry.inputs.clone().unwrap_or_else(|| before.to_vec()),
        outputs: given.iter().map(|v| v.name.clone()).collect(),
        weight_bytes: found.bytes(|| at("weights"), &entry.weights).unwrap_or(0),
        activation_bytes: activations
            .and_then(|a| found.bytes(|| at("activations"), a))
            .unwrap_or(0),
        work,
        penalty_seconds: penalty.unwrap_or(0.0),
        times,
    };
    values.extend(given);
    block
}

/// Reads a file of exits for a model whose profile has none.
///
/// # Errors
/// All mistakes in it, with their lines.
pub(crate) fn parse_exits(place: &str, text: &str) -> Result<Exits, Mistakes> {
    let file: ExitsFile = input::yaml(place, text)?;
    let mut found = Found::default();
    let exits = read_exits(file.accuracy.as_ref(), &file.exits, &mut found);
    found.into_result(place)?;
    Ok(exits)
}

fn read_exits(accuracy: Option<&Quantity>, entries: &[ExitEntry], found: &mut Found) -> Exits {
    let mut number = |field: String, scalar: &Quantity, kind| {
        found
            .quantity(|| field.clone(), scalar, kind, Range::AtLeastZero)
            .unwrap_or(0.0)
    };
    let final_accuracy = accuracy.map(|a| number("accuracy".into(), a, Kind::Share));
    let exits = entries.iter().enumerate().map(|(e, entry)| {
        let mut rows = Vec::new();
        for (r, row) in entry.table.iter().enumerate() {
            let at = |field: &str| format!("exits[{e}].table[{r}].{field}");
            rows.push(ExitPoint {
                threshold: number(at("threshold"), &row.threshold, Kind::Number),
                rate: number(at("rate"), &row.rate, Kind::Share),
                accuracy: number(at("accuracy"), &row.accuracy, Kind::Share),
            });
        }
        let reply = number(format!("exits[{e}].reply"), &entry.reply, Kind::Size);
        Exit {
            after_block: entry.after_block,
            reply_bytes: reply.round() as u64,
            table: rows,
        }
    });
    Exits {
        exits: exits.collect(),
        final_accuracy,
    }
}

impl Profile {
    /// The model's name, if the profile has one.
    pub(crate) fn name(&self) -> Option<&str> {
        match self {
            Self::Prepared(_) => None,
            Self::Written(written) => written.name.as_deref(),
        }
    }

    /// The workload on the nodes of a topology, without rate and constraints.
    ///
    /// # Errors
    /// Nodes in the profile that the topology lacks, and speeds that cannot be
    /// compared.
    pub(crate) fn workload(
        &self,
        place: &str,
        name: &str,
        entry: &str,
        topology: &Topology,
    ) -> Result<Workload, Mistakes> {
        match self {
            Self::Prepared(manifest) => {
                let mut found = Found::default();
                let known = (manifest.prepared_gflops > 0.0).then_some(manifest.prepared_gflops);
                let factors = factors(known, topology, &mut found);
                found.into_result(place)?;
                Ok(lamina_profile::workload(manifest, name, entry, &factors))
            }
            Self::Written(written) => written.workload(place, name, entry, topology),
        }
    }
}

/// Factors on the times of a profile, measured at `gflops`, for each node.
fn factors(gflops: Option<f64>, topology: &Topology, found: &mut Found) -> BTreeMap<String, f64> {
    let mut factors = BTreeMap::new();
    let mut missing = 0;
    for (node, speed) in &topology.speeds {
        let factor = match (speed, gflops) {
            (Speed::Factor(factor), _) => factor.recip(),
            (Speed::Gflops(there), Some(here)) => here / there,
            (Speed::Gflops(_), None) => {
                missing += 1;
                continue;
            }
        };
        factors.insert(node.clone(), factor);
    }
    if missing > 0 {
        let reason = format!(
            "is needed, because this profile has times and the topology gives gflops (nodes: {missing}); or give these nodes a speed"
        );
        found.add(None, "gflops", reason);
    }
    factors
}

impl Written {
    fn workload(
        &self,
        place: &str,
        name: &str,
        entry: &str,
        topology: &Topology,
    ) -> Result<Workload, Mistakes> {
        let mut found = Found::default();
        let timed =
            |b: &WrittenBlock| matches!(b.work, Work::Seconds(_)) || b.penalty_seconds > 0.0;
        let has_times = self.blocks.iter().any(timed);
        // Operation counts can be compared without a reference host.
        let gflops = self.gflops.or((!has_times).then_some(1.0));
        let relative = |s: &Speed| matches!(s, Speed::Factor(_));
        let has_operations = self
            .blocks
            .iter()
            .any(|b| matches!(b.work, Work::Operations(_)));
        if self.gflops.is_none() && has_operations && topology.speeds.values().any(relative) {
            let reason = "is needed, because blocks have flops and nodes a relative speed; or give the nodes gflops";
            found.add(None, "gflops", reason);
        }
        let factors = factors(gflops, topology, &mut found);
        let blocks = self.blocks.iter().enumerate().map(|(b, block)| {
            for node in block.times.keys() {
                if !topology.speeds.contains_key(node) {
                    let reason = format!("there is no node `{node}` in the topology");
                    found.add(None, format!("blocks[{b}].times"), reason);
                }
            }
            block.to_place(gflops.unwrap_or(1.0), &factors)
        });
        let blocks = blocks.collect();
        found.into_result(place)?;
        Ok(Workload {
            name: name.to_owned(),
            entry: entry.to_owned(),
            rate_per_second: 0.0,
            weight: 1.0,
            values: self.values.clone(),
            blocks,
            outputs: self.outputs.clone(),
            final_accuracy: self.exits.final_accuracy,
            exits: self.exits.exits.clone(),
            constraints: Constraints::default(),
            previous: None,
        })
    }
}

impl WrittenBlock {
    fn to_place(&self, gflops: f64, factors: &BTreeMap<String, f64>) -> Block {
        let here = match self.work {
            Work::Seconds(seconds) => Some(seconds),
            Work::Operations(count) => Some(count / (gflops * OPERATIONS_PER_GFLOP)),
            Work::Unknown => None,
        };
        let mut costs: BTreeMap<String, BlockCost> = BTreeMap::new();
        for (node, factor) in factors {
            let own = self.times.get(node).copied();
            if let Some(seconds) = own.or(here.map(|s| s * factor)) {
                let cost = BlockCost {
                    seconds,
                    cut_penalty_seconds: self.penalty_seconds * factor,
                };
                costs.insert(node.clone(), cost);
            }
        }
        Block {
            inputs: self.inputs.clone(),
            outputs: self.outputs.clone(),
            memory_bytes: self.weight_bytes.saturating_add(self.activation_bytes),
            slice_bytes: self.weight_bytes,
            costs,
        }
    }
}
