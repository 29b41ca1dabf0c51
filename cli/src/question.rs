//! Combines files and options into one problem.

use crate::args::{Bits, PlanArgs};
use crate::input;
use crate::mistake::{Mistake, Mistakes};
use crate::profile::{self, Exits, Profile};
use crate::topology::{self, Topology};
use crate::units::{self, Kind};
use lamina_model::WireType;
use lamina_placement::{
    BlockOnNode, Constraints, Node, Objective, Problem, Tier, Workload, strategy_names, validate,
};
use lamina_profile::{AUTO_MAX_ERROR, Activations, Crossing, crossing, encode};
use std::fmt;
use std::path::Path;
use std::time::Duration;

const OPTIONS: &str = "the options";

/// All mistakes in the arguments, by place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal(pub Vec<Mistakes>);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, mistakes) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            mistakes.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Refusal {}

impl From<Mistakes> for Refusal {
    fn from(mistakes: Mistakes) -> Self {
        Self(vec![mistakes])
    }
}

/// The planning problem and its options.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// The problem, validated.
    pub problem: Problem,
    /// Strategies to ask, in the library's order.
    pub strategies: Vec<String>,
    /// Time of each of them.
    pub deadline: Duration,
    /// Seed of everything random.
    pub seed: u64,
    /// The crossing into each block, if values are not all sent unchanged.
    pub crossings: Vec<Crossing>,
    /// Names of the library's fields in the input.
    pub names: &'static [(&'static str, &'static str)],
}

/// The library's fields, by the options and topology fields that set them.
const NAMES: [(&str, &str); 4] = [
    ("constraints.latencyLimitSeconds", "--slo"),
    ("ratePerSecond", "--rate"),
    ("activeWatts", "power"),
    ("joulesPerByte", "energy"),
];

/// Reads all files and options.
///
/// # Errors
/// All mistakes in them.
pub fn read(args: &PlanArgs) -> Result<Question, Refusal> {
    let mut options = Options::default();
    let wishes = wishes(args, &mut options);
    let files = match (&args.profile, &args.topology, &args.problem) {
        (Some(profile), Some(topology), _) => from_files(args, profile, topology, &mut options),
        (_, _, Some(problem)) => from_problem(problem).map(|(p, at)| (p, at, Vec::new())),
        _ => Err(Mistakes::whole(OPTIONS, "give --profile and --topology, or --problem").into()),
    };
    let (mut problem, places, crossings) = match (files, options.found.is_empty()) {
        (Ok((problem, places, crossings)), true) => (problem, places, crossings),
        (Ok(_), false) => return Err(Refusal(options.mistakes())),
        (Err(mut refusal), _) => {
            refusal.0.extend(options.mistakes());
            return Err(refusal);
        }
    };
    apply(args, &wishes, &mut problem)?;
    check(&problem, &places, args)?;
    Ok(Question {
        problem,
        strategies: wishes.strategies,
        deadline: wishes.deadline,
        seed: args.seed,
        crossings,
        names: if args.problem.is_some() { &[] } else { &NAMES },
    })
}

/// Mistakes in the options.
#[derive(Default)]
struct Options {
    found: Vec<Mistake>,
}

impl Options {
    fn add(&mut self, field: impl Into<String>, reason: impl Into<String>) {
        self.found.push(Mistake {
            line: None,
            field: field.into(),
            reason: reason.into(),
        });
    }

    fn quantity(&mut self, option: &str, text: Option<&String>, kind: Kind) -> Option<f64> {
        let text = text?;
        match units::parse(text, kind) {
            Ok(value) if value.is_finite() && value >= 0.0 => Some(value),
            Ok(_) => {
                self.add(option, format!("{text} is not a number of at least zero"));
                None
            }
            Err(error) => {
                self.add(option, error.to_string());
                None
            }
        }
    }

    fn mistakes(self) -> Vec<Mistakes> {
        if self.found.is_empty() {
            return Vec::new();
        }
        vec![Mistakes {
            place: OPTIONS.to_owned(),
            found: self.found,
        }]
    }
}

/// The options with the same meaning for both kinds of files.
struct Wishes {
    rate: Option<f64>,
    slo: Option<f64>,
    min_accuracy: Option<f64>,
    /// Blocks from first to last, and the node.
    pins: Vec<(usize, usize, String)>,
    strategies: Vec<String>,
    deadline: Duration,
}

fn wishes(args: &PlanArgs, options: &mut Options) -> Wishes {
    let pins = args.pin.iter().filter_map(|text| {
        let pin = parse_pin(text);
        if pin.is_none() {
            let reason = "is no pin; write a block or blocks and a node: 3=edge-1, 0-14=cam-1";
            options.add(format!("--pin {text}"), reason);
        }
        pin
    });
    let pins = pins.collect();
    let known = strategy_names();
    for name in &args.strategy {
        if !known.contains(&name.as_str()) {
            let reason = format!("is no strategy; there are {}", known.join(", "));
            options.add(format!("--strategy {name}"), reason);
        }
    }
    let wanted = |name: &&str| args.strategy.is_empty() || args.strategy.iter().any(|s| s == name);
    let deadline = options.quantity("--deadline", Some(&args.deadline), Kind::Time);
    Wishes {
        rate: options.quantity("--rate", args.rate.as_ref(), Kind::Rate),
        slo: options.quantity("--slo", args.slo.as_ref(), Kind::Time),
        min_accuracy: options.quantity("--min-accuracy", args.min_accuracy.as_ref(), Kind::Share),
        pins,
        strategies: known
            .into_iter()
            .filter(wanted)
            .map(str::to_owned)
            .collect(),
        // Longer than anyone waits is as good as forever.
        deadline: Duration::try_from_secs_f64(deadline.unwrap_or(0.0)).unwrap_or(Duration::MAX),
    }
}

/// `3=edge-1` or `0-14=cam-1`.
fn parse_pin(text: &str) -> Option<(usize, usize, String)> {
    let (blocks, node) = text.split_once('=')?;
    let (first, last) = blocks.split_once('-').unwrap_or((blocks, blocks));
    let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    (first <= last && !node.is_empty()).then(|| (first, last, node.to_owned()))
}

/// The file that a field of the problem comes from.
struct Places {
    model: String,
    world: String,
}

fn from_files(
    args: &PlanArgs,
    profile: &Path,
    topology: &Path,
    options: &mut Options,
) -> Result<(Problem, Places, Vec<Crossing>), Refusal> {
    let places = Places {
        model: profile.display().to_string(),
        world: topology.display().to_string(),
    };
    let mut wrong = Vec::new();
    let mut keep = |mistakes| wrong.push(mistakes);
    let model = input::read(profile).and_then(|text| profile::parse(&places.model, &text));
    let model = model.map_err(&mut keep).ok();
    let world = input::read(topology).and_then(|text| topology::parse(&places.world, &text));
    let world = world.map_err(&mut keep).ok();
    let exits = args.exits.as_deref().and_then(|path| {
        let place = path.display().to_string();
        let exits = input::read(path).and_then(|text| profile::parse_exits(&place, &text));
        exits.map_err(&mut keep).ok()
    });
    let (Some(model), Some(world)) = (model, world) else {
        return Err(Refusal(wrong));
    };
    let entry = entry(args, &world, options);
    let asked = activations(args, options);
    if !wrong.is_empty() || !options.found.is_empty() {
        return Err(Refusal(wrong));
    }
    let name = name_of(&model, profile);
    let mut workload = model.workload(&places.model, &name, &entry, &world)?;
    if let Some(exits) = exits {
        if !workload.exits.is_empty() {
            let reason = "has exits already; leave --exits out";
            return Err(Mistakes::whole(&places.model, reason).into());
        }
        add_exits(&mut workload, exits);
    }
    let crossings = match asked {
        Some(asked) => encoded(&model, &places.model, &asked, &mut workload)?,
        None => Vec::new(),
    };
    let problem = Problem {
        nodes: world.nodes,
        links: world.links,
        workloads: vec![workload],
        ..Problem::default()
    };
    Ok((problem, places, crossings))
}

/// The requested encoding of values between nodes, if not unchanged.
fn activations(args: &PlanArgs, options: &mut Options) -> Option<Activations> {
    let most = options.quantity("--max-error", args.max_error.as_ref(), Kind::Share);
    let (dtype, default) = match args.activations? {
        Bits::Fp32 => return None,
        Bits::Fp16 => (Some(WireType::Fp16), None),
        Bits::Bf16 => (Some(WireType::Bf16), None),
        Bits::Int8 => (Some(WireType::Int8), None),
        Bits::Auto => (None, Some(AUTO_MAX_ERROR)),
    };
    Some(Activations {
        dtype,
        max_error: most.or(default),
    })
}

/// The crossing into each block of `model`, and `workload` with their bytes.
fn encoded(
    model: &Profile,
    place: &str,
    asked: &Activations,
    workload: &mut Workload,
) -> Result<Vec<Crossing>, Refusal> {
    let Profile::Prepared(manifest) = model else {
        let reason = "says nothing of what fewer bits change; --activations needs what `lamina-node-agent prepare --json` printed";
        return Err(Mistakes::whole(place, reason).into());
    };
    let blocks = 0..manifest.blocks.len();
    let crossings: Vec<Crossing> = blocks
        .map(|b| crossing(manifest, b, asked, |_| true))
        .collect();
    encode(workload, manifest, &crossings);
    Ok(crossings)
}

fn add_exits(workload: &mut Workload, exits: Exits) {
    workload.exits = exits.exits;
    workload.final_accuracy = exits.final_accuracy;
}

/// The profile's own name, else its file's.
fn name_of(profile: &Profile, path: &Path) -> String {
    let stem = || path.file_stem().and_then(|s| s.to_str()).map(str::to_owned);
    let name = profile.name().map(str::to_owned).or_else(stem);
    name.filter(|n| !n.is_empty())
        .unwrap_or_else(|| "model".to_owned())
}

/// The node where requests arrive; empty, with a mistake, if unknown.
fn entry(args: &PlanArgs, topology: &Topology, options: &mut Options) -> String {
    let names = || -> Vec<&str> { topology.nodes.iter().map(|n| n.name.as_str()).collect() };
    if let Some(entry) = &args.entry {
        if !topology.nodes.iter().any(|n| n.name == *entry) {
            let reason = format!("is no node of the topology; it has {}", listed(&names()));
            options.add(format!("--entry {entry}"), reason);
        }
        return entry.clone();
    }
    if let Some(entry) = &topology.entry {
        return entry.clone();
    }
    let device = |n: &&Node| n.tier == Tier::Device;
    let mut devices = topology.nodes.iter().filter(device);
    match (devices.next(), devices.next()) {
        (Some(only), None) => only.name.clone(),
        _ => {
            let reason = "is needed: the node where requests arise (or `entry:` in the topology)";
            options.add("--entry", format!("{reason}; one of {}", listed(&names())));
            String::new()
        }
    }
}

/// Names in a sentence, up to a limit.
fn listed(names: &[&str]) -> String {
    const MOST: usize = 8;
    let shown = names
        .iter()
        .take(MOST)
        .copied()
        .collect::<Vec<_>>()
        .join(", ");
    match names.len().saturating_sub(MOST) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

fn from_problem(path: &Path) -> Result<(Problem, Places), Refusal> {
    let place = path.display().to_string();
    let text = input::read(path)?;
    let problem = if text.trim_start().starts_with('{') {
        input::json(&place, &text)?
    } else {
        input::yaml(&place, &text)?
    };
    let places = Places {
        model: place.clone(),
        world: place,
    };
    Ok((problem, places))
}

fn apply(args: &PlanArgs, wishes: &Wishes, problem: &mut Problem) -> Result<(), Refusal> {
    if let Some(goal) = args.objective {
        problem.objective = Objective::from(goal);
    }
    let asks = args.entry.is_some()
        || wishes.rate.is_some()
        || wishes.slo.is_some()
        || wishes.min_accuracy.is_some()
        || args.entry_blocks.is_some()
        || !wishes.pins.is_empty();
    let workloads = problem.workloads.len();
    let [workload] = problem.workloads.as_mut_slice() else {
        if asks {
            let reason = format!(
                "--entry, --rate, --slo, --pin, --entry-blocks and --min-accuracy are for one workload, the problem has {workloads}; write them into its file"
            );
            return Err(Mistakes::whole(OPTIONS, reason).into());
        }
        return Ok(());
    };
    if let Some(entry) = &args.entry {
        workload.entry.clone_from(entry);
    }
    if let Some(rate) = wishes.rate {
        workload.rate_per_second = rate;
    }
    let blocks = workload.blocks.len();
    let constraints = &mut workload.constraints;
    constraints.latency_limit_seconds = wishes.slo.or(constraints.latency_limit_seconds);
    constraints.min_accuracy = wishes.min_accuracy.or(constraints.min_accuracy);
    if let Some(count) = args.entry_blocks {
        constraints.keep_first_on_entry = count;
    }
    add_pins(&wishes.pins, blocks, constraints)
}

fn add_pins(
    pins: &[(usize, usize, String)],
    blocks: usize,
    constraints: &mut Constraints,
) -> Result<(), Refusal> {
    let mut options = Options::default();
    for (first, last, node) in pins {
        if *last >= blocks {
            let reason = format!("there is no block {last}; the model has {blocks}, from 0 on");
            let blocks = if first == last {
                first.to_string()
            } else {
                format!("{first}-{last}")
            };
            options.add(format!("--pin {blocks}={node}"), reason);
            continue;
        }
        let pin = |block| BlockOnNode {
            block,
            node: node.clone(),
        };
        constraints.pins.extend((*first..=*last).map(pin));
    }
    match options.mistakes() {
        wrong if wrong.is_empty() => Ok(()),
        wrong => Err(Refusal(wrong)),
    }
}

/// The library's errors about the problem, attributed to their file or option.
fn check(problem: &Problem, places: &Places, args: &PlanArgs) -> Result<(), Refusal> {
    let Err(errors) = validate(problem) else {
        return Ok(());
    };
    let mut refusal = Refusal(Vec::new());
    for error in errors.0 {
        let (place, field) = origin(&error.field, places, args);
        let mistake = Mistake {
            line: None,
            field,
            reason: error.reason,
        };
        match refusal.0.iter_mut().find(|m| m.place == place) {
            Some(mistakes) => mistakes.found.push(mistake),
            None => refusal.0.push(Mistakes {
                place,
                found: vec![mistake],
            }),
        }
    }
    Err(refusal)
}

/// Where a field of the problem comes from, and its name there.
fn origin(field: &str, places: &Places, args: &PlanArgs) -> (String, String) {
    let option = |name: &str| (OPTIONS.to_owned(), name.to_owned());
    let Some(rest) = field.strip_prefix("workloads[") else {
        let is_option = field.starts_with("objective") && args.objective.is_some();
        let place = if is_option { OPTIONS } else { &places.world };
        return (place.to_owned(), field.to_owned());
    };
    let own = rest.split_once("].").map_or(rest, |(_, own)| own);
    let asked = [
        ("entry", args.entry.is_some(), "--entry"),
        ("constraints.pins", !args.pin.is_empty(), "--pin"),
        (
            "constraints.keepFirstOnEntry",
            args.entry_blocks.is_some(),
            "--entry-blocks",
        ),
        (
            "constraints.minAccuracy",
            args.problem.is_none(),
            "--min-accuracy",
        ),
    ];
    if let Some((_, _, name)) = asked
        .iter()
        .find(|(f, given, _)| *given && own.starts_with(f))
    {
        return option(name);
    }
    let shown = if args.problem.is_some() { field } else { own };
    (places.model.clone(), shown.to_owned())
}
