//! Liveness of this process, and its readiness for agents.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A loop without a beat for this long is stuck.
const STUCK: Duration = Duration::from_secs(30);

/// The state of the process's parts. Clones share their content.
#[derive(Debug, Clone, Default)]
pub struct Health(Arc<Mutex<Parts>>);

#[derive(Debug, Default)]
struct Parts {
    beats: BTreeMap<&'static str, Instant>,
    /// What each part waits for; `None` once it is ready.
    waiting: BTreeMap<&'static str, Option<String>>,
}

/// Outcome of a check, for people and probes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// All is well.
    pub ok: bool,
    /// One line for each part: `[+]lease ok`.
    pub text: String,
}

impl Health {
    /// The loop `part` is alive. After its first beat, further ones are expected.
    pub fn beat(&self, part: &'static str) {
        self.parts().beats.insert(part, Instant::now());
    }

    /// `part` is ready. The process is when all are.
    pub fn ready(&self, part: &'static str) {
        self.parts().waiting.insert(part, None);
    }

    /// `part` is not ready, and waits for `why`.
    pub fn waits(&self, part: &'static str, why: impl Into<String>) {
        self.parts().waiting.insert(part, Some(why.into()));
    }

    /// Whether no loop is stuck.
    pub fn livez(&self) -> Report {
        self.live_at(Instant::now())
    }

    /// Whether everything that must be ready is.
    pub fn readyz(&self) -> Report {
        report(self.parts().waiting.iter().map(|(part, why)| {
            let state = why
                .as_ref()
                .map_or_else(|| "ok".to_owned(), |w| format!("not ready: {w}"));
            (why.is_none(), *part, state)
        }))
    }

    fn live_at(&self, now: Instant) -> Report {
        report(self.parts().beats.iter().map(|(part, at)| {
            let age = now.saturating_duration_since(*at);
            let text = format!("last beat {} s ago", age.as_secs());
            (age < STUCK, *part, text)
        }))
    }

    fn parts(&self) -> MutexGuard<'_, Parts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn report(parts: impl Iterator<Item = (bool, &'static str, String)>) -> Report {
    let mut report = Report {
        ok: true,
        text: String::new(),
    };
    for (ok, part, state) in parts {
        report.ok &= ok;
        let sign = if ok { '+' } else { '-' };
        // Writing to a String cannot fail.
        let _ = writeln!(report.text, "[{sign}]{part} {state}");
    }
    report
        .text
        .push_str(if report.ok { "ok\n" } else { "failed\n" });
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_that_stops_beating_is_stuck() {
        let health = Health::default();
        assert!(health.livez().ok);
        health.beat("lease");
        let now = Instant::now();
        assert!(health.live_at(now).ok);
        let later = health.live_at(now + STUCK + Duration::from_secs(1));
        assert!(!later.ok);
        assert!(later.text.contains("[-]lease"), "{}", later.text);
    }

    #[test]
    fn one_part_that_is_not_ready_is_named() {
        let health = Health::default();
        health.ready("store");
        health.waits("lease", "another process holds it");
        let report = health.readyz();
        assert!(!report.ok);
        assert!(report.text.contains("[+]store ok\n"), "{}", report.text);
        assert!(
            report
                .text
                .contains("[-]lease not ready: another process holds it\n")
        );
        health.ready("lease");
        assert!(health.readyz().ok);
    }
}
