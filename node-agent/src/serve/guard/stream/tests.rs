use super::super::testing::{Frames, framed};
use super::super::{Budget, Models};
use super::*;
use crate::serve::access::testing::open;
use flate2::Compression;
use flate2::write::GzEncoder;
use lamina_proto::inference::ModelInferRequest;
use prost::Message as _;
use std::io::Write as _;
use tokio_util::sync::CancellationToken;
use tonic::Code;

const MIB: u64 = 1 << 20;
const ORIGIN: Origin = Origin {
    connection: 1,
    address: std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
};

/// There is one model, `default/m`.
struct One;

impl Models for One {
    fn knows(&self, full_name: &str) -> bool {
        full_name == "default/m"
    }

    fn runs(&self, _: &str) -> bool {
        false
    }

    fn largest_request(&self) -> u64 {
        0
    }

    fn largest_hop(&self) -> u64 {
        0
    }
}

/// Messages from `pieces`; `closing` stops the stream.
async fn messages(
    pieces: &[&[u8]],
    ends: bool,
    closing: &CancellationToken,
) -> (Messages<Frames>, Turns) {
    let gate = Gate {
        budget: Budget::new(256 * MIB),
        models: Arc::new(One),
        access: open(),
        is_strict: false,
        closing: closing.clone(),
    };
    let headers = HeaderMap::new();
    let opener = gate
        .access
        .admit(&headers, ORIGIN.address, None)
        .await
        .unwrap();
    let turns = Turns::default();
    let frames = pieces.iter().copied().map(Bytes::copy_from_slice).collect();
    let messages = Messages {
        gate,
        headers,
        peer: None,
        origin: ORIGIN,
        packing: Some(Packing::Gzip),
        feed: Feed::new(Frames { frames, ends }),
        opener: Some(opener),
        turns: turns.clone(),
        pulse: None,
        ready: VecDeque::new(),
        is_over: false,
    };
    (messages, turns)
}

fn message(bytes: usize) -> Vec<u8> {
    let request = ModelInferRequest {
        model_name: "m".into(),
        raw_input_contents: vec![vec![7; bytes].into()],
        ..ModelInferRequest::default()
    };
    let request = request.encode_to_vec();
    framed(0, request.len(), &request)
}

/// All messages.
async fn whole(messages: &mut Messages<Frames>) -> Result<Vec<u8>, Status> {
    let mut whole = Vec::new();
    while let Some(piece) = messages.piece().await? {
        whole.extend_from_slice(&piece);
    }
    Ok(whole)
}

#[tokio::test]
async fn messages_are_told_apart_however_they_come() {
    let three = [message(10), message(0), message(50_000)].concat();
    for piece in [1, 3, 5, 4096, 1 << 20] {
        let pieces: Vec<&[u8]> = three.chunks(piece).collect();
        let closing = CancellationToken::new();
        let (mut messages, turns) = messages(&pieces, true, &closing).await;
        assert_eq!(whole(&mut messages).await.unwrap(), three);
        for _ in 0..3 {
            turns.next().unwrap();
        }
        let more = turns.next().unwrap_err();
        assert_eq!(more.code(), Code::Unauthenticated);
    }
}

#[tokio::test]
async fn what_is_refused_is_passed_over_and_what_follows_is_taken() {
    let bomb = {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(&[0x2a, 0].repeat(5_000_000)).unwrap();
        let packed = encoder.finish().unwrap();
        framed(1, packed.len(), &packed)
    };
    let good = message(10);
    let large = message(65 << 20);
    let broken = framed(0, 2, &[0xff, 0xff]);
    let refused: [(&[u8], Code); 3] = [
        (&bomb, Code::ResourceExhausted),
        (&large, Code::ResourceExhausted),
        (&broken, Code::InvalidArgument),
    ];
    for (bad, code) in refused {
        let closing = CancellationToken::new();
        let (mut messages, turns) = messages(&[&good, bad, &good], true, &closing).await;
        let expected = [&good[..], &NOTHING, &good].concat();
        assert_eq!(whole(&mut messages).await.unwrap(), expected);
        turns.next().unwrap();
        let status = turns.next().unwrap_err();
        assert_eq!(status.code(), code, "{status}");
        turns.next().unwrap();
    }
}

#[tokio::test]
async fn there_is_room_for_so_many_until_they_are_answered() {
    let one = message(60 << 20);
    let closing = CancellationToken::new();
    let (mut messages, turns) = messages(&[&one, &one, &one, &one], true, &closing).await;
    whole(&mut messages).await.unwrap();
    // A model has half of the memory, and the first two are not answered yet.
    let (first, _second) = (turns.next().unwrap(), turns.next().unwrap());
    for _ in 0..2 {
        let status = turns.next().unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
        assert!(status.metadata().contains_key("retry-after-ms"));
    }
    drop(first);
    assert!(messages.gate.budget.begin(ORIGIN).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn what_ends_a_stream_says_why() {
    let whole_one = message(100);
    let cut = &whole_one[..whole_one.len() - 1];
    let never = CancellationToken::new();
    let over = CancellationToken::new();
    over.cancel();
    let cases: [(&[u8], bool, &CancellationToken, Code); 4] = [
        (cut, true, &never, Code::InvalidArgument),
        (cut, false, &never, Code::DeadlineExceeded),
        (b"", false, &never, Code::Unavailable),
        (&whole_one, true, &over, Code::Unavailable),
    ];
    for (bytes, ends, closing, code) in cases {
        let (mut messages, _turns) = messages(&[bytes], ends, closing).await;
        let status = whole(&mut messages).await.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
        assert_eq!(messages.piece().await.unwrap(), None);
    }
}
