//! Quality of the links between a fleet's hosts. Pure.

use std::collections::BTreeMap;

/// Quality of one direction of a link.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quality {
    /// Round trip of an empty message in seconds.
    pub rtt_seconds: f64,
    /// Bytes per second.
    pub bytes_per_second: f64,
}

/// Round trip inside a site.
const SITE_RTT_SECONDS: f64 = 0.004;
/// Round trip to the nearest other site; it grows with the distance.
const NEAR_RTT_SECONDS: f64 = 0.02;
/// Added per further site.
const FURTHER_SECONDS: f64 = 0.001;
/// The longest round trip.
const FAR_RTT_SECONDS: f64 = 0.08;
const SITE_BYTES_PER_SECOND: f64 = 12_500_000.0;
const WIDE_BYTES_PER_SECOND: f64 = 5_000_000.0;

/// Links between hosts of sites: fast within one, slower and longer between two.
#[derive(Debug, Clone, Default)]
pub struct Links {
    sites: BTreeMap<String, u32>,
    changed: BTreeMap<(String, String), Quality>,
}

impl Links {
    /// Links between hosts, each with the ordinal of its site.
    pub fn between(sites: impl IntoIterator<Item = (String, u32)>) -> Self {
        Self {
            sites: sites.into_iter().collect(),
            changed: BTreeMap::new(),
        }
    }

    /// The link from one host to another; an unknown host is in no site and far away.
    pub fn get(&self, from: &str, to: &str) -> Quality {
        let changed = self.changed.get(&(from.to_owned(), to.to_owned()));
        changed.copied().unwrap_or_else(|| self.usual(from, to))
    }

    /// The link without slowdowns.
    fn usual(&self, from: &str, to: &str) -> Quality {
        match (self.sites.get(from), self.sites.get(to)) {
            (Some(a), Some(b)) if a == b => Quality {
                // Hosts of a site differ a little, so that ties are rare.
                rtt_seconds: SITE_RTT_SECONDS * (1.0 + 0.5 * spread(from, to)),
                bytes_per_second: SITE_BYTES_PER_SECOND * (1.0 - 0.5 * spread(from, to)),
            },
            (Some(a), Some(b)) => {
                let distance = f64::from(a.abs_diff(*b) - 1);
                let rtt = NEAR_RTT_SECONDS + FURTHER_SECONDS * distance;
                Quality {
                    rtt_seconds: rtt.min(FAR_RTT_SECONDS) * (1.0 + 0.2 * spread(from, to)),
                    bytes_per_second: WIDE_BYTES_PER_SECOND * (1.0 - 0.2 * spread(from, to)),
                }
            }
            _ => Quality {
                rtt_seconds: FAR_RTT_SECONDS,
                bytes_per_second: WIDE_BYTES_PER_SECOND,
            },
        }
    }

    /// Divides the bandwidth between two hosts, both ways, by `factor`; 1 restores it.
    pub fn slow_down(&mut self, a: &str, b: &str, factor: f64) {
        for (from, to) in [(a, b), (b, a)] {
            let key = (from.to_owned(), to.to_owned());
            let usual = self.usual(from, to);
            if factor <= 1.0 {
                self.changed.remove(&key);
            } else {
                let bytes_per_second = usual.bytes_per_second / factor;
                self.changed.insert(
                    key,
                    Quality {
                        bytes_per_second,
                        ..usual
                    },
                );
            }
        }
    }
}

/// A number from 0 to 1 for a pair of hosts, in either order.
fn spread(a: &str, b: &str) -> f64 {
    let (a, b) = if a <= b { (a, b) } else { (b, a) };
    // FNV-1a: any even spread will do.
    let hash = a
        .bytes()
        .chain([b'|'])
        .chain(b.bytes())
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
    f64::from(u16::try_from(hash >> 48).unwrap_or_default()) / f64::from(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn links() -> Links {
        let sites = [("a", 0), ("b", 0), ("c", 1), ("d", 9)];
        Links::between(sites.map(|(name, site)| (name.to_owned(), site)))
    }

    #[test]
    fn a_site_is_nearer_than_the_next_one_and_that_nearer_than_the_last() {
        let links = links();
        let rtt = |to| links.get("a", to).rtt_seconds;
        assert!(rtt("b") < rtt("c") && rtt("c") < rtt("d"));
        assert!(rtt("unknown") >= rtt("d"));
        assert_eq!(links.get("a", "b"), links.get("b", "a"));
    }

    #[test]
    fn a_link_is_slowed_down_both_ways_and_restored() {
        let mut links = links();
        let before = links.get("a", "b");
        links.slow_down("a", "b", 10.0);
        for (from, to) in [("a", "b"), ("b", "a")] {
            let now = links.get(from, to);
            assert!((now.bytes_per_second * 10.0 - before.bytes_per_second).abs() < 1.0);
            assert_eq!(now.rtt_seconds, before.rtt_seconds);
        }
        links.slow_down("b", "a", 1.0);
        assert_eq!(links.get("a", "b"), before);
    }
}
