//! Two hundred more agents: the operator serves five real hosts as it did alone.

use crate::faults::load;
use crate::good::serve;
use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::ListParams;
use lamina_crds::ComputeNode;
use lamina_e2e::fleet::{Cluster, Fleet, FleetHost, Library, Pods, answer_pings};
use lamina_e2e::metrics::{self, Histogram};
use lamina_e2e::scene::redeploy::{self, Load, Run};
use lamina_e2e::scene::{DEVICE_LINK, SYSTEM, Scene, Step, poll};
use lamina_e2e::{CONTROL, Tier};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

const MODEL: &str = "mobilenet-v2";
const AGENTS: usize = 200;
/// Name prefix of the simulated hosts.
const PREFIX: &str = "fleet-";
/// Port of the operator's metrics.
const FIGURES: u16 = 9090;
/// The histogram of its reconciles.
const LOOKS: &str = "lamina_reconcile_duration_seconds";
/// Seconds from the change of the link until another path is active. The bound holds on a busy
/// machine; the time on a quiet one is printed.
const REDEPLOY_SECONDS: f64 = 60.0;

/// Hosts without free capacity: a strategy has to consider each, but none may get a slice of a
/// model that real requests need.
fn hosts(address: SocketAddr) -> Vec<FleetHost> {
    let host = |ordinal: usize| FleetHost {
        name: format!("{PREFIX}{ordinal:03}"),
        tier: [Tier::Device, Tier::Edge, Tier::Cloud][ordinal % 3],
        site: u32::try_from(ordinal / 20).unwrap_or_default(),
        gflops: 1.0,
        cpu_millis: 100,
        memory_bytes: 0,
        labels: BTreeMap::new(),
        address: address.to_string(),
    };
    (0..AGENTS).map(host).collect()
}

/// The durations of the operator's reconciles so far.
async fn looks(scene: &Scene) -> Result<Histogram> {
    let api: Api<Pod> = Api::namespaced(scene.lab.client(), SYSTEM);
    let operator = ListParams::default().labels("app.kubernetes.io/component=operator");
    let pods = api.list(&operator).await?.items.into_iter();
    let address = pods
        .filter_map(|pod| pod.status?.pod_ip)
        .next()
        .context("the operator's pod has no address")?;
    let address = SocketAddr::new(address.parse()?, FIGURES);
    let text = metrics::fetch(address, "/metrics", Duration::from_secs(10)).await?;
    Histogram::parse(&text, LOOKS).with_context(|| format!("no {LOOKS} in {text}"))
}

fn tell(what: &str, looks: &Histogram) {
    let ms = |seconds: Option<f64>| seconds.map_or(f64::NAN, |s| s * 1e3);
    println!(
        "  {what}: {} looks, median {:.0} ms, 99th percentile {:.0} ms",
        looks.count(),
        ms(looks.quantile(0.5)),
        ms(looks.quantile(0.99))
    );
}

async fn moves(scene: &Scene) -> Result<Run> {
    let load = Load {
        phase_seconds: 4,
        ..load(3.0)
    };
    let run = redeploy::run(scene, &load, &mut |text| println!("  {text}")).await;
    // The links are restored in any case.
    scene.lab.set_host_links(&load.entry, |link| {
        link.rate_bits_per_s = DEVICE_LINK.rate_bits_per_s;
    })?;
    Ok(run?)
}

pub(crate) async fn two_hundred_agents_beside_five_real_ones(scene: &Scene) -> Result<()> {
    // The simulated hosts have no certificates.
    scene
        .install_with(&[("tls.required", "false")], Duration::from_secs(60))
        .await?;
    serve(scene, MODEL).await?;
    let control = SocketAddr::new(scene.lab.address(CONTROL)?.into(), 0);
    let (address, pings) = answer_pings(control).await?;
    let cluster = Cluster {
        client: scene.lab.client(),
        kubeconfig: scene.lab.kubeconfig(),
        namespace: SYSTEM,
        pods: Pods::DaemonSet,
    };
    let fleet = Fleet::start(cluster, hosts(address), Arc::new(Library::default())).await?;
    let outcome = beside(scene, &fleet).await;
    pings.abort();
    // The next case begins with five hosts again.
    fleet.remove().await?;
    five_hosts(scene).await?;
    outcome
}

async fn beside(scene: &Scene, fleet: &Fleet) -> Result<()> {
    poll(
        "every agent's host Ready",
        Duration::from_secs(90),
        async || {
            Ok(match fleet.ready() {
                AGENTS => Step::Done(()),
                some => Step::NotYet(format!("{some} are, after {} sessions", fleet.sessions())),
            })
        },
    )
    .await?;
    let before = looks(scene).await?;
    let run = moves(scene).await?;
    tell(
        "looks during a redeploy beside 200 agents",
        &looks(scene).await?.since(&before),
    );
    let summary = run.evidence.summary;
    println!(
        "  {} requests, {} lost, {} wrong; {} became {} in {:.1} s",
        summary.sent, summary.lost, summary.wrong, run.paths.0, run.paths.1, run.redeploy_seconds
    );
    ensure!(
        summary.sent > 0 && summary.correct == summary.sent,
        "{summary:?}"
    );
    ensure!(
        run.redeploy_seconds < REDEPLOY_SECONDS,
        "the redeploy took {:.1} s: {:?}",
        run.redeploy_seconds,
        run.events
    );
    for path in [&run.paths.0, &run.paths.1] {
        ensure!(
            !path.contains(PREFIX),
            "{path} leads over hosts that there are not"
        );
    }
    let before = looks(scene).await?;
    tokio::time::sleep(Duration::from_secs(6)).await;
    tell(
        "looks while nothing happens",
        &looks(scene).await?.since(&before),
    );
    ensure!(
        fleet.ready() == AGENTS,
        "{} hosts are Ready at the end",
        fleet.ready()
    );
    ensure!(
        fleet.sessions() as usize == AGENTS,
        "{} sessions of {AGENTS} agents",
        fleet.sessions()
    );
    Ok(())
}

async fn five_hosts(scene: &Scene) -> Result<()> {
    let api: Api<ComputeNode> = Api::all(scene.lab.client());
    poll(
        "the ComputeNodes gone",
        Duration::from_secs(60),
        async || {
            let nodes = api.list(&ListParams::default()).await?.items;
            Ok(match nodes.len() {
                5 => Step::Done(()),
                some => Step::NotYet(format!("{some} are there")),
            })
        },
    )
    .await?;
    Ok(())
}
