use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::time::Instant;

/// Whether something is in progress, or was a moment ago. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Activity(Arc<Mutex<Counted>>);

#[derive(Debug, Default)]
struct Counted {
    under_way: u32,
    ended: Option<Instant>,
}

/// In progress until this is dropped.
#[derive(Debug)]
pub struct UnderWay(Activity);

impl Activity {
    /// Another one starts.
    pub fn begin(&self) -> UnderWay {
        self.counted().under_way += 1;
        UnderWay(self.clone())
    }

    /// Whether any was in progress at some moment since `since`.
    pub fn was_since(&self, since: Instant) -> bool {
        let counted = self.counted();
        counted.under_way > 0 || counted.ended.is_some_and(|ended| ended >= since)
    }

    fn counted(&self) -> MutexGuard<'_, Counted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut counted = self.0.counted();
        counted.under_way = counted.under_way.saturating_sub(1);
        counted.ended = Some(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread::sleep;
    use std::time::Duration;

    #[test]
    fn what_ended_a_moment_ago_counts_from_its_end() {
        let activity = Activity::default();
        let begin = Instant::now();
        assert!(!activity.was_since(begin));
        let first = activity.begin();
        let second = activity.clone().begin();
        drop(first);
        sleep(Duration::from_millis(5));
        assert!(activity.was_since(Instant::now()));
        drop(second);
        sleep(Duration::from_millis(5));
        assert!(activity.was_since(begin));
        assert!(!activity.was_since(Instant::now()));
    }
}
