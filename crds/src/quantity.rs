//! Kubernetes quantities of bytes: `8M`, `612Mi`, `1.5Gi`.

/// The text is not a quantity of bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a quantity of bytes; write 8M, 612Mi or 1.5Gi")]
pub struct QuantityError(pub String);

const SUFFIXES: [(&str, f64); 9] = [
    ("Ki", 1024.0),
    ("Mi", 1_048_576.0),
    ("Gi", 1_073_741_824.0),
    ("Ti", 1_099_511_627_776.0),
    ("k", 1e3),
    ("M", 1e6),
    ("G", 1e9),
    ("T", 1e12),
    ("", 1.0),
];

/// Parses `text` as a number of bytes.
///
/// # Errors
/// The text is not a quantity, or is negative.
pub fn parse_bytes(text: &str) -> Result<u64, QuantityError> {
    let wrong = || QuantityError(text.to_owned());
    let (number, factor) = SUFFIXES
        .iter()
        .find_map(|(suffix, factor)| Some((text.strip_suffix(suffix)?, factor)))
        .ok_or_else(wrong)?;
    let value: f64 = number.parse().map_err(|_| wrong())?;
    if !(value.is_finite() && value >= 0.0 && number.starts_with(|c: char| c.is_ascii_digit())) {
        return Err(wrong());
    }
    // Above 2^53 bytes the last digits do not matter.
    Ok((value * factor) as u64)
}

/// `bytes` in human-readable form: `612Mi`, `7.6Mi`, `900`.
pub fn format_bytes(bytes: u64) -> String {
    for (suffix, factor) in [("Gi", 1_073_741_824.0), ("Mi", 1_048_576.0), ("Ki", 1024.0)] {
        let value = bytes as f64 / factor;
        if value >= 10.0 {
            return format!("{value:.0}{suffix}");
        }
        if value >= 1.0 {
            return format!("{value:.1}{suffix}");
        }
    }
    bytes.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_reads_them() {
        assert_eq!(parse_bytes("8M"), Ok(8_000_000));
        assert_eq!(parse_bytes("8Mi"), Ok(8_388_608));
        assert_eq!(parse_bytes("1.5Gi"), Ok(1_610_612_736));
        assert_eq!(parse_bytes("12"), Ok(12));
        for bad in ["", "Mi", "-1M", "8MB", "nan", "inf", "1e999"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn bytes_are_written_for_people() {
        assert_eq!(format_bytes(900), "900");
        assert_eq!(format_bytes(8_000_000), "7.6Mi");
        assert_eq!(format_bytes(641_728_512), "612Mi");
    }
}
