// C interface of the shim. Every function that can fail returns 0 or 1 and then leaves a message in
// `*text`; on success `*text`, if any, is JSON. The caller frees texts and bytes with the functions
// at the end. No exception crosses this interface.
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
#include <ATen/core/Tensor.h>
typedef at::Tensor lts_tensor;
extern "C" {
#else
typedef struct lts_tensor lts_tensor;
#endif

// A model to be cut.
typedef struct lts_source lts_source;
// A block read from its file.
typedef struct lts_block lts_block;
// An executable graph: merged blocks, or the whole model with its boundary values.
typedef struct lts_graph lts_graph;
// Bytes owned by the shim.
typedef struct lts_bytes lts_bytes;

// Reads and freezes a model. JSON: `Signature` in ffi.rs.
int lts_source_open(const char *path, lts_source **out, char **text);
// Cleans the graph and finds its legal cuts. The first `count` arguments are bound by `bindings`
// (`bind_arguments` in source.hpp), the others take their defaults. With exits, all outputs but the
// last belong to side exits. JSON: `Analysis` in ffi.rs.
int lts_source_analyse(lts_source *source, const char *const *bindings, size_t count,
                       int has_exits, char **text);
// The analysed model traced with `inputs`, of batch 1, as a source that is not analysed yet. With
// `pair`, the same at batch 2 (else null), it holds for any batch if both traces agree. Refuses
// models that a trace would get wrong. JSON: `Retraced` in ffi.rs.
int lts_source_retrace(lts_source *source, lts_tensor *const *inputs, lts_tensor *const *pair,
                       size_t count, lts_source **out, char **text);
void lts_source_free(lts_source *source);

// One forward of the model: observes the structure of the values that are live at each cut, and of
// the outputs. Blocks send values in the structure first observed at a cut, so call this before the
// two functions below, with their cuts. JSON: `Observation` in ffi.rs.
int lts_source_observe(lts_source *source, const size_t *cuts, size_t count,
                       lts_tensor *const *inputs, size_t inputs_count, char **text);

// One forward of the analysed model for each of `batches` requests of `count` inputs each, one
// after the other: of batch 1 and, if any batch is allowed, of 2 and 3. After them come three
// requests for each of `sizes` free dimensions named `names`: with its smallest, typical and
// largest size, the others typical. Finds the values at cuts whose structure differs between
// requests, what follows the batch other than in proportion, and what follows a size at all. JSON:
// `Watched` in ffi.rs.
int lts_source_watch(lts_source *source, lts_tensor *const *inputs, size_t batches,
                     const char *const *names, size_t sizes, size_t count, char **text);

// Archive of the nodes in (from, to], whose bounds are cuts of the analysis; SIZE_MAX stands for
// the model's own begin or end.
int lts_source_block(lts_source *source, size_t from, size_t to, lts_bytes **out, char **text);

// The whole model, returning copies of the tensors at each cut and then its outputs.
int lts_source_graph(lts_source *source, const size_t *cuts, size_t count, lts_graph **out,
                     char **text);

// The model as in its file, neither frozen nor rewritten by any pass. A retraced model has none.
// JSON: the names of its operators.
int lts_source_as_written(lts_source *source, lts_graph **out, char **text);

int lts_block_load(const char *path, lts_block **out, char **text);
void lts_block_free(lts_block *block);
// JSON: per tensor that the block takes null or the numbers to warm it up with; empty if noise and
// zeros will do.
int lts_block_examples(lts_block *block, char **text);

// Optimization of a merged graph. `LTS_FUSED` does not support every operation and may fail, even
// in the first runs; `LTS_FOLDED` is slower and rarely fails.
enum { LTS_PLAIN = 0, LTS_FOLDED = 1, LTS_FUSED = 2 };

// Merges consecutive blocks into one graph.
int lts_graph_merge(lts_block *const *blocks, size_t count, int gear, lts_graph **out,
                    char **text);
// The same graph with the same weights, not run yet: if fused, it is compiled for the sizes of its
// first runs. Null if any size runs the same code.
int lts_graph_again(const lts_graph *graph, lts_graph **out, char **text);
void lts_graph_free(lts_graph *graph);
// Whether runs change the state for later ones: 1 or 0.
int lts_graph_keeps_state(const lts_graph *graph);

// May overwrite its inputs; outputs are dense CPU tensors with their own memory, which the caller
// frees.
int lts_graph_run(lts_graph *graph, lts_tensor *const *inputs, size_t count, int threads,
                  lts_tensor ***outputs, size_t *outputs_count, char **text);
// JSON: `Cost` in ffi.rs.
int lts_graph_cost(lts_graph *graph, lts_tensor *const *inputs, size_t count, int threads,
                   char **text);
// One timed forward, including copies of inputs and outputs: wall and thread CPU seconds.
int lts_graph_time(lts_graph *graph, lts_tensor *const *inputs, size_t count, int threads,
                   double *wall_seconds, double *cpu_seconds, char **text);
// Threads within one operation on the calling thread.
int lts_set_threads(int threads, char **text);

// The whole model, run in one of libtorch's ways (numbered by `Way` in baseline.rs), after its
// warm-up. Only with the feature `baseline`.
int lts_whole_load(const char *path, int way, lts_tensor *const *inputs, size_t count,
                   lts_graph **out, char **text);

// libtorch's version, static.
const char *lts_version(void);

void lts_text_free(char *text);
const uint8_t *lts_bytes_data(const lts_bytes *bytes);
size_t lts_bytes_len(const lts_bytes *bytes);
void lts_bytes_free(lts_bytes *bytes);
// Frees only the array; its tensors belong to the caller.
void lts_outputs_free(lts_tensor **outputs);

#ifdef __cplusplus
}
#endif
