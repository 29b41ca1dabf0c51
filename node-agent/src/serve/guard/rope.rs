//! Bytes in the pieces in which they arrived, so that tensors are not copied.

use bytes::{BufMut as _, Bytes, BytesMut};

/// Smaller pieces are merged: otherwise a frame of one byte would keep a whole buffer.
const GATHERED_BYTES: usize = 2 << 10;

/// A message as it arrived.
#[derive(Debug, Default)]
pub(super) struct Rope {
    pieces: Vec<Bytes>,
    tail: BytesMut,
    bytes: usize,
}

impl Rope {
    pub(super) fn push(&mut self, piece: Bytes) {
        if piece.len() < GATHERED_BYTES {
            return self.push_slice(&piece);
        }
        self.bytes += piece.len();
        if !self.tail.is_empty() {
            self.pieces.push(self.tail.split().freeze());
        }
        self.pieces.push(piece);
    }

    /// As [`Rope::push`], with a copy.
    pub(super) fn push_slice(&mut self, piece: &[u8]) {
        self.bytes += piece.len();
        self.tail.put_slice(piece);
    }

    /// Total length in bytes.
    pub(super) const fn len(&self) -> usize {
        self.bytes
    }

    /// Reads from the first byte.
    pub(super) fn reader(&self) -> Reader<'_> {
        Reader {
            now: &[],
            pieces: self.pieces.iter(),
            tail: &self.tail,
        }
    }

    /// All of it, in order.
    pub(super) fn into_pieces(self) -> Vec<Bytes> {
        let mut pieces = self.pieces;
        if !self.tail.is_empty() {
            pieces.push(self.tail.freeze());
        }
        pieces
    }
}

/// Reads across pieces.
#[derive(Debug, Clone)]
pub(super) struct Reader<'a> {
    now: &'a [u8],
    pieces: std::slice::Iter<'a, Bytes>,
    tail: &'a [u8],
}

impl Reader<'_> {
    /// The next byte; `None` at the end.
    pub(super) fn byte(&mut self) -> Option<u8> {
        while self.now.is_empty() {
            self.next_piece()?;
        }
        let (first, rest) = self.now.split_first()?;
        self.now = rest;
        Some(*first)
    }

    /// Skips `bytes`; `None` if there are fewer.
    pub(super) fn skip(&mut self, mut bytes: usize) -> Option<()> {
        while bytes > self.now.len() {
            bytes -= self.now.len();
            self.next_piece()?;
        }
        self.now = &self.now[bytes..];
        Some(())
    }

    fn next_piece(&mut self) -> Option<()> {
        self.now = match self.pieces.next() {
            Some(piece) => piece,
            None if self.tail.is_empty() => return None,
            None => std::mem::take(&mut self.tail),
        };
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_pieces_are_gathered_and_large_ones_are_not_copied() {
        let mut rope = Rope::default();
        let large = Bytes::from(vec![7; GATHERED_BYTES]);
        for piece in [&b"ab"[..], b"c"] {
            rope.push(Bytes::copy_from_slice(piece));
        }
        rope.push(large.clone());
        rope.push_slice(b"de");
        assert_eq!(rope.len(), GATHERED_BYTES + 5);
        let mut reader = rope.reader();
        assert_eq!(reader.byte(), Some(b'a'));
        assert_eq!(reader.skip(GATHERED_BYTES + 2), Some(()));
        assert_eq!((reader.byte(), reader.clone().skip(2)), (Some(b'd'), None));
        assert_eq!((reader.skip(1), reader.byte()), (Some(()), None));
        let pieces = rope.into_pieces();
        assert_eq!(
            pieces.iter().map(Bytes::len).sum::<usize>(),
            GATHERED_BYTES + 5
        );
        assert_eq!((&pieces[0][..], &pieces[2][..]), (&b"abc"[..], &b"de"[..]));
        assert_eq!(pieces[1].as_ptr(), large.as_ptr());
    }
}
