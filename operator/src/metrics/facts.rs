use crate::state::snapshot::Snapshot;
use crate::world::World;
use lamina_crds::Placement;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, NoLabelSet};
use prometheus_client::metrics::MetricType;
use std::fmt::Error;
use std::sync::{Arc, Mutex, PoisonError};

/// Facts about hosts, links and placements.
#[derive(Debug)]
pub(super) struct Facts {
    world: World,
    snapshot: Mutex<Option<Arc<Snapshot>>>,
}

/// One line of a family: its labels and its value.
type Line<'a, const N: usize> = ([(&'static str, &'a str); N], f64);

impl Facts {
    pub(super) const fn new(world: World) -> Self {
        Self {
            world,
            snapshot: Mutex::new(None),
        }
    }

    pub(super) fn set(&self, snapshot: Arc<Snapshot>) {
        *self.snapshot.lock().unwrap_or_else(PoisonError::into_inner) = Some(snapshot);
    }

    fn snapshot(&self) -> Option<Arc<Snapshot>> {
        let snapshot = self.snapshot.lock();
        snapshot.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn gauges<'a, const N: usize>(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help): (&str, &str),
    lines: impl Iterator<Item = Line<'a, N>>,
) -> Result<(), Error>
where
    [(&'static str, &'a str); N]: EncodeLabelSet,
{
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in lines {
        family.encode_family(&labels)?.encode_gauge(&value)?;
    }
    Ok(())
}

fn counters<'a, const N: usize>(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help): (&str, &str),
    lines: impl Iterator<Item = ([(&'static str, &'a str); N], u64)>,
) -> Result<(), Error>
where
    [(&'static str, &'a str); N]: EncodeLabelSet,
{
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (labels, value) in lines {
        family
            .encode_family(&labels)?
            .encode_counter::<NoLabelSet, u64, f64>(&value, None)?;
    }
    Ok(())
}

impl Collector for Facts {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        self.hosts(&mut encoder)?;
        self.links(&mut encoder)?;
        if let Some(snapshot) = self.snapshot() {
            placements(&snapshot, &mut encoder)?;
            self.requests(&snapshot, &mut encoder)?;
        }
        Ok(())
    }
}

impl Facts {
    fn hosts(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let nodes = self.world.nodes();
        gauges(
            encoder,
            (
                "node_heartbeat_age_seconds",
                "Time since an agent's last message",
            ),
            nodes
                .iter()
                .map(|(n, s)| ([("node", n.as_str())], s.last_seen.as_secs_f64())),
        )?;
        let Some(snapshot) = self.snapshot() else {
            return Ok(());
        };
        gauges(
            encoder,
            ("node_gflops", "Speed of a host as its agent measured it"),
            snapshot.compute_nodes.iter().filter_map(|(name, node)| {
                let capacity = node.status.as_ref()?.capacity?;
                Some(([("node", name.as_str())], capacity.gflops))
            }),
        )
    }

    fn links(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let mut links = Vec::new();
        let mut keep = |a: &str, b: &str, rtt: Option<f64>, rate: Option<f64>| {
            links.push((a.to_owned(), b.to_owned(), rtt, rate));
        };
        // From the snapshot, or from the agents' reports if nothing is decided here.
        match self.snapshot() {
            Some(s) => s
                .links
                .each(|a, b, v| keep(a, b, v.rtt_seconds, v.bytes_per_second)),
            None => {
                for (a, b, e) in self.world.links().iter() {
                    keep(a, b, e.rtt_seconds, e.bytes_per_second);
                }
            }
        }
        gauges(
            encoder,
            ("link_rtt_seconds", "Round trip of an empty message"),
            links
                .iter()
                .filter_map(|(src, dst, rtt, _)| Some((pair(src, dst), (*rtt)?))),
        )?;
        gauges(
            encoder,
            (
                "link_bandwidth_bytes_per_second",
                "Bandwidth from one host to another",
            ),
            links
                .iter()
                .filter_map(|(src, dst, _, rate)| Some((pair(src, dst), (*rate)?))),
        )
    }

    fn requests(
        &self,
        snapshot: &Snapshot,
        encoder: &mut DescriptorEncoder<'_>,
    ) -> Result<(), Error> {
        let all = self.world.requests();
        let of = |p: &Placement| p.metadata.uid.as_ref().and_then(|uid| all.get(uid));
        counters(
            encoder,
            (
                "inference_requests",
                "Requests at the entries since the operator's start by outcome",
            ),
            snapshot.placements.iter().flat_map(|p| {
                let [namespace, model, placement] = labels(p);
                of(p).into_iter().flat_map(move |(totals, _)| {
                    [("answered", totals.answered), ("failed", totals.failed)]
                        .map(|(code, count)| ([namespace, model, placement, ("code", code)], count))
                })
            }),
        )?;
        counters(
            encoder,
            (
                "inference_retries",
                "Requests that were sent again on another route; none of them is lost",
            ),
            snapshot
                .placements
                .iter()
                .filter_map(|p| Some((labels(p), of(p)?.0.retried))),
        )?;
        gauges(
            encoder,
            (
                "inference_latency_seconds",
                "Latency at the entry over the last minute",
            ),
            snapshot.placements.iter().flat_map(|p| {
                let [namespace, model, placement] = labels(p);
                let estimate = of(p).and_then(|(_, e)| e.as_ref());
                estimate.into_iter().flat_map(move |e| {
                    [("0.5", e.p50_seconds), ("0.95", e.p95_seconds)]
                        .map(|(q, value)| ([namespace, model, placement, ("quantile", q)], value))
                })
            }),
        )
    }
}

fn pair<'a>(src: &'a str, dst: &'a str) -> [(&'static str, &'a str); 2] {
    [("src", src), ("dst", dst)]
}

fn labels(placement: &Placement) -> [(&'static str, &str); 3] {
    let meta = &placement.metadata;
    [
        ("namespace", meta.namespace.as_deref().unwrap_or_default()),
        ("model", placement.spec.model.as_str()),
        ("placement", meta.name.as_deref().unwrap_or_default()),
    ]
}

fn placements(snapshot: &Snapshot, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
    let with_status = || {
        let all = snapshot.placements.iter();
        all.filter_map(|p| Some((p, p.status.as_ref()?)))
    };
    gauges(
        encoder,
        ("placement_info", "The path that serves a placement"),
        with_status().map(|(p, status)| {
            let [namespace, model, placement] = labels(p);
            let path = ("path", status.path.as_str());
            ([namespace, model, placement, path], 1.0)
        }),
    )?;
    gauges(
        encoder,
        (
            "placement_condition",
            "1 for the present status of each condition",
        ),
        with_status().flat_map(|(p, status)| {
            let [namespace, _, placement] = labels(p);
            status.conditions.iter().map(move |c| {
                let (kind, is) = (("type", c.type_.as_str()), ("status", c.status.as_str()));
                ([namespace, placement, kind, is], 1.0)
            })
        }),
    )?;
    counters(
        encoder,
        (
            "placement_redeploys",
            "Times that blocks of a placement moved while it served",
        ),
        with_status().map(|(p, s)| (labels(p), u64::try_from(s.redeploys).unwrap_or(0))),
    )?;
    let estimated = |p: &Placement| {
        let active = p.status.as_ref()?.active.as_ref()?;
        Some(active.estimated_latency_ms / 1e3)
    };
    gauges(
        encoder,
        (
            "latency_estimate_seconds",
            "Latency that the serving plan promised",
        ),
        with_status().filter_map(|(p, _)| Some((labels(p), estimated(p)?))),
    )?;
    gauges(
        encoder,
        (
            "prediction_error_ratio",
            "Measured median latency over the promised one, less 1",
        ),
        with_status().filter_map(|(p, status)| {
            let requests = snapshot.requests.get(p.metadata.uid.as_ref()?)?;
            let is_of_it = requests.revision == status.active_revision && requests.answered > 0;
            let promised = estimated(p).filter(|s| is_of_it && *s > 0.0)?;
            Some((labels(p), requests.latency_p50_seconds / promised - 1.0))
        }),
    )
}
