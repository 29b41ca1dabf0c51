/// Median of `values`, which it sorts; 0 if empty.
pub fn median(values: &mut [f64]) -> f64 {
    percentile(values, 0.5)
}

/// Percentile `p` (0 to 1) of `values`, which it sorts; 0 if empty.
pub fn percentile(values: &mut [f64], p: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let last = values.len().saturating_sub(1);
    values
        .get((last as f64 * p).round() as usize)
        .copied()
        .unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_few_values() {
        assert_eq!(median(&mut []), 0.0);
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
        assert_eq!(percentile(&mut [1.0, 2.0, 3.0, 4.0, 5.0], 0.95), 5.0);
    }
}
