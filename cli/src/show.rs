//! Formats numbers for people.

use lamina_placement::{Criterion, Objective};

/// `74.2 ms`.
pub(crate) fn time(seconds: f64) -> String {
    let magnitude = seconds.abs();
    if magnitude >= 1.0 {
        format!("{} s", digits(seconds))
    } else if magnitude >= 1e-3 || magnitude == 0.0 {
        format!("{} ms", digits(seconds * 1e3))
    } else {
        format!("{} µs", digits(seconds * 1e6))
    }
}

/// `50 Mbit/s`.
pub(crate) fn bandwidth(bytes_per_second: f64) -> String {
    scaled(bytes_per_second * 8.0, "bit/s")
}

/// `13.5/s`.
pub(crate) fn rate(per_second: f64) -> String {
    format!("{}/s", digits(per_second))
}

/// `0.21 J`, `5.4 mJ`.
pub(crate) fn energy(joules: f64) -> String {
    if joules == 0.0 || joules >= 1.0 {
        format!("{} J", digits(joules))
    } else if joules >= 1e-3 {
        format!("{} mJ", digits(joules * 1e3))
    } else {
        format!("{} µJ", digits(joules * 1e6))
    }
}

/// Money per million requests, because one request costs next to nothing.
pub(crate) fn money(per_request: f64) -> String {
    digits(per_request * 1e6)
}

/// `80 %`.
pub(crate) fn share(share: f64) -> String {
    format!("{} %", digits(share * 100.0))
}

/// The value of an objective in its unit. Throughput is shown as a rate.
pub(crate) fn objective(objective: &Objective, value: f64) -> String {
    match first(objective) {
        Some(Criterion::Latency | Criterion::TailLatency) => time(value),
        Some(Criterion::Throughput) if value > 0.0 => rate(value.recip()),
        Some(Criterion::Throughput) => "no limit".to_owned(),
        Some(Criterion::Energy) => energy(value),
        Some(Criterion::Fairness | Criterion::ProportionalFairness) => share(value),
        Some(Criterion::Money) => money(value),
        None => digits(value),
    }
}

/// The name of an objective.
pub(crate) fn objective_name(objective: &Objective) -> String {
    let names: Vec<String> = match objective {
        Objective::Weighted(terms) => terms
            .iter()
            .map(|t| format!("{} x {}", t.weight, t.criterion))
            .collect(),
        other => other.criteria().iter().map(ToString::to_string).collect(),
    };
    match objective {
        Objective::Weighted(_) => names.join(" + "),
        _ => names.join(", then "),
    }
}

/// The criterion whose unit the value has; `None` for a weighted sum.
fn first(objective: &Objective) -> Option<Criterion> {
    match objective {
        Objective::Lexicographic(ranks) => ranks.first().map(|r| r.criterion),
        other => other.single(),
    }
}

/// Three significant digits: `74.2`, `0.213`, `1380`.
pub(crate) fn digits(value: f64) -> String {
    let magnitude = value.abs();
    let decimals = if magnitude >= 99.95 || magnitude == 0.0 {
        0
    } else if magnitude >= 9.995 {
        1
    } else if magnitude >= 0.9995 {
        2
    } else if magnitude >= 1e-3 {
        3
    } else {
        return format!("{value:.2e}");
    };
    format!("{value:.decimals$}")
}

/// `50 Mbit/s`: without trailing zeros.
fn scaled(value: f64, unit: &str) -> String {
    const PREFIXES: [(f64, &str); 4] = [(1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, "")];
    let fits = PREFIXES.iter().find(|(size, _)| value >= size * 0.9995);
    let (size, prefix) = fits.copied().unwrap_or((1.0, ""));
    let mut number = digits(value / size);
    if number.contains('.') && !number.contains('e') {
        number.truncate(number.trim_end_matches('0').trim_end_matches('.').len());
    }
    format!("{number} {prefix}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_three_digits_and_a_unit() {
        assert_eq!(time(0.0742), "74.2 ms");
        assert_eq!(time(2.5), "2.50 s");
        assert_eq!(time(0.000_012), "12.0 µs");
        assert_eq!(bandwidth(6.25e6), "50 Mbit/s");
        assert_eq!(bandwidth(0.5e6 / 8.0), "500 kbit/s");
        assert_eq!(energy(0.213), "213 mJ");
        assert_eq!(digits(99.96), "100");
        assert_eq!(share(0.804), "80.4 %");
    }

    #[test]
    fn an_objective_is_shown_in_its_unit() {
        assert_eq!(objective(&Objective::Throughput, 0.05), "20.0/s");
        assert_eq!(objective(&Objective::Latency, 0.05), "50.0 ms");
        assert_eq!(objective(&Objective::Weighted(Vec::new()), 0.05), "0.050");
    }
}
