//! Receives one complete message from a client before it is decoded.
//!
//! Its announced size reserves nothing; received bytes are counted as they arrive; and its
//! memory is computed before it is decoded. Every method of this agent takes one message, except
//! the stream of requests (`stream.rs`), which receives each of them in this way.

use super::budget::{Charge, Full, Owner};
use super::feed::{Feed, Header};
use super::inflate::{InflateError, Inflater, Packing};
use super::rope::Rope;
use super::shapes::Shape;
use super::weigh::{Misfit, early_owner, weigh};
use crate::serve::access::Denial;
use bytes::Bytes;
use hyper::body::Body;
use std::pin::pin;
use std::time::Duration;
use tokio::time::timeout;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

/// A client that sends nothing for this long is gone, or hostile.
pub(super) const SILENCE: Duration = Duration::from_secs(20);
/// Time limit of the whole message: the longest deadline.
pub(super) const WHOLE: Duration = crate::serve::deadline::LONGEST;
/// Retry delay when there is no memory, in milliseconds.
const RETRY_AFTER_MS: &str = "200";

/// Why a request is refused before it is decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error(
        "a message of {got} bytes is larger than the {limit} that are taken here; send a \
         smaller batch"
    )]
    TooLarge { got: usize, limit: usize },
    #[error(transparent)]
    Inflate(#[from] InflateError),
    #[error(transparent)]
    Misfit(#[from] Misfit),
    #[error(transparent)]
    Full(#[from] Full),
    #[error(transparent)]
    Denied(#[from] Denial),
    #[error(
        "only agents may ask this, and no agent's certificate was shown; clients call ModelInfer"
    )]
    NoCertificate,
    #[error("nothing arrived for {} s in the middle of a message", SILENCE.as_secs())]
    Silent,
    #[error("the message took longer than {} s", WHOLE.as_secs())]
    Slow,
    #[error("no request arrived on this stream for a long time; open another one")]
    Idle,
    #[error("this agent is shutting down; open another stream")]
    Closing,
    #[error("the message was cut off")]
    Cut,
    #[error("this method takes one message, but more arrived")]
    Second,
    #[error("the message is marked as compressed, but its headers do not say how")]
    Unpackable,
    #[error("the connection broke: {0}")]
    Broken(String),
}

impl Refusal {
    const fn code(&self) -> Code {
        match self {
            Self::TooLarge { .. }
            | Self::Full(_)
            | Self::Inflate(InflateError::TooLarge { .. })
            | Self::Misfit(Misfit::TooHeavy { .. }) => Code::ResourceExhausted,
            Self::Inflate(InflateError::Broken(_))
            | Self::Misfit(_)
            | Self::Cut
            | Self::Second
            | Self::Unpackable => Code::InvalidArgument,
            Self::Silent | Self::Slow => Code::DeadlineExceeded,
            Self::Idle | Self::Closing => Code::Unavailable,
            Self::Broken(_) => Code::Cancelled,
            Self::NoCertificate => Code::Unauthenticated,
            Self::Denied(denial) => denial.code(),
        }
    }

    /// Whether the rest of the stream cannot be answered either.
    pub(super) fn ends_a_stream(&self) -> bool {
        match self {
            Self::Silent
            | Self::Slow
            | Self::Idle
            | Self::Closing
            | Self::Cut
            | Self::NoCertificate
            | Self::Broken(_) => true,
            Self::Denied(denial) => denial.code() == Code::Unauthenticated,
            Self::TooLarge { .. }
            | Self::Inflate(_)
            | Self::Misfit(_)
            | Self::Full(_)
            | Self::Second
            | Self::Unpackable => false,
        }
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        if let Refusal::Denied(denial) = refusal {
            return denial.into();
        }
        let mut status = Self::new(refusal.code(), refusal.to_string());
        if matches!(refusal, Refusal::Full(_)) {
            let advice = MetadataValue::from_static(RETRY_AFTER_MS);
            status.metadata_mut().insert("retry-after-ms", advice);
        }
        status
    }
}

/// Limits of a message.
pub(super) struct Terms<'a> {
    /// Its structure.
    pub(super) shape: &'static Shape,
    /// Its size limit, decompressed and decoded.
    pub(super) limit: usize,
    /// Its compression, if it is compressed.
    pub(super) packing: Option<Packing>,
    /// Its owner, by its first field.
    pub(super) owner: &'a (dyn Fn(Option<String>) -> Result<Owner, Denial> + Send + Sync),
}

/// The only message in `body`, uncompressed and with its header; empty if there is none.
///
/// # Errors
/// See [`Refusal`].
pub(super) async fn receive<B>(
    body: B,
    terms: &Terms<'_>,
    charge: &mut Charge,
) -> Result<Vec<Bytes>, Refusal>
where
    B: Body<Data = Bytes>,
    B::Error: std::fmt::Display,
{
    let body = pin!(body);
    let mut feed = Feed::new(body);
    let receiving = async {
        let Some(header) = feed.header().await? else {
            return Ok(Vec::new());
        };
        let message = next(&mut feed, header, terms, charge).await?;
        feed.ends().await?;
        Ok(message)
    };
    timeout(WHOLE, receiving).await.map_err(|_| Refusal::Slow)?
}

/// The message of `feed` after `header`, uncompressed and with its own header.
///
/// # Errors
/// See [`Refusal`].
pub(super) async fn next<B>(
    feed: &mut Feed<B>,
    header: Header,
    terms: &Terms<'_>,
    charge: &mut Charge,
) -> Result<Vec<Bytes>, Refusal>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let rope = content(feed, header, terms, charge).await?;
    let weighed = weigh(&rope, terms.shape, terms.limit as u64)?;
    charge.belongs_to((terms.owner)(weighed.owner)?).await?;
    charge.reach(weighed.bytes, weighed.bytes).await?;
    let length = u32::try_from(rope.len()).map_err(|_| Refusal::TooLarge {
        got: rope.len(),
        limit: terms.limit,
    })?;
    let [a, b, c, d] = length.to_be_bytes();
    let mut pieces = rope.into_pieces();
    pieces.insert(0, Bytes::copy_from_slice(&[0, a, b, c, d]));
    Ok(pieces)
}

/// The content after `header`, decompressed.
async fn content<B>(
    feed: &mut Feed<B>,
    header: Header,
    terms: &Terms<'_>,
    charge: &mut Charge,
) -> Result<Rope, Refusal>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let mut content = Content::of(header, terms)?;
    let mut is_owner_known = false;
    while let Some(piece) = feed.piece().await? {
        content.push(piece)?;
        let (rope, expected) = match &content {
            Content::Plain(rope) => (rope, header.length),
            Content::Packed(inflater) => (inflater.rope(), terms.limit),
        };
        if !is_owner_known && let Some(name) = early_owner(rope) {
            is_owner_known = true;
            charge.may_come(&(terms.owner)(Some(name))?).await?;
        }
        charge.reach(rope.len() as u64, expected as u64).await?;
    }
    content.finish()
}

/// A message being received.
enum Content {
    Plain(Rope),
    Packed(Box<Inflater>),
}

impl Content {
    fn of(header: Header, terms: &Terms<'_>) -> Result<Self, Refusal> {
        if header.length > terms.limit {
            return Err(Refusal::TooLarge {
                got: header.length,
                limit: terms.limit,
            });
        }
        if !header.is_packed {
            return Ok(Self::Plain(Rope::default()));
        }
        let packing = terms.packing.ok_or(Refusal::Unpackable)?;
        let inflater = Inflater::new(packing, terms.limit);
        Ok(Self::Packed(Box::new(inflater)))
    }

    fn push(&mut self, piece: Bytes) -> Result<(), Refusal> {
        match self {
            Self::Plain(rope) => rope.push(piece),
            Self::Packed(inflater) => inflater.push(&piece)?,
        }
        Ok(())
    }

    fn finish(self) -> Result<Rope, Refusal> {
        match self {
            Self::Plain(rope) => Ok(rope),
            Self::Packed(inflater) => Ok(inflater.finish()?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::budget::Budget;
    use super::super::shapes::INFER;
    use super::super::testing::{Frames, framed};
    use super::*;
    use crate::door::Origin;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use lamina_proto::inference::ModelInferRequest;
    use prost::Message as _;
    use std::io::Write as _;

    const MIB: usize = 1 << 20;

    async fn received(bytes: &[u8], piece: usize, ends: bool) -> Result<Vec<u8>, Refusal> {
        let frames = bytes.chunks(piece).map(Bytes::copy_from_slice).collect();
        let terms = Terms {
            shape: &INFER,
            limit: 8 * MIB,
            packing: Some(Packing::Gzip),
            owner: &|name| Ok(name.map_or(Owner::Unknown, Owner::Model)),
        };
        let budget = Budget::new(32 * MIB as u64);
        let origin = Origin {
            connection: 1,
            address: [10, 0, 0, 1].into(),
        };
        let mut charge = budget.begin(origin).await.unwrap();
        let pieces = receive(Frames { frames, ends }, &terms, &mut charge).await?;
        Ok(pieces.concat())
    }

    fn request() -> Vec<u8> {
        let request = ModelInferRequest {
            model_name: "m".into(),
            raw_input_contents: vec![vec![7; 50_000].into()],
            ..ModelInferRequest::default()
        };
        request.encode_to_vec()
    }

    fn gzip(content: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    #[tokio::test]
    async fn a_message_is_taken_however_it_comes() {
        let request = request();
        let plain = framed(0, request.len(), &request);
        for piece in [1, 3, 5, 4096, 1 << 20] {
            assert_eq!(received(&plain, piece, true).await.unwrap(), plain);
        }
        let packed = gzip(&request);
        let packed = framed(1, packed.len(), &packed);
        for piece in [1, 4096] {
            assert_eq!(received(&packed, piece, true).await.unwrap(), plain);
        }
        assert_eq!(received(&[], 1, true).await.unwrap(), b"");
        let empty = framed(0, 0, b"");
        assert_eq!(received(&empty, 5, true).await.unwrap(), empty);
    }

    #[tokio::test]
    async fn the_bomb_of_the_issue_is_refused_for_what_is_in_it() {
        let bomb = gzip(&[0x2a, 0].repeat(5_000_000));
        assert!(bomb.len() < 11_000, "{}", bomb.len());
        let bomb = framed(1, bomb.len(), &bomb);
        let refusal = received(&bomb, 16 << 10, true).await.unwrap_err();
        assert_eq!(refusal.code(), Code::ResourceExhausted, "{refusal}");
        // A smaller one is decompressed, and refused for its number of inputs.
        let bomb = gzip(&[0x2a, 0].repeat(1_000_000));
        let bomb = framed(1, bomb.len(), &bomb);
        let refusal = received(&bomb, 16 << 10, true).await.unwrap_err();
        assert_eq!(refusal.code(), Code::InvalidArgument, "{refusal}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_wrong_with_a_message_is_said() {
        let request = request();
        let whole = framed(0, request.len(), &request);
        let huge = framed(0, 1 << 30, b"abc");
        let (got, limit) = (1 << 30, 8 * MIB);
        let two = [&whole[..], &whole[..]].concat();
        for (bytes, ends, expected) in [
            (&huge[..], false, Refusal::TooLarge { got, limit }),
            (&whole[..whole.len() - 1], true, Refusal::Cut),
            (&whole[..3], true, Refusal::Cut),
            (&whole[..100], false, Refusal::Silent),
            (&two, true, Refusal::Second),
            (&framed(0, 2, &[0xff, 0xff]), true, Misfit::Malformed.into()),
        ] {
            assert_eq!(received(bytes, 4096, ends).await, Err(expected));
        }
    }
}
