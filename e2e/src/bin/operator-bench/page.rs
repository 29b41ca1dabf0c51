//! The page of the results: each figure beside its goal, before and after.

use crate::result::{Looks, Run, Scene, Size, Wishes};
use std::fmt::Write as _;

/// A figure of a scene, as text.
type Figure = fn(&Scene) -> Option<String>;

/// Name, goal, figure.
type Row = (&'static str, &'static str, Figure);

fn milliseconds(seconds: f64) -> String {
    if seconds < 10.0 {
        format!("{:.0} ms", seconds * 1e3)
    } else {
        format!("{seconds:.0} s")
    }
}

fn looks(scene: &Scene, what: &str) -> Option<String> {
    let Looks { p50, p99, .. } = *scene.looks.get(what)?;
    Some(format!("{} ({})", milliseconds(p50), milliseconds(p99)))
}

fn wishes(scene: &Scene, what: &str) -> Option<String> {
    let Wishes {
        changes,
        answered,
        p50,
        p99,
        ..
    } = *scene.wishes.get(what)?;
    let times = format!("{} ({})", milliseconds(p50), milliseconds(p99));
    Some(match (answered, changes) {
        (0, changes) => format!("none of {changes}"),
        (some, all) if some < all => format!("{times}, {some} of {all}"),
        _ => times,
    })
}

fn progress(of: Option<crate::result::Progress>) -> Option<String> {
    let progress = of?;
    Some(if progress.done < progress.all {
        format!(
            "{} of {} after {:.0} s",
            progress.done, progress.all, progress.seconds
        )
    } else {
        format!("{:.1} s", progress.seconds)
    })
}

fn written(scene: &Scene) -> Option<String> {
    let redeploy = scene.redeploy.as_ref()?;
    let (writes, bytes) = redeploy.total();
    Some(format!("{writes:.0}, {:.0} kB", bytes / 1e3))
}

fn nodes_written(scene: &Scene) -> Option<String> {
    let (writes, _) = scene.redeploy.as_ref()?.written.get("computenodes")?;
    Some(format!("{writes:.1}"))
}

/// Rows of both scenes.
const SHARED: [Row; 7] = [
    ("hosts Ready after the start", "", |s| progress(s.hosts)),
    ("all serve after they were applied", "", |s| {
        progress(s.served)
    }),
    ("look, nothing changed", "p99 ≤ 50 ms", |s| {
        looks(s, "nothing changed")
    }),
    ("look, one link changed", "", |s| {
        looks(s, "one link changed")
    }),
    ("one link changed → written wish", "p99 ≤ 1 s", |s| {
        wishes(s, "one link changed")
    }),
    ("memory (at the peak)", "≤ 300 MB", |s| {
        let peak = s.peak_mb?;
        let idle = s.idle.map(|idle| format!("{:.0} MB ", idle.rss_mb));
        Some(format!("{}({peak:.0} MB)", idle.unwrap_or_default()))
    }),
    ("CPU when nothing happens", "≤ 15 % of a core", |s| {
        Some(format!("{:.0} %", s.idle?.operator_cpu * 100.0))
    }),
];

/// Further rows of the scene of many models.
const MANY: [Row; 12] = [
    ("look, one node lost", "", |s| looks(s, "one node lost")),
    ("look, one model applied", "", |s| {
        looks(s, "one model applied")
    }),
    ("look, all models applied at once", "", |s| {
        looks(s, "all models applied at once")
    }),
    ("look, behind with its work", "", |s| {
        looks(s, "behind with its work")
    }),
    (
        "one node falls silent → written wish, with the 2.5 s of silence that count as lost",
        "",
        |s| wishes(s, "one node lost"),
    ),
    (
        "one model applied → written wish, preparing and measuring of links included",
        "",
        |s| wishes(s, "one model applied"),
    ),
    ("all models applied at once → written wish", "", |s| {
        wishes(s, "all models applied at once")
    }),
    (
        "one redeploy, from the sample to the new path alone",
        "",
        |s| Some(format!("{:.1} s", s.redeploy.as_ref()?.seconds)),
    ),
    (
        "writes of the operator for one redeploy, their bytes",
        "",
        written,
    ),
    ("of these, specs of ComputeNodes", "", nodes_written),
    ("writes while nothing happens", "", |s| {
        s.idle
            .map(|idle| format!("{} in {:.0} s", idle.writes, idle.seconds))
    }),
    ("restarts (liveness probes that failed)", "0", |s| {
        Some(format!("{} ({})", s.restarts, s.failed_probes))
    }),
];

/// Further rows of the scene of one model.
const ONE: [Row; 3] = [
    ("look, the model applied", "", |s| looks(s, "applied")),
    (
        "the model applied → written wish of each entry",
        "",
        |s| wishes(s, "applied"),
    ),
    ("restarts (liveness probes that failed)", "0", |s| {
        Some(format!("{} ({})", s.restarts, s.failed_probes))
    }),
];

/// A run on the page, with its name.
pub(crate) struct Named<'a> {
    pub(crate) name: &'a str,
    pub(crate) run: &'a Run,
}

/// The page of `runs`, oldest first.
pub(crate) fn page(runs: &[Named<'_>]) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write!(out, "{HEAD}");
    for Named { name, run } in runs {
        let _ = writeln!(
            out,
            "- *{name}*: {}; commit {}, {} profile; {} models.",
            run.machine, run.commit, run.profile, run.models
        );
    }
    let _ = writeln!(out, "\n## Many models, each at an entry of its own\n");
    table(&mut out, runs, &[&SHARED[..], &MANY[..]].concat(), |size| {
        &size.many
    });
    let _ = writeln!(out, "\n## One model at 200 entries\n");
    table(&mut out, runs, &[&SHARED[..], &ONE[..]].concat(), |size| {
        &size.one
    });
    notes(&mut out, runs);
    out
}

fn table(out: &mut String, runs: &[Named<'_>], rows: &[Row], scene: fn(&Size) -> &Scene) {
    let columns: Vec<(String, &Scene)> = runs
        .iter()
        .flat_map(|Named { name, run }| {
            let sizes = run.sizes.iter();
            sizes.map(move |(nodes, size)| (format!("{name}, {nodes}"), scene(size)))
        })
        .collect();
    let names: Vec<&str> = columns.iter().map(|(name, _)| name.as_str()).collect();
    let _ = writeln!(out, "| | goal | {} |", names.join(" | "));
    let _ = writeln!(out, "|---|---|{}", "---|".repeat(columns.len()));
    for (name, goal, figure) in rows {
        let found: Vec<Option<String>> = columns.iter().map(|(_, scene)| figure(scene)).collect();
        if found.iter().all(Option::is_none) {
            continue;
        }
        let found = found
            .into_iter()
            .map(|f| f.unwrap_or_else(|| "–".to_owned()));
        let found: Vec<String> = found.collect();
        let _ = writeln!(out, "| {name} | {goal} | {} |", found.join(" | "));
    }
}

fn notes(out: &mut String, runs: &[Named<'_>]) {
    let mut lines = Vec::new();
    for Named { name, run } in runs {
        for (nodes, size) in &run.sizes {
            for (scene, of) in [("many models", &size.many), ("one model", &size.one)] {
                for note in &of.notes {
                    lines.push(format!("- {name}, {nodes} nodes, {scene}: {note}."));
                }
            }
        }
    }
    if !lines.is_empty() {
        let _ = writeln!(out, "\n## What else was seen\n\n{}", lines.join("\n"));
    }
}

const HEAD: &str = "\
# The operator at size

Written by `cargo xtask bench operator`; run it again instead of editing.

```sh
cargo xtask bench operator           # 250, 500 and 1000 nodes, about 25 minutes on two cores
cargo xtask bench operator --release # the same of the program as it is shipped
cargo xtask bench operator --quick   # a look at the smallest size, which leaves this page as it is
```

The real operator runs against a real API server and etcd, with the rights that the chart
gives it. One process beside it is all agents: each has a Node, a Pod, a token bound to it
and a session of its own; says its heartbeat each second; measures the links that it is
asked to measure, in the time that pings and probes would take on them; fetches, loads and
verifies in the times that a real agent takes; and reports in its ComputeNode's status. What
no agent does here is compute. Models have the times and sizes of two real ones
(`examples/plan`); their blobs are small and have true hashes. Each entry says that it answers
a request a second, which counts as load on the hosts of its path. Hosts lie in sites of 20
devices, 4 edges and one cloud host. A liveness probe restarts the operator as a kubelet
would, by the chart's period and a kubelet's defaults. All processes share the cores.

Times are medians, in parentheses the 99th percentile; those of looks come from the
operator's own histogram, spread evenly over each bucket. A change to the written wish lasts
from the moment at which the first agent tells of it (or falls silent, or the model is
applied) until a watch shows the Placement's new plan. Writes are those in the API server's
audit log. Each run below names its profile: a program of the `release` profile, which is what
ships, decides about twice as fast as one of `dev`. `–`: not measured, because a step before it did not come about in time.

";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::{Idle, Progress};

    #[test]
    fn each_run_has_its_columns_and_what_nobody_measured_no_row() {
        let mut run = Run {
            machine: "here".into(),
            ..Run::default()
        };
        let size = run.sizes.entry(250).or_default();
        size.many.served = Some(Progress {
            done: 3,
            all: 200,
            seconds: 120.0,
        });
        size.many.idle = Some(Idle {
            operator_cpu: 0.5,
            ..Idle::default()
        });
        size.many.notes.push("it was slow".into());
        let named = |name| Named { name, run: &run };
        let page = page(&[named("before"), named("after")]);
        for wanted in [
            "| | goal | before, 250 | after, 250 |",
            "| all serve after they were applied |  | 3 of 200 after 120 s | 3 of 200 after 120 s |",
            "| CPU when nothing happens | ≤ 15 % of a core | 50 % | 50 % |",
            "- before, 250 nodes, many models: it was slow.",
        ] {
            assert!(page.contains(wanted), "lacks {wanted}:\n{page}");
        }
        assert!(!page.contains("look, one node lost"));
    }
}
