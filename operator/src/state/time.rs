//! Time: a monotonic clock for decisions, the wall clock for display.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

/// A moment on this process's monotonic clock, which steps of the wall clock do not affect. Moments
/// before the process started are negative.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Default)]
pub(crate) struct Moment(f64);

impl Moment {
    /// `seconds` after the process began.
    pub(crate) const fn at(seconds: f64) -> Self {
        Self(seconds)
    }

    /// Seconds since the process began.
    pub(crate) const fn seconds(self) -> f64 {
        self.0
    }

    /// Seconds since `earlier`; never negative.
    pub(crate) fn since(self, earlier: Self) -> f64 {
        (self.0 - earlier.0).max(0.0)
    }

    /// `seconds` later, or earlier where negative.
    pub(crate) fn plus(self, seconds: f64) -> Self {
        Self(self.0 + seconds)
    }
}

/// Kubernetes keeps whole seconds; anything finer would differ after a write.
pub(crate) fn seconds_only(wall: Timestamp) -> Time {
    Time(Timestamp::from_second(wall.as_second()).unwrap_or(wall))
}
