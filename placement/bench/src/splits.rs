//! When splitting pays: the share of random worlds in which the best placement computes on more
//! than one host, and its gain over the best unsplit one.

use crate::chains::{QUESTIONS, Question, problem};
use crate::profile::Profile;
use crate::report::{Csv, Results, digits, machine, table};
use crate::run::{Field, median};
use anyhow::{Context, Result, ensure};
use lamina_placement::check::evaluate;
use lamina_placement::{
    Ctx, Parameters, Placement, Problem, Segment, SolveOptions, Status, solve_checked, strategy,
};

const MODELS: [(&str, &str); 5] = [
    ("MobileNetV2", "mobilenet_v2_fine"),
    ("GoogLeNet", "googlenet_fine"),
    ("ResNet-50", "resnet50_fine"),
    ("VGG-16", "vgg16_fine"),
    ("ViT-B/16", "vit_b_16_fine"),
];
/// The one network whose side exits were measured.
const WITH_EXITS: (&str, &str) = ("GoogLeNet", "googlenet_units");
const WORLDS: u64 = 2000;
const QUICK_WORLDS: u64 = 100;
/// A split that gains less than this does not pay.
const LEAST_GAIN: f64 = 0.01;

/// Results over all worlds of a question.
#[derive(Debug, Default)]
struct Tally {
    worlds: usize,
    /// Worlds in which no single host holds the network, but several together do.
    only_split: usize,
    /// Best unsplit over best split, where above 1.
    gains: Vec<f64>,
    whole: [usize; 3],
}

impl Tally {
    fn share(&self) -> f64 {
        (self.gains.len() + self.only_split) as f64 / self.worlds.max(1) as f64
    }
}

/// Draws everything and writes the section.
pub(crate) fn run(field: &Field, results: &Results, quick: bool) -> Result<()> {
    let worlds = if quick { QUICK_WORLDS } else { WORLDS };
    let mut csv = Csv::new(&[
        "model",
        "question",
        "worlds",
        "split_share",
        "only_split_share",
        "median_gain",
        "p90_gain",
        "max_gain",
        "whole_on_device",
        "whole_on_edge",
        "whole_on_cloud",
    ]);
    let mut rows = Vec::new();
    for question in &QUESTIONS {
        let mut row = vec![question.name.to_owned()];
        for (model, profile) in MODELS {
            let profile = match (question.reason.is_exits(), model == WITH_EXITS.0) {
                (true, true) => WITH_EXITS.1,
                (true, false) => {
                    row.push("–".into());
                    continue;
                }
                (false, _) => profile,
            };
            let profile = Profile::named(profile)?;
            let mut tally = tally(&profile, question, worlds)?;
            let middle = median(&mut tally.gains).unwrap_or(1.0);
            let at = |share: f64| {
                let last = tally.gains.len().checked_sub(1)?;
                Some(tally.gains[(last as f64 * share).round() as usize])
            };
            let (high, most) = (at(0.9).unwrap_or(1.0), at(1.0).unwrap_or(1.0));
            let only = tally.only_split as f64 / tally.worlds as f64;
            csv.row(&[
                &model,
                &question.name,
                &tally.worlds,
                &tally.share(),
                &only,
                &middle,
                &high,
                &most,
                &tally.whole[0],
                &tally.whole[1],
                &tally.whole[2],
            ]);
            row.push(told(&tally, only, middle, most));
        }
        println!("{}", row.join(" | "));
        rows.push(row);
    }
    csv.write(&results.file("splits.csv"))?;
    let header: Vec<&str> = ["question"]
        .into_iter()
        .chain(MODELS.map(|m| m.0))
        .collect();
    let body = format!(
        "{}\n\n\
         {worlds} random chains of a device, an edge node and a cloud for each cell: the device 2–20 and \
         the edge node 1–5 times slower than the cloud by one factor for all blocks, device–edge 1–200 \
         Mbit/s and 1–30 ms one way, edge–cloud 1–316 Mbit/s and 5–60 ms (factors and rates even on a \
         logarithmic scale), no way back to a lower tier. The proved optimum against the best placement \
         of the whole network on one host under the same limits and encoding: a cell tells in what share \
         of the worlds more than one host is better by more than 1 %, and by how much at the median (at \
         most). Networks are cut behind every operation; with exits, GoogLeNet in the paper's units. \
         Profiles: {}.\n\n\
         {}\n\
         ![share of worlds and gain](placement/splits.svg)\n\n\
         So for latency alone most networks are best left whole, and the encoding of the input decides \
         where. What splits is a rate that no host sustains alone, memory that no host has, privacy (the \
         first tenth of the blocks stays on the device), and a small wire dtype with each of them. Side \
         exits as deep as GoogLeNet's add to throughput and do nothing for latency (35 % leave at the \
         first, 40 % of the others at the second); a device that computes convolutions 5–30 times faster \
         than the rest splits little but VGG-16, whose dense layers are large. All figures: [splits.csv](placement/splits.csv).",
        machine(field)?,
        Profile::named(MODELS[0].1)?.provenance,
        table(&header, &rows),
    );
    results.section("splits", &body)
}

fn told(tally: &Tally, only: f64, middle: f64, most: f64) -> String {
    let mut text = format!("{:.0} %", tally.share() * 100.0);
    if !tally.gains.is_empty() {
        text += &format!(", {}x ({})", digits(middle), digits(most));
    }
    if only > 0.0 {
        text += &format!("; {:.0} % fit no other way", only * 100.0);
    }
    text
}

fn tally(profile: &Profile, question: &Question, worlds: u64) -> Result<Tally> {
    let optimal = strategy("optimal", &Parameters::new())?;
    let mut tally = Tally::default();
    for seed in 0..worlds {
        let problem = problem(profile, question, seed);
        let solution = solve_checked(
            &problem,
            optimal.as_ref(),
            &SolveOptions::default(),
            &Ctx::unlimited(),
        )
        .with_context(|| format!("{}, world {seed}", question.name))?;
        let status = solution.certificate.status;
        if status == Status::Infeasible {
            continue;
        }
        ensure!(
            status == Status::Optimal,
            "{}, world {seed} of {}: not proved",
            question.name,
            profile.name
        );
        tally.worlds += 1;
        let best = solution
            .metrics
            .context("an optimum has metrics")?
            .objective;
        let wholes = (0..problem.nodes.len()).map(|i| whole(&problem, i));
        let wholes: Vec<f64> = wholes.collect();
        let least = wholes.iter().copied().fold(f64::INFINITY, f64::min);
        if least == f64::INFINITY {
            tally.only_split += 1;
        } else if best * (1.0 + LEAST_GAIN) < least {
            tally.gains.push(least / best);
        } else if let Some(i) = wholes.iter().position(|w| *w == least) {
            tally.whole[i] += 1;
        }
    }
    Ok(tally)
}

/// The objective with everything on one host; infinite if that is not allowed.
fn whole(problem: &Problem, node: usize) -> f64 {
    let workload = &problem.workloads[0];
    let placement = Placement {
        workload: workload.name.clone(),
        segments: vec![Segment {
            node: problem.nodes[node].name.clone(),
            blocks: (0..workload.blocks.len()).collect(),
        }],
        thresholds: workload
            .exits
            .iter()
            .flat_map(|e| e.table.first())
            .map(|r| r.threshold)
            .collect(),
    };
    evaluate(problem, &[placement]).map_or(f64::INFINITY, |m| m.objective)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chains::Reason;

    #[test]
    fn privacy_leaves_the_device_as_the_only_whole() {
        let profile = Profile::named("mobilenet_v2_coarse").unwrap();
        let private = QUESTIONS
            .iter()
            .find(|q| q.reason == Reason::Privacy)
            .unwrap();
        let tally = tally(&profile, private, 20).unwrap();
        assert_eq!(tally.worlds, 20);
        assert_eq!(tally.whole[1..], [0, 0]);
        assert!(tally.gains.iter().all(|g| *g > 1.0));
        assert_eq!(tally.gains.len() + tally.whole[0], 20);
    }
}
