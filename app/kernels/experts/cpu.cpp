// The gated MLPs of a mixture of experts over packed weights (linear/tile.h).
//
// How many rows an expert has is known only when the op's turn comes, the number of chunks before the step begins. So
// chunks are shares: each thread reads from the offsets what there is to do, and a chunk is an equal part of its cost.
// Experts that nobody chose have no part in it.
//
// Gate and up: a unit of work is a block of an expert's rows, gathered once a thread, with so many tiles that they make
// a whole group of an int8 activation, which is stored with its scale and its sum, which all later products need. Down:
// a chunk has a few tiles of outputs for all experts, so that a token's results are summed in the thread, by ascending
// expert, and nothing but their sum is ever stored.
#include "../linear/tile.h"
#include "../native/activation.h"
#include "../native/rows.h"

namespace TUILI_ISA {

enum : int {
    kBlockRows = 192,           // rows that are multiplied with a tile while it is in the cache
    kGatherBytes = 640 << 10,   // of gathered rows and their groups at most
    kSumsBytes = 640 << 10,     // of outputs that the down projection sums up
    kPieceWords = 512,          // of K a piece: 64 KB of a tile
    kAheadBytes = 2048,
    kUnitTiles = TUILI_ACT_GROUP / (kTile / 2),
    kChunksPerThread = 16,
    kTileCost = 4,              // rows that take as long to multiply as a tile takes to come from memory
    kTokensABlock = 2048,
};

TUILI_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
TUILI_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
TUILI_INLINE F sigmoid(F gate) { return div(set1(1.0f), add(set1(1.0f), exp(sub(zero(), gate)))); }

// sums [rows, 32] = rows of x, side by side, times a tile. `after`: what will be multiplied next.
template <typename Tile>
static void multiply_tile(const char* x, int64_t rows, const char* weight, int words, const char* after,
                          const Groups& groups, float* sums) {
    const int64_t stride = int64_t(words) * 4;
    // As in linear/cpu.cpp: in two passes at least where one would not be much shorter than two.
    const int64_t few = rows < 4 ? rows : ceil_div(rows, 2);
    const int64_t passes = ceil_div(rows, smaller(few, kMaxRows)), pass = ceil_div(rows, passes);
    for (int from = 0; from < words; from += kPieceWords) {
        const int piece = (int)smaller(kPieceWords, words - from);
        const bool last = from + piece == words;
        const char* next = last ? after : weight + int64_t(piece) * kWordBytes;
        for (int64_t row = 0; row < rows; row += pass) {
            const int64_t n = smaller(pass, rows - row);
            float* c = sums + row * kTile;
            const Groups at = {groups.first + from / kGroupWords * groups.stride + row, groups.stride};
            const char* part = x + row * stride + from * 4;
            if (n == rows) {
                // Fetches its own a little ahead, but for the beginning of what comes from elsewhere.
                if (last && after != weight + int64_t(piece) * kWordBytes)
                    for (int i = 0; i < kAheadBytes; i += 64) _mm_prefetch(after + i, _MM_HINT_T0);
                multiply_rows<Tile, 2>(n, part, stride, weight, piece, c, from == 0, weight + kAheadBytes, at);
            } else if (passes == 3) {
                multiply_rows<Tile, THIRD>(n, part, stride, weight, piece, c, from == 0, next, at);
                next += int64_t(lines_of_third(piece)) * 64;
            } else if (row <= pass) {
                multiply_rows<Tile, 1>(n, part, stride, weight, piece, c, from == 0, next, at);
                next += int64_t(piece) * 64;
            } else {
                multiply_rows<Tile, 0>(n, part, stride, weight, piece, c, from == 0, next, at);
            }
        }
        weight += int64_t(piece) * kWordBytes;
    }
}

TUILI_INLINE int words_of(int dtype, int k) { return dtype == TUILI_I8 ? k / 4 : k / 2; }

// ---------------------------------------------------------------------------------------------------------------
// Gate and up

// An expert that somebody chose.
struct Active {
    int32_t expert;
    int32_t block_rows;  // of its blocks, the last may have fewer
    int64_t blocks;
    int64_t unit_cost;
    int64_t first_cost;  // of all units before its own
};

// What a thread keeps in its scratch while it does chunks of the op.
struct GateUpScratch {
    int64_t count;  // of active experts
    int64_t cost;   // of all
    int32_t expert;
    int32_t rows;
    int64_t begin;  // of the block that is gathered
    Active* active;
    float* sums;    // [rows, 32]
    float* gated;   // [rows, 64]
    Group* groups;  // [groups of K, rows], I8 only
    char* x;        // [rows, K]
};

TUILI_INLINE int64_t most_rows(const TuiliExpertsGateUpArgs& a) {
    const int64_t row_bytes = int64_t(words_of(a.dtype, a.k)) * 4 + int64_t(sizeof(Group)) * act_groups(a.k);
    const int64_t rows = smaller(kBlockRows, kGatherBytes / row_bytes);
    return rows < 1 ? 1 : rows;
}

TUILI_INLINE int64_t units_of(const TuiliExpertsGateUpArgs& a) { return ceil_div(a.n, TUILI_ACT_GROUP); }

static int64_t gate_up_chunks(const void* args, const TuiliStep* step, int32_t threads) {
    const TuiliExpertsGateUpArgs& a = *(const TuiliExpertsGateUpArgs*)args;
    const int64_t slots = int64_t(step->count[TUILI_TOKENS]) * a.chosen;
    const int64_t most_blocks = smaller(slots, a.num_experts) + slots / most_rows(a);
    return smaller(int64_t(threads) * kChunksPerThread, most_blocks * units_of(a));
}

static void plan_gate_up(const TuiliExpertsGateUpArgs& a, GateUpScratch& s) {
    char* free = (char*)&s + 128;
    s.active = (Active*)free;
    free += TUILI_MAX_EXPERTS * sizeof(Active);
    s.sums = (float*)free;
    free += kBlockRows * kTile * sizeof(float);
    s.gated = (float*)free;
    free += kBlockRows * TUILI_ACT_GROUP * sizeof(float);
    s.groups = (Group*)free;
    s.x = free + ceil_div(most_rows(a) * act_groups(a.k) * int64_t(sizeof(Group)), 64) * 64;
    s.count = 0;
    s.cost = 0;
    s.expert = -1;
    const int64_t most = most_rows(a), units = units_of(a);
    for (int e = 0; e < a.num_experts; e++) {
        const int64_t rows = a.offsets[e + 1] - a.offsets[e];
        if (rows == 0) continue;
        const int64_t blocks = ceil_div(rows, most), block_rows = ceil_div(rows, blocks);
        const int64_t unit_cost = block_rows + kTileCost;
        s.active[s.count++] = {e, int32_t(block_rows), ceil_div(rows, block_rows), unit_cost, s.cost};
        s.cost += s.active[s.count - 1].blocks * units * unit_cost;
    }
}

static void gather(const TuiliExpertsGateUpArgs& a, GateUpScratch& s, int expert, int64_t begin, int64_t end) {
    const int64_t bytes = int64_t(words_of(a.dtype, a.k)) * 4, rows = end - begin;
    const int count = act_groups(a.k);
    s.expert = expert;
    s.begin = begin;
    s.rows = int32_t(rows);
    for (int64_t r = 0; r < rows; r++) {
        const int64_t token = a.slots[begin + r] / a.chosen;
        memcpy(s.x + r * bytes, (const char*)a.x + token * bytes, size_t(bytes));
        if (a.dtype != TUILI_I8) continue;
        const int8_t* x = (const int8_t*)(s.x + r * bytes);
        const float* scales = TUILI_ROW(const float, a.x_scale, token, count);
        for (int g = 0; g < count; g++) {
            const int at = g * TUILI_ACT_GROUP, left = a.k - at;
            const int32_t sum = group_sum(x + at, left < TUILI_ACT_GROUP ? left : TUILI_ACT_GROUP);
            s.groups[g * rows + r] = {-128 * sum, scales[g]};
        }
    }
}

// (u + 1) * g * sigmoid(alpha * g) of a gate and an up projection that are clamped first; a NaN stays one.
TUILI_INLINE F clamped_swiglu(F gate, F up, float alpha, float limit) {
    gate = min(set1(limit), gate);
    up = max(set1(-limit), min(set1(limit), up));
    const F sigmoid_inverse = add(set1(1.0f), exp(mul(set1(-alpha), gate)));
    return mul(add(up, set1(1.0f)), div(gate, sigmoid_inverse));
}

// The gated values of a tile whose sums are there; `at`: its first row among the scales and biases of all experts.
static __attribute__((noinline)) void gate_with_bias(const TuiliExpertsGateUpArgs& a, const GateUpScratch& s,
                                                     int64_t at, int64_t column) {
    for (int64_t r = 0; r < s.rows; r++) {
        const float* c = s.sums + r * kTile;
        float* gated = s.gated + r * TUILI_ACT_GROUP + column;
        for (int i = 0; i < kTile / 2; i += W) {
            F gate = load(c + i), up = load(c + kTile / 2 + i);
            if (a.dtype == TUILI_I8) {
                gate = mul(gate, load(a.w_scale + at + i));
                up = mul(up, load(a.w_scale + at + kTile / 2 + i));
            }
            if (a.bias != nullptr) {
                gate = add(gate, load(a.bias + at + i));
                up = add(up, load(a.bias + at + kTile / 2 + i));
            }
            if (a.limit > 0.0f) {
                store(gated + i, clamped_swiglu(gate, up, a.alpha, a.limit));
            } else {
                store(gated + i, mul(activate(a.activation, gate), up));
            }
        }
    }
}

// Columns `unit` * 64 and on of the block that is gathered.
template <typename Tile>
static void gate_up_unit(const TuiliExpertsGateUpArgs& a, const GateUpScratch& s, int64_t unit, int64_t slots) {
    const int words = words_of(a.dtype, a.k);
    const int64_t tiles = ceil_div(a.n, kTile / 2), tile_bytes = int64_t(words) * kWordBytes;
    const int64_t first = unit * kUnitTiles, last = smaller(first + kUnitTiles, tiles);
    const char* weight = (const char*)a.weight + (s.expert * tiles + first) * tile_bytes;
    const Groups groups = {s.groups, s.rows};
    for (int64_t tile = first; tile < last; tile++, weight += tile_bytes) {
        multiply_tile<Tile>(s.x, s.rows, weight, words, weight + tile_bytes, groups, s.sums);
        const int64_t at = (s.expert * tiles + tile) * kTile;
        if (a.bias != nullptr || a.limit > 0.0f || a.activation != TUILI_SILU) {
            gate_with_bias(a, s, at, (tile - first) * (kTile / 2));
            continue;
        }
        for (int64_t r = 0; r < s.rows; r++) {
            const float* c = s.sums + r * kTile;
            float* gated = s.gated + r * TUILI_ACT_GROUP + (tile - first) * (kTile / 2);
            for (int i = 0; i < kTile / 2; i += W) {
                F gate = load(c + i), up = load(c + kTile / 2 + i);
                if (a.dtype == TUILI_I8) {
                    gate = mul(gate, load(a.w_scale + at + i));
                    up = mul(up, load(a.w_scale + at + kTile / 2 + i));
                }
                store(gated + i, mul(silu(gate), up));
            }
        }
    }
    const int64_t column = unit * TUILI_ACT_GROUP;
    const int width = (int)smaller(TUILI_ACT_GROUP, a.n - column);
    for (int64_t r = 0; r < s.rows; r++) {
        const int64_t at = s.begin + r;
        const float* gated = s.gated + r * TUILI_ACT_GROUP;
        if (a.dtype == TUILI_I8) {
            int8_t* out = TUILI_ROW(int8_t, a.hidden, at, a.n) + column;
            float scale;
            quantize_row(gated, width, out, &scale);
            ((Group*)a.hidden_groups)[unit * slots + at] = {-128 * group_sum(out, width), scale};
        } else {
            bf16_t* out = TUILI_ROW(bf16_t, a.hidden, at, a.n) + column;
            for (int i = 0; i < width; i += W) store_at(out, i, width, load(gated + i));
        }
    }
}

static void gate_up_run(const void* args, const TuiliStep* step, int64_t chunk, const TuiliThread* thread) {
    const TuiliExpertsGateUpArgs& a = *(const TuiliExpertsGateUpArgs*)args;
    GateUpScratch& s = *(GateUpScratch*)thread->scratch;
    if (thread->first) plan_gate_up(a, s);
    const int64_t slots = int64_t(step->count[TUILI_TOKENS]) * a.chosen, units = units_of(a);
    const int64_t chunks = gate_up_chunks(args, step, thread->threads);
    const int64_t low = s.cost * chunk / chunks, high = s.cost * (chunk + 1) / chunks;
    for (int64_t i = 0; i < s.count && s.active[i].first_cost < high; i++) {
        const Active& one = s.active[i];
        const int64_t before = low - one.first_cost, cost = one.unit_cost;
        // Units that begin within the share.
        const int64_t from = before > 0 ? ceil_div(before, cost) : 0;
        const int64_t to = smaller(one.blocks * units, ceil_div(high - one.first_cost, cost));
        for (int64_t j = from; j < to; j++) {
            const int64_t begin = a.offsets[one.expert] + j / units * one.block_rows;
            if (s.expert != one.expert || s.begin != begin)
                gather(a, s, one.expert, begin, smaller(begin + one.block_rows, a.offsets[one.expert + 1]));
            if (a.dtype == TUILI_I8) {
                gate_up_unit<Int8Tile>(a, s, j % units, slots);
            } else {
                gate_up_unit<Bf16Tile>(a, s, j % units, slots);
            }
        }
    }
}

static_assert(sizeof(GateUpScratch) <= 128, "it lies before the experts");
static_assert(128 + TUILI_MAX_EXPERTS * sizeof(Active) + kBlockRows * (kTile + TUILI_ACT_GROUP) * sizeof(float) +
                      kGatherBytes + 64 <= TUILI_SCRATCH_BYTES,
              "it fits the scratch");

// ---------------------------------------------------------------------------------------------------------------
// Down

struct DownPlan {
    int64_t tokens, slots;
    int64_t tiles, tiles_a_chunk, groups;
    int64_t blocks, block_tokens;
    int words;
};

static DownPlan plan_down(const TuiliExpertsDownArgs& a, const TuiliStep* step, int32_t threads) {
    DownPlan p;
    p.tokens = step->count[TUILI_TOKENS];
    p.slots = p.tokens * a.chosen;
    p.words = words_of(a.dtype, a.k);
    p.tiles = ceil_div(a.n, kTile);
    p.blocks = ceil_div(p.tokens, kTokensABlock);
    p.block_tokens = p.tokens == 0 ? 1 : ceil_div(p.tokens, p.blocks);
    const int64_t by_threads = p.tiles * p.blocks / (int64_t(threads) * kChunksPerThread);
    const int64_t by_bytes = kSumsBytes / (p.block_tokens * kTile * int64_t(sizeof(float)));
    p.tiles_a_chunk = smaller(by_threads, by_bytes);
    if (p.tiles_a_chunk < 1) p.tiles_a_chunk = 1;
    p.groups = ceil_div(p.tiles, p.tiles_a_chunk);
    return p;
}

static int64_t down_chunks(const void* args, const TuiliStep* step, int32_t threads) {
    const DownPlan p = plan_down(*(const TuiliExpertsDownArgs*)args, step, threads);
    return p.groups * p.blocks;
}

// The first of an expert's rows, begin to end, whose token is `token` or a later one.
static int64_t first_row(const TuiliExpertsDownArgs& a, int64_t begin, int64_t end, int64_t token) {
    while (begin < end) {
        const int64_t middle = (begin + end) / 2;
        if (a.slots[middle] < token * a.chosen) {
            begin = middle + 1;
        } else {
            end = middle;
        }
    }
    return begin;
}

// What a thread has in its scratch while it does a chunk.
struct DownScratch {
    float* sums;      // [rows, 32]
    int32_t* tokens;  // [rows], within the block
    float* counts;    // [rows], what an expert's result counts
    float* out;       // [tiles of the chunk, tokens of the block, 32]
};

TUILI_INLINE DownScratch down_scratch(const TuiliThread* thread) {
    DownScratch s;
    s.sums = (float*)thread->scratch;
    s.tokens = (int32_t*)(s.sums + kBlockRows * kTile);
    s.counts = (float*)(s.tokens + kBlockRows);
    s.out = s.counts + kBlockRows;
    return s;
}

// Rows of one expert for the tiles of a chunk. `elsewhere`: the first tile of what comes after.
template <typename Tile>
static void down_rows(const TuiliExpertsDownArgs& a, const DownPlan& p, const DownScratch& s, int64_t expert,
                      int64_t begin, int64_t end, int64_t first_token, int64_t first, int64_t last,
                      const char* elsewhere) {
    const int64_t tile_bytes = int64_t(p.words) * kWordBytes;
    for (int64_t from = begin; from < end; from += kBlockRows) {
        const int64_t rows = smaller(kBlockRows, end - from);
        for (int64_t r = 0; r < rows; r++) {
            const int32_t slot = a.slots[from + r];
            s.tokens[r] = int32_t(slot / a.chosen - first_token);
            s.counts[r] = a.route_weights[slot];
        }
        const char* x = (const char*)a.hidden + from * p.words * 4;
        const Groups groups = {(const Group*)a.hidden_groups + from, p.slots};
        const char* own = (const char*)a.weight + (expert * p.tiles + first) * tile_bytes;
        const char* next_rows = from + rows < end ? own : elsewhere;
        const char* weight = own;
        for (int64_t tile = first; tile < last; tile++, weight += tile_bytes) {
            const char* after = tile + 1 < last ? weight + tile_bytes : next_rows;
            multiply_tile<Tile>(x, rows, weight, p.words, after, groups, s.sums);
            float* out = s.out + (tile - first) * p.block_tokens * kTile;
            const int64_t at = (expert * p.tiles + tile) * kTile;
            for (int64_t r = 0; r < rows; r++) {
                float* sum = out + s.tokens[r] * kTile;
                const F count = set1(s.counts[r]);
                for (int i = 0; i < kTile; i += W) {
                    F y = load(s.sums + r * kTile + i);
                    if (a.dtype == TUILI_I8) y = mul(y, load(a.w_scale + at + i));
                    if (a.bias != nullptr) y = add(y, load(a.bias + at + i));
                    store(sum + i, fma(count, y, load(sum + i)));
                }
            }
        }
    }
}

static void begin_down(const TuiliExpertsDownArgs& a, const DownPlan& p, const DownScratch& s, int64_t begin,
                       int64_t end, int64_t first, int64_t last) {
    for (int64_t tile = first; tile < last; tile++) {
        for (int64_t t = begin; t < end; t++) {
            float* sum = s.out + ((tile - first) * p.block_tokens + t - begin) * kTile;
            for (int i = 0; i < kTile; i += W) {
                const int column = (int)(tile * kTile) + i;
                F y = zero();
                if (a.residual != nullptr && column < a.n) {
                    TUILI_WITH_FLOAT(a.residual_dtype, T,
                                     y = load_at(TUILI_ROW(const T, a.residual, t, a.n), column, a.n));
                    if (a.residual_gate != nullptr) y = mul(y, sigmoid(set1(a.residual_gate[t * a.gate_stride])));
                }
                store(sum + i, y);
            }
        }
    }
}

static void end_down(const TuiliExpertsDownArgs& a, const DownPlan& p, const DownScratch& s, int64_t begin,
                     int64_t end, int64_t first, int64_t last) {
    for (int64_t tile = first; tile < last; tile++) {
        for (int64_t t = begin; t < end; t++) {
            const float* sum = s.out + ((tile - first) * p.block_tokens + t - begin) * kTile;
            for (int i = 0; i < kTile; i += W) {
                const int column = (int)(tile * kTile) + i;
                if (column >= a.n) break;
                TUILI_WITH_FLOAT(a.out_dtype, Out,
                                 store_at(TUILI_ROW(Out, a.out, t, a.n), column, a.n, load(sum + i)));
            }
        }
    }
}

static void down_run(const void* args, const TuiliStep* step, int64_t chunk, const TuiliThread* thread) {
    const TuiliExpertsDownArgs& a = *(const TuiliExpertsDownArgs*)args;
    const DownPlan p = plan_down(a, step, thread->threads);
    const DownScratch s = down_scratch(thread);
    const int64_t block = chunk / p.groups, group = chunk % p.groups;
    const int64_t begin = block * p.block_tokens, end = smaller(begin + p.block_tokens, p.tokens);
    const int64_t first = group * p.tiles_a_chunk, last = smaller(first + p.tiles_a_chunk, p.tiles);
    const int64_t tile_bytes = int64_t(p.words) * kWordBytes;
    begin_down(a, p, s, begin, end, first, last);
    // One expert late, so that it is known which comes after.
    int64_t expert = -1, from = 0, to = 0;
    for (int64_t e = 0; e <= a.num_experts; e++) {
        int64_t next_from = 0, next_to = 0;
        if (e < a.num_experts) {
            next_from = a.offsets[e], next_to = a.offsets[e + 1];
            if (next_from == next_to) continue;
            if (p.blocks > 1) {
                next_from = first_row(a, next_from, next_to, begin);
                next_to = first_row(a, next_from, next_to, end);
                if (next_from == next_to) continue;
            }
        }
        if (expert >= 0) {
            // At the end the chunk's neighbour, which as a rule is this thread's next.
            const int64_t tile = e < a.num_experts ? e * p.tiles + first : expert * p.tiles + last;
            const char* elsewhere = (const char*)a.weight + tile * tile_bytes;
            if (a.dtype == TUILI_I8) {
                down_rows<Int8Tile>(a, p, s, expert, from, to, begin, first, last, elsewhere);
            } else {
                down_rows<Bf16Tile>(a, p, s, expert, from, to, begin, first, last, elsewhere);
            }
        }
        expert = e, from = next_from, to = next_to;
    }
    end_down(a, p, s, begin, end, first, last);
}

static_assert(kBlockRows * (kTile + 2) * sizeof(float) + kSumsBytes <= TUILI_SCRATCH_BYTES, "it fits the scratch");
static_assert(kTokensABlock * kTile * sizeof(float) <= kSumsBytes, "a tile of every token fits");

}  // namespace TUILI_ISA

TUILI_DEFINE_KIND(experts_gate_up) = {"experts_gate_up", sizeof(TuiliExpertsGateUpArgs), TUILI_ISA::gate_up_chunks,
                                      TUILI_ISA::gate_up_run, nullptr};
TUILI_DEFINE_KIND(experts_down) = {"experts_down", sizeof(TuiliExpertsDownArgs), TUILI_ISA::down_chunks,
                                   TUILI_ISA::down_run, nullptr};
