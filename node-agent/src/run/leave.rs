//! How an agent that was told to end goes: it takes requests for as long as hosts, probes
//! and clients need to hear of it, and the operator to move its slices to others.

use crate::serve::routes::Routes;
use crate::serve::slices::Slices;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

/// Requests are taken for at least so long: kube-proxy, balancers and clients that watch the
/// health service need a moment to send them elsewhere.
const AT_LEAST: Duration = Duration::from_secs(5);
/// Slices are waited for so long to move: with the time that requests in flight get
/// afterwards, this must fit the grace period in the chart.
const LIMIT: Duration = Duration::from_secs(15);
/// Time between two looks.
const LOOK: Duration = Duration::from_millis(200);

/// Returns once this host may refuse requests. `is_heard` says whether the operator hears
/// this agent: nobody else moves anything, and the one of an agent's successor hears that one.
pub(super) async fn moved(slices: Slices, routes: Routes, is_heard: watch::Receiver<bool>) {
    let began = Instant::now();
    loop {
        let waited = began.elapsed();
        let movable = if *is_heard.borrow() {
            movable(&slices, &routes)
        } else {
            0
        };
        if may_end(movable, waited) {
            if movable > 0 {
                tracing::warn!(movable, "ending, though slices have not moved");
            }
            return;
        }
        sleep(LOOK).await;
    }
}

/// Slices that others can take over: not those of models whose requests arise here.
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

fn may_end(movable: usize, waited: Duration) -> bool {
    waited >= LIMIT || waited >= AT_LEAST && movable == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blobs::{BlobOptions, Blobs};
    use crate::net::OperatorEndpoint;
    use crate::serve::engine::fake::FakeEngine;
    use crate::telemetry::Telemetry;
    use crate::testing::{route, slice};
    use std::sync::Arc;

    #[test]
    fn an_agent_goes_once_others_have_its_slices_but_not_at_once() {
        let second = Duration::from_secs(1);
        assert!(!may_end(0, Duration::ZERO));
        assert!(may_end(0, AT_LEAST));
        assert!(!may_end(1, LIMIT - second));
        assert!(may_end(1, LIMIT));
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
        let gone_after = async || {
            let began = Instant::now();
            moved(slices.clone(), routes.clone(), is_heard.clone()).await;
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
    }
}
