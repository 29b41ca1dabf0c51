use lamina_worker_link::frame::{FrameError, HEADER_BYTES, body_bytes, decode, encode, send_some};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use tokio::io::{AsyncReadExt as _, Interest};
use tokio::net::UnixStream;

/// The agent's end of a socket to a worker. Descriptors go one way: the kernel drops those that a
/// worker sends.
#[derive(Debug)]
pub(super) struct Channel {
    socket: UnixStream,
}

impl Channel {
    /// Both ends of a new one; the second is the worker's.
    ///
    /// # Errors
    /// The system returned an error.
    pub(super) fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let socket = UnixStream::from_std(ours)?;
        Ok((Self { socket }, theirs.into()))
    }

    /// Sends a message, and a descriptor with it.
    ///
    /// # Errors
    /// See [`FrameError`].
    pub(super) async fn send(
        &mut self,
        message: &(impl Serialize + Sync),
        mut descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<(), FrameError> {
        let frame = encode(message)?;
        let mut sent = 0;
        while sent < frame.len() {
            let rest = &frame[sent..];
            let some = || send_some(&self.socket, rest, descriptor);
            sent += self.socket.async_io(Interest::WRITABLE, some).await?;
            descriptor = None;
        }
        Ok(())
    }

    /// Waits for a message.
    ///
    /// # Errors
    /// See [`FrameError`].
    pub(super) async fn receive<T: DeserializeOwned>(&mut self) -> Result<T, FrameError> {
        let mut header = [0; HEADER_BYTES];
        self.fill(&mut header).await?;
        let mut body = vec![0; body_bytes(header)?];
        self.fill(&mut body).await?;
        decode(&body)
    }

    async fn fill(&mut self, buffer: &mut [u8]) -> Result<(), FrameError> {
        match self.socket.read_exact(buffer).await {
            Ok(_) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Err(FrameError::Closed),
            Err(e) => Err(e.into()),
        }
    }
}
