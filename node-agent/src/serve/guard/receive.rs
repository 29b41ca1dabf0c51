//! One message from a client, as a whole, before anybody decodes it.
//!
//! Every method of this agent takes one message. What it announces reserves nothing; what
//! came is counted as it comes; and it is weighed before it is decoded.

use super::budget::{Charge, Full, Owner};
use super::inflate::{InflateError, Inflater, Packing};
use super::rope::Rope;
use super::shapes::Shape;
use super::weigh::{Misfit, early_owner, weigh};
use crate::serve::access::Denial;
use bytes::Bytes;
use hyper::body::Body;
use std::future::poll_fn;
use std::pin::pin;
use std::time::Duration;
use tokio::time::timeout;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

/// Flag and length before each message.
pub(super) const HEADER_BYTES: usize = 5;
/// A client that sends nothing for so long is gone, or means harm.
const SILENCE: Duration = Duration::from_secs(20);
/// The whole message comes within this, the longest deadline.
const WHOLE: Duration = crate::serve::deadline::LONGEST;
/// Advice to who is refused for want of room, in milliseconds.
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
    #[error("nothing came for {} s in the middle of a message", SILENCE.as_secs())]
    Silent,
    #[error("the message took longer than {} s", WHOLE.as_secs())]
    Slow,
    #[error("the message was cut off")]
    Cut,
    #[error("one message is taken here, and more came")]
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
            Self::Broken(_) => Code::Cancelled,
            Self::Denied(denial) => denial.code(),
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

/// How a message may be.
pub(super) struct Terms<'a> {
    /// What it consists of.
    pub(super) shape: &'static Shape,
    /// Its bytes at most, unpacked and decoded.
    pub(super) limit: usize,
    /// How it is compressed where it says that it is.
    pub(super) packing: Option<Packing>,
    /// Whose it is where its first field names so.
    pub(super) owner: &'a (dyn Fn(Option<String>) -> Result<Owner, Denial> + Send + Sync),
}

/// The message in `body`, uncompressed and with its header; nothing where none came.
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
    let receiving = timeout(WHOLE, message(body, terms, charge));
    let Some(rope) = receiving.await.map_err(|_| Refusal::Slow)?? else {
        return Ok(Vec::new());
    };
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

async fn message<B>(
    body: B,
    terms: &Terms<'_>,
    charge: &mut Charge,
) -> Result<Option<Rope>, Refusal>
where
    B: Body<Data = Bytes>,
    B::Error: std::fmt::Display,
{
    let mut body = pin!(body);
    let mut parcel = Parcel::new(terms);
    let mut is_owner_known = false;
    loop {
        let next = timeout(
            SILENCE,
            poll_fn(|context| body.as_mut().poll_frame(context)),
        );
        let frame = match next.await.map_err(|_| Refusal::Silent)? {
            None => return parcel.finish(),
            Some(Err(error)) => return Err(Refusal::Broken(error.to_string())),
            Some(Ok(frame)) => frame,
        };
        let Ok(data) = frame.into_data() else {
            continue;
        };
        parcel.push(data)?;
        let (rope, expected) = parcel.present();
        if !is_owner_known && let Some(name) = early_owner(rope) {
            is_owner_known = true;
            charge.may_come(&(terms.owner)(Some(name))?).await?;
        }
        charge.reach(rope.len() as u64, expected as u64).await?;
    }
}

/// A message that is coming.
struct Parcel {
    limit: usize,
    packing: Option<Packing>,
    header: Vec<u8>,
    /// Bytes behind the header: announced, and come so far.
    length: usize,
    came: usize,
    content: Content,
}

enum Content {
    Plain(Rope),
    Packed(Box<Inflater>),
}

impl Parcel {
    fn new(terms: &Terms<'_>) -> Self {
        Self {
            limit: terms.limit,
            packing: terms.packing,
            header: Vec::with_capacity(HEADER_BYTES),
            length: 0,
            came: 0,
            content: Content::Plain(Rope::default()),
        }
    }

    fn push(&mut self, mut data: Bytes) -> Result<(), Refusal> {
        let missing = HEADER_BYTES - self.header.len();
        if missing > 0 {
            let head = data.split_to(missing.min(data.len()));
            self.header.extend_from_slice(&head);
            if self.header.len() < HEADER_BYTES {
                return Ok(());
            }
            self.open()?;
        }
        self.came += data.len();
        if self.came > self.length {
            return Err(Refusal::Second);
        }
        match &mut self.content {
            Content::Plain(rope) if !data.is_empty() => rope.push(data),
            Content::Plain(_) => {}
            Content::Packed(inflater) => inflater.push(&data)?,
        }
        Ok(())
    }

    /// The header is whole.
    fn open(&mut self) -> Result<(), Refusal> {
        let [flag, length @ ..] = &self.header[..] else {
            return Err(Refusal::Cut);
        };
        self.length = length
            .iter()
            .fold(0, |sum, byte| (sum << 8) | usize::from(*byte));
        if self.length > self.limit {
            return Err(Refusal::TooLarge {
                got: self.length,
                limit: self.limit,
            });
        }
        if *flag != 0 {
            let packing = self.packing.ok_or(Refusal::Unpackable)?;
            let inflater = Inflater::new(packing, self.limit);
            self.content = Content::Packed(Box::new(inflater));
        }
        Ok(())
    }

    /// What came, and how much that may become.
    fn present(&self) -> (&Rope, usize) {
        match &self.content {
            Content::Plain(rope) => (rope, self.length),
            Content::Packed(inflater) => (inflater.rope(), self.limit),
        }
    }

    fn finish(self) -> Result<Option<Rope>, Refusal> {
        if self.header.is_empty() {
            return Ok(None);
        }
        if self.header.len() < HEADER_BYTES || self.came < self.length {
            return Err(Refusal::Cut);
        }
        match self.content {
            Content::Plain(rope) => Ok(Some(rope)),
            Content::Packed(inflater) => Ok(Some(inflater.finish()?)),
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
        // A smaller one unpacks, and is refused for the number of its inputs.
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
