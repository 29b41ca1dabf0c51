//! An engine for tests: a block is a JSON file `{"mul": m, "add": a}` and maps every FP32 element x
//! to m·x + a; tensors of other datatypes pass unchanged. With `exits` it behaves as a network with
//! side exits: it uses only its last input, and returns the result and, if `side` is set, the
//! result times `side` as logits.

use super::{Batches, Engine, EngineError, Loaded, Run, Segment, Terms};
use async_trait::async_trait;
use bytes::Bytes;
use lamina_model::{DataType, Tensor, ValueSpec};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct FakeBlock {
    pub(crate) mul: f32,
    pub(crate) add: f32,
    #[serde(default)]
    pub(crate) exits: bool,
    #[serde(default)]
    pub(crate) side: Option<f32>,
    /// How often each answer is there, one behind the other; 0 is once.
    #[serde(default)]
    pub(crate) repeat: usize,
}

/// Runs one at a time, for `run_time` each.
#[derive(Debug, Clone, Default)]
pub(crate) struct FakeEngine {
    pub(crate) run_time: Duration,
    trouble: Option<String>,
    /// While this is locked, nothing runs.
    pub(crate) turn: Arc<Mutex<()>>,
    loads: Arc<AtomicUsize>,
}

impl FakeEngine {
    pub(crate) fn with_run_time(run_time: Duration) -> Self {
        Self {
            run_time,
            ..Self::default()
        }
    }

    /// Cannot start anything.
    pub(crate) fn in_trouble(why: &str) -> Self {
        Self {
            trouble: Some(why.to_owned()),
            ..Self::default()
        }
    }

    /// Number of loads so far.
    pub(crate) fn loads(&self) -> usize {
        self.loads.load(Ordering::SeqCst)
    }
}

struct FakeSegment {
    blocks: Vec<FakeBlock>,
    inputs: Vec<ValueSpec>,
    engine: FakeEngine,
}

#[async_trait]
impl Engine for FakeEngine {
    async fn load(
        &self,
        _: &str,
        blocks: Vec<PathBuf>,
        inputs: Vec<ValueSpec>,
    ) -> Result<Loaded, EngineError> {
        let read = |path: &PathBuf| {
            let text = std::fs::read(path).map_err(|e| e.to_string())?;
            serde_json::from_slice(&text).map_err(|e| e.to_string())
        };
        let blocks: Result<Vec<FakeBlock>, String> = blocks.iter().map(read).collect();
        self.loads.fetch_add(1, Ordering::SeqCst);
        Ok(Loaded {
            segment: Arc::new(FakeSegment {
                blocks: blocks.map_err(EngineError::Load)?,
                inputs,
                engine: self.clone(),
            }),
            run_seconds: self.run_time.as_secs_f64(),
            resident_bytes: 1 << 20,
        })
    }

    fn is_alive(&self) -> bool {
        true
    }

    fn trouble(&self) -> Option<String> {
        self.trouble.clone()
    }
}

#[async_trait]
impl Segment for FakeSegment {
    async fn run(&self, inputs: Vec<Tensor>, _: Terms) -> Result<Run, EngineError> {
        let queued = Instant::now();
        let _turn = self.engine.turn.lock().await;
        let start = Instant::now();
        for (tensor, spec) in inputs.iter().zip(&self.inputs) {
            tensor.check(spec)?;
        }
        tokio::time::sleep(self.engine.run_time).await;
        let outputs = match self.blocks.last() {
            Some(block) if block.exits => self.with_side(&inputs, block.side),
            _ => inputs.into_iter().map(|t| self.apply(&t)).collect(),
        };
        Ok(Run {
            outputs,
            queue: start - queued,
            compute: start.elapsed(),
        })
    }

    async fn specialize(&self, max_rows: i64) -> Result<Batches, EngineError> {
        Ok(Batches::of(Batches::candidates(max_rows)))
    }
}

impl FakeSegment {
    fn with_side(&self, inputs: &[Tensor], side: Option<f32>) -> Vec<Tensor> {
        let through = self.apply(inputs.last().unwrap());
        let logits = side.map(|side| {
            let values: Vec<f32> = floats(&through).into_iter().map(|x| side * x).collect();
            fp32(&through.shape, &values)
        });
        std::iter::once(through).chain(logits).collect()
    }

    fn apply(&self, tensor: &Tensor) -> Tensor {
        if tensor.datatype != DataType::Fp32 {
            return tensor.clone();
        }
        let through = |x: f32| self.blocks.iter().fold(x, |x, b| b.mul.mul_add(x, b.add));
        let values: Vec<f32> = floats(tensor).into_iter().map(through).collect();
        let times = self.blocks.last().map_or(1, |block| block.repeat.max(1));
        let mut shape = tensor.shape.clone();
        if let Some(rows) = shape.first_mut() {
            *rows *= times as i64;
        }
        fp32(&shape, &values.repeat(times))
    }
}

pub(crate) fn floats(tensor: &Tensor) -> Vec<f32> {
    assert_eq!(tensor.datatype, DataType::Fp32);
    tensor
        .data
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
        .collect()
}

pub(crate) fn fp32(shape: &[i64], values: &[f32]) -> Tensor {
    Tensor {
        datatype: DataType::Fp32,
        shape: shape.to_vec(),
        data: Bytes::from_iter(values.iter().flat_map(|v| v.to_le_bytes())),
    }
}
