//! Frames on a Unix stream socket: four bytes of length, little-endian, and that much JSON. Some
//! carry a descriptor, sent with their first byte.

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The longest frame: enough for a slice of ten thousand blocks.
pub const FRAME_BYTES: usize = 4 << 20;
/// Bytes of a frame's length.
pub const HEADER_BYTES: usize = 4;

/// Why a frame is invalid. The rest of the stream is unusable then.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The other side has ended.
    #[error("the other side has closed the connection")]
    Closed,
    /// The socket failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It is longer than any legitimate one.
    #[error("a message of {0} bytes, more than {FRAME_BYTES}")]
    TooLong(usize),
    /// It is not one of our messages.
    #[error("a message that is none: {0}")]
    NoMessage(#[from] serde_json::Error),
}

/// `message` as a frame.
///
/// # Errors
/// It is too long.
pub fn encode(message: &impl Serialize) -> Result<Vec<u8>, FrameError> {
    let mut frame = vec![0; HEADER_BYTES];
    serde_json::to_writer(&mut frame, message)?;
    let length = frame.len() - HEADER_BYTES;
    if length > FRAME_BYTES {
        return Err(FrameError::TooLong(length));
    }
    // It fits: the limit is far below.
    let header = u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes();
    frame[..HEADER_BYTES].copy_from_slice(&header);
    Ok(frame)
}

/// Length of the message after `header`.
///
/// # Errors
/// It is longer than [`FRAME_BYTES`].
pub fn body_bytes(header: [u8; HEADER_BYTES]) -> Result<usize, FrameError> {
    let length = usize::try_from(u32::from_le_bytes(header)).unwrap_or(usize::MAX);
    if length > FRAME_BYTES {
        return Err(FrameError::TooLong(length));
    }
    Ok(length)
}

/// The message in `body`.
///
/// # Errors
/// It is invalid.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, FrameError> {
    Ok(serde_json::from_slice(body)?)
}

/// Sends the start of `bytes`, and `descriptor` with it; returns how many were sent.
///
/// # Errors
/// The socket's.
pub fn send_some(
    socket: impl AsFd,
    bytes: &[u8],
    descriptor: Option<BorrowedFd<'_>>,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = descriptor.as_slice();
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("no room for a descriptor"));
    }
    let sent = sendmsg(
        socket,
        &[IoSlice::new(bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    );
    Ok(sent?)
}

/// The worker's end of a socket, blocking.
#[derive(Debug)]
pub struct Port {
    socket: OwnedFd,
    given: Option<OwnedFd>,
}

impl Port {
    /// The end of `socket`.
    pub const fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            given: None,
        }
    }

    /// Waits for a message and its descriptor.
    ///
    /// # Errors
    /// See [`FrameError`].
    pub fn receive<T: DeserializeOwned>(&mut self) -> Result<(T, Option<OwnedFd>), FrameError> {
        let mut header = [0; HEADER_BYTES];
        self.fill(&mut header)?;
        let mut body = vec![0; body_bytes(header)?];
        self.fill(&mut body)?;
        Ok((decode(&body)?, self.given.take()))
    }

    /// Sends a message.
    ///
    /// # Errors
    /// See [`FrameError`].
    pub fn send(&mut self, message: &impl Serialize) -> Result<(), FrameError> {
        let frame = encode(message)?;
        let mut rest = frame.as_slice();
        while !rest.is_empty() {
            match rustix::io::write(&self.socket, rest) {
                Ok(sent) => rest = rest.get(sent..).unwrap_or_default(),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(FrameError::Io(error.into())),
            }
        }
        Ok(())
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), FrameError> {
        let mut filled = 0;
        while filled < buffer.len() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let into = &mut [IoSliceMut::new(&mut buffer[filled..])];
            let flags = RecvFlags::CMSG_CLOEXEC;
            let received = match recvmsg(&self.socket, into, &mut control, flags) {
                Err(rustix::io::Errno::INTR) => continue,
                received => received.map_err(io::Error::from)?,
            };
            if received.bytes == 0 {
                return Err(FrameError::Closed);
            }
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                    self.given = descriptors.last();
                }
            }
            filled += received.bytes;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;

    fn pair() -> (UnixStream, Port) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (ours, Port::new(theirs.into()))
    }

    #[test]
    fn a_message_and_its_descriptor_arrive_together() {
        let (ours, mut port) = pair();
        let file = tempfile::tempfile().unwrap();
        let plain = encode(&"first").unwrap();
        assert_eq!(send_some(&ours, &plain, None).unwrap(), plain.len());
        let with_file = encode(&"second").unwrap();
        send_some(&ours, &with_file, Some(file.as_fd())).unwrap();
        let (first, none) = port.receive::<String>().unwrap();
        let (second, given) = port.receive::<String>().unwrap();
        assert_eq!((first.as_str(), second.as_str()), ("first", "second"));
        assert!(none.is_none() && given.is_some());
        port.send(&"answer").unwrap();
        let mut frame = [0; 12];
        (&ours).read_exact(&mut frame).unwrap();
        assert_eq!(&frame, b"\x08\0\0\0\"answer\"");
    }

    #[test]
    fn what_is_no_frame_is_refused_before_memory_is_taken_for_it() {
        let refused = |bytes: &[u8]| {
            let (mut ours, mut port) = pair();
            ours.write_all(bytes).unwrap();
            drop(ours);
            port.receive::<String>().unwrap_err().to_string()
        };
        assert!(refused(b"\xff\xff\xff\xff").contains("4294967295 bytes"));
        assert!(refused(b"\x02\0\0\0{]").contains("that is none"));
        assert!(refused(b"\x09\0\0\0\"cut").contains("closed"));
        assert!(refused(b"").contains("closed"));
    }
}
