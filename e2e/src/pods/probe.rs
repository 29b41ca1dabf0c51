//! Probes, run from inside the host's namespace as by a kubelet.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::netlab::within;

/// Interval of a readiness probe until it first succeeds, so that a lab need not wait for a period
/// of ten seconds.
const IMPATIENCE: Duration = Duration::from_millis(300);

/// Kind of a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Question {
    Http { port: u16, path: String },
    Tcp { port: u16 },
}

/// A probe of a pod's spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ProbeSpec {
    question: Question,
    delay: Duration,
    period: Duration,
    timeout: Duration,
    failures: u32,
    successes: u32,
}

impl ProbeSpec {
    /// Reads a probe; `None` for kinds that the lab does not support.
    pub(crate) fn of(container: &Container, probe: &Probe) -> Option<Self> {
        let question = if let Some(get) = &probe.http_get {
            Question::Http {
                port: port(container, &get.port)?,
                path: get.path.clone().unwrap_or_else(|| "/".to_owned()),
            }
        } else if let Some(socket) = &probe.tcp_socket {
            Question::Tcp {
                port: port(container, &socket.port)?,
            }
        } else {
            return None;
        };
        let seconds = |value: Option<i32>, default: u32| {
            let value = value.and_then(|value| u32::try_from(value).ok());
            Duration::from_secs(value.unwrap_or(default).into())
        };
        let count = |value: Option<i32>, default: u32| {
            let value = value.and_then(|value| u32::try_from(value).ok());
            value.unwrap_or(default).max(1)
        };
        Some(Self {
            question,
            delay: seconds(probe.initial_delay_seconds, 0),
            period: seconds(probe.period_seconds, 10).max(Duration::from_secs(1)),
            timeout: seconds(probe.timeout_seconds, 1).max(Duration::from_secs(1)),
            failures: count(probe.failure_threshold, 3),
            successes: count(probe.success_threshold, 1),
        })
    }
}

fn port(container: &Container, port: &IntOrString) -> Option<u16> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let mut ports = container.ports.iter().flatten();
            let named = ports.find(|port| port.name.as_ref() == Some(name));
            named?.container_port
        }
    };
    u16::try_from(number).ok()
}

/// Counts results against the thresholds.
#[derive(Debug, Default)]
struct Tally {
    verdict: Option<bool>,
    in_a_row: u32,
    last: Option<bool>,
}

impl Tally {
    /// The new verdict if this result changes it.
    fn record(&mut self, good: bool, spec: &ProbeSpec) -> Option<bool> {
        self.in_a_row = if self.last == Some(good) {
            self.in_a_row + 1
        } else {
            1
        };
        self.last = Some(good);
        let needed = if good { spec.successes } else { spec.failures };
        if self.in_a_row < needed || self.verdict == Some(good) {
            return None;
        }
        self.verdict = Some(good);
        Some(good)
    }
}

/// Probes forever and reports every change of the verdict. If impatient, it probes more often than
/// specified until the first success.
pub(crate) async fn watch(
    spec: ProbeSpec,
    impatient: bool,
    address: IpAddr,
    namespace: Option<PathBuf>,
    mut changed: impl FnMut(bool),
) {
    let mut tally = Tally::default();
    tokio::time::sleep(spec.delay).await;
    loop {
        let (question, timeout) = (spec.question.clone(), spec.timeout);
        let inside = namespace.clone();
        let asked = tokio::task::spawn_blocking(move || {
            ask(&question, address, inside.as_deref(), timeout)
        });
        let good = matches!(asked.await, Ok(Ok(true)));
        if let Some(verdict) = tally.record(good, &spec) {
            changed(verdict);
        }
        let pause = match impatient && tally.verdict != Some(true) {
            true => spec.period.min(IMPATIENCE),
            false => spec.period,
        };
        tokio::time::sleep(pause).await;
    }
}

fn ask(
    question: &Question,
    address: IpAddr,
    namespace: Option<&Path>,
    timeout: Duration,
) -> std::io::Result<bool> {
    let (Question::Http { port, .. } | Question::Tcp { port }) = question;
    let target = SocketAddr::new(address, *port);
    let mut stream = within(namespace, || TcpStream::connect_timeout(&target, timeout))?;
    let Question::Http { path, .. } = question else {
        return Ok(true);
    };
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {target}\r\nUser-Agent: kube-probe/lab\r\nConnection: close\r\n\r\n"
    )?;
    let mut head = [0; 12];
    stream.read_exact(&mut head)?;
    Ok(is_success(&head))
}

/// Whether `HTTP/1.1 2xx` or `3xx`.
fn is_success(head: &[u8; 12]) -> bool {
    head.starts_with(b"HTTP/1.") && matches!(head[9], b'2' | b'3')
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(probe: serde_json::Value) -> Option<ProbeSpec> {
        let container: Container = serde_json::from_value(json!({
            "name": "c", "ports": [{"name": "admin", "containerPort": 9091}],
        }))
        .unwrap();
        ProbeSpec::of(&container, &serde_json::from_value(probe).unwrap())
    }

    #[test]
    fn named_ports_and_defaults_are_filled_in() {
        let spec = spec(json!({"httpGet": {"path": "/readyz", "port": "admin"}})).unwrap();
        let question = Question::Http {
            port: 9091,
            path: "/readyz".into(),
        };
        assert_eq!(spec.question, question);
        assert_eq!((spec.failures, spec.successes), (3, 1));
        assert_eq!(spec.period, Duration::from_secs(10));
    }

    #[test]
    fn kinds_that_cannot_be_asked_are_told_apart() {
        assert_eq!(spec(json!({"exec": {"command": ["true"]}})), None);
        assert_eq!(spec(json!({"tcpSocket": {"port": "nosuch"}})), None);
    }

    #[test]
    fn verdicts_change_at_the_thresholds() {
        let spec = spec(json!({"tcpSocket": {"port": 1}, "failureThreshold": 2})).unwrap();
        let mut tally = Tally::default();
        let verdicts: Vec<_> = [false, true, true, false, true, false, false, false]
            .map(|good| tally.record(good, &spec))
            .to_vec();
        assert_eq!(
            verdicts,
            [None, Some(true), None, None, None, None, Some(false), None]
        );
    }

    #[test]
    fn only_two_and_three_hundreds_are_good() {
        assert!(is_success(b"HTTP/1.1 200"));
        assert!(is_success(b"HTTP/1.0 302"));
        assert!(!is_success(b"HTTP/1.1 503"));
        assert!(!is_success(b"SSH-2.0-Open"));
    }
}
