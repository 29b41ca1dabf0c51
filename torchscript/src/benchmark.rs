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

/// Speed of this host in GFLOP/s on a small fixed workload of convolutions and
/// a linear layer: one thread, wall time, the best of the rounds that fit into
/// `budget` (at least two). Comparable between hosts with the same libtorch;
/// 0 where libtorch cannot run it.
pub fn reference_gflops(budget: Duration) -> f64 {
    let best = tch::no_grad(|| best_round(budget));
    best.map_or(0.0, |seconds| FLOP_PER_ROUND as f64 / seconds * 1e-9)
}

fn best_round(budget: Duration) -> Result<f64, TchError> {
    let _ = ffi::set_threads(1);
    let random = |shape: &[i64]| Tensor::f_randn(shape, (Kind::Float, Device::Cpu));
    let image = random(&[1, CHANNELS, SIDE, SIDE])?;
    let wide = random(&[CHANNELS, CHANNELS, 3, 3])?;
    let narrow = random(&[CHANNELS, CHANNELS, 1, 1])?;
    let rows = random(&[ROWS, WIDTH])?;
    let weights = random(&[WIDTH, WIDTH])?;
    let round = || -> Result<f64, TchError> {
        let start = Instant::now();
        let bias: Option<&Tensor> = None;
        let image = image.f_conv2d(&wide, bias, [1, 1], [1, 1], [1, 1], 1)?;
        let _ = image.f_conv2d(&narrow, bias, [1, 1], [0, 0], [1, 1], 1)?;
        let _ = rows.f_linear(&weights, bias)?;
        Ok(start.elapsed().as_secs_f64())
    };
    let end = Instant::now() + budget;
    round()?;
    let mut best = round()?;
    while Instant::now() < end {
        best = best.min(round()?);
    }
    Ok(best.max(1e-9))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_has_a_plausible_speed_within_the_budget() {
        let start = Instant::now();
        let gflops = reference_gflops(Duration::from_millis(200));
        assert!(start.elapsed() < Duration::from_secs(20));
        assert!((0.05..5000.0).contains(&gflops), "{gflops} GFLOP/s");
    }
}
