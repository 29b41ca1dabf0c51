//! Life on real kubelets: install, restarts, drains, losses, uninstall, each under a
//! client's load, with counts of lost and wrong answers. `cargo xtask test
//! --only cluster` runs it.

mod changes;
mod load;
mod losses;
mod selftest;
mod table;
mod trust;
mod versions;

use anyhow::Result;
use lamina_e2e::site::Site;
use load::Load;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use table::{Promise, Row};
use tokio::time::timeout;

const MODEL: &str = "mobilenet-v2";
/// A case must not hang the run.
const CASE_LIMIT: Duration = Duration::from_secs(240);

struct Suite {
    filters: Vec<String>,
    rows: Vec<Row>,
    passed: u32,
    failed: u32,
    skipped: u32,
}

impl Suite {
    fn wants(&mut self, name: &str) -> bool {
        let filters = &self.filters;
        let wanted = filters.is_empty() || filters.iter().any(|f| name.contains(f.as_str()));
        self.skipped += u32::from(!wanted);
        wanted
    }

    /// Does `work` under load, and counts from its start until everything has recovered.
    async fn case(
        &mut self,
        name: &'static str,
        promise: Promise,
        site: &mut Site,
        load: &mut Load,
        work: impl AsyncFnOnce(&mut Site) -> Result<String>,
    ) {
        if !self.wants(name) {
            return;
        }
        let begin = Instant::now();
        let tried = timeout(CASE_LIMIT, load.row(name, promise, site, work)).await;
        let tried = tried.unwrap_or_else(|_| Err(anyhow::anyhow!("hung for {CASE_LIMIT:?}")));
        self.tell(name, site, begin, tried).await;
    }

    /// Does `work` without load: it checks by itself.
    async fn apart(
        &mut self,
        name: &'static str,
        site: &mut Site,
        work: impl AsyncFnOnce(&mut Site) -> Result<String>,
    ) {
        if !self.wants(name) {
            return;
        }
        let begin = Instant::now();
        let tried = timeout(CASE_LIMIT, work(site)).await;
        let tried = tried.unwrap_or_else(|_| Err(anyhow::anyhow!("hung for {CASE_LIMIT:?}")));
        let seconds = begin.elapsed().as_secs_f64();
        let tried = tried.map(|note| Row::apart(name, seconds, note));
        self.tell(name, site, begin, tried).await;
    }

    async fn tell(&mut self, name: &str, site: &Site, begin: Instant, tried: Result<Row>) {
        let seconds = begin.elapsed().as_secs_f64();
        let judged = tried.and_then(|row| {
            println!("{row}");
            self.rows.push(row.clone());
            row.judge()
        });
        match judged {
            Ok(()) => {
                self.passed += 1;
                println!("test {name} ... ok ({seconds:.1} s)");
            }
            Err(error) => {
                self.failed += 1;
                println!("test {name} ... FAILED ({seconds:.1} s)\n  {error:?}");
                show_state(site).await;
            }
        }
    }
}

async fn show_state(site: &Site) {
    for query in [
        ["get", "nodes,pods", "-A", "-o", "wide"].as_slice(),
        &["get", "dnnmodels,computenodes,placements", "-o", "wide"],
        &["get", "events"],
    ] {
        if let Ok(text) = site.cluster.kubectl(query).await {
            println!("{text}");
        }
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|a| a == "--list") {
        return ExitCode::SUCCESS;
    }
    if std::env::var_os("LAMINA_IMAGES").is_none() {
        println!("skipped: no images; `cargo xtask test --only cluster` builds them");
        println!("test result: ok. 0 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out");
        return ExitCode::SUCCESS;
    }
    let mut suite = Suite {
        filters: arguments
            .into_iter()
            .filter(|a| !a.starts_with('-'))
            .collect(),
        rows: Vec::new(),
        passed: 0,
        failed: 0,
        skipped: 0,
    };
    if let Err(error) = run(&mut suite).await {
        suite.failed += 1;
        println!("test cluster ... FAILED\n  {error:?}");
    }
    println!("\n{}", table::print(&suite.rows));
    let word = if suite.failed == 0 { "ok" } else { "FAILED" };
    println!(
        "test result: {word}. {} passed; {} failed; 0 ignored; 0 measured; {} filtered out",
        suite.passed, suite.failed, suite.skipped
    );
    if suite.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

async fn run(suite: &mut Suite) -> Result<()> {
    let mut site = Site::start(&[MODEL], &mut |text| println!("  {text}")).await?;
    let outcome = lifecycle(suite, &mut site).await;
    if outcome.is_err() {
        show_state(&site).await;
    }
    site.cluster.stop().await;
    outcome
}

async fn lifecycle(suite: &mut Suite, site: &mut Site) -> Result<()> {
    use Promise::{NothingLost, NothingWrong};
    macro_rules! apart {
        ($work:path) => {
            suite.apart(stringify!($work), site, $work).await;
        };
    }
    println!("  {}", changes::install(site).await?);
    apart!(selftest::passes_without_credentials);
    let mut load = Load::start(site).await?;
    macro_rules! case {
        ($work:path, $promise:expr) => {
            suite
                .case(stringify!($work), $promise, site, &mut load, $work)
                .await;
        };
    }
    case!(changes::operator_pod_deleted, NothingLost);
    case!(losses::container_killed_on_the_path, NothingLost);
    case!(losses::kubelet_and_containerd_killed, NothingLost);
    case!(losses::api_server_and_datastore_killed, NothingLost);
    case!(changes::pod_deleted_on_the_path, NothingLost);
    case!(changes::node_drained_on_the_path, NothingLost);
    case!(changes::agents_restarted_one_by_one, NothingLost);
    case!(changes::chart_upgraded, NothingLost);
    // The entry does not listen until its container has restarted.
    case!(losses::container_killed_at_the_entry, NothingWrong);
    case!(losses::power_failure_on_the_path, NothingLost);
    case!(losses::memory_used_up_on_the_path, NothingLost);
    case!(losses::cache_over_its_limit_on_the_path, NothingLost);
    case!(losses::power_failure_at_the_leader, NothingLost);
    case!(changes::node_deleted_and_replaced, NothingLost);
    case!(versions::upgraded_and_rolled_back, NothingLost);
    case!(trust::certificates_renewed, NothingLost);
    // An agent that cannot renew its certificate is not trusted, by design.
    case!(trust::certificates_expired, NothingWrong);
    load.stop().await?;
    apart!(changes::uninstalled_and_installed_again);
    apart!(versions::taken_over_by_helm_3);
    apart!(selftest::passes_with_a_token);
    apart!(selftest::passes_with_a_key);
    Ok(())
}
