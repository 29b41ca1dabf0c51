//! The whole system on the lab: the real chart, operator and agents, real models, real clients, and
//! every bad input that users meet. One scene, cases in order; each restores the scene.

mod access;
mod activations;
mod bad_models;
mod clients;
mod encrypted;
mod exits;
mod faults;
mod fleet;
mod good;
mod hostile;
mod images;
mod isolation;
mod joined;
mod manifests;
mod requests;
mod rights;
mod versions;
mod wishes;

use anyhow::Result;
use lamina_e2e::scene::Scene;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// Counts cases and prints them as cargo's own harness does.
struct Suite {
    filters: Vec<String>,
    passed: u32,
    failed: u32,
    skipped: u32,
}

/// A case must not hang the run.
const CASE_LIMIT: Duration = Duration::from_secs(300);

impl Suite {
    async fn case(&mut self, name: &str, scene: &Scene, work: impl Future<Output = Result<()>>) {
        let filters = &self.filters;
        if !filters.is_empty() && !filters.iter().any(|f| name.contains(f.as_str())) {
            self.skipped += 1;
            return;
        }
        let start = Instant::now();
        let outcome = timeout(CASE_LIMIT, work)
            .await
            .unwrap_or_else(|_| Err(anyhow::anyhow!("did not end within {CASE_LIMIT:?}")));
        let seconds = start.elapsed().as_secs_f64();
        match outcome {
            Ok(()) => {
                self.passed += 1;
                println!("test {name} ... ok ({seconds:.1} s)");
            }
            Err(error) => {
                self.failed += 1;
                println!("test {name} ... FAILED ({seconds:.1} s)\n  {error:?}");
                show_state(scene).await;
            }
        }
    }
}

async fn show_state(scene: &Scene) {
    for query in [
        vec!["get", "dnnmodels,computenodes,placements", "-o", "wide"],
        vec!["get", "events"],
    ] {
        if let Ok(text) = scene.lab.kubectl(&query).await {
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
    let mut suite = Suite {
        filters: arguments
            .into_iter()
            .filter(|a| !a.starts_with('-'))
            .collect(),
        passed: 0,
        failed: 0,
        skipped: 0,
    };
    let models = [
        "mobilenet-v2",
        "googlenet",
        "resnet18",
        "one-image",
        "two-images",
        "exits",
        "digits",
    ];
    let scene = match Scene::start(None, &models, &mut |text| println!("  {text}")).await {
        Ok(scene) => scene,
        Err(error) => {
            println!("test scene ... FAILED\n  {:?}", anyhow::Error::from(error));
            println!("test result: FAILED. 0 passed; 1 failed; 0 ignored");
            return ExitCode::FAILURE;
        }
    };
    run(&mut suite, &scene).await;
    if let Err(error) = scene.lab.stop().await {
        eprintln!("cleaning up: {error}");
    }
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

async fn run(suite: &mut Suite, scene: &Scene) {
    macro_rules! case {
        ($work:path) => {
            suite.case(stringify!($work), scene, $work(scene)).await;
        };
    }
    case!(manifests::every_mistake_is_named);
    case!(manifests::explain_and_columns);
    case!(manifests::agents_write_only_their_own_node);
    case!(good::mobilenet_is_served_as_pytorch_answers);
    case!(requests::malformed_requests_are_refused_by_name);
    case!(requests::any_agent_takes_any_model);
    case!(clients::every_client_of_the_protocol_is_answered);
    case!(exits::each_row_leaves_at_its_exit);
    case!(exits::digits_are_named_as_pytorch_names_them);
    case!(exits::strategies_choose_thresholds);
    case!(activations::fewer_bytes_cross_a_slow_link);
    case!(images::files_cross_the_first_link_and_are_decoded_behind_it);
    case!(images::a_camera_decodes_where_it_is_told_to);
    case!(manifests::what_the_operator_decided_is_written_by_it_alone);
    case!(good::googlenet_is_served);
    case!(bad_models::missing_source);
    case!(bad_models::wrong_hash);
    case!(bad_models::no_torchscript);
    case!(bad_models::inputs_that_do_not_fit);
    case!(bad_models::uncuttable_model_is_served_whole);
    case!(bad_models::no_entry_node);
    case!(bad_models::unknown_strategy);
    case!(bad_models::hosts_too_small);
    case!(bad_models::a_broken_update_leaves_the_last_good_one_serving);
    case!(hostile::a_tenant_and_the_network_do_their_worst);
    case!(hostile::connections_that_say_nothing_cost_others_nothing);
    case!(isolation::a_model_that_is_flooded_and_crashes_costs_others_nothing);
    case!(isolation::a_model_that_never_ends_costs_others_nothing);
    case!(isolation::a_model_that_takes_all_memory_costs_others_nothing);
    case!(wishes::a_wish_that_nothing_meets_is_not_ready);
    case!(wishes::input_that_must_stay_never_leaves);
    case!(wishes::an_invalid_edit_leaves_failover_armed);
    case!(wishes::a_cordoned_host_is_emptied);
    case!(wishes::an_entry_that_moves_loses_nothing);
    case!(versions::another_signature_rolls_out_under_load);
    case!(wishes::a_store_that_is_lost_comes_back_from_the_hosts);
    case!(wishes::a_release_that_comes_back_is_proved_again);
    case!(faults::agent_killed_and_restarted);
    case!(faults::node_lost_for_good);
    case!(faults::node_lost_and_the_entry_loads_more);
    case!(faults::link_between_two_hosts_cut);
    case!(faults::slow_link_moves_blocks_and_operator_dies_meanwhile);
    case!(faults::api_server_away);
    case!(faults::entry_restarted_while_all_others_are_away);
    case!(access::a_key_gets_the_models_of_its_namespace);
    case!(access::a_token_gets_what_its_holder_may_get);
    case!(encrypted::clients_believe_the_operators_authority);
    case!(encrypted::a_given_certificate_is_replaced_while_clients_are_answered);
    case!(joined::a_machine_without_a_kubelet_joins_serves_and_leaves);
    case!(faults::model_deleted_and_applied_again);
    case!(fleet::two_hundred_agents_beside_five_real_ones);
    // A partial run proves nothing here.
    if suite.skipped == 0 {
        case!(rights::every_rule_is_used_and_no_call_is_refused);
    }
}
