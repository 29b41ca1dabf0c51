//! A client on the entry node that calls the Service continuously.

use super::MODEL;
use crate::table::{Promise, Row};
use anyhow::{Context, Result, ensure};
use lamina_e2e::scene::{SYSTEM, objects};
use lamina_e2e::site::Site;
use lamina_e2e::workload::{Client, Line, Outcome, Request};
use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::time::sleep;

const REQUESTS_PER_SECOND: f64 = 4.0;
/// The default deadline of clients.
const DEADLINE: Duration = Duration::from_secs(30);
const IMAGES: u32 = 48;
/// Duration of quiet load before and after a case.
const QUIET: Duration = Duration::from_secs(5);
/// Time for hosts and model to recover.
const SETTLED_WITHIN: Duration = Duration::from_secs(150);

/// The running client.
pub(crate) struct Load {
    client: Client,
}

impl Load {
    /// Starts it and waits for the first answers.
    pub(crate) async fn start(site: &Site) -> Result<Self> {
        let deadline = DEADLINE.as_secs();
        let arguments = format!(
            "--rate {REQUESTS_PER_SECOND} --seconds 3600 --deadline {deadline} --images {IMAGES} --again"
        );
        let arguments: Vec<String> = arguments.split_whitespace().map(str::to_owned).collect();
        let mut client = site.client("load", MODEL, &arguments).await?;
        let answered = |lines: &[Line]| {
            let requests = lines.iter().filter(|l| matches!(l, Line::Request(_)));
            requests.count() >= 8
        };
        client
            .until("first answers", Duration::from_secs(120), answered)
            .await?;
        Ok(Self { client })
    }

    /// Does `work`, waits until everything has recovered, and counts.
    pub(crate) async fn row(
        &mut self,
        case: &'static str,
        promise: Promise,
        site: &mut Site,
        work: impl AsyncFnOnce(&mut Site) -> Result<String>,
    ) -> Result<Row> {
        sleep(QUIET).await;
        let begin = now();
        let note = work(site).await?;
        settle(site).await?;
        let settled = now();
        sleep(QUIET).await;
        let end = now();
        let all = self.all_sent_before(end).await?;
        let during: Vec<&Request> = all
            .iter()
            .filter(|r| (begin..end).contains(&r.at))
            .collect();
        ensure!(!during.is_empty(), "nothing was sent");
        let row = count(case, promise, &during, begin, settled, note);
        if row.lost > 0 {
            keep_logs(site, case, end + 20.0 - begin).await?;
        }
        Ok(row)
    }

    /// The outcome of every request that was sent before `end`, once the last has ended.
    async fn all_sent_before(&mut self, end: f64) -> Result<Vec<Request>> {
        let patience = DEADLINE + Duration::from_secs(10);
        let all_ended = |lines: &[Line]| {
            let requests = lines.iter().filter_map(|line| match line {
                Line::Request(r) => Some(r),
                _ => None,
            });
            // Ids have no gap once everything before a later request has ended.
            let ids: BTreeSet<u64> = requests.clone().map(|r| r.id).collect();
            let later = requests.filter(|r| r.at >= end).map(|r| r.id).min();
            later.is_some_and(|first| ids.range(..first).count() as u64 == first)
        };
        self.client
            .until("the end of all requests", patience, all_ended)
            .await?;
        Ok(self.client.requests())
    }

    /// Ends the client.
    pub(crate) async fn stop(mut self) -> Result<()> {
        self.client.command("stop").await?;
        self.client.finish(DEADLINE * 3).await?;
        Ok(())
    }
}

/// Writes the recent logs of operator and agents, to find out why something was lost.
async fn keep_logs(site: &Site, case: &str, seconds: f64) -> Result<()> {
    let since = format!("--since={seconds:.0}s");
    let mut text = site.cluster.kubectl(&["get", "events"]).await?;
    for component in ["operator", "agent"] {
        let selector = format!("app.kubernetes.io/component={component}");
        let logs = [
            "logs",
            "-n",
            SYSTEM,
            "-l",
            &selector,
            "--tail=-1",
            "--prefix",
            &since,
        ];
        text += &site.cluster.kubectl(&logs).await?;
    }
    let name = case.replace("::", "-");
    let file = site.cluster.dir().join(format!("{name}.log"));
    fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))
}

fn count(
    case: &'static str,
    promise: Promise,
    requests: &[&Request],
    begin: f64,
    settled: f64,
    note: String,
) -> Row {
    let of = |outcome| requests.iter().filter(move |r| r.outcome == outcome);
    let lost_at = || of(Outcome::Lost).map(|r| r.at);
    let first = lost_at().fold(f64::INFINITY, f64::min);
    let last = lost_at().fold(f64::NEG_INFINITY, f64::max);
    Row {
        case,
        promise,
        sent: requests.len(),
        lost: of(Outcome::Lost).count(),
        wrong: of(Outcome::Wrong).count(),
        losing_seconds: (last - first).max(0.0),
        longest_seconds: of(Outcome::Correct).map(|r| r.seconds).fold(0.0, f64::max),
        settled_seconds: settled - begin,
        lost_afterwards: lost_at().filter(|at| *at > settled).count(),
        first_loss: of(Outcome::Lost).find_map(|r| r.error.clone()),
        note,
    }
}

/// Waits until every kubelet, every agent and the model are ready.
pub(crate) async fn settle(site: &Site) -> Result<()> {
    let client = site.cluster.client();
    site.wait_kubelets(3).await?;
    objects::wait_nodes(&client, 3, SETTLED_WITHIN).await?;
    objects::wait_ready(&client, MODEL, SETTLED_WITHIN, &mut |_| ()).await?;
    Ok(())
}

fn now() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map(|d| d.as_secs_f64()).unwrap_or_default()
}
