use crate::ffi;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};
use tch::{Device, Kind, TchError, Tensor};

/// Channels of the convolutions' images, which are [`SIDE`] pixels square.
const CHANNELS: i64 = 64;
const SIDE: i64 = 28;
/// Inputs and outputs of the linear layer.
const WIDTH: i64 = 1024;
/// Batch size of the linear layer.
const ROWS: i64 = 16;
/// Floating-point operations of one round, two per multiply-add: a 3x3 and a
/// 1x1 convolution and the linear layer.
const FLOP_PER_ROUND: i64 =
    2 * (SIDE * SIDE * CHANNELS * CHANNELS * (9 + 1) + ROWS * WIDTH * WIDTH);

/// Speed of a host in GFLOP/s on a small fixed workload of convolutions and a linear layer, on one
/// thread. Comparable between hosts with the same libtorch; 0 if libtorch cannot run it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ReferenceSpeed {
    /// Over the wall time of all rounds: what a host delivers with its share of the processor.
    pub mean_gflops: f64,
    /// Of the fastest round: the processor's speed while it is granted, comparable with the median
    /// time of a short block.
    pub peak_gflops: f64,
}

/// Measures for about `budget`, at least two rounds.
pub fn reference_speed(budget: Duration) -> ReferenceSpeed {
    let gflops = |seconds: f64| FLOP_PER_ROUND as f64 / seconds.max(1e-9) * 1e-9;
    match tch::no_grad(|| Work::new(1)?.rounds(budget)) {
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

/// Concurrent forwards, and the threads in each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lanes {
    /// Concurrent forwards.
    pub lanes: u32,
    /// Threads inside each.
    pub threads: u32,
}

/// Speed of a host in GFLOP/s over all lanes, on the workload of [`reference_speed`]. Measures for
/// about `budget`, at least two rounds; 0 if libtorch cannot run it.
pub fn speed_side_by_side(of: Lanes, budget: Duration) -> f64 {
    let ready = Barrier::new(usize::try_from(of.lanes.max(1)).unwrap_or(1));
    let lane = || {
        tch::no_grad(|| {
            let work = Work::new(of.threads);
            // Also after a failure, or the others would wait forever.
            ready.wait();
            let seconds = work?.rounds(budget)?;
            Ok::<f64, TchError>(seconds.len() as f64 / seconds.iter().sum::<f64>().max(1e-9))
        })
    };
    let rounds_per_second: f64 = thread::scope(|scope| {
        let lanes: Vec<_> = (0..of.lanes.max(1)).map(|_| scope.spawn(lane)).collect();
        let rates = lanes.into_iter().map(|lane| match lane.join() {
            Ok(Ok(rate)) => rate,
            _ => 0.0,
        });
        rates.sum()
    });
    rounds_per_second * FLOP_PER_ROUND as f64 * 1e-9
}

/// The computation of each round.
struct Work {
    image: Tensor,
    wide: Tensor,
    narrow: Tensor,
    rows: Tensor,
    weights: Tensor,
}

impl Work {
    /// Warmed up: libraries are loaded and kernels chosen in the first round.
    fn new(threads: u32) -> Result<Self, TchError> {
        let _ = ffi::set_threads(threads);
        let random = |shape: &[i64]| Tensor::f_randn(shape, (Kind::Float, Device::Cpu));
        let work = Self {
            image: random(&[1, CHANNELS, SIDE, SIDE])?,
            wide: random(&[CHANNELS, CHANNELS, 3, 3])?,
            narrow: random(&[CHANNELS, CHANNELS, 1, 1])?,
            rows: random(&[ROWS, WIDTH])?,
            weights: random(&[WIDTH, WIDTH])?,
        };
        work.round()?;
        Ok(work)
    }

    fn round(&self) -> Result<(), TchError> {
        let bias: Option<&Tensor> = None;
        let image = self
            .image
            .f_conv2d(&self.wide, bias, [1, 1], [1, 1], [1, 1], 1)?;
        let _ = image.f_conv2d(&self.narrow, bias, [1, 1], [0, 0], [1, 1], 1)?;
        let _ = self.rows.f_linear(&self.weights, bias)?;
        Ok(())
    }

    /// Seconds of each round, back to back.
    fn rounds(&self, budget: Duration) -> Result<Vec<f64>, TchError> {
        let start = Instant::now();
        let mut seconds = Vec::new();
        let mut before = 0.0;
        while seconds.is_empty() || start.elapsed() < budget {
            self.round()?;
            let now = start.elapsed().as_secs_f64();
            seconds.push(now - before);
            before = now;
        }
        Ok(seconds)
    }
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

    #[test]
    fn forwards_side_by_side_are_measured_together() {
        let budget = Duration::from_millis(100);
        for (lanes, threads) in [(1, 1), (3, 1), (1, 2)] {
            let speed = speed_side_by_side(Lanes { lanes, threads }, budget);
            assert!(
                (0.05..5000.0).contains(&speed),
                "{lanes} {threads}: {speed}"
            );
        }
    }
}
