//! The overhead of a run in a worker compared with this process: ratios in one run, side by side.
//!
//! ```text
//! cargo run --workspace --example overhead -- WORKER BLOCK.pt SHAPE
//! ```
#![allow(missing_docs)]

use lamina_model::{DataType, Tensor, ValueSpec};
use lamina_torchscript::{LoadOptions, Slice};
use lamina_worker_link::frame::{Port, encode, send_some};
use lamina_worker_link::memory::Arena;
use lamina_worker_link::message::{
    Greeting, LoadCall, LoadReply, Region, RunCall, RunReply, aligned,
};
use serde::Serialize;
use std::error::Error;
use std::io::Write as _;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

const RUNS: usize = 2000;

/// A worker as in the agent, but without the async runtime.
struct Worker {
    child: Child,
    runs: (UnixStream, Port),
    loads: (UnixStream, Port),
    arena: Arena,
    begun: Instant,
}

type Outcome<T> = Result<T, Box<dyn Error>>;

fn pair() -> Outcome<((UnixStream, Port), OwnedFd)> {
    let (ours, theirs) = UnixStream::pair()?;
    let port = Port::new(ours.try_clone()?.into());
    Ok(((ours, port), theirs.into()))
}

fn send(socket: &UnixStream, call: &impl Serialize, file: Option<BorrowedFd<'_>>) -> Outcome<()> {
    let frame = encode(call)?;
    let sent = send_some(socket.as_fd(), &frame, file)?;
    if sent == frame.len() {
        Ok(())
    } else {
        Err("a short write".into())
    }
}

impl Worker {
    fn start(program: &str, folder: &std::path::Path) -> Outcome<Self> {
        let begun = Instant::now();
        let (runs, their_runs) = pair()?;
        let (mut loads, their_loads) = pair()?;
        let child = Command::new(program)
            .arg("serve")
            .arg("--folder")
            .arg(folder)
            .arg("--memory-limit=4294967296")
            .env("OMP_NUM_THREADS", "1")
            .stdin(Stdio::from(their_runs))
            .stdout(Stdio::from(their_loads))
            .spawn()?;
        match loads.1.receive::<Greeting>()?.0 {
            Greeting::Ready { .. } => {}
            Greeting::Refused(why) => return Err(why.into()),
        }
        Ok(Self {
            child,
            runs,
            loads,
            arena: Arena::new(64 << 20)?,
            begun,
        })
    }

    fn load(&mut self, block: PathBuf, inputs: Vec<ValueSpec>) -> Outcome<()> {
        let call = LoadCall::Load {
            slice: 1,
            blocks: vec![block],
            inputs,
        };
        send(&self.loads.0, &call, None)?;
        match self.loads.1.receive::<LoadReply>()?.0 {
            LoadReply::Loaded { .. } => Ok(()),
            other => Err(format!("{other:?}").into()),
        }
    }

    fn run(&mut self, input: &Tensor, is_first: bool) -> Outcome<Vec<u8>> {
        if !self.arena.write(0, &input.data) {
            return Err("the input is too large".into());
        }
        let call = RunCall::Run {
            slice: 1,
            inputs: vec![Region {
                datatype: input.datatype,
                shape: input.shape.clone(),
                offset: 0,
            }],
            free_from: aligned(input.data.len() as u64),
            arena: is_first.then_some(self.arena.bytes() as u64),
        };
        let file = is_first.then(|| self.arena.descriptor());
        send(&self.runs.0, &call, file)?;
        match self.runs.1.receive::<RunReply>()?.0 {
            RunReply::Done { outputs } => {
                let range = outputs.first().and_then(|o| o.range(self.arena.bytes()));
                let range = range.ok_or("no output")?;
                let data = self.arena.read(range.start, range.len());
                data.ok_or_else(|| "outside".into())
            }
            other => Err(format!("{other:?}").into()),
        }
    }
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [program, block, shape] = &arguments[..] else {
        return Err("WORKER BLOCK.pt SHAPE".into());
    };
    let shape: Vec<i64> = shape.split('x').map(str::parse).collect::<Result<_, _>>()?;
    let block = std::fs::canonicalize(block)?;
    let bytes = shape.iter().product::<i64>() as usize * 4;
    let input = Tensor {
        datatype: DataType::Fp32,
        shape: shape.clone(),
        data: vec![0; bytes].into(),
    };
    let spec = ValueSpec {
        name: "x".into(),
        datatype: DataType::Fp32,
        shape,
        sizes: Vec::new(),
    };
    let folder = block.parent().ok_or("no folder")?;
    let mut worker = Worker::start(program, folder)?;
    let started = worker.begun.elapsed();
    worker.load(block.clone(), vec![spec.clone()])?;
    let expected = worker.run(&input, true)?;
    let first_answer = worker.begun.elapsed();
    let options = LoadOptions {
        threads: 1,
        lanes: 1,
        optimize: true,
        warmup_runs: 3,
    };
    let (slice, _) = Slice::load(&[block], &[spec], &options)?;
    let (mut here, mut there) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let begin = Instant::now();
        let answer = slice.run(std::slice::from_ref(&input))?;
        here.push(begin.elapsed().as_secs_f64());
        if answer[0].data[..] != expected[..] {
            return Err("another answer".into());
        }
        let begin = Instant::now();
        worker.run(&input, false)?;
        there.push(begin.elapsed().as_secs_f64());
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", worker.child.id()))?;
    let memory: Vec<&str> = status
        .lines()
        .filter(|l| l.starts_with("VmRSS") || l.starts_with("RssAnon"))
        .collect();
    let (here, there) = (median(here) * 1e3, median(there) * 1e3);
    let mut out = std::io::stdout();
    writeln!(
        out,
        "{bytes} bytes in, {} bytes out, {RUNS} runs",
        expected.len()
    )?;
    writeln!(
        out,
        "in this process {here:.4} ms, in a worker {there:.4} ms (median)"
    )?;
    writeln!(
        out,
        "more by {:.4} ms, ratio {:.3}",
        there - here,
        there / here
    )?;
    writeln!(
        out,
        "start {started:.1?}, first answer {first_answer:.1?}, {memory:?}"
    )?;
    worker.child.kill()?;
    worker.child.wait()?;
    Ok(())
}
