//! When a strategy is asked: at once if something that the Placement depends on changed, otherwise
//! periodically. Periods are spread, so that hundreds of Placements never come due together.

use super::{Case, answers_for, links, plans, problem};
use crate::state::memory::PlacementMemory;
use crate::state::snapshot::{Need, Snapshot};
use crate::state::time::Moment;
use lamina_placement::Tier;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A strategy is asked again after this time even if nothing happened; later with many Placements.
const PERIOD_SECONDS: f64 = 10.0;
/// Limit of periodic questions over all Placements.
const PERIODIC_PER_SECOND: f64 = 10.0;
/// Least time between two questions, whatever happens.
const PAUSE_SECONDS: f64 = 1.0;
/// Time before a change that led to nothing is considered again.
const NEWS_SECONDS: f64 = 3.0;
/// The first plan waits this long for links to be measured.
const SETTLE_SECONDS: f64 = 10.0;
/// With up to this many other hosts, the first plan waits for every link of the entry, both ways;
/// with more, for those that the entry is asked to measure: this many in each tier.
const SETTLED_LINKS: usize = 12;
const SETTLED_OF_TIER: usize = 4;
/// An exit where the share of requests that leave changes by so much may make another
/// plan the better one. Of a hundred requests, less is noise.
const EXITS_MOVED: f64 = 0.15;

/// Seconds until a strategy may be asked again; `None` if it may be asked now.
pub(super) fn pause_left(snapshot: &Snapshot, own: &PlacementMemory) -> Option<f64> {
    let since = snapshot.seconds_since(own.solved_at?);
    Some(PAUSE_SECONDS - since).filter(|left| *left > 0.0)
}

/// Something that changed and makes another look at the plan worthwhile.
pub(super) struct News {
    /// What it is.
    pub why: String,
    /// The present path is as good as it was: another may be better now.
    pub is_calm: bool,
}

impl News {
    fn pressing(why: String) -> Self {
        Self {
            why,
            is_calm: false,
        }
    }
}

impl Case<'_> {
    /// Why a strategy should be asked, whether or not it is time.
    pub(super) fn need(&self, own: &PlacementMemory, news: bool) -> Need {
        if self.current.is_none() {
            Need::First
        } else if self.broken.is_some() {
            Need::Leave
        } else if news || own.candidate.is_some() || self.is_unlike(own) || self.trial_ripe(own) {
            Need::Change
        } else {
            Need::Period
        }
    }

    /// Why a strategy should be asked now, if it should.
    pub(super) fn due(&self, own: &PlacementMemory, news: bool) -> Option<Need> {
        let since = own.solved_at.map(|t| self.snapshot.seconds_since(t));
        if since.is_some_and(|s| s < PAUSE_SECONDS) {
            return None;
        }
        let need = self.need(own, news);
        let is_new_wish = self.is_new_wish(own);
        if self.current.is_some() && need < Need::Leave {
            if self.site.phase.is_moving() && !is_new_wish {
                return None;
            }
            if self.snapshot.is_starting() {
                return None;
            }
        }
        if self.current.is_some() && self.wanted.wish.adaptation.paused && !is_new_wish {
            return None;
        }
        let is_waiting = own
            .problem
            .as_ref()
            .is_some_and(|p| p.0 == crate::state::plans::WAITING);
        let period = match need {
            Need::First if is_waiting => 0.0,
            // Its links are being measured.
            Need::First if own.candidate.is_some() => PAUSE_SECONDS,
            Need::First => self.period(),
            Need::Leave => PAUSE_SECONDS,
            Need::Change if is_new_wish || own.candidate.is_some() => PAUSE_SECONDS,
            // It has only just been noticed.
            Need::Change if own.noticed.is_some_and(|at| at >= self.last_asked(own)) => {
                PAUSE_SECONDS
            }
            Need::Change => NEWS_SECONDS,
            Need::Period | Need::Ahead => self.period(),
        };
        since.is_none_or(|s| s >= period).then_some(need)
    }

    fn last_asked(&self, own: &PlacementMemory) -> Moment {
        own.solved_at.unwrap_or_default()
    }

    fn period(&self) -> f64 {
        let placements = self.snapshot.placements.len() as f64;
        let period = PERIOD_SECONDS.max(placements / PERIODIC_PER_SECOND);
        // Each Placement keeps its own phase.
        period * (0.85 + 0.3 * self.site.key().spread())
    }

    /// Whether the wish differs from the one last planned for.
    fn is_new_wish(&self, own: &PlacementMemory) -> bool {
        own.planned_generation != Some(self.wanted.generation)
    }

    /// Whether the serving plan was made for another wish.
    fn is_unlike(&self, own: &PlacementMemory) -> bool {
        let Some(plan) = self.current else {
            return false;
        };
        let strategy = &self.wanted.wish.strategy.name;
        plan.manifest != self.wanted.digest
            || !answers_for(&plan.strategy, strategy)
            || self.is_sent_otherwise(plan)
            || self.is_new_wish(own) && plan.generation != self.wanted.generation
    }

    /// What has changed since the plan was chosen.
    pub(super) fn news(&self, own: &mut PlacementMemory) -> Option<News> {
        self.note_faster_link(own);
        let is_later = own
            .planned_generation
            .is_some_and(|g| g != self.wanted.generation);
        if is_later {
            return Some(News::pressing("the spec changed".to_owned()));
        }
        self.current
            .and_then(|plan| links::change_since_plan(self.snapshot, own, self.entry(), plan))
            .or_else(|| self.ending())
            .or_else(|| self.joined(own).map(|name| format!("{name} joined")))
            .or_else(|| self.exits_moved(own))
            .map(News::pressing)
            .or_else(|| {
                let (_, why) = own.faster_link.clone()?;
                Some(News { why, is_calm: true })
            })
    }

    /// Notes a link that became faster, between a host of the present path and one that the last
    /// answer considered: a path over it may be the better one. Links between two others wait for
    /// the period, since with many hosts there is always one that changes.
    fn note_faster_link(&self, own: &mut PlacementMemory) {
        let changes = &self.snapshot.changed_links;
        let Some(plan) = self.current.filter(|_| !changes.is_empty()) else {
            return;
        };
        let is_considered = |host: &String| own.considered.binary_search(host).is_ok();
        let is_here =
            |host: &String| *host == self.entry() || plans::hosts(plan).any(|of| of == host);
        let faster = changes.iter().find_map(|change| {
            let (from, to) = &change.pair;
            let is_ours = is_here(from) && is_considered(to) || is_here(to) && is_considered(from);
            is_ours.then(|| links::faster(change)).flatten()
        });
        if let Some(why) = faster {
            own.faster_link = Some((self.snapshot.now, why));
        }
    }

    /// An exit where requests leave more or less often than when a strategy last answered.
    fn exits_moved(&self, own: &PlacementMemory) -> Option<String> {
        let now = self.exit_shares();
        let exits = self.wanted.manifest.exits.iter();
        let shares = own.exit_shares.iter().zip(&now).zip(exits);
        let mut moved = shares.filter(|((before, now), _)| (*now - *before).abs() >= EXITS_MOVED);
        let ((before, now), exit) = moved.next()?;
        let (before, now) = (before * 100.0, now * 100.0);
        Some(format!(
            "{before:.0}→{now:.0} % of the requests leave at exit {}",
            exit.name
        ))
    }

    /// A host of the plan that is about to stop, and will not wait long.
    fn ending(&self) -> Option<String> {
        let hosts = plans::hosts(self.current?);
        let mut others = hosts.filter(|name| *name != self.entry());
        let ending = others.find(|name| self.snapshot.is_ending(name))?;
        Some(format!("{ending} is about to end"))
    }

    /// A host that was missing when a strategy last answered.
    fn joined(&self, own: &PlacementMemory) -> Option<String> {
        let fit = &self.site.cluster.fit;
        if own.fit.is_empty() || Arc::ptr_eq(&own.fit, fit) {
            return None;
        }
        fit.difference(&own.fit).next().cloned()
    }

    /// Whether agents are connected and the entry's links measured, or the first plan has waited
    /// long enough.
    pub(super) fn is_settled(&self, own: &mut PlacementMemory) -> bool {
        let (snapshot, entry) = (self.snapshot, self.entry());
        let since = *own.waiting_since.get_or_insert(snapshot.now);
        if snapshot.seconds_since(since) >= SETTLE_SECONDS && !snapshot.is_starting() {
            return true;
        }
        let all_here = snapshot.agents.iter().all(|a| snapshot.is_alive(a));
        let known = |a: &str, b: &str| {
            let view = snapshot.links.get(a, b);
            view.as_ref().and_then(problem::link).is_some()
        };
        let hosts = self.site.cluster.hosts.iter();
        let others = hosts.filter(|h| h.name != entry && snapshot.is_alive(&h.name));
        if others.clone().count() <= SETTLED_LINKS {
            let mut names = others.map(|h| h.name.as_str());
            return all_here && names.all(|n| known(entry, n) && known(n, entry));
        }
        // With many hosts the entry only measures some, and few of these measure it.
        let mut of_tier: BTreeMap<Tier, usize> = BTreeMap::new();
        for host in others.clone() {
            *of_tier.entry(host.tier).or_default() += 1;
        }
        let wanted = of_tier.into_values().map(|n| n.min(SETTLED_OF_TIER)).sum();
        let measured = others.filter(|h| known(entry, &h.name));
        all_here && measured.take(wanted).count() == wanted
    }
}
