use super::{Line, Request};
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::Notify;
use tokio::time::timeout;

/// The client failed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum ClientError {
    #[error("cannot start the client")]
    Start(#[source] std::io::Error),
    #[error("cannot send a command to the client")]
    Command(#[source] std::io::Error),
    #[error("the client ended with {status}; its last words:\n{stderr}")]
    Failed { status: String, stderr: String },
    #[error("the client did not get to {what} within {seconds} s")]
    Timeout { what: String, seconds: u64 },
}

/// A running `client.py`.
#[derive(Debug)]
pub struct Client {
    child: Child,
    stdin: Option<ChildStdin>,
    seen: Arc<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    lines: Mutex<Vec<Line>>,
    stderr: Mutex<String>,
    news: Notify,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Lines are complete before they are pushed, so a poisoned list is still right.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Client {
    /// Starts `script` (client.py) with `arguments` by `python`, a command that
    /// already runs in the right host's namespace.
    ///
    /// # Errors
    /// Python cannot be started.
    pub fn start(
        mut python: Command,
        script: &Path,
        arguments: &[String],
    ) -> Result<Self, ClientError> {
        let mut child = python
            .arg(script)
            .args(arguments)
            .env("PYTHONUNBUFFERED", "1")
            .env("PYTHONWARNINGS", "ignore")
            .env("OMP_NUM_THREADS", "1")
            .env("GRPC_VERBOSITY", "ERROR")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(ClientError::Start)?;
        let seen = Arc::new(Seen::default());
        if let Some(out) = child.stdout.take() {
            let seen = Arc::clone(&seen);
            tokio::spawn(async move {
                let mut lines = BufReader::new(out).lines();
                while let Ok(Some(text)) = lines.next_line().await {
                    if let Ok(line) = serde_json::from_str(&text) {
                        lock(&seen.lines).push(line);
                        seen.news.notify_waiters();
                    }
                }
                seen.news.notify_waiters();
            });
        }
        if let Some(err) = child.stderr.take() {
            let seen = Arc::clone(&seen);
            tokio::spawn(async move {
                let mut lines = BufReader::new(err).lines();
                while let Ok(Some(text)) = lines.next_line().await {
                    let mut all = lock(&seen.stderr);
                    all.push_str(&text);
                    all.push('\n');
                }
            });
        }
        Ok(Self {
            stdin: child.stdin.take(),
            child,
            seen,
        })
    }

    /// Its output so far.
    pub fn lines(&self) -> Vec<Line> {
        lock(&self.seen.lines).clone()
    }

    /// The requests that have ended so far.
    pub fn requests(&self) -> Vec<Request> {
        self.lines()
            .into_iter()
            .filter_map(|line| match line {
                Line::Request(r) => Some(r),
                _ => None,
            })
            .collect()
    }

    /// Sends one command: `burst 3`, `rate 2.5`, `stop`.
    ///
    /// # Errors
    /// The client is gone.
    pub async fn command(&mut self, command: &str) -> Result<(), ClientError> {
        if let Some(stdin) = &mut self.stdin {
            let line = format!("{command}\n");
            stdin
                .write_all(line.as_bytes())
                .await
                .map_err(ClientError::Command)?;
            stdin.flush().await.map_err(ClientError::Command)?;
        }
        Ok(())
    }

    /// Waits until the lines so far satisfy `done`.
    ///
    /// # Errors
    /// The client ended first, or `within` ran out.
    pub async fn until(
        &mut self,
        what: &str,
        within: Duration,
        done: impl Fn(&[Line]) -> bool,
    ) -> Result<(), ClientError> {
        let wait = async {
            loop {
                if done(&lock(&self.seen.lines)) {
                    return Ok(());
                }
                if let Ok(Some(status)) = self.child.try_wait() {
                    // The last lines may still be in the pipe.
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    if done(&lock(&self.seen.lines)) {
                        return Ok(());
                    }
                    return Err(ClientError::Failed {
                        status: status.to_string(),
                        stderr: lock(&self.seen.stderr).clone(),
                    });
                }
                let _ = timeout(Duration::from_millis(100), self.seen.news.notified()).await;
            }
        };
        timeout(within, wait).await.unwrap_or_else(|_| {
            Err(ClientError::Timeout {
                what: what.to_owned(),
                seconds: within.as_secs(),
            })
        })
    }

    /// Waits for the end of a client that ends by itself, and returns its lines.
    ///
    /// # Errors
    /// A failure, or `within` ran out.
    pub async fn finish(mut self, within: Duration) -> Result<Vec<Line>, ClientError> {
        let status = timeout(within, self.child.wait())
            .await
            .map_err(|_| ClientError::Timeout {
                what: "its end".to_owned(),
                seconds: within.as_secs(),
            })?
            .map_err(ClientError::Start)?;
        tokio::time::sleep(Duration::from_millis(200)).await;
        if status.success() {
            Ok(self.lines())
        } else {
            Err(ClientError::Failed {
                status: status.to_string(),
                stderr: lock(&self.seen.stderr).clone(),
            })
        }
    }
}
