//! The steps of the demo, in order.

use crate::Args;
use lamina_e2e::scene::cut_off::{self, Seen};
use lamina_e2e::scene::redeploy::{self, Load, Run};
use lamina_e2e::scene::{Result, Scene, SceneError};
use lamina_e2e::workload::{Finding, Line, Photograph, judge};
use std::error::Error;
use std::time::{Duration, Instant};

/// The demo's model.
const MODEL: &str = "mobilenet-v2";
/// Host where requests enter.
const ENTRY: &str = "cam-1";

/// Prints lines with the time since the start.
struct Teller {
    start: Instant,
}

impl Teller {
    fn say(&self, text: &str) {
        println!("{:7.1} s  {text}", self.start.elapsed().as_secs_f64());
    }

    fn block(text: &str) {
        for line in text.trim_end().lines() {
            println!("           {line}");
        }
        println!();
    }
}

/// Runs the whole story; true if every check passes.
pub(crate) async fn tell(args: &Args) -> Result<bool> {
    let teller = Teller {
        start: Instant::now(),
    };
    println!("Lamina: one network over five hosts\n");
    let scene = Scene::start(Some(0), &[MODEL, cut_off::MODEL], &mut |text| {
        teller.say(text);
    })
    .await?;
    Teller::block(&scene.lab.kubectl(&["get", "nodes,pods", "-A"]).await?);
    teller.say("kubectl get computenodes");
    Teller::block(&scene.lab.kubectl(&["get", "computenodes"]).await?);
    let outcome = serve_and_move(args, &scene, &teller).await;
    if outcome.is_err() {
        show_state(&scene).await;
    }
    if args.keep {
        keep(&scene).await?;
    }
    if let Err(error) = scene.lab.stop().await {
        eprintln!("cleaning up: {error}");
    }
    outcome
}

async fn serve_and_move(args: &Args, scene: &Scene, teller: &Teller) -> Result<bool> {
    teller.say(&format!("kubectl apply -f examples/{MODEL}.yaml"));
    scene.apply(&scene.example(MODEL)?).await?;
    scene
        .wait_ready(MODEL, Duration::from_secs(180), &mut |text| {
            teller.say(&format!("  {text}"));
        })
        .await?;
    teller.say("kubectl get dnnmodels,computenodes,placements");
    let all = ["get", "dnnmodels,computenodes,placements"];
    Teller::block(&scene.lab.kubectl(&all).await?);

    teller.say("real photographs, by tritonclient over gRPC to the camera's agent");
    let named = photographs(scene).await?;
    let load = Load {
        model: MODEL.to_owned(),
        entry: ENTRY.to_owned(),
        rate: args.rate,
        phase_seconds: args.phase_seconds,
        deadline_seconds: args.deadline_seconds,
    };
    let run = redeploy::run(scene, &load, &mut |text| teller.say(text)).await?;
    teller.say("kubectl get events, since the link changed");
    Teller::block(&run.events.join("\n"));
    teller.say("kubectl get placements");
    Teller::block(&scene.lab.kubectl(&["get", "placements"]).await?);
    let seen = exits(scene, teller).await?;
    Ok(verdict(args, &named, &run, &seen))
}

/// A network with early exits, on a camera that is cut off.
async fn exits(scene: &Scene, teller: &Teller) -> Result<Seen> {
    teller.say(&format!(
        "kubectl apply -f examples/{}.yaml: three exits, the first on the camera",
        cut_off::MODEL
    ));
    scene.apply(&scene.example(cut_off::MODEL)?).await?;
    scene
        .wait_ready(cut_off::MODEL, Duration::from_secs(180), &mut |_| ())
        .await?;
    teller.say("kubectl get placements");
    Teller::block(&scene.lab.kubectl(&["get", "placements"]).await?);
    cut_off::run(scene, &mut |text| teller.say(text)).await
}

async fn photographs(scene: &Scene) -> Result<Vec<Photograph>> {
    let client = scene.client(ENTRY, "photographs", MODEL, &[])?;
    let lines = client.finish(Duration::from_secs(90)).await?;
    let named: Vec<Photograph> = lines
        .into_iter()
        .filter_map(|line| match line {
            Line::Photograph(p) => Some(p),
            _ => None,
        })
        .collect();
    for p in &named {
        let hops: Vec<String> = p
            .timing
            .iter()
            .map(|h| {
                let compute = h.compute_us as f64 / 1e3;
                let transfer = h.transfer_us as f64 / 1e3;
                format!(
                    "{} compute {compute:.0} ms transfer {transfer:.0} ms",
                    h.node
                )
            })
            .collect();
        Teller::block(&format!(
            "{}: \"{}\" {:.0} % in {:.0} ms  ({})\n  PyTorch says \"{}\", largest difference {:.1e}",
            p.name,
            p.label,
            p.confidence * 100.0,
            p.seconds * 1e3,
            hops.join(" → "),
            p.torch_label,
            p.max_abs_diff
        ));
    }
    Ok(named)
}

fn verdict(args: &Args, named: &[Photograph], run: &Run, seen: &Seen) -> bool {
    let mut findings = judge(&run.evidence);
    findings.insert(
        0,
        Finding {
            passed: !named.is_empty()
                && named.iter().all(|p| p.label == p.torch_label)
                && named.iter().any(|p| p.label == "military uniform"),
            text: format!(
                "{} photographs named as PyTorch names them, Grace Hopper's \"military uniform\" among them",
                named.len()
            ),
        },
    );
    findings.push(Finding {
        passed: run.redeploy_seconds > 0.0,
        text: format!(
            "{:.1} s from the slow link to the new path; every request had {} s",
            run.redeploy_seconds, args.deadline_seconds
        ),
    });
    findings.extend(cut_off::findings(seen));
    println!("Verdict");
    for f in &findings {
        println!("  {} {}", if f.passed { "ok  " } else { "FAIL" }, f.text);
    }
    let passed = findings.iter().all(|f| f.passed);
    println!("\n{}", if passed { "PASSED" } else { "FAILED" });
    passed
}

/// Prints what an engineer would ask for first.
async fn show_state(scene: &Scene) {
    for query in [
        vec!["get", "dnnmodels,computenodes,placements", "-o", "wide"],
        vec!["get", "events"],
    ] {
        if let Ok(text) = scene.lab.kubectl(&query).await {
            Teller::block(&text);
        }
    }
}

async fn keep(scene: &Scene) -> Result<()> {
    println!("\nIt goes on running. In another terminal:");
    println!("  export KUBECONFIG={}", scene.lab.kubeconfig().display());
    println!("  kubectl get dnnmodels,computenodes,placements");
    println!("  kubectl get events --watch");
    println!("Ctrl-C ends it.");
    tokio::signal::ctrl_c()
        .await
        .map_err(|e| SceneError::Io(e.to_string()))
}

/// Prints an error with its causes.
pub(crate) fn show_error(error: &SceneError) {
    eprintln!("demo: {error}");
    let mut cause = error.source();
    while let Some(inner) = cause {
        eprintln!("  because: {inner}");
        cause = inner.source();
    }
}
