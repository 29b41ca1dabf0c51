//! Order statistics of measured times.

use lamina_model::Seconds;

/// Tenth, fiftieth and ninetieth percentile; zeros if nothing was measured.
pub(crate) fn seconds(samples: &[f64]) -> Seconds {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    Seconds {
        p50: percentile(&sorted, 50),
        p10: percentile(&sorted, 10),
        p90: percentile(&sorted, 90),
    }
}

/// The nearest rank at or above `percent` of ascending `sorted`.
fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let last = sorted.len().saturating_sub(1);
    let rank = (last * percent).div_ceil(100);
    sorted.get(rank).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_do_not_depend_on_the_order() {
        let samples: Vec<f64> = (0..=10).rev().map(f64::from).collect();
        let s = seconds(&samples);
        assert_eq!((s.p10, s.p50, s.p90), (1.0, 5.0, 9.0));
        assert_eq!(seconds(&[2.0]).p90, 2.0);
        assert_eq!(seconds(&[]), Seconds::default());
    }
}
