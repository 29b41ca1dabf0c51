use crate::ffi;
use std::time::{Duration, Instant};
use tch::{Device, Kind, TchError, Tensor};

/// Channels of the convolutions' images, which are [`SIDE`] pixels square.
const CHANNELS: i64 = 64;
const SIDE: i64 = 28;
/// Inputs and outputs of the linear layer.
const WIDTH: i64 = 1024;
/// Rows that the linear layer takes at once.
const ROWS: i64 = 16;
/// Floating-point operations of one round, two per multiply-add: a 3x3 and a
/// 1x1 convolution and the linear layer.
const FLOP_PER_ROUND: i64 =
    2 * (SIDE * SIDE * CHANNELS * CHANNELS * (9 + 1) + ROWS * WIDTH * WIDTH);

/// Speed of a host in GFLOP/s on a small fixed workload of convolutions and a
/// linear layer, one thread. Comparable between hosts with the same libtorch; 0
/// where libtorch cannot run it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ReferenceSpeed {
    /// Over the wall time of all rounds: what a host delivers with the share of
    /// the processor that it is granted.
    pub mean_gflops: f64,
    /// Of the fastest round: what the processor does while it is granted, as the
    /// median time of a short block shows it.
    pub peak_gflops: f64,
}

/// Measures for about `budget`, two rounds at least.
pub fn reference_speed(budget: Duration) -> ReferenceSpeed {
    let gflops = |seconds: f64| FLOP_PER_ROUND as f64 / seconds.max(1e-9) * 1e-9;
    match tch::no_grad(|| rounds(budget)) {
        Ok(rounds) => ReferenceSpeed {
            mean_gflops: gflops(rounds.iter().sum::<f64>() / rounds.len() as f64),
            peak_gflops: gflops(rounds.iter().copied().fold(f64::INFINITY, f64::min)),
        },
        Err(_) => ReferenceSpeed {
            mean_gflops: 0.0,
            peak_gflops: 0.0,
        },
    }
}

/// Seconds of each round, back to back.
fn rounds(budget: Duration) -> Result<Vec<f64>, TchError> {
    let _ = ffi::set_threads(1);
    let random = |shape: &[i64]| Tensor::f_randn(shape, (Kind::Float, Device::Cpu));
    let image = random(&[1, CHANNELS, SIDE, SIDE])?;
    let wide = random(&[CHANNELS, CHANNELS, 3, 3])?;
    let narrow = random(&[CHANNELS, CHANNELS, 1, 1])?;
    let rows = random(&[ROWS, WIDTH])?;
    let weights = random(&[WIDTH, WIDTH])?;
    let round = || -> Result<(), TchError> {
        let bias: Option<&Tensor> = None;
        let image = image.f_conv2d(&wide, bias, [1, 1], [1, 1], [1, 1], 1)?;
        let _ = image.f_conv2d(&narrow, bias, [1, 1], [0, 0], [1, 1], 1)?;
        let _ = rows.f_linear(&weights, bias)?;
        Ok(())
    };
    // Libraries are loaded and kernels chosen in the first.
    round()?;
    let start = Instant::now();
    let mut seconds = Vec::new();
    let mut before = 0.0;
    while seconds.is_empty() || start.elapsed() < budget {
        round()?;
        let now = start.elapsed().as_secs_f64();
        seconds.push(now - before);
        before = now;
    }
    Ok(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_has_a_plausible_speed_within_the_budget() {
        let start = Instant::now();
        let speed = reference_speed(Duration::from_millis(200));
        assert!(start.elapsed() < Duration::from_secs(20));
        assert!((0.05..5000.0).contains(&speed.mean_gflops), "{speed:?}");
        assert!(speed.peak_gflops >= speed.mean_gflops);
    }
}
