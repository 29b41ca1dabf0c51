//! From nothing to a served model on real kubelets, as a user does it: a cluster, `helm
//! install`, `kubectl apply`, the first answers. `cargo xtask cluster` runs it.

use clap::Parser;
use lamina_e2e::scene::{Result, SYSTEM, objects};
use lamina_e2e::site::{ENTRY, Site};
use lamina_e2e::workload::{Line, Photograph};
use std::error::Error;
use std::process::ExitCode;
use std::time::{Duration, Instant};

const MODEL: &str = "mobilenet-v2";
const PATIENCE: Duration = Duration::from_secs(180);

/// Start three nodes with real kubelets and containers, install the chart, serve a model.
#[derive(Parser)]
#[command(name = "cargo xtask cluster", version)]
struct Args {
    /// Leave everything running at the end and print how to look at it.
    #[arg(long)]
    keep: bool,
}

/// Prints lines with the time since the start.
struct Teller(Instant);

impl Teller {
    fn say(&self, text: &str) {
        println!("{:7.1} s  {text}", self.0.elapsed().as_secs_f64());
    }

    fn block(text: &str) {
        for line in text.trim_end().lines() {
            println!("           {line}");
        }
        println!();
    }

    /// Prints a command and its output.
    async fn kubectl(&self, site: &Site, arguments: &[&str]) -> Result<()> {
        self.say(&format!("kubectl {}", arguments.join(" ")));
        Self::block(&site.cluster.kubectl(arguments).await?);
        Ok(())
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    match tell(&Args::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            show_error(&error);
            ExitCode::FAILURE
        }
    }
}

async fn tell(args: &Args) -> Result<bool> {
    let teller = Teller(Instant::now());
    println!("Lamina on real kubelets: kine on SQLite, containerd, runc\n");
    let site = Site::start(&[MODEL], &mut |text| teller.say(text)).await?;
    let outcome = serve(&site, &teller).await;
    if outcome.is_err() {
        show_state(&site).await;
    }
    if args.keep {
        keep(&site).await?;
    }
    site.cluster.stop().await;
    outcome
}

/// From an empty cluster to the first answers; true if they match PyTorch's.
async fn serve(site: &Site, teller: &Teller) -> Result<bool> {
    teller
        .kubectl(site, &["create", "namespace", SYSTEM])
        .await?;
    let restricted = "pod-security.kubernetes.io/enforce=restricted";
    teller
        .kubectl(site, &["label", "namespace", SYSTEM, restricted])
        .await?;
    teller.say("helm install lamina charts/lamina");
    site.install(&["--set", "logFormat=text"]).await?;
    let client = site.cluster.client();
    objects::wait_nodes(&client, 3, PATIENCE).await?;
    teller
        .kubectl(site, &["get", "pods", "-n", SYSTEM, "-o", "wide"])
        .await?;
    teller.kubectl(site, &["get", "computenodes"]).await?;
    teller.say(&format!("kubectl apply -f examples/{MODEL}.yaml"));
    site.cluster.apply(&site.example(MODEL)?).await?;
    let told = &mut |text: &str| teller.say(&format!("  {text}"));
    objects::wait_ready(&client, MODEL, PATIENCE, told).await?;
    teller
        .kubectl(site, &["get", "dnnmodels,computenodes,placements"])
        .await?;
    let service = site.service().await?;
    teller.say(&format!(
        "real photographs, by tritonclient on {ENTRY} to the Service at {service}"
    ));
    let named = photographs(site).await?;
    teller.say("served");
    Ok(named.len() == 3 && named.iter().all(|p| p.label == p.torch_label))
}

async fn photographs(site: &Site) -> Result<Vec<Photograph>> {
    let client = site.client("photographs", MODEL, &[]).await?;
    let lines = client.finish(Duration::from_secs(90)).await?;
    let named = lines.into_iter().filter_map(|line| match line {
        Line::Photograph(p) => Some(p),
        _ => None,
    });
    let named: Vec<Photograph> = named.collect();
    for p in &named {
        Teller::block(&format!(
            "{}: \"{}\" {:.0} % in {:.0} ms over {}\n  PyTorch says \"{}\", largest difference {:.1e}",
            p.name,
            p.label,
            p.confidence * 100.0,
            p.seconds * 1e3,
            p.path,
            p.torch_label,
            p.max_abs_diff
        ));
    }
    Ok(named)
}

async fn keep(site: &Site) -> Result<()> {
    site.cluster.leave_interrupts_to_the_caller();
    println!(
        "\nEverything runs on. Look at it:\n  \
         export KUBECONFIG={} PATH=$LAMINA_TOOLS:$PATH\n  \
         kubectl get nodes,pods -A\n  \
         nsenter --net=/run/netns/lamina-node-{ENTRY} …      # a node's network\n  \
         logs of nodes and pods: {}\n\
         Ctrl-C ends it.",
        site.cluster.kubeconfig().display(),
        site.cluster.dir().join("nodes").display(),
    );
    tokio::signal::ctrl_c()
        .await
        .map_err(|e| lamina_e2e::scene::SceneError::Io(e.to_string()))
}

async fn show_state(site: &Site) {
    for query in [
        ["get", "nodes,pods", "-A", "-o", "wide"].as_slice(),
        &["get", "dnnmodels,computenodes,placements", "-o", "wide"],
        &["get", "events", "-A"],
    ] {
        if let Ok(text) = site.cluster.kubectl(query).await {
            println!("{text}");
        }
    }
}

fn show_error(error: &dyn Error) {
    eprintln!("{error}");
    let mut source = error.source();
    while let Some(cause) = source {
        eprintln!("  because {cause}");
        source = cause.source();
    }
}
