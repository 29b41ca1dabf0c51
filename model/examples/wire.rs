//! Speed of encoding and decoding values: `cargo run --release -p lamina-model --example wire`.

use lamina_model::WireType;
use lamina_model::wire::encode;
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Sizes of a small, a medium and a large FP32 activation.
const SIZES: [usize; 3] = [4 << 10, 600 << 10, 6 << 20];
const FOR: Duration = Duration::from_millis(200);

fn main() {
    println!("dtype    bytes     encode              decode");
    for dtype in WireType::ALL {
        for size in SIZES {
            let values = (0..size / 4).map(|i| ((i * 37) % 1001) as f32 * 0.01 - 3.0);
            let data: Vec<u8> = values.flat_map(f32::to_le_bytes).collect();
            let encoding = fastest(|| {
                black_box(encode(dtype, black_box(&data)));
            });
            let Some(encoded) = encode(dtype, &data) else {
                continue;
            };
            let decoding = fastest(|| {
                black_box(black_box(&encoded).decode(data.len() as u64)).ok();
            });
            println!(
                "{:5} {size:8}  {}  {}",
                dtype.as_str(),
                told(size, encoding),
                told(size, decoding)
            );
        }
    }
}

/// The fastest of some runs, in seconds.
fn fastest(mut run: impl FnMut()) -> f64 {
    let began = Instant::now();
    let mut fastest = f64::INFINITY;
    while began.elapsed() < FOR {
        let start = Instant::now();
        run();
        fastest = fastest.min(start.elapsed().as_secs_f64());
    }
    fastest
}

fn told(bytes: usize, seconds: f64) -> String {
    let rate = bytes as f64 / seconds / 1e9;
    format!("{:7.1} µs {rate:5.1} GB/s", seconds * 1e6)
}
