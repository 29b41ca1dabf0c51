//! Graceful shutdown: the agent accepts requests for as long as probes and clients need to
//! notice, the operator to move its slices, and other agents to redirect theirs.

use crate::serve::routes::Routes;
use crate::serve::slices::Slices;
use crate::telemetry::Telemetry;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

/// Requests are accepted for at least this long: kube-proxy, load balancers and clients that watch
/// the health service need a moment to redirect them.
const AT_LEAST: Duration = Duration::from_secs(5);
/// If other agents sent nothing for this long, their routes lead elsewhere, such as to this agent's
/// successor.
const QUIET: Duration = Duration::from_secs(2);
/// Longest wait for slices to move: with the time for requests in flight afterwards, this must fit
/// the grace period in the chart.
const LIMIT: Duration = Duration::from_secs(15);
/// Interval between checks.
const LOOK: Duration = Duration::from_millis(200);

/// Returns once this host may refuse requests. `is_heard` says whether the operator listens to this
/// agent: nothing else moves slices, and an operator with this agent's successor listens to that
/// one.
pub(super) async fn moved(
    slices: Slices,
    routes: Routes,
    telemetry: Telemetry,
    is_heard: watch::Receiver<bool>,
) {
    let began = Instant::now();
    let mut last_hop = (telemetry.hops_seen(), began);
    loop {
        let waited = began.elapsed();
        let hops = telemetry.hops_seen();
        if hops != last_hop.0 {
            last_hop = (hops, Instant::now());
        }
        let is_quiet = last_hop.1.elapsed() >= QUIET;
        let movable = if *is_heard.borrow() {
            movable(&slices, &routes)
        } else {
            0
        };
        if may_end(movable, is_quiet, waited) {
            if movable > 0 || !is_quiet {
                tracing::warn!(
                    movable,
                    is_quiet,
                    "ending, though this host is still in use"
                );
            }
            return;
        }
        sleep(LOOK).await;
    }
}

/// Slices that others can take over: not those of models that enter here.
fn movable(slices: &Slices, routes: &Routes) -> usize {
    let entries: BTreeSet<String> = routes
        .statuses()
        .into_iter()
        .map(|route| route.placement_uid)
        .collect();
    let held = slices.statuses().into_iter();
    held.filter(|slice| !entries.contains(&slice.placement_uid))
        .count()
}

fn may_end(movable: usize, is_quiet: bool, waited: Duration) -> bool {
    waited >= LIMIT || waited >= AT_LEAST && movable == 0 && is_quiet
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blobs::{BlobOptions, Blobs};
    use crate::net::OperatorEndpoint;
    use crate::serve::engine::fake::FakeEngine;
    use crate::testing::{route, slice};
    use std::sync::Arc;

    #[test]
    fn an_agent_goes_once_others_have_its_slices_but_not_at_once() {
        let second = Duration::from_secs(1);
        assert!(!may_end(0, true, Duration::ZERO));
        assert!(may_end(0, true, AT_LEAST));
        assert!(!may_end(1, true, LIMIT - second));
        assert!(!may_end(0, false, LIMIT - second));
        assert!(may_end(1, false, LIMIT));
    }

    #[tokio::test(start_paused = true)]
    async fn what_arises_here_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let options = BlobOptions {
            dir: dir.path().into(),
            ..BlobOptions::default()
        };
        let blobs = Blobs::open(options, OperatorEndpoint::default(), Telemetry::default());
        let engine = Arc::new(FakeEngine::default());
        let slices = Slices::new(engine, Arc::new(blobs.unwrap()), Arc::default());
        let routes = Routes::new(Arc::default());
        let (hear, is_heard) = watch::channel(true);
        let telemetry = Telemetry::default();
        let gone_after = async || {
            let began = Instant::now();
            let (slices, routes) = (slices.clone(), routes.clone());
            moved(slices, routes, telemetry.clone(), is_heard.clone()).await;
            began.elapsed()
        };
        slices.apply(&[slice("here", 1, 0), slice("elsewhere", 1, 1)]);
        routes.apply(&[route("here", "m", 1)]).unwrap();
        assert!(gone_after().await >= LIMIT, "of `elsewhere`");
        slices.apply(&[slice("here", 1, 0)]);
        assert!(gone_after().await < AT_LEAST + LOOK);
        slices.apply(&[slice("elsewhere", 1, 1)]);
        hear.send_replace(false);
        assert!(gone_after().await < AT_LEAST + LOOK, "nobody moves it");
        let asked = async {
            for _ in 0..8 {
                drop(telemetry.hop_began());
                sleep(QUIET / 2).await;
            }
        };
        let (waited, ()) = tokio::join!(gone_after(), asked);
        let (least, most) = (QUIET * 9 / 2, QUIET * 9 / 2 + LOOK * 2);
        assert!((least..most).contains(&waited), "{waited:?}");
    }
}
