// What the kernels of one instruction set, the program that runs them and their Python side agree on.
//
// An op is a pair of a kind (functions) and its arguments (a plain struct of pointers and sizes that do not change
// between steps). What does change, the numbers of tokens, rows and logits, stands in the step's header, so that one
// recorded program serves every batch. Each struct has a twin in abi.py; TuiliKind.args_size holds the two together.
//
// T tokens of a step, R rows (sequences), L rows of logits, S sampled rows.
#pragma once
#include <stddef.h>
#include <stdint.h>

extern "C" {

enum TuiliDType : int32_t { TUILI_F32 = 0, TUILI_BF16 = 1, TUILI_I8 = 2 };

// What a linear layer does to its outputs; ACTIVATIONS in abi.py.
enum TuiliActivation : int32_t { TUILI_NONE = 0, TUILI_SILU = 1, TUILI_GELU = 2, TUILI_GELU_TANH = 3, TUILI_RELU2 = 4 };

// Which number of the header an op's rows are counted by.
enum TuiliDim : int32_t { TUILI_TOKENS = 0, TUILI_ROWS = 1, TUILI_LOGITS = 2, TUILI_SAMPLES = 3 };

typedef struct {
    int32_t count[4];  // by TuiliDim
    int32_t max_seq_len;
    int32_t max_query_len;
    int32_t reserved[10];
} TuiliStep;

typedef struct {
    int32_t thread;         // 0 .. threads - 1
    int32_t threads;
    int32_t first;          // whether this is the first chunk of the op that this thread does
    int32_t reserved;
    void* scratch;          // this thread's own, 64-byte aligned; contents do not outlive the op
    size_t scratch_bytes;   // TUILI_SCRATCH_BYTES
} TuiliThread;

#define TUILI_SCRATCH_BYTES (size_t(1) << 20)

// Functions of an op. Chunks of one op may run on any thread, in any order, at the same time; as a rule a thread's are
// neighbours, in ascending order.
//
// Row-wise ops have `rows` alone: row i reads and writes nothing but row i of its activations (and the pages of its
// own token), so that they can follow another op's rows at once. Other ops have `chunks` and `run`.
typedef struct {
    const char* name;
    size_t args_size;
    int64_t (*chunks)(const void* args, const TuiliStep* step, int32_t threads);
    void (*run)(const void* args, const TuiliStep* step, int64_t chunk, const TuiliThread* thread);
    void (*rows)(const void* args, const TuiliStep* step, int64_t begin, int64_t end, const TuiliThread* thread);
} TuiliKind;

// One entry of a program.
typedef struct {
    const TuiliKind* kind;
    const void* args;
    int32_t dim;  // TuiliDim that counts the rows
    int32_t reserved;
} TuiliOp;

// Neighbours of an int8 activation that share a scale (app/kernels/int8.py).
#define TUILI_ACT_GROUP 64

// ---------------------------------------------------------------------------------------------------------------
// Arguments, one struct an op. Activations are [rows, width], rows contiguous.

// out[t] = table[token_ids[t] - first] * scale + position_table[positions[t]], zeros where that is no row of the
// table; tables and out of one dtype (F32 or BF16), or BF16 tables and an F32 out. Row-wise.
typedef struct {
    const int64_t* token_ids;
    const void* table;  // [rows, width]
    const int64_t* positions;    // or NULL, and then no position_table
    const void* position_table;  // [P, width]
    void* out;
    int32_t table_dtype, out_dtype;
    int32_t width;
    int32_t first, rows;
    float scale;
} TuiliEmbedArgs;

// See app/kernels/add_norm. Row-wise.
typedef struct {
    const void* x;
    const void* weight;  // or NULL
    void* residual;  // or NULL
    void* out;
    float* out_scale;  // [rows, groups]; NULL unless out_dtype is I8
    int32_t dtype;  // of x and residual: F32 or BF16
    int32_t weight_dtype;
    int32_t out_dtype;  // F32, BF16 or I8
    int32_t width;
    float eps;
    int32_t reserved;
} TuiliAddNormArgs;

// See app/kernels/norm_add_norm. Row-wise.
typedef struct {
    const void* x;
    const void* x_weight;
    void* residual;
    const void* weight;  // or NULL
    const float* factor;  // [1], on the sum; or NULL
    void* out;
    float* out_scale;  // [rows, groups]; NULL unless out_dtype is I8
    int32_t dtype;  // of x and residual: F32 or BF16
    int32_t weight_dtype;  // of both weights
    int32_t out_dtype;  // F32, BF16 or I8
    int32_t width;
    float eps;
    int32_t reserved;
} TuiliNormAddNormArgs;

// See app/kernels/layer_norm. Row-wise.
typedef struct {
    const void* x;
    const void* weight;
    const void* bias;  // of weight's dtype, or NULL
    void* residual;  // or NULL
    void* out;
    float* out_scale;  // [rows, groups]; NULL unless out_dtype is I8
    int32_t dtype;  // of x and residual: F32 or BF16
    int32_t weight_dtype;
    int32_t out_dtype;  // F32, BF16 or I8
    int32_t width;
    float eps;
    int32_t reserved;
} TuiliLayerNormArgs;

// Symmetric int8 of x by groups (app/kernels/int8.py). Row-wise. With `indices` row i reads x[indices[i]].
typedef struct {
    const void* x;
    const int64_t* indices;  // or NULL
    int8_t* out;
    float* scale;  // [rows, groups]
    int32_t dtype;  // of x
    int32_t width;
} TuiliQuantizeArgs;

// out[i] = x[indices[i]], converted to out's dtype. Row-wise.
typedef struct {
    const void* x;
    const int64_t* indices;
    void* out;
    int32_t dtype, out_dtype;
    int32_t width;
    int32_t reserved;
} TuiliGatherArgs;

// out = x @ w.T + bias, then + residual, or activation(out), or activation(gate) * up. I8 x and weights, or BF16 x and
// weights. `weight` is packed (linear/cpu.cpp says how); scale and bias are fp32 in the packed order of outputs,
// zero-padded. With gate_up, w holds gate and up interleaved by panels and out has n / 2 columns.
typedef struct {
    const void* x;
    const float* x_scale;  // [rows, groups], I8 only
    const void* weight;
    const float* w_scale;  // I8 only
    const float* bias;     // or NULL
    const void* residual;  // or NULL; [rows, n]; may be out itself
    const void* low;          // what the op lora left of these rows
    const int32_t* adapters;  // or NULL; added before anything else, where a row's slot is not negative
    const int32_t* ranks;     // [S, parts]
    const int32_t* slots;     // [rows]
    const int32_t* order;     // [rows]: they sorted by slot
    const int32_t* first_block;  // [panels + 1]: of 16 packed outputs, the blocks that add to them
    const int32_t* block_part;   // [blocks]
    void* out;
    int32_t x_dtype;         // BF16 or I8; also the weight's
    int32_t out_dtype;       // F32 or BF16
    int32_t residual_dtype;  // F32 or BF16
    int32_t k;
    int32_t n;  // outputs, gate and up both counted
    int32_t activation;   // TuiliActivation; none where there is a residual
    int32_t gate_up;      // whether it is that of a gate
    int32_t dim_of_rows;  // TuiliDim
    int32_t parts, rank, low_bytes, slot_words;  // see TuiliLoraArgs
    int32_t up_at, up_scale_at;                  // where they begin in a slot's words
} TuiliLinearArgs;

// Types of blocks; `code` in app/kernels/blocks/layout.py.
enum TuiliBlockType : int32_t {
    TUILI_BLOCK_Q4_0, TUILI_BLOCK_Q4_1, TUILI_BLOCK_Q5_0, TUILI_BLOCK_Q5_1, TUILI_BLOCK_Q8_0,
    TUILI_BLOCK_Q4_K, TUILI_BLOCK_Q5_K, TUILI_BLOCK_Q6_K, TUILI_BLOCK_IQ4_NL, TUILI_BLOCK_MXFP4,
};

// 16 rows of a weight in blocks.
typedef struct {
    int64_t offset;  // bytes from the weight's beginning
    int64_t type;    // TuiliBlockType
} TuiliPanel;

// As a linear layer over I8, with a weight in the blocks of its file and no `w_scale`.
typedef struct {
    TuiliLinearArgs linear;
    const TuiliPanel* panels;
    int64_t count;  // of panels
} TuiliBlockLinearArgs;

// As TuiliEmbedArgs, of a table in blocks and without positions. Row-wise.
typedef struct {
    const int64_t* token_ids;
    const void* weight;
    const TuiliPanel* panels;
    void* out;
    int32_t out_dtype;  // F32 or BF16
    int32_t width;
    int32_t first, rows;
    float scale;
    int32_t reserved;
} TuiliEmbedBlocksArgs;

// The way to the low rank; app/kernels/lora/pack.py says how slots are packed. Counted by TOKENS.
#define TUILI_MAX_RANK 512
#define TUILI_MAX_LORA_WIDTH (1 << 16)  // of K
typedef struct {
    const void* x;          // [T, k]
    const float* x_scale;   // [T, groups], I8 only
    const int32_t* data;    // [S, slot_words]
    const int32_t* ranks;   // [S, parts]
    const int32_t* slots;   // [T], -1 for none
    const int32_t* order;   // [T]: the tokens sorted by slot
    void* low;              // [T, parts, low_bytes]
    int32_t x_dtype;        // BF16 or I8; also the adapters'
    int32_t k, parts, rank;
    int32_t low_bytes;      // of a token's sums of one part
    int32_t slot_words;     // 32-bit words of a slot
    int32_t down_scale_at;  // where they begin in a slot's words, I8 only
    int32_t reserved;
} TuiliLoraArgs;

// See app/kernels/route: the k experts of each token and what they count. Row-wise.
enum TuiliScoring : int32_t { TUILI_SOFTMAX = 0, TUILI_SOFTMAX_CHOSEN = 1, TUILI_SIGMOID = 2 };
#define TUILI_MAX_EXPERTS 1024
typedef struct {
    const float* logits;  // [T, num_experts]
    const float* bias;    // [num_experts], or NULL
    const float* factors;  // [num_experts], on the weights; or NULL
    int32_t* experts;     // [T, chosen]
    float* weights;       // [T, chosen]
    int32_t logits_stride;
    int32_t num_experts, chosen;
    int32_t scoring;  // TuiliScoring
    int32_t normalise;
    int32_t plain;  // whether there is no more to the rule: neither a bias nor what follows
    int32_t groups, chosen_groups, group_best;
    float least_sum, scale, sum_offset;
} TuiliRouteArgs;

// The slots t * chosen + j of all tokens by expert.
typedef struct {
    const int32_t* experts;  // [T, chosen]
    int32_t* slots;          // [T * chosen]
    int32_t* offsets;        // [num_experts + 1]
    int32_t num_experts, chosen;
} TuiliGroupSlotsArgs;

// See app/kernels/experts. hidden[p] = activation(gate) * up of the token of slots[p], or the clamped gate. I8 x and
// weights, or BF16 ones; an expert's packed weight lies behind that of the one before it, and likewise its scales and bias.
typedef struct {
    const void* x;         // [T, k]
    const float* x_scale;  // [T, groups], I8 only
    const void* weight;
    const float* w_scale;  // I8 only
    const float* bias;     // or NULL
    const int32_t* slots;
    const int32_t* offsets;
    void* hidden;         // [T * chosen, n] of dtype
    void* hidden_groups;  // [groups of n, T * chosen] of linear/tile.h's Group, I8 only
    int32_t dtype;
    int32_t num_experts, chosen;
    int32_t k;  // D
    int32_t n;  // I
    int32_t activation;  // TuiliActivation: SiLU or GELU by tanh
    float alpha;
    float limit;  // of the clamped gate; 0: activation(gate) * up
} TuiliExpertsGateUpArgs;

// out[t] = residual[t] * sigmoid(residual_gate[t]) + the sum of weights[slot] * (hidden[p] @ w.T) over the slots of t, by ascending expert.
typedef struct {
    const void* hidden;
    const void* hidden_groups;
    const void* weight;
    const float* w_scale;  // I8 only
    const float* bias;     // or NULL
    const int32_t* slots;
    const int32_t* offsets;
    const float* route_weights;  // [T, chosen]
    const void* residual;        // or NULL; [T, n]; may be out itself
    const float* residual_gate;  // or NULL
    void* out;                   // [T, n]
    int32_t dtype;
    int32_t out_dtype;       // F32 or BF16
    int32_t residual_dtype;  // F32 or BF16
    int32_t num_experts, chosen;
    int32_t k;  // I
    int32_t n;  // D
    int32_t gate_stride;
} TuiliExpertsDownArgs;

// See app/kernels/qk_norm_rope_kv_write; pages in the packed layout of paged_attention/cpu.cpp. Row-wise.
typedef struct {
    const void* qkv;  // [T, (h + 2g) * e], or [T, (h + g) * e] with key_is_value
    const int64_t* positions;
    const float* rope;  // [P, rotary_dim]; NULL where rotary_dim is 0
    void* kv;  // NULL where g is 0: queries alone
    void* kv_scale;  // fp16, I8 pages only
    const int64_t* slots;
    void* q_out;  // [T, h * e]
    const void* q_norm;  // [e], or [h * e] with whole_norm; or NULL
    const void* k_norm;
    const float* q_scale;  // [P] or NULL
    int32_t dtype;  // of qkv and q_out: F32 or BF16
    int32_t norm_dtype;
    int32_t kv_dtype;  // BF16 or I8
    int32_t h, g, e, rotary_dim, block_size;
    float eps;
    int32_t whole_norm;  // whether all heads of a kind are normed as one vector
    int32_t pair_distance;  // from an element to the one that it is rotated with
    int32_t value_norm;     // whether values are normed too, without a weight
    int32_t key_is_value;   // whether values are made of what the keys are
    int32_t reserved;
} TuiliRopeKvArgs;

// See app/kernels/paged_attention.
typedef struct {
    const void* q;  // [T, h * e]
    const void* kv;
    const void* kv_scale;  // fp16, I8 pages only
    const int32_t* query_start_loc;  // [R + 1]
    const int32_t* seq_lens;
    const int32_t* block_tables;  // [R, block_table_stride]
    const float* sinks;  // [h] or NULL
    void* out;  // [T, h * e]
    int32_t dtype;  // of q
    int32_t out_dtype;  // F32 or BF16
    int32_t kv_dtype;  // BF16 or I8
    int32_t h, g, e, block_size, block_table_stride;
    int32_t sliding_window;  // 0 for none
    float scale;
    float softcap;  // 0 for none
    int32_t reserved;
} TuiliAttentionArgs;

// See app/kernels/sample; optional parts are NULL. Counted by SAMPLES, row-wise.
#define TUILI_SAMPLE_PADDING 64
typedef struct {
    const float* logits;  // [L, vocab_size]
    const int64_t* rows;
    const int64_t* slots;
    const float* temperature;
    const int64_t* seeds;
    const int64_t* positions;
    const int64_t* sample_indices;
    const int64_t* top_k;
    const float* top_p;
    const float* min_p;
    const float* repetition;
    const float* presence;
    const float* frequency;
    const uint8_t* prompt_mask;    // [S, vocab_size]
    const int32_t* output_counts;  // [S, vocab_size]
    const uint8_t* min_tokens_active;
    const uint8_t* stop_mask;    // [S, vocab_size]
    const float* logit_bias;     // [S, vocab_size]
    const int32_t* token_mask;   // [S, ceil(vocab_size / 32)]
    int64_t* out;
    uint8_t* failed;
    void* workspace;  // [threads, 3 * vocab_size + TUILI_SAMPLE_PADDING] fp32
    int32_t vocab_size;
    int32_t reserved;
} TuiliSampleArgs;

// See record_tokens. Counted by SAMPLES, row-wise.
typedef struct {
    const int64_t* token_ids;
    const int64_t* slots;
    int64_t* last_token;
    int32_t* output_counts;  // or NULL
    int32_t vocab_size;
    int32_t reserved;
} TuiliRecordArgs;

// See app/kernels/expand_rows. Counted by ROWS, row-wise. Without token_ids it fills in tables and slots alone.
typedef struct {
    const int32_t* slots;
    const int32_t* carried;
    const int32_t* table_lens;
    const int32_t* new_block_loc;    // [R + 1]
    const int32_t* logit_start_loc;  // [R + 1]
    const int32_t* feed;
    const int32_t* query_start_loc;  // [R + 1]
    const int32_t* seq_lens;
    const int64_t* last_token;
    int32_t* tables;  // [S, table_width]
    int64_t* token_ids;
    int64_t* positions;
    int64_t* logit_indices;
    int32_t* block_tables;  // [R, table_width]
    int64_t* slot_mapping;
    int32_t table_width, block_size;
} TuiliExpandRowsArgs;

// See logprobs. Counted by SAMPLES (an eager program of its own sets it to Q). Row-wise.
#define TUILI_MAX_TOP_LOGPROBS 1024  // k at most
typedef struct {
    const float* logits;
    const int64_t* rows;
    const int64_t* token_ids;
    float* logprob;
    int64_t* rank;
    int64_t* top_ids;
    float* top_logprobs;
    int32_t vocab_size;
    int32_t k;
} TuiliLogprobsArgs;

// See app/kernels/causal_conv. `x` and `state` are of one dtype, which `out` is of too.
typedef struct {
    const void* x;        // [T, x_stride], of which the first `channels` columns are read
    const float* weight;  // [taps, channels]
    const int32_t* query_start_loc;  // [R + 1]
    const int32_t* seq_lens;
    const int32_t* block_tables;  // [R, block_table_stride]
    void* state;          // [num_blocks, taps - 1, channels]
    void* out;            // [T, channels]
    const float* bias;    // [channels] or NULL
    int32_t dtype;  // F32 or BF16
    int32_t channels, taps, x_stride, block_size, block_table_stride;
} TuiliCausalConvArgs;

// See app/kernels/gated_conv. `projected` and `state` are of one dtype.
typedef struct {
    const void* projected;  // [T, 3 * channels]: the inputs' gate, the output's, and the inputs
    const float* weight;    // [taps, channels]
    const float* bias;      // [channels], or NULL
    const int32_t* query_start_loc;  // [R + 1]
    const int32_t* seq_lens;
    const int32_t* block_tables;  // [R, block_table_stride]
    void* state;       // [num_blocks, taps - 1, channels]
    void* out;         // [T, channels]
    float* out_scale;  // [T, groups]; NULL unless out_dtype is I8
    int32_t dtype;      // F32 or BF16
    int32_t out_dtype;  // F32, BF16 or I8
    int32_t channels, taps, block_size, block_table_stride;
} TuiliGatedConvArgs;

// See app/kernels/gated_delta.
typedef struct {
    const void* qkv;  // [T, 2 * k_heads * k_dim + v_heads * v_dim]
    const void* b;    // [T, gate_stride], of which v_heads columns are read; likewise a
    const void* a;
    const float* a_log;    // [v_heads]
    const float* dt_bias;  // [v_heads]
    const int32_t* query_start_loc;  // [R + 1]
    const int32_t* seq_lens;
    const int32_t* block_tables;  // [R, block_table_stride]
    float* state;  // [num_blocks, v_heads, k_dim, v_dim]
    void* out;     // [T, v_heads * v_dim]
    int32_t dtype;  // of qkv, b, a and out: F32 or BF16
    int32_t k_heads, v_heads, k_dim, v_dim;
    int32_t gate_stride, block_size, block_table_stride;
} TuiliGatedDeltaArgs;

// See app/kernels/selective_scan.
typedef struct {
    const void* xbc;  // [T, heads * v_dim + 2 * groups * k_dim]
    const void* dt;   // [T, dt_stride], of which heads columns are read
    const float* a_log;    // [heads]
    const float* dt_bias;  // [heads]
    const float* d;        // [heads]
    const int32_t* query_start_loc;  // [R + 1]
    const int32_t* seq_lens;
    const int32_t* block_tables;  // [R, block_table_stride]
    float* state;  // [num_blocks, heads, k_dim, v_dim]
    void* out;     // [T, heads * v_dim]
    int32_t dtype;  // of xbc, dt and out: F32 or BF16
    int32_t groups, heads, k_dim, v_dim;
    int32_t dt_stride, block_size, block_table_stride;
    float least_step, greatest_step;
} TuiliSelectiveScanArgs;

// See app/kernels/silu_gate. Row-wise.
typedef struct {
    const void* x;       // [rows, groups * width]
    const void* gate;    // [rows, gate_stride], of which groups * width columns are read
    const void* weight;  // [groups * width] or NULL
    void* out;
    float* out_scale;  // [rows, groups of TUILI_ACT_GROUP]; NULL unless out_dtype is I8
    int32_t dtype;  // of x and gate: F32 or BF16
    int32_t weight_dtype;
    int32_t out_dtype;  // F32, BF16 or I8
    int32_t groups, width, gate_stride;
    float eps;
    int32_t reserved;
} TuiliSiluGateArgs;

// See app/kernels/gated_norm. Row-wise.
typedef struct {
    const void* x;       // [rows, heads * width]
    const void* weight;  // [width]
    const void* gate;    // [rows, gate_stride], of which heads * width columns are read
    void* out;
    float* out_scale;  // [rows, groups]; NULL unless out_dtype is I8
    int32_t dtype;  // of x and gate: F32 or BF16
    int32_t weight_dtype;
    int32_t out_dtype;  // F32, BF16 or I8
    int32_t heads, width, gate_stride;
    float eps;
    int32_t reserved;
} TuiliGatedNormArgs;

// out = x * sigmoid(gate). Row-wise.
typedef struct {
    const void* x;     // [rows, width]
    const void* gate;  // [rows, gate_stride], of which width columns are read
    void* out;
    float* out_scale;  // [rows, groups]; NULL unless out_dtype is I8
    int32_t dtype;  // of x and gate: F32 or BF16
    int32_t out_dtype;  // F32, BF16 or I8
    int32_t width, gate_stride;
} TuiliSigmoidMulArgs;

// out = gelu_tanh(gate) * x. Row-wise.
typedef struct {
    const void* gate;  // [rows, width]
    const void* x;     // [rows, x_stride], of which width columns are read
    void* out;
    float* out_scale;  // [rows, groups]; NULL unless out_dtype is I8
    int32_t dtype;  // of gate and x: F32 or BF16
    int32_t out_dtype;  // F32, BF16 or I8
    int32_t width, x_stride;
} TuiliGeluMulArgs;

// See app/kernels/head_norm_add. Row-wise.
typedef struct {
    const void* x;       // [rows, heads * width]
    const void* weight;  // [width]
    const void* addend;  // [rows, heads * width]
    void* out;           // likewise; may be x or addend
    int32_t dtype;  // of x, addend and out: F32 or BF16
    int32_t weight_dtype;
    int32_t heads, width;
    float eps, scale;
} TuiliHeadNormAddArgs;

// See app/kernels/scale_logits. Counted by LOGITS.
typedef struct {
    float* logits;  // [L, width]
    int32_t width;
    float scale;
    float softcap;  // 0 for none
    int32_t reserved;
} TuiliScaleLogitsArgs;

// See app/kernels/packed_attention.
typedef struct {
    const void* qkv;  // [T, (h + 2g) * e]
    const int32_t* cu_seqlens;  // [R + 1]
    void* out;  // [T, h * e]
    int32_t dtype;  // of qkv: F32 or BF16
    int32_t out_dtype;  // F32 or BF16
    int32_t h, g, e;
    int32_t window;  // positions seen to either side; -1 for all
    float scale;
    int32_t reserved;
} TuiliPackedAttentionArgs;

// See app/kernels/pool. Counted by ROWS.
typedef struct {
    const void* hidden;  // [T, width]
    const int32_t* cu_seqlens;  // [R + 1]
    const int32_t* modes;  // [R]: TuiliPooling, + TUILI_NORMALIZE
    float* out;  // [R, width]
    int32_t dtype;  // of hidden: F32 or BF16
    int32_t width;
} TuiliPoolArgs;
enum TuiliPooling : int32_t { TUILI_POOL_MEAN = 0, TUILI_POOL_FIRST = 1, TUILI_POOL_LAST = 2, TUILI_NORMALIZE = 4 };
// See app/kernels/latent_write. `latent`, `q` and `q_out` are of one dtype. Row-wise.
typedef struct {
    const void* latent;  // [T, rank + rotary]
    const void* norm;    // [rank]
    const void* q;       // of head h of token t at t * q_token_stride + h * q_head_stride; likewise q_out
    const int64_t* positions;
    const float* rope;  // [P, rotary]
    void* pages;        // [num_blocks * block_size, rank + rotary]
    const int64_t* slots;
    void* q_out;
    int32_t dtype, norm_dtype, page_dtype;  // F32 or BF16
    int32_t rank, rotary, heads;
    int32_t q_token_stride, q_head_stride, out_token_stride, out_head_stride;
    int32_t interleaved;
    float eps;
} TuiliLatentWriteArgs;

// See app/kernels/head_linear. Of head h of token t x is at t * x_token_stride + h * x_head_stride, likewise out.
typedef struct {
    const void* x;
    const void* weight;  // [heads, k, n]
    void* out;
    int32_t x_dtype, weight_dtype, out_dtype;  // F32 or BF16
    int32_t heads, k, n;
    int32_t x_token_stride, x_head_stride, out_token_stride, out_head_stride;
} TuiliHeadLinearArgs;

// See app/kernels/latent_attention.
typedef struct {
    const void* q;      // [T, heads, width]
    const void* pages;  // [num_blocks, block_size, width]
    const int32_t* query_start_loc;  // [R + 1]
    const int32_t* seq_lens;
    const int32_t* block_tables;  // [R, block_table_stride]
    void* out;  // [T, heads, rank]
    int32_t dtype, page_dtype, out_dtype;  // F32 or BF16
    int32_t heads, width, rank, block_size, block_table_stride;
    float scale;
    int32_t reserved;
} TuiliLatentAttentionArgs;


}  // extern "C"
