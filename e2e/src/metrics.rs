//! A process's probes and metrics, as a kubelet and Prometheus read them.

use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// A process did not answer.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The connection failed.
    #[error("no connection to {address}")]
    Connection {
        /// The address.
        address: SocketAddr,
        /// The kernel's error.
        #[source]
        source: std::io::Error,
    },
    /// It took too long.
    #[error("no answer to {path} within {within:?}")]
    Late {
        /// The requested path.
        path: String,
        /// The time limit.
        within: Duration,
    },
    /// It answered with another status than 200.
    #[error("{path}: {status}")]
    Status {
        /// The requested path.
        path: String,
        /// First line of the answer.
        status: String,
    },
}

/// The body at `path`.
///
/// # Errors
/// There is no answer in time, or one other than 200.
pub async fn fetch(
    address: SocketAddr,
    path: &str,
    within: Duration,
) -> Result<String, FetchError> {
    let answer = timeout(within, get(address, path)).await;
    let answer = answer.map_err(|_| FetchError::Late {
        path: path.to_owned(),
        within,
    })?;
    let answer = answer.map_err(|source| FetchError::Connection { address, source })?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) == Some("200") {
        Ok(body.to_owned())
    } else {
        Err(FetchError::Status {
            path: path.to_owned(),
            status: status.to_owned(),
        })
    }
}

async fn get(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    // HTTP/1.0: the answer ends with the connection.
    let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// A histogram without labels at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Histogram {
    /// Upper bounds with the number of observations up to each, in order.
    buckets: Vec<(f64, u64)>,
    sum: f64,
    count: u64,
}

impl Histogram {
    /// The histogram `name` in a metrics text; `None` if it is missing.
    pub fn parse(text: &str, name: &str) -> Option<Self> {
        let mut found = Self::default();
        let mut is_there = false;
        for line in text.lines() {
            let Some(rest) = line.strip_prefix(name) else {
                continue;
            };
            let Some(value) = rest.rsplit(' ').next() else {
                continue;
            };
            if let Some(bound) = rest.strip_prefix("_bucket{le=\"") {
                let bound = bound.split('"').next().unwrap_or_default();
                let bound = bound.parse().unwrap_or(f64::INFINITY);
                found.buckets.push((bound, value.parse().ok()?));
            } else if rest.starts_with("_sum ") {
                found.sum = value.parse().ok()?;
            } else if rest.starts_with("_count ") {
                found.count = value.parse().ok()?;
                is_there = true;
            }
        }
        is_there.then_some(found)
    }

    /// Observations since `before`; all of them if the process has restarted.
    pub fn since(&self, before: &Self) -> Self {
        if self.count < before.count {
            return self.clone();
        }
        let buckets = self.buckets.iter().enumerate().map(|(i, (bound, count))| {
            let old = before.buckets.get(i).map_or(0, |(_, count)| *count);
            (*bound, count.saturating_sub(old))
        });
        Self {
            buckets: buckets.collect(),
            sum: self.sum - before.sum,
            count: self.count - before.count,
        }
    }

    /// Number of observations.
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// Their mean; `None` without any.
    pub fn mean(&self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / self.count as f64)
    }

    /// The quantile `q`, interpolated within its bucket; `None` without observations. Beyond the
    /// last bound it is that bound.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let wanted = q * self.count as f64;
        let (mut below, mut lower) = (0, 0.0);
        for (bound, count) in &self.buckets {
            if self.count > 0 && *count as f64 >= wanted && *count > below {
                if bound.is_infinite() {
                    return Some(lower);
                }
                let share = (wanted - below as f64) / (*count - below) as f64;
                return Some(lower + (bound - lower) * share.max(0.0));
            }
            (below, lower) = (*count, *bound);
        }
        None
    }
}

/// The value of the metric `name` without labels.
pub fn value(text: &str, name: &str) -> Option<f64> {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
# HELP look_seconds Time.
look_seconds_sum 1.5
look_seconds_count 10
look_seconds_bucket{le=\"0.1\"} 4
look_seconds_bucket{le=\"0.2\"} 8
look_seconds_bucket{le=\"+Inf\"} 10
look_seconds_other_count 3
leader 1
";

    #[test]
    fn quantiles_lie_inside_their_buckets() {
        let all = Histogram::parse(TEXT, "look_seconds").unwrap();
        assert_eq!((all.count(), all.mean()), (10, Some(0.15)));
        assert_eq!(all.quantile(0.4), Some(0.1));
        assert!((all.quantile(0.6).unwrap() - 0.15).abs() < 1e-9);
        assert_eq!(all.quantile(0.99), Some(0.2));
        assert_eq!(Histogram::parse(TEXT, "nothing"), None);
        assert_eq!(value(TEXT, "leader"), Some(1.0));
    }

    #[test]
    fn a_window_is_what_came_since_or_all_of_a_new_process() {
        let before = Histogram::parse(TEXT, "look_seconds").unwrap();
        let text = TEXT
            .replace("count 10", "count 12")
            .replace("\"0.2\"} 8", "\"0.2\"} 10");
        let text = text
            .replace("+Inf\"} 10", "+Inf\"} 12")
            .replace("sum 1.5", "sum 1.8");
        let after = Histogram::parse(&text, "look_seconds").unwrap();
        let window = after.since(&before);
        assert_eq!(window.count(), 2);
        assert!((window.quantile(0.5).unwrap() - 0.15).abs() < 1e-9);
        assert_eq!(before.since(&after), before);
        assert_eq!(window.since(&window).quantile(0.5), None);
    }
}
