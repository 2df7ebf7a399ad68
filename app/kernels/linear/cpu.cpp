// Linear layers over packed weights (tile.h), with their epilogue in fp32.
//
// A chunk is a few tiles of outputs for a block of rows. While rows are few they are all in one block, so that weights
// are read once a step. A block's rows stay in the second-level cache, K is cut so that a piece of the tile does too.
#include "tile.h"

#include "../native/rows.h"

namespace TUILI_ISA {

enum : int {
    kBlockRows = 192,          // rows of a chunk at most
    kPieceWords = 512,         // of K a piece: 128 KB of a tile
    kChunkBytes = 256 << 10,   // of weights a chunk of few rows
    kPrefetchBytes = 2048,
};
static const int64_t kChunkOps = int64_t(32) << 20;  // multiplications; some 70 us

struct LinearPlan {
    int64_t rows;
    int64_t tiles, tiles_a_chunk, groups;
    int64_t blocks, block_rows;
    int words;  // 32-bit words of K
};

TUILI_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
TUILI_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

static LinearPlan plan_linear(const TuiliLinearArgs& a, const TuiliStep* step, int32_t threads) {
    LinearPlan p;
    p.rows = step->count[a.dim_of_rows];
    p.words = a.x_dtype == TUILI_I8 ? a.k / 4 : a.k / 2;
    p.tiles = a.silu_mul ? ceil_div(ceil_div(a.n / 2, 16), 2) : ceil_div(a.n, kTile);
    p.blocks = ceil_div(p.rows, kBlockRows);
    p.block_rows = p.rows == 0 ? 0 : ceil_div(ceil_div(p.rows, p.blocks), 6) * 6;
    if (p.block_rows > 0) p.blocks = ceil_div(p.rows, p.block_rows);
    const int64_t by_bytes = kChunkBytes / (int64_t(p.words) * 256);
    const int64_t by_ops = kChunkOps / (int64_t(a.k) * kTile * (p.block_rows > 0 ? p.block_rows : 1));
    const int64_t by_threads = p.tiles * (p.blocks > 0 ? p.blocks : 1) / (int64_t(threads) * 8);
    p.tiles_a_chunk = smaller(smaller(by_bytes, by_ops), by_threads);
    if (p.tiles_a_chunk < 1) p.tiles_a_chunk = 1;
    p.groups = ceil_div(p.tiles, p.tiles_a_chunk);
    return p;
}

static int64_t linear_chunks(const void* args, const TuiliStep* step, int32_t threads) {
    const LinearPlan p = plan_linear(*(const TuiliLinearArgs*)args, step, threads);
    return p.groups * p.blocks;
}

// W sums of a row at packed output `at`, scaled and biased.
TUILI_INLINE F finished_sum(const TuiliLinearArgs& a, const float* c, int64_t at) {
    F y = load(c);
    if (a.x_dtype == TUILI_I8) y = mul(y, load(a.w_scale + at));
    return a.bias != nullptr ? add(y, load(a.bias + at)) : y;
}

TUILI_INLINE F silu(F gate) { return div(gate, add(set1(1.0f), exp(sub(zero(), gate)))); }

// One row of a tile: from sums to `out`.
template <typename Out>
TUILI_INLINE void finish_row(const TuiliLinearArgs& a, const float* c, int64_t row, int64_t tile) {
    const int64_t first = tile * kTile;
    if (a.silu_mul) {
        const int width = a.n / 2;
        Out* out = TUILI_ROW(Out, a.out, row, width);
        for (int panel = 0; panel < 4; panel += 2)
            for (int i = 0; i < 16; i += W) {
                const int column = (int)(first / 2) + panel * 8 + i, at = panel * 16 + i;
                if (column >= width) return;
                const F gate = finished_sum(a, c + at, first + at);
                const F up = finished_sum(a, c + at + 16, first + at + 16);
                store_at(out, column, width, mul(silu(gate), up));
            }
        return;
    }
    Out* out = TUILI_ROW(Out, a.out, row, a.n);
    for (int i = 0; i < kTile; i += W) {
        const int column = (int)first + i;
        if (column >= a.n) return;
        F y = finished_sum(a, c + i, first + i);
        if (a.residual != nullptr) {
            TUILI_WITH_FLOAT(a.residual_dtype, T,
                             y = add(y, load_at(TUILI_ROW(const T, a.residual, row, a.n), column, a.n)));
        }
        store_at(out, column, a.n, y);
    }
}

template <typename Tile>
static inline void multiply_rows(int64_t rows, const char* x, int64_t stride, const char* w, int words, float* c,
                                 bool first, const Groups& groups) {
    switch (rows) {
        case 1: Tile::template multiply<1>(x, stride, w, words, c, first, kPrefetchBytes, groups); break;
#if defined(__AVX512F__)
        case 3: Tile::template multiply<3>(x, stride, w, words, c, first, kPrefetchBytes, groups); break;
        case 4: Tile::template multiply<4>(x, stride, w, words, c, first, kPrefetchBytes, groups); break;
        case 5: Tile::template multiply<5>(x, stride, w, words, c, first, kPrefetchBytes, groups); break;
        case 6: Tile::template multiply<6>(x, stride, w, words, c, first, kPrefetchBytes, groups); break;
#endif
        default: Tile::template multiply<2>(x, stride, w, words, c, first, kPrefetchBytes, groups); break;
    }
}

// What a chunk keeps in its thread's scratch.
struct LinearScratch {
    float* sums;        // [rows of the block, 64]
    int32_t* offsets;   // [rows of the block, groups of K], I8 only
    int64_t groups;
};

template <typename Tile>
static void linear_tile(const TuiliLinearArgs& a, const LinearPlan& p, int64_t tile, int64_t begin, int64_t end,
                        const LinearScratch& scratch) {
    const int64_t stride = int64_t(p.words) * 4;
    const char* weight = (const char*)a.weight + tile * p.words * 256;
    for (int from = 0; from < p.words; from += kPieceWords) {
        const int words = (int)smaller(kPieceWords, p.words - from);
        const bool last = from + words == p.words;
        for (int64_t row = begin; row < end;) {
            const int64_t rows = smaller(kMaxRows, end - row), group = from / kGroupWords;
            float* c = scratch.sums + (row - begin) * kTile;
            Groups groups = {nullptr, nullptr, scratch.groups};
            if (a.x_dtype == TUILI_I8) {
                groups.scales = a.x_scale + row * scratch.groups + group;
                groups.offsets = scratch.offsets + (row - begin) * scratch.groups + group;
            }
            multiply_rows<Tile>(rows, (const char*)a.x + row * stride + from * 4, stride, weight + int64_t(from) * 256,
                                words, c, from == 0, groups);
            for (int64_t r = row; last && r < row + rows; r++, c += kTile)
                TUILI_WITH_FLOAT(a.out_dtype, Out, (finish_row<Out>(a, c, r, tile)));
            row += rows;
        }
    }
}

static void sum_groups(const TuiliLinearArgs& a, int64_t begin, int64_t end, int32_t* offsets) {
    for (int64_t row = begin; row < end; row++) {
        const int8_t* x = TUILI_ROW(const int8_t, a.x, row, a.k);
        for (int i = 0; i < a.k; i += TUILI_ACT_GROUP)
            *offsets++ = 128 * group_sum(x + i, a.k - i < TUILI_ACT_GROUP ? a.k - i : TUILI_ACT_GROUP);
    }
}

static void linear_run(const void* args, const TuiliStep* step, int64_t chunk, const TuiliThread* thread) {
    const TuiliLinearArgs& a = *(const TuiliLinearArgs*)args;
    const LinearPlan p = plan_linear(a, step, thread->threads);
    const int64_t group = chunk / p.blocks, begin = chunk % p.blocks * p.block_rows;
    const int64_t end = smaller(begin + p.block_rows, p.rows);
    LinearScratch scratch;
    scratch.sums = (float*)thread->scratch;
    scratch.offsets = (int32_t*)(scratch.sums + kBlockRows * kTile);
    scratch.groups = act_groups(a.k);
    if (a.x_dtype == TUILI_I8) sum_groups(a, begin, end, scratch.offsets);
    const int64_t last = smaller((group + 1) * p.tiles_a_chunk, p.tiles);
    for (int64_t tile = group * p.tiles_a_chunk; tile < last; tile++) {
        if (a.x_dtype == TUILI_I8) {
            linear_tile<Int8Tile>(a, p, tile, begin, end, scratch);
        } else {
            linear_tile<Bf16Tile>(a, p, tile, begin, end, scratch);
        }
    }
}

static_assert((kBlockRows * kTile + kBlockRows * (65536 / TUILI_ACT_GROUP)) * sizeof(float) <= TUILI_SCRATCH_BYTES,
              "the widest int8 layer fits the scratch");

}  // namespace TUILI_ISA

TUILI_DEFINE_KIND(linear) = {"linear", sizeof(TuiliLinearArgs), TUILI_ISA::linear_chunks, TUILI_ISA::linear_run,
                             nullptr};
