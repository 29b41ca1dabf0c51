//! The two scenes, step by step. Each step has a limit; what is not reached within it is noted, not
//! failed.

use crate::audit;
use crate::cluster::{Bench, Budget};
use crate::operator::processor_seconds;
use crate::plans::View;
use crate::result::{Idle, Looks, Progress, Redeploy, Scene, Wishes};
use anyhow::Result;
use lamina_e2e::metrics::Histogram;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// Number of objects and changes, and time limits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Effort {
    /// Models of the first scene.
    pub(crate) models: usize,
    /// Changes of each kind.
    pub(crate) changes: usize,
    /// Redeploys that are measured one by one.
    pub(crate) redeploys: usize,
    /// Time in which nothing happens.
    pub(crate) idle: Duration,
    /// Limit of the first scene, and of the second.
    pub(crate) limits: (Duration, Duration),
}

/// Limit for all hosts to become Ready.
const REGISTER: Duration = Duration::from_secs(40);
/// Limit for all models to become active.
const SERVE: Duration = Duration::from_secs(90);
/// Limit for everything to settle after changes.
const SETTLE: Duration = Duration::from_secs(20);
/// Limit for the last improvements, and how long none is found after them: each of 200 Placements
/// is checked every 20 seconds.
const CALM: Duration = Duration::from_secs(120);
const QUIET: Duration = Duration::from_secs(25);
/// Limit for the answer to a change.
const ANSWER: Duration = Duration::from_secs(20);
/// Time between two changes of one kind.
const BETWEEN: Duration = Duration::from_millis(500);
/// Bandwidth is divided by this.
const SLOWER: f64 = 20.0;
/// Time to wait for late writes of a redeploy.
const LATE_WRITES: Duration = Duration::from_secs(2);
/// One in this many edge hosts may be lost at once.
const LOSE_ONE_IN: usize = 3;

/// Many models, each with its own entry.
pub(crate) async fn many(bench: &mut Bench, effort: Effort, all: usize) -> Result<Scene> {
    let budget = Budget::of(effort.limits.0);
    let mut scene = Scene::default();
    register(bench, &mut scene, all, budget).await;
    bench.fleet.set_traffic(true);
    let before = bench.operator.looks().await;
    let applied = bench.apply_models(effort.models).await?;
    let begin = Instant::now();
    let is_served = serve(bench, &mut scene, effort.models, begin, budget).await;
    let planned = planned(bench, |view| applied.get(&view.model).copied());
    wish(
        &mut scene,
        "all models applied at once",
        applied.len(),
        planned,
    );
    look(bench, &mut scene, "all models applied at once", before).await;
    if is_served {
        calm(bench, budget).await;
        idle(bench, &mut scene, effort.idle, budget).await?;
        redeploys(bench, &mut scene, effort.redeploys, budget).await?;
        links(bench, &mut scene, effort.changes, budget).await;
        settle(bench, budget).await;
        apply(bench, &mut scene, effort.changes, budget).await?;
        settle(bench, budget).await;
        lose(bench, &mut scene, effort.changes, all, budget).await;
    } else {
        busy(bench, &mut scene, effort.idle, budget).await?;
        note(
            &mut scene,
            "the rest was not measured: not every model came to serve",
        );
    }
    close(bench, &mut scene);
    Ok(scene)
}

/// One model with many entries, and a freshly started operator.
pub(crate) async fn one(bench: &mut Bench, effort: Effort, all: usize) -> Result<Scene> {
    let budget = Budget::of(effort.limits.1);
    let mut scene = Scene::default();
    register(bench, &mut scene, all, budget).await;
    bench.fleet.set_traffic(true);
    let before = bench.operator.looks().await;
    let begin = bench.apply_model_of_many_entries().await?;
    let is_served = serve(bench, &mut scene, bench.entries(), begin, budget).await;
    let planned = planned(bench, |_| Some(begin));
    wish(&mut scene, "applied", bench.entries(), planned);
    look(bench, &mut scene, "applied", before).await;
    if is_served {
        calm(bench, budget).await;
        idle(bench, &mut scene, effort.idle, budget).await?;
        links(bench, &mut scene, effort.changes, budget).await;
    } else {
        busy(bench, &mut scene, effort.idle, budget).await?;
        note(
            &mut scene,
            "the rest was not measured: not every entry came to serve",
        );
    }
    close(bench, &mut scene);
    Ok(scene)
}

/// Waits until no earlier Placement is left.
pub(crate) async fn clear(bench: &Bench, within: Duration) -> Result<bool> {
    bench.delete_models().await?;
    Ok(bench.plans.until(within, BTreeMap::is_empty).await)
}

fn note(scene: &mut Scene, text: &str) {
    println!("    {text}");
    scene.notes.push(text.to_owned());
}

async fn register(bench: &Bench, scene: &mut Scene, all: usize, budget: Budget) {
    let begin = Instant::now();
    let within = budget.at_most(REGISTER);
    // A former operator's status of a host counts only with a session to this one.
    let known = || bench.fleet.ready().min(bench.fleet.connected());
    while begin.elapsed() < within && (known() < all || !bench.operator.is_ready().await) {
        sleep(Duration::from_millis(200)).await;
    }
    let hosts = Progress {
        done: known(),
        all,
        seconds: begin.elapsed().as_secs_f64(),
    };
    println!(
        "    hosts Ready: {} of {all} after {:.1} s",
        hosts.done, hosts.seconds
    );
    scene.hosts = Some(hosts);
}

/// Waits until `all` Placements are active; returns whether they are.
async fn serve(
    bench: &Bench,
    scene: &mut Scene,
    all: usize,
    begin: Instant,
    budget: Budget,
) -> bool {
    let serving = |views: &BTreeMap<String, View>| views.values().filter(|v| v.active > 0).count();
    let within = budget.at_most(SERVE);
    let is_served = bench.plans.until(within, |v| serving(v) >= all).await;
    let served = Progress {
        done: serving(&bench.plans.all()),
        all,
        seconds: begin.elapsed().as_secs_f64(),
    };
    println!(
        "    serving: {} of {all} after {:.1} s",
        served.done, served.seconds
    );
    scene.served = Some(served);
    is_served
}

/// Waits for a while until every Placement's newest plan is active.
async fn settle(bench: &Bench, budget: Budget) {
    let rest = |views: &BTreeMap<String, View>| views.values().all(View::is_settled);
    bench.plans.until(budget.at_most(SETTLE), rest).await;
}

/// Waits until no plan was made for a while: placements by estimates still improve as links are
/// measured.
async fn calm(bench: &Bench, budget: Budget) {
    let begin = Instant::now();
    let limit = begin + budget.at_most(CALM);
    while Instant::now() < limit {
        let plans = bench.plans.all().into_values();
        let last = plans.filter_map(|v| v.planned_at).max();
        if last.is_none_or(|at| at.elapsed() >= QUIET) {
            break;
        }
        sleep(Duration::from_millis(200)).await;
    }
    settle(bench, budget).await;
    println!(
        "    came to rest after {:.0} s",
        begin.elapsed().as_secs_f64()
    );
    moves(bench, begin);
}

/// Shows how many plans replaced another since `begin`, and why.
fn moves(bench: &Bench, begin: Instant) {
    let moves = bench.plans.moves_since(begin).into_iter();
    let moves: Vec<String> = moves
        .map(|(why, mut of)| {
            of.ratios.sort_by(f64::total_cmp);
            let median = of.ratios.get(of.ratios.len() / 2);
            let gain = median.map_or(String::new(), |r| format!(" (to {r:.2} of the latency)"));
            format!("{} {why}{gain}", of.count)
        })
        .collect();
    if !moves.is_empty() {
        println!("    moves meanwhile: {}", moves.join(", "));
    }
}

/// Seconds from a moment to the first plan of each Placement, if it has one.
fn planned(bench: &Bench, since: impl Fn(&View) -> Option<Instant>) -> Vec<f64> {
    let views = bench.plans.all();
    let first = views.values().filter(|view| view.planned > 0);
    first
        .filter_map(|view| {
            let took = view.first_planned_at?;
            let took = took.checked_duration_since(since(view)?)?;
            Some(took.as_secs_f64())
        })
        .collect()
}

fn wish(scene: &mut Scene, what: &str, changes: usize, seconds: Vec<f64>) {
    let wishes = Wishes::of(changes, seconds);
    println!(
        "    change to written wish, {what}: p50 {:.2} s, p99 {:.2} s ({} of {changes} answered)",
        wishes.p50, wishes.p99, wishes.answered
    );
    scene.wishes.insert(what.to_owned(), wishes);
}

/// Notes the reconciles since `before`.
async fn look(bench: &Bench, scene: &mut Scene, what: &str, before: Option<Histogram>) {
    let (Some(before), Some(after)) = (before, bench.operator.looks().await) else {
        return note(
            scene,
            &format!("{what}: the operator did not tell its figures"),
        );
    };
    let window = after.since(&before);
    let (Some(mean), Some(p50), Some(p99)) =
        (window.mean(), window.quantile(0.5), window.quantile(0.99))
    else {
        return note(scene, &format!("{what}: no look ended meanwhile"));
    };
    println!(
        "    looks, {what}: p50 {:.0} ms, p99 {:.0} ms, mean {:.0} ms of {}",
        p50 * 1e3,
        p99 * 1e3,
        mean * 1e3,
        window.count()
    );
    let looks = Looks {
        count: window.count(),
        mean,
        p50,
        p99,
    };
    scene.looks.insert(what.to_owned(), looks);
}

/// Processor seconds of the operator, the API server and this process.
fn processors(bench: &Bench) -> [Option<f64>; 3] {
    let operator = bench.operator.seen().process;
    let all = [operator, bench.api.process(), Some(std::process::id())];
    all.map(|process| process.and_then(processor_seconds))
}

/// Measures while nothing happens.
async fn idle(bench: &Bench, scene: &mut Scene, time: Duration, budget: Budget) -> Result<()> {
    if !budget.has(time) {
        note(
            scene,
            "nothing changed: not measured, the time of this size is over",
        );
        return Ok(());
    }
    let log = bench.api.audit_log();
    let (before, writes, begin) = (
        bench.operator.looks().await,
        audit::end(&log),
        Instant::now(),
    );
    let processors_before = processors(bench);
    sleep(time).await;
    moves(bench, begin);
    let processors_after = processors(bench);
    let seconds = begin.elapsed().as_secs_f64();
    let share = |i: usize| {
        let (after, before) = processors_after[i].zip(processors_before[i])?;
        // A process started meanwhile has used less than the one before.
        (after >= before).then_some((after - before) / seconds)
    };
    let written = audit::since(&log, writes)?.values().map(|w| w.writes).sum();
    let (Some(operator), Some(api_server), Some(fleet), Some((rss_mb, _))) =
        (share(0), share(1), share(2), bench.operator.memory())
    else {
        note(
            scene,
            "nothing changed: the operator was restarted meanwhile",
        );
        return Ok(());
    };
    let idle = Idle {
        seconds,
        operator_cpu: operator,
        api_server_cpu: api_server,
        fleet_cpu: fleet,
        rss_mb,
        writes: written,
    };
    println!(
        "    nothing changes for {seconds:.0} s: operator {:.0} % of a core, {:.0} MB, {} writes; API server {:.0} %, agents {:.0} %",
        idle.operator_cpu * 100.0,
        idle.rss_mb,
        idle.writes,
        idle.api_server_cpu * 100.0,
        idle.fleet_cpu * 100.0
    );
    scene.idle = Some(idle);
    look(bench, scene, "nothing changed", before).await;
    Ok(())
}

/// Measures an operator that does not keep up.
async fn busy(bench: &Bench, scene: &mut Scene, time: Duration, budget: Budget) -> Result<()> {
    let before = bench.operator.looks().await;
    let (begin, processors_before) = (Instant::now(), processors(bench));
    sleep(budget.at_most(time)).await;
    let took = processors(bench)[0].zip(processors_before[0]);
    let share = took.map(|(after, before)| (after - before) / begin.elapsed().as_secs_f64());
    let memory = bench.operator.memory().map(|(now, _)| now);
    if let (Some(share), Some(memory)) = (share, memory) {
        let percent = share * 100.0;
        let text = format!("then the operator took {percent:.0} % of a core and {memory:.0} MB");
        note(scene, &text);
    }
    look(bench, scene, "behind with its work", before).await;
    Ok(())
}

/// Settled Placements on more than one host, with the entry and the next host of each; no two share
/// a link.
fn crossings(bench: &Bench) -> Vec<(String, String, String)> {
    let mut taken = BTreeSet::new();
    let views = bench.plans.all().into_iter();
    views
        .filter(|(_, view)| view.is_settled() && view.hosts.len() > 1)
        .filter_map(|(name, view)| {
            let [from, to, ..] = &view.hosts[..] else {
                return None;
            };
            let link = (from.clone(), to.clone());
            let is_new = taken.insert(link.clone());
            is_new.then_some((name, link.0, link.1))
        })
        .collect()
}

/// Redeploys one by one, with duration and writes.
async fn redeploys(bench: &Bench, scene: &mut Scene, count: usize, budget: Budget) -> Result<()> {
    let log = bench.api.audit_log();
    let mut seconds = Vec::new();
    let mut written: BTreeMap<String, (f64, f64)> = BTreeMap::new();
    // From the end of the list: the link changes start at its head.
    for (name, from, to) in crossings(bench).into_iter().rev().take(count) {
        if !budget.has(ANSWER * 2) {
            break;
        }
        let start = audit::end(&log);
        let Some(told) = bench.fleet.slow_down(&from, &to, SLOWER).await else {
            continue;
        };
        let is_done =
            |view: &View| view.planned_at.is_some_and(|at| at >= told) && view.is_settled();
        let done = |views: &BTreeMap<String, View>| views.get(&name).is_some_and(is_done);
        let is_moved = bench.plans.until(budget.at_most(ANSWER * 2), done).await;
        if is_moved {
            seconds.push(told.elapsed().as_secs_f64());
            sleep(LATE_WRITES).await;
            for (what, one) in audit::since(&log, start)? {
                let sum = written.entry(what).or_default();
                *sum = (sum.0 + one.writes as f64, sum.1 + one.bytes as f64);
            }
        }
        bench.fleet.slow_down(&from, &to, 1.0).await;
        settle(bench, budget).await;
    }
    let found = seconds.len();
    if found == 0 {
        note(
            scene,
            &format!("redeploys one by one: none of {count} came about in time"),
        );
        return Ok(());
    }
    for sum in written.values_mut() {
        *sum = (sum.0 / found as f64, sum.1 / found as f64);
    }
    let redeploy = Redeploy {
        count: found,
        seconds: Wishes::of(found, seconds).p50,
        written,
    };
    let (writes, bytes) = redeploy.total();
    println!(
        "    one redeploy: {:.1} s, {writes:.1} writes, {:.0} kB (of {found})",
        redeploy.seconds,
        bytes / 1e3
    );
    scene.redeploy = Some(redeploy);
    Ok(())
}

impl Redeploy {
    /// Total writes and bytes.
    pub(crate) fn total(&self) -> (f64, f64) {
        let all = self.written.values();
        all.fold((0.0, 0.0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    }
}

/// Slows links one by one.
async fn links(bench: &Bench, scene: &mut Scene, count: usize, budget: Budget) {
    const WHAT: &str = "one link changed";
    let time = BETWEEN * u32::try_from(count).unwrap_or(1) + ANSWER;
    if !budget.has(time) {
        return note(
            scene,
            "one link changed: not measured, the time of this size is over",
        );
    }
    let before = bench.operator.looks().await;
    let chosen: Vec<_> = crossings(bench).into_iter().take(count).collect();
    let changes = chosen
        .iter()
        .enumerate()
        .map(|(i, (name, from, to))| async move {
            sleep(BETWEEN * u32::try_from(i).unwrap_or(0)).await;
            let told = bench.fleet.slow_down(from, to, SLOWER).await?;
            let at = bench.plans.plan_since(name, told, ANSWER).await?;
            Some(at.saturating_duration_since(told).as_secs_f64())
        });
    let begin = Instant::now();
    let seconds = futures::future::join_all(changes).await;
    moves(bench, begin);
    look(bench, scene, WHAT, before).await;
    wish(
        scene,
        WHAT,
        chosen.len(),
        seconds.into_iter().flatten().collect(),
    );
    for (_, from, to) in &chosen {
        bench.fleet.slow_down(from, to, 1.0).await;
    }
}

/// Applies models one by one, while the others are served.
async fn apply(bench: &mut Bench, scene: &mut Scene, count: usize, budget: Budget) -> Result<()> {
    const WHAT: &str = "one model applied";
    if !budget.has(BETWEEN * u32::try_from(count).unwrap_or(1) + ANSWER) {
        note(
            scene,
            "one model applied: not measured, the time of this size is over",
        );
        return Ok(());
    }
    let before = bench.operator.looks().await;
    let mut applied = BTreeMap::new();
    for _ in 0..count {
        applied.extend(bench.apply_models(1).await?);
        sleep(BETWEEN).await;
    }
    let has_plans = |views: &BTreeMap<String, View>| {
        let planned = views
            .values()
            .filter(|v| v.planned > 0 && applied.contains_key(&v.model));
        planned.count() == applied.len()
    };
    bench.plans.until(ANSWER, has_plans).await;
    look(bench, scene, WHAT, before).await;
    let planned = planned(bench, |view| applied.get(&view.model).copied());
    wish(scene, WHAT, applied.len(), planned);
    Ok(())
}

/// Silences hosts one by one, until `count` Placements have to move, and brings them back.
async fn lose(bench: &Bench, scene: &mut Scene, count: usize, all: usize, budget: Budget) {
    const WHAT: &str = "one node lost";
    if !budget.has(ANSWER + SETTLE) {
        return note(
            scene,
            "one node lost: not measured, the time of this size is over",
        );
    }
    let victims = victims(&bench.plans.all(), count, all);
    let before = bench.operator.looks().await;
    let mut lost = BTreeSet::new();
    let mut waits = Vec::new();
    for (host, placements) in victims {
        lost.insert(host);
        bench.fleet.silence(lost.clone());
        let at = Instant::now();
        waits.extend(placements.into_iter().map(|name| async move {
            let planned = bench.plans.plan_since(&name, at, ANSWER).await?;
            Some(planned.saturating_duration_since(at).as_secs_f64())
        }));
        sleep(BETWEEN).await;
    }
    let changes = waits.len();
    let begin = Instant::now();
    let seconds = futures::future::join_all(waits).await;
    moves(bench, begin);
    look(bench, scene, WHAT, before).await;
    wish(
        scene,
        WHAT,
        changes,
        seconds.into_iter().flatten().collect(),
    );
    bench.fleet.silence(BTreeSet::new());
}

/// Hosts with their Placements that enter elsewhere, until there are `count` of these.
fn victims(views: &BTreeMap<String, View>, count: usize, all: usize) -> Vec<(String, Vec<String>)> {
    let mut carried: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (name, view) in views.iter().filter(|(_, view)| view.is_settled()) {
        let hosts: BTreeSet<&str> = view.hosts.iter().map(String::as_str).collect();
        for host in hosts.into_iter().filter(|host| *host != view.entry) {
            let on = carried.entry(host).or_default();
            on.push(name.clone());
        }
    }
    let most = (carried.len() / LOSE_ONE_IN).clamp(1, all);
    let mut told = BTreeSet::new();
    let mut victims = Vec::new();
    for (host, placements) in carried.into_iter().take(most) {
        if told.len() >= count {
            break;
        }
        // A Placement on two lost hosts would be counted twice.
        let new: Vec<_> = placements
            .into_iter()
            .filter(|name| told.insert(name.clone()))
            .collect();
        victims.push((host.to_owned(), new));
    }
    victims
}

fn close(bench: &Bench, scene: &mut Scene) {
    let seen = bench.operator.seen();
    scene.peak_mb = bench.operator.memory().map(|(_, peak)| peak);
    scene.restarts = seen.restarts;
    scene.failed_probes = seen.failed_probes;
    if let Some(peak) = scene.peak_mb {
        println!(
            "    memory at the peak {peak:.0} MB; {} restarts, {} liveness probes failed; {} sessions opened",
            seen.restarts,
            seen.failed_probes,
            bench.fleet.sessions()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_lost_until_enough_placements_must_leave_and_entries_are_not() {
        let view = |entry: &str, hosts: &[&str]| View {
            entry: entry.to_owned(),
            planned: 1,
            active: 1,
            hosts: hosts.iter().map(|h| (*h).to_owned()).collect(),
            ..View::default()
        };
        let views: BTreeMap<String, View> = [
            ("p1", view("a", &["a", "x"])),
            ("p2", view("b", &["b", "x", "y"])),
            ("p3", view("c", &["c", "y"])),
            ("p4", view("d", &["d", "z"])),
        ]
        .map(|(name, view)| (name.to_owned(), view))
        .into();
        let lost = victims(&views, 2, 10);
        let told = ["p1", "p2"].map(str::to_owned).to_vec();
        assert_eq!(lost, [("x".to_owned(), told)]);
        assert_eq!(victims(&views, 3, 10).len(), 1, "one in three");
    }
}
