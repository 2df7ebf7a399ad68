// Linear layers over packed weights (tile.h), with their epilogue in fp32.
//
// A chunk is a few tiles of outputs for a block of rows. While rows are few they are all in one block, so that weights
// are read once a step. A block's rows stay in the second-level cache, K is cut so that a piece of the tile does too.
#include "finish.h"

namespace TUILI_ISA {

enum : int {
    kBlockRows = 192,          // rows of a chunk at most
    kGroupsBytes = 768 << 10,  // of their groups at most
    kPieceWords = 512,         // of K a piece: 64 KB of a tile
    kChunkBytes = 256 << 10,   // of weights a chunk of few rows
    kAheadBytes = 2048,
};
static const int64_t kChunkOps = int64_t(32) << 20;  // multiplications; some 30 us

struct LinearPlan {
    int64_t rows;
    int64_t tiles, tiles_a_chunk, groups;
    int64_t blocks, block_rows;
    int words;  // 32-bit words of K
};

static LinearPlan plan_linear(const TuiliLinearArgs& a, const TuiliStep* step, int32_t threads) {
    LinearPlan p;
    p.rows = step->count[a.dim_of_rows];
    p.words = a.x_dtype == TUILI_I8 ? a.k / 4 : a.k / 2;
    p.tiles = a.gate_up ? ceil_div(a.n / 2, kTile / 2) : ceil_div(a.n, kTile);
    const int64_t most = smaller(kBlockRows, kGroupsBytes / (int64_t(sizeof(Group)) * act_groups(a.k)));
    p.blocks = ceil_div(p.rows, most);
    p.block_rows = p.rows == 0 ? 0 : smaller(ceil_div(ceil_div(p.rows, p.blocks), 6) * 6, most);
    if (p.block_rows > 0) p.blocks = ceil_div(p.rows, p.block_rows);
    const int64_t by_bytes = kChunkBytes / (int64_t(p.words) * kWordBytes);
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

// What a thread keeps in its scratch while it does chunks of one op.
struct LinearScratch {
    int64_t block;  // of rows, the one at hand
    float* sums;    // [its rows, 32]
    Group* groups;  // [groups of K, its rows], I8 only
};

template <typename Tile>
static void linear_tile(const TuiliLinearArgs& a, const LinearPlan& p, int64_t tile, int64_t begin, int64_t end,
                        const LinearScratch& scratch) {
    const int64_t stride = int64_t(p.words) * 4;
    // Rows pass over the tile together, evenly, in two passes at least where one would not be much shorter than two.
    const int64_t few = end - begin < 4 ? end - begin : ceil_div(end - begin, 2);
    const int64_t passes = ceil_div(end - begin, smaller(few, kMaxRows)), pass = ceil_div(end - begin, passes);
    const char* weight = (const char*)a.weight + tile * p.words * kWordBytes;
    // A pass finishes its rows; with adapters those of a block are finished together, sorted if it is the only one.
    const bool finishes = a.adapters == nullptr;
    const int32_t* order = begin == 0 && end == p.rows ? a.order : nullptr;
    for (int from = 0; from < p.words; from += kPieceWords) {
        const int words = (int)smaller(kPieceWords, p.words - from);
        const bool last = from + words == p.words;
        const char* next = weight + int64_t(words) * kWordBytes;
        for (int64_t row = begin; row < end;) {
            const int64_t rows = smaller(pass, end - row);
            float* c = scratch.sums + (row - begin) * kTile;
            const Groups groups = {scratch.groups + from / kGroupWords * (end - begin) + (row - begin), end - begin};
            const char* x = (const char*)a.x + row * stride + from * 4;
            // Two or three passes fetch the next piece, a share of it each, and of more the first two; one alone fetches
            // its own a little ahead.
            if (row == begin && row + rows == end) {
                multiply_rows<Tile, 2>(rows, x, stride, weight, words, c, from == 0, weight + kAheadBytes, groups);
            } else if (passes == 3) {
                multiply_rows<Tile, THIRD>(rows, x, stride, weight, words, c, from == 0, next, groups);
                next += int64_t(lines_of_third(words)) * 64;
            } else if (row <= begin + pass) {
                multiply_rows<Tile, 1>(rows, x, stride, weight, words, c, from == 0, next, groups);
                next += int64_t(words) * 64;
            } else {
                multiply_rows<Tile, 0>(rows, x, stride, weight, words, c, from == 0, next, groups);
            }
            for (int64_t r = row; finishes && last && r < row + rows; r++, c += kTile)
                TUILI_WITH_FLOAT(a.out_dtype, Out, (finish_row<Out>(a, c, nullptr, r, tile)));
            if (from == 0 && !finishes && tile + 1 < p.tiles) fetch_added(a, order, row, row + rows, tile + 1);
            row += rows;
        }
        weight += int64_t(words) * kWordBytes;
    }
    if (!finishes)
        TUILI_WITH_FLOAT(a.out_dtype, Out, (finish_adapted<Out>(a, scratch.sums, order, begin, end, tile)));
}

static void load_groups(const TuiliLinearArgs& a, int64_t begin, int64_t end, Group* groups) {
    const int count = act_groups(a.k);
    for (int64_t row = begin; row < end; row++) {
        const int8_t* x = TUILI_ROW(const int8_t, a.x, row, a.k);
        const float* scales = TUILI_ROW(const float, a.x_scale, row, count);
        for (int g = 0; g < count; g++) {
            const int left = a.k - g * TUILI_ACT_GROUP;
            const int32_t sum = group_sum(x + g * TUILI_ACT_GROUP, left < TUILI_ACT_GROUP ? left : TUILI_ACT_GROUP);
            groups[g * (end - begin) + row - begin] = {-128 * sum, scales[g]};
        }
    }
}

static void linear_run(const void* args, const TuiliStep* step, int64_t chunk, const TuiliThread* thread) {
    const TuiliLinearArgs& a = *(const TuiliLinearArgs*)args;
    const LinearPlan p = plan_linear(a, step, thread->threads);
    // A thread's chunks lie side by side: a block of rows after the other, within it the weights in order.
    const int64_t block = chunk / p.groups, group = chunk % p.groups;
    const int64_t begin = block * p.block_rows, end = smaller(begin + p.block_rows, p.rows);
    LinearScratch& scratch = *(LinearScratch*)thread->scratch;
    if (thread->first || scratch.block != block) {
        scratch.block = block;
        scratch.sums = (float*)((char*)thread->scratch + 64);
        scratch.groups = (Group*)(scratch.sums + kBlockRows * kTile);
        if (a.x_dtype == TUILI_I8) load_groups(a, begin, end, scratch.groups);
    }
    const int64_t last = smaller((group + 1) * p.tiles_a_chunk, p.tiles);
    for (int64_t tile = group * p.tiles_a_chunk; tile < last; tile++) {
        if (a.x_dtype == TUILI_I8) {
            linear_tile<Int8Tile>(a, p, tile, begin, end, scratch);
        } else {
            linear_tile<Bf16Tile>(a, p, tile, begin, end, scratch);
        }
    }
}

static_assert(64 + kBlockRows * kTile * sizeof(float) + kGroupsBytes <= TUILI_SCRATCH_BYTES, "it fits the scratch");
static_assert(sizeof(LinearScratch) <= 64, "it lies before the sums");

}  // namespace TUILI_ISA

TUILI_DEFINE_KIND(linear) = {"linear", sizeof(TuiliLinearArgs), TUILI_ISA::linear_chunks, TUILI_ISA::linear_run,
                             nullptr};
