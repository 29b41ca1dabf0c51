//! The topology file: nodes and the links between them.

use crate::input::{self, Bounded, Limited};
use crate::mistake::{Found, Mistakes, Range, line_of};
use crate::units::{Kind, Scalar};
use lamina_placement::{Link, MAX_NODES, Node, Tier};
use serde::Deserialize;
use serde_saphyr::Spanned;
use std::collections::{BTreeMap, BTreeSet};

/// Most links in one file: every pair of the most nodes would be more than anyone writes.
const MAX_LINKS: usize = 1 << 20;

type Quantity = Spanned<Scalar>;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    nodes: Bounded<NodeEntry>,
    #[serde(default)]
    links: Bounded<LinkEntry>,
    #[serde(default)]
    tier_links: Vec<TierLinkEntry>,
    entry: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct NodeEntry {
    name: Spanned<String>,
    tier: Tier,
    speed: Option<Quantity>,
    gflops: Option<Quantity>,
    memory: Quantity,
    power: Option<Quantity>,
    price: Option<Quantity>,
    load: Option<Quantity>,
    cap: Option<Quantity>,
    concurrency: Option<u32>,
    excluded: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct LinkEntry {
    between: Option<[Spanned<String>; 2]>,
    from: Option<Spanned<String>>,
    to: Option<Spanned<String>>,
    latency: Quantity,
    bandwidth: Quantity,
    share: Option<Quantity>,
    energy: Option<Quantity>,
    price: Option<Quantity>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct TierLinkEntry {
    between: [Tier; 2],
    latency: Quantity,
    bandwidth: Quantity,
    share: Option<Quantity>,
    energy: Option<Quantity>,
    price: Option<Quantity>,
}

impl Limited for NodeEntry {
    const LIST: &'static str = "nodes";
    const MOST: usize = MAX_NODES;
}

impl Limited for LinkEntry {
    const LIST: &'static str = "links";
    const MOST: usize = MAX_LINKS;
}

/// How fast a node runs blocks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Speed {
    /// Relative to the host of the profile.
    Factor(f64),
    /// By the benchmark of the profile's `gflops`.
    Gflops(f64),
}

/// Nodes and links.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Topology {
    /// The nodes in the order of the file.
    pub nodes: Vec<Node>,
    /// Their speeds by name.
    pub speeds: BTreeMap<String, Speed>,
    /// Directed links by sender, then receiver.
    pub links: BTreeMap<String, BTreeMap<String, Link>>,
    /// Where requests arrive, if given.
    pub entry: Option<String>,
}

/// Reads a topology.
///
/// # Errors
/// All mistakes in it, with their lines.
pub(crate) fn parse(place: &str, text: &str) -> Result<Topology, Mistakes> {
    let file: File = input::yaml(place, text)?;
    let mut found = Found::default();
    if file.nodes.0.is_empty() {
        found.add(None, "nodes", "is empty; give at least one");
    }
    let mut topology = Topology::default();
    for (i, entry) in file.nodes.0.iter().enumerate() {
        read_node(i, entry, &mut topology, &mut found);
    }
    if let Some(entry) = &file.entry {
        if !topology.nodes.iter().any(|n| n.name == entry.value) {
            let reason = format!("there is no node `{}`", entry.value);
            found.add(line_of(entry), "entry", reason);
        }
        topology.entry = Some(entry.value.clone());
    }
    let tiers = read_tier_links(&file.tier_links, &mut found);
    read_links(&file.links.0, &mut topology, &mut found);
    fill(&mut topology, &tiers);
    found.into_result(place)?;
    Ok(topology)
}

fn read_node(i: usize, entry: &NodeEntry, topology: &mut Topology, found: &mut Found) {
    let name = &entry.name.value;
    let line = line_of(&entry.name);
    if name.is_empty() || topology.speeds.contains_key(name) {
        let field = format!("nodes[{i}].name");
        found.add(
            line,
            field,
            format!("`{name}` must be unique and not empty"),
        );
    }
    let at = |field: &str| format!("nodes[{name}].{field}");
    let mut node = Node::new(name.clone(), entry.tier, 0);
    if let Some(bytes) = found.bytes(|| at("memory"), &entry.memory) {
        node.memory_bytes = bytes;
    }
    let mut set = |field: &str, scalar: &Option<Quantity>, kind: Kind, value: &mut f64| {
        if let Some(scalar) = scalar
            && let Some(read) = found.quantity(|| at(field), scalar, kind, Range::AtLeastZero)
        {
            *value = read;
        }
    };
    set("power", &entry.power, Kind::Power, &mut node.active_watts);
    let price = &mut node.price_per_second;
    set("price", &entry.price, Kind::PricePerSecond, price);
    set("load", &entry.load, Kind::Share, &mut node.load_share);
    set("cap", &entry.cap, Kind::Share, &mut node.utilisation_cap);
    if node.load_share >= 1.0 {
        found.add(line, at("load"), "must be below 100%");
    }
    if !(node.utilisation_cap > 0.0 && node.utilisation_cap <= 1.0) {
        found.add(line, at("cap"), "must be above 0 and at most 100%");
    }
    node.concurrency = entry.concurrency.unwrap_or(1);
    if node.concurrency == 0 {
        found.add(line, at("concurrency"), "must be at least 1");
    }
    node.excluded.clone_from(&entry.excluded);
    let speed = match (&entry.speed, &entry.gflops) {
        (Some(speed), None) => found
            .quantity(|| at("speed"), speed, Kind::Number, Range::AboveZero)
            .map(Speed::Factor),
        (None, Some(gflops)) => found
            .quantity(|| at("gflops"), gflops, Kind::Number, Range::AboveZero)
            .map(Speed::Gflops),
        (Some(_), Some(_)) => {
            found.add(line, at("speed"), "give speed or gflops, not both");
            None
        }
        (None, None) => {
            let reason = "is needed: times as fast as the profile's host (or give gflops)";
            found.add(line, at("speed"), reason);
            None
        }
    };
    topology
        .speeds
        .insert(name.clone(), speed.unwrap_or(Speed::Factor(1.0)));
    topology.nodes.push(node);
}

/// The properties of a link, whatever it connects.
struct Figures<'a> {
    latency: &'a Quantity,
    bandwidth: &'a Quantity,
    share: &'a Option<Quantity>,
    energy: &'a Option<Quantity>,
    price: &'a Option<Quantity>,
}

impl Figures<'_> {
    fn read(&self, field: &str, found: &mut Found) -> Option<Link> {
        let at = |name: &str| format!("{field}.{name}");
        let zero = Range::AtLeastZero;
        let latency = found.quantity(|| at("latency"), self.latency, Kind::Time, zero);
        let bandwidth = found.quantity(
            || at("bandwidth"),
            self.bandwidth,
            Kind::Bandwidth,
            Range::AboveZero,
        );
        let mut link = Link::new(latency?, bandwidth?);
        let mut set = |name: &str, scalar: &Option<Quantity>, kind, value: &mut f64| {
            if let Some(scalar) = scalar
                && let Some(read) = found.quantity(|| at(name), scalar, kind, zero)
            {
                *value = read;
            }
        };
        set("share", self.share, Kind::Share, &mut link.share);
        set(
            "energy",
            self.energy,
            Kind::Energy,
            &mut link.joules_per_byte,
        );
        set(
            "price",
            self.price,
            Kind::PricePerByte,
            &mut link.price_per_byte,
        );
        if !(link.share > 0.0 && link.share <= 1.0) {
            let line = self.share.as_ref().and_then(line_of);
            found.add(line, at("share"), "must be above 0 and at most 100%");
        }
        Some(link)
    }
}

fn read_links(entries: &[LinkEntry], topology: &mut Topology, found: &mut Found) {
    for (i, entry) in entries.iter().enumerate() {
        let field = format!("links[{i}]");
        let ends = match (&entry.between, &entry.from, &entry.to) {
            (Some([a, b]), None, None) => Some((a, b, true)),
            (None, Some(from), Some(to)) => Some((from, to, false)),
            _ => {
                let reason = "give `between: [A, B]` for both directions, or `from` and `to`";
                found.add(line_of(&entry.latency), &field, reason);
                None
            }
        };
        let figures = Figures {
            latency: &entry.latency,
            bandwidth: &entry.bandwidth,
            share: &entry.share,
            energy: &entry.energy,
            price: &entry.price,
        };
        let link = figures.read(&field, found);
        let Some((a, b, both)) = ends else {
            continue;
        };
        let mut known = true;
        for end in [a, b] {
            if !topology.speeds.contains_key(&end.value) {
                let reason = format!("there is no node `{}`", end.value);
                found.add(line_of(end), &field, reason);
                known = false;
            }
        }
        if a.value == b.value {
            let reason = format!("`{}` needs no link to itself; leave it out", a.value);
            found.add(line_of(a), &field, reason);
            known = false;
        }
        let Some(link) = link.filter(|_| known) else {
            continue;
        };
        let mut set = |from: &str, to: &str| {
            let row = topology.links.entry(from.to_owned()).or_default();
            if row.insert(to.to_owned(), link).is_some() {
                let reason = format!("the link from {from} to {to} is there twice");
                found.add(line_of(a), &field, reason);
            }
        };
        set(&a.value, &b.value);
        if both {
            set(&b.value, &a.value);
        }
    }
}

fn read_tier_links(entries: &[TierLinkEntry], found: &mut Found) -> BTreeMap<(Tier, Tier), Link> {
    let mut links = BTreeMap::new();
    for (i, entry) in entries.iter().enumerate() {
        let field = format!("tierLinks[{i}]");
        let figures = Figures {
            latency: &entry.latency,
            bandwidth: &entry.bandwidth,
            share: &entry.share,
            energy: &entry.energy,
            price: &entry.price,
        };
        let Some(link) = figures.read(&field, found) else {
            continue;
        };
        let [a, b] = entry.between;
        let pairs = BTreeSet::from([(a, b), (b, a)]);
        if pairs.iter().any(|p| links.contains_key(p)) {
            let reason = format!("the links between {a} and {b} are there twice");
            found.add(line_of(&entry.latency), &field, reason);
        }
        links.extend(pairs.into_iter().map(|p| (p, link)));
    }
    links
}

/// Gives every pair without its own link that of its tiers.
fn fill(topology: &mut Topology, tiers: &BTreeMap<(Tier, Tier), Link>) {
    if tiers.is_empty() {
        return;
    }
    for from in &topology.nodes {
        let row = topology.links.entry(from.name.clone()).or_default();
        for to in topology.nodes.iter().filter(|to| to.name != from.name) {
            if let Some(link) = tiers.get(&(from.tier, to.tier)) {
                row.entry(to.name.clone()).or_insert(*link);
            }
        }
    }
}
