//! What the world tells between two looks.

use crate::state::decision::Interest;
use crate::state::links::{LinkChange, Pair};
use crate::world::{World, WorldEvent};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

/// A listener that keeps what the next look must know.
#[derive(Debug)]
pub(crate) struct News {
    events: broadcast::Receiver<WorldEvent>,
    changed_links: BTreeMap<Pair, LinkChange>,
}

impl News {
    /// What happens in `world` from now on.
    pub(crate) fn of(world: &World) -> Self {
        Self {
            events: world.subscribe(),
            changed_links: BTreeMap::new(),
        }
    }

    /// Waits for an event that a look should follow at once. A listener that lags has missed some,
    /// which counts as one.
    pub(crate) async fn urgent(&mut self, interest: &Interest) {
        loop {
            match self.events.recv().await {
                Ok(event) => {
                    let matters = matters(&event, interest);
                    self.keep(event);
                    if matters {
                        return;
                    }
                }
                Err(RecvError::Lagged(_)) => return,
                // The world outlives the loop; without events the period is enough.
                Err(RecvError::Closed) => std::future::pending::<()>().await,
            }
        }
    }

    /// Takes up what has happened since: one look answers it all.
    pub(crate) fn take_up(&mut self) {
        while let Ok(event) = self.events.try_recv() {
            self.keep(event);
        }
    }

    /// The links that changed since this was last asked.
    pub(crate) fn changed_links(&mut self) -> Vec<LinkChange> {
        std::mem::take(&mut self.changed_links)
            .into_values()
            .collect()
    }

    fn keep(&mut self, event: WorldEvent) {
        let WorldEvent::LinkChanged {
            from,
            to,
            before,
            after,
        } = event
        else {
            return;
        };
        let (before, after) = (before.into(), after.into());
        match self.changed_links.entry((from, to)) {
            Entry::Occupied(mut known) => known.get_mut().after = after,
            Entry::Vacant(new) => {
                let pair = new.key().clone();
                new.insert(LinkChange {
                    pair,
                    before,
                    after,
                });
            }
        }
    }
}

/// Whether a look should follow at once. With many hosts, most links are on no path, and their
/// changes can wait for the next look.
fn matters(event: &WorldEvent, interest: &Interest) -> bool {
    let is_used = |from: &String, to: &String| {
        let pairs = [(from.clone(), to.clone()), (to.clone(), from.clone())];
        pairs
            .iter()
            .any(|pair| interest.paths.contains(pair) || interest.wanted.contains(pair))
    };
    match event {
        WorldEvent::LinkChanged { from, to, .. } => is_used(from, to),
        // A first plan waits for the links of its entry.
        WorldEvent::LinkMeasured { from, to, .. } => {
            [from, to]
                .iter()
                .any(|host| interest.entries.contains(*host))
                || is_used(from, to)
        }
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::LinkEstimate;

    #[test]
    fn links_that_nothing_hangs_on_wake_nobody() {
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        let interest = Interest {
            paths: [pair("cam", "edge"), pair("edge", "cam")].into(),
            wanted: [pair("edge", "cloud")].into(),
            entries: ["cam".to_owned()].into(),
            ..Interest::default()
        };
        let estimate = LinkEstimate {
            rtt_seconds: Some(0.01),
            bytes_per_second: Some(1e6),
            confidence: 1.0,
            noise: 0.1,
            bandwidth_age: None,
            reachable: true,
            estimated: false,
        };
        let changed = |(from, to): (String, String)| WorldEvent::LinkChanged {
            from,
            to,
            before: estimate,
            after: estimate,
        };
        let measured =
            |(from, to): (String, String)| WorldEvent::LinkMeasured { from, to, estimate };
        let wakes = |event| matters(&event, &interest);
        assert!(wakes(changed(pair("cam", "edge"))));
        assert!(wakes(changed(pair("cloud", "edge"))));
        assert!(!wakes(changed(pair("cam", "cloud"))));
        assert!(wakes(measured(pair("cam", "cloud"))));
        assert!(wakes(measured(pair("other", "cam"))));
        assert!(!wakes(measured(pair("cloud", "other"))));
        let lost = WorldEvent::NodeLost {
            node: "other".to_owned(),
        };
        assert!(wakes(lost));
    }
}
