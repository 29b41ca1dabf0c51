//! The boundary to C++: owned handles with safe methods. The only `unsafe` code
//! of this crate.
//!
//! The shim guarantees (see `shim/lamina.h`): no exception crosses, a non-zero
//! status comes with a message, handles stay valid until freed.
#![allow(unsafe_code)]

mod answers;

pub(crate) use answers::*;

use bytes::Bytes;
use lamina_model::{Binding, Constant};
use serde::de::DeserializeOwned;
use std::ffi::{CStr, CString, c_char, c_int};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tch::{Device, Kind as ElementKind, TchError, Tensor};
use torch_sys::C_tensor;

/// Message of a libtorch exception, unchanged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TorchError(pub(crate) String);

type Result<T> = std::result::Result<T, TorchError>;

/// One timed forward.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Timing {
    pub(crate) wall_seconds: f64,
    /// Of the calling thread alone.
    pub(crate) cpu_seconds: f64,
}

mod sys {
    use super::{C_tensor, c_char, c_int};

    #[repr(C)]
    pub(super) struct Source {
        _private: [u8; 0],
    }
    #[repr(C)]
    pub(super) struct Block {
        _private: [u8; 0],
    }
    #[repr(C)]
    pub(super) struct Graph {
        _private: [u8; 0],
    }
    #[repr(C)]
    pub(super) struct Bytes {
        _private: [u8; 0],
    }

    unsafe extern "C" {
        pub(super) fn lts_source_open(
            path: *const c_char,
            out: *mut *mut Source,
            text: *mut *mut c_char,
        ) -> c_int;
        pub(super) fn lts_source_analyse(
            source: *mut Source,
            bindings: *const *const c_char,
            count: usize,
            has_exits: c_int,
            text: *mut *mut c_char,
        ) -> c_int;
        pub(super) fn lts_source_retrace(
            source: *mut Source,
            inputs: *const *const C_tensor,
            pair: *const *const C_tensor,
            count: usize,
            out: *mut *mut Source,
            text: *mut *mut c_char,
        ) -> c_int;
        pub(super) fn lts_source_free(source: *mut Source);
        pub(super) fn lts_source_block(
            source: *mut Source,
            from: usize,
            to: usize,
            out: *mut *mut Bytes,
            text: *mut *mut c_char,
        ) -> c_int;
        pub(super) fn lts_source_observe(
            source: *mut Source,
            cuts: *const usize,
            count: usize,
            inputs: *const *const C_tensor,
            inputs_count: usize,
            text: *mut *mut c_char,
        ) -> c_int;
        pub(super) fn lts_source_watch(
            source: *mut Source,
            inputs: *const *const C_tensor,
            batches: usize,
            names: *const *const c_char,
            sizes: usize,
            count: usize,
            text: *mut *mut c_char,
        ) -> c_int;
        pub(super) fn lts_source_graph(
            source: *mut Source,
            cuts: *const usize,
            count: usize,
            out: *mut *mut Graph,
            text: *mut *mut c_char,
        ) -> c_int;
        pub(super) fn lts_source_as_written(
            source: *mut Source,
            out: *mut *mut Graph,
            text: *mut *mut c_char,
        ) -> c_int;
        pub(super) fn lts_block_load(
            path: *const c_char,
            out: *mut *mut Block,
            text: *mut *mut c_char,
        ) -> c_int;
        pub(super) fn lts_block_examples(block: *mut Block, text: *mut *mut c_char) -> c_int;
        pub(super) fn lts_block_free(block: *mut Block);
        pub(super) fn lts_graph_merge(
            blocks: *const *mut Block,
            count: usize,
            gear: c_int,
            out: *mut *mut Graph,
            text: *mut *mut c_char,
        ) -> c_int;
        pub(super) fn lts_graph_again(
            graph: *const Graph,
            out: *mut *mut Graph,
            text: *mut *mut c_char,
        ) -> c_int;
        pub(super) fn lts_graph_free(graph: *mut Graph);
        pub(super) fn lts_graph_keeps_state(graph: *const Graph) -> c_int;
        pub(super) fn lts_graph_run(
            graph: *mut Graph,
            inputs: *const *const C_tensor,
            count: usize,
            threads: c_int,
            outputs: *mut *mut *mut C_tensor,
            outputs_count: *mut usize,
            text: *mut *mut c_char,
        ) -> c_int;
        pub(super) fn lts_graph_cost(
            graph: *mut Graph,
            inputs: *const *const C_tensor,
            count: usize,
            threads: c_int,
            text: *mut *mut c_char,
        ) -> c_int;
        pub(super) fn lts_graph_time(
            graph: *mut Graph,
            inputs: *const *const C_tensor,
            count: usize,
            threads: c_int,
            wall_seconds: *mut f64,
            cpu_seconds: *mut f64,
            text: *mut *mut c_char,
        ) -> c_int;
        #[cfg(feature = "baseline")]
        pub(super) fn lts_whole_load(
            path: *const c_char,
            way: c_int,
            inputs: *const *const C_tensor,
            count: usize,
            out: *mut *mut Graph,
            text: *mut *mut c_char,
        ) -> c_int;
        pub(super) fn lts_set_threads(threads: c_int, text: *mut *mut c_char) -> c_int;
        pub(super) fn lts_version() -> *const c_char;
        pub(super) fn lts_text_free(text: *mut c_char);
        pub(super) fn lts_bytes_data(bytes: *const Bytes) -> *const u8;
        pub(super) fn lts_bytes_len(bytes: *const Bytes) -> usize;
        pub(super) fn lts_bytes_free(bytes: *mut Bytes);
        pub(super) fn lts_outputs_free(outputs: *mut *mut C_tensor);
    }
}

/// A model that is being cut.
#[derive(Debug)]
pub(crate) struct Source(*mut sys::Source);

/// A block read from its file.
#[derive(Debug)]
pub(crate) struct Block(*mut sys::Block);

/// A graph that can run.
#[derive(Debug)]
pub(crate) struct Graph {
    handle: *mut sys::Graph,
    /// Held while it runs, if it keeps state.
    turn: Option<Mutex<()>>,
}

// SAFETY: the C++ objects are bound to no thread; `&mut` or ownership keeps
// them to one thread at a time, since neither type is `Sync`.
unsafe impl Send for Source {}
// SAFETY: as above.
unsafe impl Send for Block {}
// SAFETY: as above.
unsafe impl Send for Graph {}
// SAFETY: several threads may run one executor: its plans are made under a lock, and each run
// has an interpreter of its own. What a graph itself keeps, attributes of its module, is used
// by one thread at a time, which `turn` sees to.
unsafe impl Sync for Graph {}

impl Drop for Source {
    fn drop(&mut self) {
        // SAFETY: the pointer came from `lts_source_open` and is freed once.
        unsafe { sys::lts_source_free(self.0) }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: the pointer came from `lts_block_load` and is freed once.
        unsafe { sys::lts_block_free(self.0) }
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: the pointer came from the shim and is freed once.
        unsafe { sys::lts_graph_free(self.handle) }
    }
}

/// Copies and frees a text of the shim.
fn take_text(text: *mut c_char) -> String {
    if text.is_null() {
        return "out of memory".into();
    }
    // SAFETY: the shim gives a NUL-terminated text that is ours to free.
    unsafe {
        let copy = CStr::from_ptr(text).to_string_lossy().into_owned();
        sys::lts_text_free(text);
        copy
    }
}

fn checked(status: c_int, text: *mut c_char) -> Result<()> {
    if status == 0 {
        Ok(())
    } else {
        Err(TorchError(take_text(text)))
    }
}

fn parsed<T: DeserializeOwned>(status: c_int, text: *mut c_char) -> Result<T> {
    checked(status, text)?;
    serde_json::from_str(&take_text(text))
        .map_err(|e| TorchError(format!("the shim's answer is not understood: {e}")))
}

fn c_path(path: &Path) -> Result<CString> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| TorchError("the path contains a NUL byte".into()))
}

fn pointers(inputs: &[Tensor]) -> Vec<*const C_tensor> {
    inputs.iter().map(Tensor::as_ptr).collect()
}

/// In the shim's format: `bind_arguments` in source.hpp.
fn in_words(binding: &Binding) -> String {
    match binding {
        Binding::Tensor => "tensor".into(),
        Binding::Int => "int".into(),
        Binding::Float => "float".into(),
        Binding::Bool => "bool".into(),
        Binding::Tuple { count } => format!("tuple:{count}"),
        Binding::Fixed { value } => match value {
            Constant::None => "none".into(),
            Constant::Bool(truth) => format!("fixed_bool:{}", i32::from(*truth)),
            Constant::Int(number) => format!("fixed_int:{number}"),
            // The shortest text that is read as the same number.
            Constant::Float(number) => format!("fixed_float:{number}"),
            Constant::Text(text) => format!("fixed_text:{text}"),
        },
    }
}

/// A block boundary: the model's own end, or a cut's position.
fn border(cut: Option<usize>) -> usize {
    cut.unwrap_or(usize::MAX)
}

impl Source {
    /// Reads and freezes the model at `path`.
    pub(crate) fn open(path: &Path) -> Result<(Self, Signature)> {
        let path = c_path(path)?;
        let (mut source, mut text) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: all pointers are valid for the call.
        let status = unsafe { sys::lts_source_open(path.as_ptr(), &raw mut source, &raw mut text) };
        let signature = parsed(status, text)?;
        Ok((Self(source), signature))
    }

    /// Cleans the graph and finds its cuts; its first arguments are filled by `bindings`, the
    /// others take their defaults; with exits, all outputs but the last are side exits'. Call it
    /// once, before the other methods.
    pub(crate) fn analyse(&mut self, bindings: &[Binding], has_exits: bool) -> Result<Analysis> {
        let texts: std::result::Result<Vec<CString>, _> =
            bindings.iter().map(|b| CString::new(in_words(b))).collect();
        let texts = texts.map_err(|_| TorchError("an argument contains a NUL byte".into()))?;
        let pointers: Vec<*const c_char> = texts.iter().map(|t| t.as_ptr()).collect();
        let mut text = ptr::null_mut();
        // SAFETY: the handle is valid and ours alone; the texts outlive the call.
        let status = unsafe {
            sys::lts_source_analyse(
                self.0,
                pointers.as_ptr(),
                pointers.len(),
                c_int::from(has_exits),
                &raw mut text,
            )
        };
        parsed(status, text)
    }

    /// The structure of the values that are live at `cuts`, and of the outputs, in one forward.
    /// Call it before the two methods below.
    pub(crate) fn observe(&mut self, cuts: &[usize], inputs: &[Tensor]) -> Result<Observation> {
        let inputs = pointers(inputs);
        let mut text = ptr::null_mut();
        // SAFETY: the handle is ours alone; arrays and tensors outlive the call.
        let status = unsafe {
            sys::lts_source_observe(
                self.0,
                cuts.as_ptr(),
                cuts.len(),
                inputs.as_ptr(),
                inputs.len(),
                &raw mut text,
            )
        };
        parsed(status, text)
    }

    /// Runs the analysed model once for each of `batches`: requests of 1 row and, if the batch is
    /// free, of 2 and 3; and for three requests along each of the free sizes named in `sizes`.
    pub(crate) fn watch(
        &mut self,
        batches: &[Vec<Tensor>],
        sizes: &[(String, [Vec<Tensor>; 3])],
    ) -> Result<Watched> {
        let count = batches.first().map_or(0, Vec::len);
        let along = sizes.iter().flat_map(|(_, requests)| requests);
        let requests: Vec<&Vec<Tensor>> = batches.iter().chain(along).collect();
        if batches.is_empty() || requests.iter().any(|r| r.len() != count) {
            return Err(TorchError("the requests have different lengths".into()));
        }
        let inputs: Vec<*const C_tensor> = requests.iter().flat_map(|r| pointers(r)).collect();
        let names: std::result::Result<Vec<CString>, _> = sizes
            .iter()
            .map(|(name, _)| CString::new(name.as_str()))
            .collect();
        let names = names.map_err(|_| TorchError("a size's name contains a NUL byte".into()))?;
        let names: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
        let mut text = ptr::null_mut();
        // SAFETY: the handle is ours alone; tensors and names outlive the call, and the
        // array holds `count` tensors for each batch and for each three along a size.
        let status = unsafe {
            sys::lts_source_watch(
                self.0,
                inputs.as_ptr(),
                batches.len(),
                names.as_ptr(),
                names.len(),
                count,
                &raw mut text,
            )
        };
        parsed(status, text)
    }

    /// The analysed model traced with `inputs` of batch 1, as a new source that is yet to be
    /// analysed; with `pair`, the same at batch 2, it holds for any batch if possible.
    pub(crate) fn retrace(
        &mut self,
        inputs: &[Tensor],
        pair: Option<&[Tensor]>,
    ) -> Result<(Self, Retraced)> {
        let inputs = pointers(inputs);
        let pair = pair.map(pointers);
        if pair.as_ref().is_some_and(|pair| pair.len() != inputs.len()) {
            return Err(TorchError("the two requests have different lengths".into()));
        }
        let pair = pair.as_ref().map_or(ptr::null(), Vec::as_ptr);
        let (mut source, mut text) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: the handle is valid, the tensors outlive the call, and both
        // arrays have the length that is given.
        let status = unsafe {
            sys::lts_source_retrace(
                self.0,
                inputs.as_ptr(),
                pair,
                inputs.len(),
                &raw mut source,
                &raw mut text,
            )
        };
        let retraced = parsed(status, text)?;
        Ok((Self(source), retraced))
    }

    /// Archive of the nodes after the cut `from` up to the cut `to`.
    pub(crate) fn block(&mut self, from: Option<usize>, to: Option<usize>) -> Result<Vec<u8>> {
        let (mut bytes, mut text) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: the handle is valid; on success `bytes` is a valid object
        // until it is freed, and its data is `len` bytes long.
        unsafe {
            let status = sys::lts_source_block(
                self.0,
                border(from),
                border(to),
                &raw mut bytes,
                &raw mut text,
            );
            checked(status, text)?;
            let data =
                std::slice::from_raw_parts(sys::lts_bytes_data(bytes), sys::lts_bytes_len(bytes));
            let copy = data.to_vec();
            sys::lts_bytes_free(bytes);
            Ok(copy)
        }
    }

    /// The model as its file says it, neither frozen nor rewritten, and the names of its operators,
    /// some of which freezing may drop.
    pub(crate) fn as_written(&mut self) -> Result<(Graph, Vec<String>)> {
        let (mut graph, mut text) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: the handle is valid for the call.
        let status = unsafe { sys::lts_source_as_written(self.0, &raw mut graph, &raw mut text) };
        let operators = parsed(status, text)?;
        Ok((Graph::own(graph), operators))
    }

    /// The whole model, returning the tensors at each cut and then its outputs.
    pub(crate) fn graph(&mut self, cuts: &[usize]) -> Result<Graph> {
        let (mut graph, mut text) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: the handle and the array are valid for the call.
        let status = unsafe {
            sys::lts_source_graph(
                self.0,
                cuts.as_ptr(),
                cuts.len(),
                &raw mut graph,
                &raw mut text,
            )
        };
        checked(status, text)?;
        Ok(Graph::own(graph))
    }
}

impl Block {
    /// Reads a block's file.
    pub(crate) fn load(path: &Path) -> Result<Self> {
        let path = c_path(path)?;
        let (mut block, mut text) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: all pointers are valid for the call.
        let status = unsafe { sys::lts_block_load(path.as_ptr(), &raw mut block, &raw mut text) };
        checked(status, text)?;
        Ok(Self(block))
    }

    /// For each input tensor the numbers to warm it up with, if zeros will not do; empty if they
    /// always will.
    pub(crate) fn examples(&self) -> Result<Vec<Option<Vec<i64>>>> {
        let mut text = ptr::null_mut();
        // SAFETY: the handle is valid; the shim only reads it.
        let status = unsafe { sys::lts_block_examples(self.0, &raw mut text) };
        parsed(status, text)
    }
}

/// How a merged graph is optimized; the numbers are the shim's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gear {
    /// Unchanged, and exact.
    Plain = 0,
    /// Batch normalisation folded, weights in oneDNN's layouts.
    Folded = 1,
    /// Fused by oneDNN Graph, which does not support every operation.
    Fused = 2,
}

impl Gear {
    /// The result of `make` in the fastest gear in which it succeeds. It must run the graph: the
    /// fuser may fail as late as in the second forward.
    pub(crate) fn fastest<T, E>(
        mut make: impl FnMut(Self) -> std::result::Result<T, E>,
    ) -> std::result::Result<T, E> {
        make(Self::Fused)
            .or_else(|_| make(Self::Folded))
            .or_else(|_| make(Self::Plain))
    }
}

impl Graph {
    /// One graph of consecutive blocks.
    pub(crate) fn merge(blocks: &[Block], gear: Gear) -> Result<Self> {
        let handles: Vec<*mut sys::Block> = blocks.iter().map(|b| b.0).collect();
        let (mut graph, mut text) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: the handles are valid; the shim only reads the blocks.
        let status = unsafe {
            sys::lts_graph_merge(
                handles.as_ptr(),
                handles.len(),
                gear as c_int,
                &raw mut graph,
                &raw mut text,
            )
        };
        checked(status, text)?;
        Ok(Self::own(graph))
    }

    /// The same graph with the same weights, to be compiled for the sizes of its first runs; `None`
    /// if all sizes run the same code.
    pub(crate) fn again(&self) -> Result<Option<Self>> {
        let (mut graph, mut text) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: the handle is valid for the call, which only reads it.
        let status = unsafe { sys::lts_graph_again(self.handle, &raw mut graph, &raw mut text) };
        checked(status, text)?;
        Ok((!graph.is_null()).then(|| Self::own(graph)))
    }

    /// Takes over a graph of the shim.
    fn own(handle: *mut sys::Graph) -> Self {
        // SAFETY: the handle is valid for the call.
        let keeps_state = unsafe { sys::lts_graph_keeps_state(handle) } != 0;
        Self {
            handle,
            turn: keeps_state.then(Mutex::default),
        }
    }

    fn turn(&self) -> Option<MutexGuard<'_, ()>> {
        let turn = self.turn.as_ref()?;
        Some(turn.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The whole model at `path`, run in the `way` numbered by the shim, after its warm-up with
    /// `inputs`.
    #[cfg(feature = "baseline")]
    pub(crate) fn whole(path: &Path, way: c_int, inputs: &[Tensor]) -> Result<Self> {
        let path = c_path(path)?;
        let inputs = pointers(inputs);
        let (mut graph, mut text) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: all pointers are valid for the call, the tensors outlive it.
        let status = unsafe {
            sys::lts_whole_load(
                path.as_ptr(),
                way,
                inputs.as_ptr(),
                inputs.len(),
                &raw mut graph,
                &raw mut text,
            )
        };
        checked(status, text)?;
        Ok(Self::own(graph))
    }

    /// One forward, which may overwrite its inputs; the outputs are dense CPU
    /// tensors.
    pub(crate) fn run(&self, inputs: &mut [Tensor], threads: u32) -> Result<Vec<Tensor>> {
        let _turn = self.turn();
        let handles = pointers(inputs);
        let (mut outputs, mut count, mut text) = (ptr::null_mut(), 0, ptr::null_mut());
        // SAFETY: the tensors outlive the call; on success `outputs` holds
        // `count` tensors that are ours, and the array itself is freed once.
        unsafe {
            let status = sys::lts_graph_run(
                self.handle,
                handles.as_ptr(),
                handles.len(),
                c_threads(threads),
                &raw mut outputs,
                &raw mut count,
                &raw mut text,
            );
            checked(status, text)?;
            let tensors = (0..count)
                .map(|i| Tensor::from_ptr(*outputs.add(i)))
                .collect();
            sys::lts_outputs_free(outputs);
            Ok(tensors)
        }
    }

    /// FLOPs and memory of one forward on one thread.
    pub(crate) fn cost(&self, inputs: &[Tensor]) -> Result<Cost> {
        let _turn = self.turn();
        let inputs = pointers(inputs);
        let mut text = ptr::null_mut();
        // SAFETY: the tensors outlive the call.
        let status = unsafe {
            sys::lts_graph_cost(self.handle, inputs.as_ptr(), inputs.len(), 1, &raw mut text)
        };
        parsed(status, text)
    }

    /// Times one forward on one thread, copies of its inputs included.
    pub(crate) fn time(&self, inputs: &[Tensor]) -> Result<Timing> {
        let _turn = self.turn();
        let inputs = pointers(inputs);
        let mut timing = Timing {
            wall_seconds: 0.0,
            cpu_seconds: 0.0,
        };
        let mut text = ptr::null_mut();
        // SAFETY: the tensors outlive the call.
        let status = unsafe {
            sys::lts_graph_time(
                self.handle,
                inputs.as_ptr(),
                inputs.len(),
                1,
                &raw mut timing.wall_seconds,
                &raw mut timing.cpu_seconds,
                &raw mut text,
            )
        };
        checked(status, text)?;
        Ok(timing)
    }
}

/// Runs `work` on tensors that borrow the elements of `inputs`.
pub(crate) fn on_borrowed<R>(
    inputs: &mut [Borrowed<'_>],
    work: impl FnOnce(&mut [Tensor]) -> R,
) -> std::result::Result<R, TchError> {
    let mut tensors = Vec::with_capacity(inputs.len());
    for Borrowed { kind, shape, data } in inputs {
        let elements = shape.iter().try_fold(1_usize, |n, &size| {
            n.checked_mul(usize::try_from(size).ok()?)
        });
        let bytes = elements.and_then(|n| n.checked_mul(kind.elt_size_in_bytes()));
        if bytes != Some(data.len()) {
            let text = format!("{} bytes for {kind:?} {shape:?}", data.len());
            return Err(TchError::Shape(text));
        }
        let strides = row_major(shape);
        // SAFETY: the elements are as many as the shape says and are borrowed alone for
        // longer than this function runs, at whose end the tensors are gone. Kernels take
        // elements at any address.
        let tensor =
            unsafe { Tensor::f_from_blob(data.as_ptr(), shape, &strides, *kind, Device::Cpu) };
        tensors.push(tensor?);
    }
    Ok(work(&mut tensors))
}

/// Borrowed elements, row-major; a forward may overwrite them.
#[derive(Debug)]
pub(crate) struct Borrowed<'a> {
    pub(crate) kind: ElementKind,
    pub(crate) shape: &'a [i64],
    pub(crate) data: &'a mut [u8],
}

fn row_major(shape: &[i64]) -> Vec<i64> {
    let mut strides = vec![1; shape.len()];
    for at in (1..shape.len()).rev() {
        // The product of all was checked.
        strides[at - 1] = strides[at] * shape[at].max(1);
    }
    strides
}

/// Lets `read` see the elements of dense CPU tensors in place.
pub(crate) fn with_elements<R>(
    tensors: &[(&Tensor, usize)],
    read: impl FnOnce(&[&[u8]]) -> R,
) -> R {
    let slices: Vec<&[u8]> = tensors
        .iter()
        .map(|&(tensor, bytes)| {
            if bytes == 0 {
                return &[][..];
            }
            // SAFETY: a dense tensor's elements are `bytes` bytes from there on, and the
            // tensor outlives `read`, during which no forward runs.
            unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast(), bytes) }
        })
        .collect();
    read(&slices)
}

/// The elements of a dense CPU tensor, in place. Nothing else may hold the tensor: it must not be
/// written while this is read.
pub(crate) fn elements(tensor: Tensor, bytes: usize) -> Bytes {
    struct Elements(Tensor, usize);

    impl AsRef<[u8]> for Elements {
        fn as_ref(&self) -> &[u8] {
            if self.1 == 0 {
                return &[];
            }
            // SAFETY: a dense tensor's elements are `bytes` bytes from there on,
            // and live as long as the tensor, which is ours.
            unsafe { std::slice::from_raw_parts(self.0.data_ptr().cast(), self.1) }
        }
    }

    Bytes::from_owner(Elements(tensor, bytes))
}

fn c_threads(threads: u32) -> c_int {
    c_int::try_from(threads.max(1)).unwrap_or(c_int::MAX)
}

/// Threads inside one operation on the calling thread, until its next forward.
pub(crate) fn set_threads(threads: u32) -> Result<()> {
    let mut text = ptr::null_mut();
    // SAFETY: the pointer is valid for the call.
    let status = unsafe { sys::lts_set_threads(c_threads(threads), &raw mut text) };
    checked(status, text)
}

/// libtorch's version, `2.13.0`.
pub(crate) fn version() -> String {
    // SAFETY: a static NUL-terminated text.
    unsafe { CStr::from_ptr(sys::lts_version()) }
        .to_string_lossy()
        .into_owned()
}
