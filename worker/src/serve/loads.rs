use super::slices::Slices;
use crate::chain::Chain;
use lamina_model::ValueSpec;
use lamina_torchscript::LoadOptions;
use lamina_worker_link::cell::tells_of_memory;
use lamina_worker_link::frame::Port;
use lamina_worker_link::message::{LoadCall, LoadReply, Refusal};
use lamina_worker_link::with_causes;
use std::path::PathBuf;

/// Niceness of loading relative to computing.
const NICENESS: i32 = 10;

/// Answers calls until the socket closes.
pub(super) fn serve(mut port: Port, slices: &Slices, options: &LoadOptions) {
    // Only for this thread, as on Linux; without it loading only slows down runs.
    let _ = rustix::process::setpriority_process(None, NICENESS);
    while let Ok((call, _)) = port.receive::<LoadCall>() {
        let reply = match call {
            LoadCall::Load {
                slice,
                blocks,
                inputs,
            } => load(slice, &blocks, &inputs, options, slices),
            LoadCall::Specialize { slice, rows } => specialize(slice, &rows, slices),
            LoadCall::Unload { slice } => {
                slices.remove(slice);
                LoadReply::Unloaded
            }
        };
        if port.send(&reply).is_err() {
            return;
        }
    }
}

fn specialize(number: u64, rows: &[i64], slices: &Slices) -> LoadReply {
    let slice = slices.get(number);
    let batches = slice.map_or_else(Vec::new, |slice| slice.specialize(rows));
    LoadReply::Specialized {
        gains: batches.iter().map(|b| (b.rows, b.gain)).collect(),
    }
}

fn load(
    number: u64,
    blocks: &[PathBuf],
    inputs: &[ValueSpec],
    options: &LoadOptions,
    slices: &Slices,
) -> LoadReply {
    match Chain::load(blocks, inputs, options) {
        Ok((slice, report)) => {
            slices.insert(number, slice);
            LoadReply::Loaded {
                run_seconds: report.run_seconds,
                resident_bytes: report.resident_bytes,
            }
        }
        Err(error) => {
            let reason = with_causes(&error);
            LoadReply::Refused(if tells_of_memory(&reason) {
                Refusal::Memory(reason)
            } else {
                Refusal::Forward(reason)
            })
        }
    }
}
