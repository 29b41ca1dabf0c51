//! Thresholds that a strategy may choose at each exit, from what was measured when the model
//! was exported.
//!
//! The table of an exit says how many of all requests it would be confident about by itself,
//! and how many of those are right. A strategy needs these for the requests that reach the
//! exit: the requests that leave at earlier exits, under the thresholds in force, are
//! subtracted, since a request that is confident early is confident later too. If a strategy
//! also changes the thresholds of earlier exits, that is an estimate, which the rates counted
//! at entries replace once the plan serves.
//!
//! The more requests leave early, the harder are those that run to the end, and the fewer of
//! them are right. A strategy knows one accuracy for the end, that of the network without
//! exits, so the loss at the end is charged to the exits at which the easy ones leave.

use lamina_model::{Exit, ExitCriterion, ExitExpectation, Manifest};
use lamina_placement as placement;
use placement::ExitPoint;

/// Most combinations of thresholds given to a strategy: some try each.
const MOST_COMBINATIONS: f64 = 256.0;
/// Most thresholds of one exit.
const MOST_ROWS: f64 = 32.0;
/// Thresholds closer than this are equal.
const SAME: f64 = 1e-9;
/// A smaller share of requests says nothing about their accuracy.
const FEW: f64 = 1e-6;

/// The side exits of a workload, with the thresholds from which a strategy chooses.
#[derive(Debug, Clone, PartialEq)]
pub struct Choices {
    /// In order of their blocks. The first row of each table is the one in force.
    pub exits: Vec<placement::Exit>,
    /// Accuracy, in `0..=1`, of requests that run to the end.
    pub final_accuracy: f64,
}

/// The threshold in force at an exit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct InForce {
    /// `None` if no request leaves.
    pub threshold: Option<f64>,
    /// No strategy may change it.
    pub is_fixed: bool,
}

/// The names of the exits whose thresholds a strategy chooses, in the order of [`Choices::exits`].
/// Of several exits of one block the first is chosen, the others stay as they are.
pub fn choosable(manifest: &Manifest) -> Vec<&str> {
    counted(manifest).map(|exit| exit.name.as_str()).collect()
}

/// Side exits that count: the first of each block except the last block's.
fn counted(manifest: &Manifest) -> impl Iterator<Item = &Exit> {
    let end = manifest.exits.len().saturating_sub(1);
    let side = manifest.exits.get(..end).unwrap_or_default();
    let mut before: Option<u32> = None;
    side.iter().filter(move |exit| {
        let block = usize::try_from(exit.block).unwrap_or(usize::MAX);
        let counts = block.saturating_add(1) < manifest.blocks.len()
            && before.is_none_or(|before| before < exit.block);
        if counts {
            before = Some(exit.block);
        }
        counts
    })
}

/// Whether the file of `manifest` has the data for choosing by accuracy.
pub fn can_choose(manifest: &Manifest) -> bool {
    let mut counted = counted(manifest).peekable();
    let is_measured = manifest.exits.last().is_some_and(|e| e.expected.is_some());
    is_measured && counted.peek().is_some() && counted.all(|exit| !exit.table.is_empty())
}

/// The choices at the exits of `manifest`, at which `shares` of all requests leave now. `None` if
/// [`can_choose`] is false.
pub fn choices(
    manifest: &Manifest,
    shares: &[f64],
    in_force: impl Fn(&Exit) -> InForce,
) -> Option<Choices> {
    if !can_choose(manifest) {
        return None;
    }
    let counted: Vec<&Exit> = counted(manifest).collect();
    let most = MOST_COMBINATIONS.powf(1.0 / counted.len() as f64);
    let most = most.clamp(2.0, MOST_ROWS) as usize;
    let end = manifest.exits.last()?.expected.as_ref()?;
    let loss = loss_at_the_end(manifest, end);
    let mut exits = Vec::new();
    // Of all requests, those that have left before, and those of them that are right.
    let mut left = Mass::default();
    for (exit, share) in manifest.exits.iter().zip(shares) {
        let now = in_force(exit);
        let sure = now.threshold.and_then(|t| Mass::of(exit, t));
        if counted.iter().any(|counts| std::ptr::eq(*counts, exit)) {
            let output = manifest.outputs.iter().find(|v| v.name == exit.output);
            exits.push(placement::Exit {
                after_block: usize::try_from(exit.block).unwrap_or(usize::MAX),
                reply_bytes: output.and_then(|v| v.bytes(1)).unwrap_or(0),
                table: table(exit, (now, *share), left, loss, most),
            });
        }
        let accuracy = left.accuracy_behind(sure.unwrap_or(left));
        left.all += share;
        left.right += share * accuracy.unwrap_or(1.0);
        if exits.len() == counted.len() {
            break;
        }
    }
    Some(Choices {
        exits,
        final_accuracy: end.accuracy_alone,
    })
}

/// By how much the accuracy at the end falls, for each share of all requests that left before.
fn loss_at_the_end(manifest: &Manifest, end: &ExitExpectation) -> f64 {
    let side = manifest.exits.iter().rev().skip(1);
    let left: f64 = side
        .filter_map(|exit| Some(exit.expected.as_ref()?.exit_rate))
        .sum();
    let lost = end.accuracy.map_or(0.0, |left| end.accuracy_alone - left);
    if left > FEW {
        (lost / left).max(0.0)
    } else {
        0.0
    }
}

/// A share of all requests, and the right ones among them.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Mass {
    all: f64,
    right: f64,
}

impl Mass {
    /// Those that are confident at `exit`, by the row of its table with the nearest threshold.
    fn of(exit: &Exit, threshold: f64) -> Option<Self> {
        let distance = |row: &&lamina_model::ExitRow| (row.threshold - threshold).abs();
        let rows = exit.table.iter();
        let nearest = rows.min_by(|a, b| distance(a).total_cmp(&distance(b)))?;
        Some(Self {
            all: nearest.exit_rate,
            right: nearest.exit_rate * nearest.accuracy,
        })
    }

    /// Accuracy of those in `later` that are not among these.
    fn accuracy_behind(self, later: Self) -> Option<f64> {
        let all = later.all - self.all;
        (all > FEW).then(|| ((later.right - self.right) / all).clamp(0.0, 1.0))
    }

    /// Share of those that are not among these which are in `later`.
    fn rate_behind(self, later: f64) -> f64 {
        let reach = 1.0 - self.all;
        if reach > FEW {
            ((later - self.all) / reach).clamp(0.0, 1.0)
        } else {
            0.0
        }
    }
}

/// The row in force first, at which a share of all requests leaves, then the alternatives.
fn table(
    exit: &Exit,
    (now, share): (InForce, f64),
    left: Mass,
    loss: f64,
    most: usize,
) -> Vec<ExitPoint> {
    let accuracy = |sure: Mass| {
        let own = left.accuracy_behind(sure).unwrap_or(1.0);
        (own - loss * (1.0 - sure.all)).clamp(0.0, 1.0)
    };
    let sure = now.threshold.and_then(|t| Mass::of(exit, t));
    let first = ExitPoint {
        threshold: now.threshold.unwrap_or(strictest(exit)),
        rate: left.rate_behind(left.all + share),
        accuracy: sure.map_or(1.0, accuracy),
    };
    let mut table = vec![first];
    if now.is_fixed {
        return table;
    }
    let nobody = ExitPoint {
        threshold: strictest(exit),
        rate: 0.0,
        accuracy: 1.0,
    };
    let rows = exit.table.iter().map(|row| {
        let sure = Mass {
            all: row.exit_rate,
            right: row.exit_rate * row.accuracy,
        };
        ExitPoint {
            threshold: row.threshold,
            rate: left.rate_behind(sure.all),
            accuracy: accuracy(sure),
        }
    });
    let others: Vec<ExitPoint> = std::iter::once(nobody).chain(rows).collect();
    for point in thinned(&others, most.saturating_sub(1)) {
        let is_new = |known: &ExitPoint| (known.threshold - point.threshold).abs() > SAME;
        if table.iter().all(is_new) {
            table.push(point);
        }
    }
    table
}

/// `most` of `all`, as evenly spaced as possible, including the first and the last.
fn thinned(all: &[ExitPoint], most: usize) -> Vec<ExitPoint> {
    if all.len() <= most {
        return all.to_vec();
    }
    let last = all.len() - 1;
    let steps = most.saturating_sub(1).max(1);
    let at = |step: usize| all.get(step * last / steps).copied();
    (0..most).filter_map(at).collect()
}

/// A threshold at which hardly any request leaves.
const fn strictest(exit: &Exit) -> f64 {
    match exit.criterion {
        ExitCriterion::Confidence => 1.0,
        ExitCriterion::Entropy => 0.0,
    }
}
