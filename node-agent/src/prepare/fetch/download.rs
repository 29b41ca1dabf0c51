//! Downloads to a file: size, speed and time limits, and resumption when the connection
//! breaks.

use super::error::FetchError;
use super::origin::{Opened, Origin, Resume};
use crate::blobs::{RESERVE_BYTES, free_bytes};
use crate::prepare::{Step, StepName};
use futures::StreamExt as _;
use lamina_model::Digest;
use sha2::{Digest as _, Sha256};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::fs::File;
use tokio::io::{AsyncSeekExt as _, AsyncWriteExt as _};
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// Most broken connections.
const MOST_CUTS: u32 = 10;
/// Bytes between two checks of the free disk space.
const LOOK_BYTES: u64 = 16 << 20;

/// Bounds of one download.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Size limit of the file.
    pub size_bytes: u64,
    /// Available space in bytes.
    pub room_bytes: u64,
    /// In each window of this length …
    pub window: Duration,
    /// … at least this many bytes must arrive.
    pub window_bytes: u64,
    /// For the whole download.
    pub total: Duration,
    /// Before the first reconnection; it grows.
    pub pause: Duration,
}

impl Bounds {
    const fn check(&self, bytes: u64) -> Result<(), FetchError> {
        if bytes > self.size_bytes {
            Err(FetchError::TooLarge(self.size_bytes))
        } else if bytes > self.room_bytes {
            Err(FetchError::NoRoom(self.room_bytes))
        } else {
            Ok(())
        }
    }
}

/// Why a transfer stopped.
enum Stop {
    /// The connection broke.
    Cut(String),
    /// Reconnecting would not help.
    Failed(FetchError),
}

impl From<FetchError> for Stop {
    fn from(error: FetchError) -> Self {
        Self::Failed(error)
    }
}

/// Writes the file of `origin` to `path` and returns its digest. Reconnects after a break, and
/// resumes if the file is still the same.
///
/// # Errors
/// The file cannot be fetched within `bounds`, or not be written.
pub(super) async fn download(
    origin: &dyn Origin,
    path: &Path,
    bounds: Bounds,
    progress: &mut (dyn FnMut(Step) + Send),
) -> Result<Digest, FetchError> {
    match timeout(bounds.total, attempts(origin, path, bounds, progress)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(FetchError::TooLong(bounds.total)),
    }
}

async fn attempts(
    origin: &dyn Origin,
    path: &Path,
    bounds: Bounds,
    progress: &mut (dyn FnMut(Step) + Send),
) -> Result<Digest, FetchError> {
    let mut sink = Sink::create(path).await.map_err(FetchError::Disk)?;
    let mut validator = None;
    let mut cuts = 0;
    loop {
        let resume = validator.clone().filter(|_| sink.bytes > 0);
        let resume = resume.map(|validator| Resume {
            offset: sink.bytes,
            validator,
        });
        let why = match origin.open(resume.as_ref()).await {
            Ok(opened) => {
                validator.clone_from(&opened.validator);
                match copy(opened, &mut sink, bounds, progress).await {
                    Ok(()) => return sink.finish().await.map_err(FetchError::Disk),
                    Err(Stop::Failed(error)) => return Err(error),
                    Err(Stop::Cut(why)) => why,
                }
            }
            // The server may be restarting.
            Err(error @ (FetchError::Transport(_) | FetchError::NoAnswer(_))) if cuts > 0 => {
                error.to_string()
            }
            Err(error) => return Err(error),
        };
        cuts += 1;
        if cuts >= MOST_CUTS {
            return Err(FetchError::Cut { cuts, why });
        }
        sleep(bounds.pause * cuts).await;
    }
}

/// The rest of one connection.
async fn copy(
    mut opened: Opened,
    sink: &mut Sink,
    bounds: Bounds,
    progress: &mut (dyn FnMut(Step) + Send),
) -> Result<(), Stop> {
    if opened.start == 0 {
        sink.begin().await.map_err(FetchError::Disk)?;
    } else if opened.start != sink.bytes {
        return Err(FetchError::WrongLength.into());
    }
    bounds.check(opened.total.unwrap_or(0))?;
    let mut pace = Pace::new(bounds);
    while let Some(data) = pace.next(&mut opened).await? {
        bounds.check(sink.bytes + data.len() as u64)?;
        sink.write(&data).await.map_err(FetchError::Disk)?;
        progress(Step {
            step: StepName::Fetching,
            done: sink.bytes,
            total: opened.total.unwrap_or(0),
        });
    }
    match opened.total {
        Some(total) if total != sink.bytes => Err(FetchError::WrongLength.into()),
        _ => Ok(()),
    }
}

/// Checks that enough arrives.
struct Pace {
    bounds: Bounds,
    until: Instant,
    bytes: u64,
}

impl Pace {
    fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            until: Instant::now() + bounds.window,
            bytes: 0,
        }
    }

    /// The next piece; `None` at the end.
    async fn next(&mut self, opened: &mut Opened) -> Result<Option<bytes::Bytes>, Stop> {
        loop {
            match timeout_at(self.until, opened.body.next()).await {
                Ok(None) => return Ok(None),
                Ok(Some(Err(why))) => return Err(Stop::Cut(why)),
                Ok(Some(Ok(data))) => {
                    self.bytes += data.len() as u64;
                    if Instant::now() >= self.until {
                        self.turn()?;
                    }
                    return Ok(Some(data));
                }
                Err(_) => self.turn()?,
            }
        }
    }

    /// The end of a window.
    fn turn(&mut self) -> Result<(), FetchError> {
        let Bounds {
            window,
            window_bytes,
            ..
        } = self.bounds;
        if self.bytes < window_bytes {
            return Err(FetchError::Slow {
                bytes: window_bytes,
                window,
            });
        }
        self.bytes = 0;
        self.until = Instant::now() + window;
        Ok(())
    }
}

/// The file.
struct Sink {
    file: File,
    dir: PathBuf,
    hasher: Sha256,
    bytes: u64,
    looked_at: u64,
}

impl Sink {
    async fn create(path: &Path) -> io::Result<Self> {
        Ok(Self {
            file: File::create(path).await?,
            dir: path.parent().unwrap_or(path).to_owned(),
            hasher: Sha256::new(),
            bytes: 0,
            looked_at: 0,
        })
    }

    /// Discards what has been written.
    async fn begin(&mut self) -> io::Result<()> {
        if self.bytes > 0 {
            self.file.flush().await?;
            self.file.set_len(0).await?;
            self.file.rewind().await?;
            self.hasher = Sha256::new();
            self.bytes = 0;
            self.looked_at = 0;
        }
        Ok(())
    }

    async fn write(&mut self, data: &[u8]) -> io::Result<()> {
        self.hasher.update(data);
        self.file.write_all(data).await?;
        self.bytes += data.len() as u64;
        if self.bytes - self.looked_at >= LOOK_BYTES {
            self.looked_at = self.bytes;
            self.look().await?;
        }
        Ok(())
    }

    /// Whether the reserve of the disk is still free.
    async fn look(&self) -> io::Result<()> {
        let dir = self.dir.clone();
        let free = tokio::task::spawn_blocking(move || free_bytes(&dir)).await;
        if free.map_err(io::Error::other)?? < RESERVE_BYTES {
            return Err(io::Error::new(
                io::ErrorKind::StorageFull,
                "the node's disk is nearly full",
            ));
        }
        Ok(())
    }

    async fn finish(mut self) -> io::Result<Digest> {
        self.file.flush().await?;
        Ok(Digest::from_bytes(&self.hasher.finalize()))
    }
}
