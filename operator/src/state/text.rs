//! Numbers and moves as text for Events and columns.

use lamina_crds::placement::Segment;

/// `46ms`, `1.2s`, `0.4ms`.
pub(crate) fn millis(ms: f64) -> String {
    if ms >= 9_950.0 {
        format!("{:.0}s", ms / 1e3)
    } else if ms >= 999.5 {
        format!("{:.1}s", ms / 1e3)
    } else if ms >= 9.95 {
        format!("{ms:.0}ms")
    } else {
        format!("{ms:.1}ms")
    }
}

/// `5.1` or `50`: megabits per second of a link.
fn mbit(bytes_per_second: f64) -> String {
    let value = bytes_per_second * 8.0 / 1e6;
    if value >= 9.95 {
        format!("{value:.0}")
    } else if value >= 0.95 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}

/// `50→5.1 Mbit/s`.
pub(crate) fn rate_change(before: f64, after: f64) -> String {
    format!("{}→{} Mbit/s", mbit(before), mbit(after))
}

/// `moving blocks 8..24 from edge-1 to cam-1`; several moves are joined by
/// commas. Empty where every block stays.
pub(crate) fn moves(from: &[Segment], to: &[Segment]) -> String {
    let old = assignment(from);
    let mut runs: Vec<(u32, u32, &str, &str)> = Vec::new();
    for (block, new_host) in assignment(to) {
        let Some((_, old_host)) = old.iter().find(|(b, _)| *b == block) else {
            continue;
        };
        if *old_host == new_host {
            continue;
        }
        match runs.last_mut() {
            Some((_, last, f, t)) if *last + 1 == block && f == old_host && *t == new_host => {
                *last = block;
            }
            _ => runs.push((block, block, old_host, new_host)),
        }
    }
    let parts: Vec<String> = runs
        .iter()
        .map(|(first, last, from, to)| {
            let blocks = if first == last {
                format!("block {first}")
            } else {
                format!("blocks {first}..{last}")
            };
            format!("{blocks} from {from} to {to}")
        })
        .collect();
    if parts.is_empty() {
        String::new()
    } else {
        format!("moving {}", parts.join(", "))
    }
}

/// Block and host, in order of blocks.
fn assignment(segments: &[Segment]) -> Vec<(u32, &str)> {
    let mut all: Vec<(u32, &str)> = segments
        .iter()
        .flat_map(|s| s.blocks.iter().map(|b| (*b, s.host.node.as_str())))
        .collect();
    all.sort_unstable();
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use lamina_crds::Hop;

    fn path(parts: &[(&str, std::ops::Range<u32>)]) -> Vec<Segment> {
        parts
            .iter()
            .map(|(node, blocks)| Segment {
                host: Hop {
                    node: (*node).into(),
                    address: String::new(),
                },
                blocks: blocks.clone().collect(),
            })
            .collect()
    }

    #[test]
    fn numbers_are_short() {
        let times: Vec<String> = [0.42, 9.94, 46.2, 412.0, 1234.0, 10_000.0]
            .into_iter()
            .map(millis)
            .collect();
        assert_eq!(times, ["0.4ms", "9.9ms", "46ms", "412ms", "1.2s", "10s"]);
        assert_eq!(rate_change(6_250_000.0, 640_000.0), "50→5.1 Mbit/s");
    }

    #[test]
    fn moves_name_blocks_and_hosts() {
        let before = path(&[("cam-1", 0..8), ("edge-1", 8..25)]);
        let after = path(&[("cam-1", 0..25)]);
        assert_eq!(
            moves(&before, &after),
            "moving blocks 8..24 from edge-1 to cam-1"
        );
        assert_eq!(moves(&before, &before), "");
        let split = path(&[
            ("edge-2", 0..1),
            ("cam-1", 1..8),
            ("edge-1", 8..20),
            ("cloud-1", 20..25),
        ]);
        assert_eq!(
            moves(&before, &split),
            "moving block 0 from cam-1 to edge-2, blocks 20..24 from edge-1 to cloud-1"
        );
    }
}
