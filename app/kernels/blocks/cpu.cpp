// Linear layers over weights in the blocks of their file (blocks.h), and rows of such a weight as a table's.
#include "blocks.h"

namespace TUILI_ISA {

enum : int {
    kBlockRows = 192,         // rows of a chunk at most
    kInfoBytes = 768 << 10,   // of what their groups come with at most
    kChunkBytes = 128 << 10,  // of weights a chunk of few rows, about
};
static const int64_t kChunkOps = int64_t(32) << 20;  // multiplications; some 30 us

struct BlockPlan {
    int64_t rows;
    int64_t tiles, tiles_a_chunk, groups;
    int64_t blocks, block_rows;
};

static BlockPlan plan_blocks(const TuiliBlockLinearArgs& args, const TuiliStep* step, int32_t threads) {
    const TuiliLinearArgs& a = args.linear;
    BlockPlan p;
    p.rows = step->count[a.dim_of_rows];
    p.tiles = a.gate_up ? ceil_div(a.n / 2, kTile / 2) : ceil_div(a.n, kTile);
    int64_t most = smaller(kBlockRows, kInfoBytes / (int64_t(sizeof(BlockGroup)) * act_groups(a.k)));
    if (most > 8) most = most / 8 * 8;
    p.blocks = ceil_div(p.rows, most);
    p.block_rows = p.rows == 0 ? 0 : smaller(ceil_div(ceil_div(p.rows, p.blocks), 8) * 8, most);
    if (p.block_rows > 0) p.blocks = ceil_div(p.rows, p.block_rows);
    const int64_t by_bytes = kChunkBytes / (int64_t(a.k) * kTile * 5 / 8);
    const int64_t by_ops = kChunkOps / (int64_t(a.k) * kTile * (p.block_rows > 0 ? p.block_rows : 1));
    const int64_t by_threads = p.tiles * (p.blocks > 0 ? p.blocks : 1) / (int64_t(threads) * 8);
    p.tiles_a_chunk = smaller(smaller(by_bytes, by_ops), by_threads);
    if (p.tiles_a_chunk < 1) p.tiles_a_chunk = 1;
    p.groups = ceil_div(p.tiles, p.tiles_a_chunk);
    return p;
}

static int64_t block_linear_chunks(const void* args, const TuiliStep* step, int32_t threads) {
    const BlockPlan p = plan_blocks(*(const TuiliBlockLinearArgs*)args, step, threads);
    return p.groups * p.blocks;
}

// What a thread keeps in its scratch while it does chunks of one op.
struct BlockScratch {
    int64_t block;     // of rows, the one at hand
    float* sums;       // [its rows, 32]
    BlockGroup* info;  // [groups of 64, its rows]
};

static void load_info(const TuiliLinearArgs& a, int64_t begin, int64_t end, BlockGroup* info) {
    const int count = act_groups(a.k);
    for (int64_t row = begin; row < end; row++) {
        const int8_t* x = TUILI_ROW(const int8_t, a.x, row, a.k);
        const float* scales = TUILI_ROW(const float, a.x_scale, row, count);
        for (int g = 0; g < count; g++) {
            BlockGroup& to = info[g * (end - begin) + row - begin];
            to.scale = scales[g];
            for (int i = 0; i < 4; i++) {
                const int first = g * TUILI_ACT_GROUP + i * 16;
                to.quarters[i] = first < a.k ? (float)group_sum(x + first, 16) : 0.0f;
            }
            to.sums[0] = to.quarters[0] + to.quarters[1];
            to.sums[1] = to.quarters[2] + to.quarters[3];
        }
    }
}

static void block_panel(const TuiliBlockLinearArgs& args, int64_t panel, int64_t begin, int64_t rows,
                        const BlockScratch& scratch) {
    const TuiliLinearArgs& a = args.linear;
    if (panel >= args.count) return;  // of a tile whose other panel is the weight's last
    const TuiliPanel& at = args.panels[panel];
    const char* x = (const char*)a.x + begin * a.k;
    const char* weight = (const char*)a.weight + at.offset;
    float* c = scratch.sums + panel % 2 * kPanel;
    switch (at.type) {
#define TUILI_CASE(T)                                                                                  \
    case TUILI_BLOCK_##T:                                                                              \
        multiply_panel_rows<T>(rows, x, a.k, weight, a.k / kBlockGroup, c, scratch.info, rows); \
        break;
        TUILI_BLOCK_TYPES(TUILI_CASE)
#undef TUILI_CASE
    }
}

static void block_linear_run(const void* given, const TuiliStep* step, int64_t chunk, const TuiliThread* thread) {
    const TuiliBlockLinearArgs& args = *(const TuiliBlockLinearArgs*)given;
    const TuiliLinearArgs& a = args.linear;
    const BlockPlan p = plan_blocks(args, step, thread->threads);
    const int64_t block = chunk / p.groups, group = chunk % p.groups;
    const int64_t begin = block * p.block_rows, end = smaller(begin + p.block_rows, p.rows);
    BlockScratch& scratch = *(BlockScratch*)thread->scratch;
    if (thread->first || scratch.block != block) {
        scratch.block = block;
        scratch.sums = (float*)((char*)thread->scratch + 64);
        scratch.info = (BlockGroup*)(scratch.sums + kBlockRows * kTile);
        load_info(a, begin, end, scratch.info);
    }
    const int64_t last = smaller((group + 1) * p.tiles_a_chunk, p.tiles);
    for (int64_t tile = group * p.tiles_a_chunk; tile < last; tile++) {
        block_panel(args, 2 * tile, begin, end - begin, scratch);
        block_panel(args, 2 * tile + 1, begin, end - begin, scratch);
        if (a.adapters != nullptr) {
            const int32_t* order = begin == 0 && end == p.rows ? a.order : nullptr;
            TUILI_WITH_FLOAT(a.out_dtype, Out, (finish_adapted<Out>(a, scratch.sums, order, begin, end, tile)));
            continue;
        }
        const float* c = scratch.sums;
        for (int64_t row = begin; row < end; row++, c += kTile)
            TUILI_WITH_FLOAT(a.out_dtype, Out, (finish_row<Out>(a, c, nullptr, row, tile)));
    }
}

static_assert(64 + kBlockRows * kTile * sizeof(float) + kInfoBytes <= TUILI_SCRATCH_BYTES, "it fits the scratch");
static_assert(sizeof(BlockScratch) <= 64, "it lies before the sums");
static_assert(sizeof(BlockGroup) == 32, "two to a cache line");

// Values of a row of the weight: a lane of its panel.
template <class T>
static void widen_row(const char* panel, int lane, int groups, float* out) {
    const char* scales = panel + int64_t(groups) * T::words * 64;
    for (int g = 0; g < groups; g++) {
        float d[2][kPanel], m[kPanel];
        for (int i = 0; i < kPanel; i += W) {
            F halves[2], minimum = zero();
            load_scales<T>(scales, g, i, halves, minimum);
            store(d[0] + i, halves[0]);
            store(d[1] + i, halves[1]);
            store(m + i, minimum);
        }
        uint8_t codes[8][64];
        for (int i = 0; i < kPanel; i += W) {
            V c[8];
            load_codes<T>(panel + int64_t(g) * T::words * 64 + i * 4, c);
            for (int j = 0; j < 8; j++) memcpy(codes[j] + i * 4, &c[j], sizeof(V));
        }
        for (int k = 0; k < kBlockGroup; k++) {
            const float value = (float)(codes[k / 4][lane * 4 + k % 4] - T::offset) * d[k / 16][lane];
            out[g * kBlockGroup + k] = T::has_min ? value + m[lane] : value;
        }
    }
}

static void widen_entry(const TuiliEmbedBlocksArgs& a, int64_t entry, float* values) {
    const TuiliPanel& at = a.panels[entry / kPanel];
    const char* panel = (const char*)a.weight + at.offset;
    switch (at.type) {
#define TUILI_CASE(T)                                                                        \
    case TUILI_BLOCK_##T:                                                                    \
        widen_row<T>(panel, (int)(entry % kPanel), a.width / kBlockGroup, values); \
        break;
        TUILI_BLOCK_TYPES(TUILI_CASE)
#undef TUILI_CASE
    }
}

static void embed_blocks_rows(const void* args, const TuiliStep*, int64_t begin, int64_t end,
                              const TuiliThread* thread) {
    const TuiliEmbedBlocksArgs& a = *(const TuiliEmbedBlocksArgs*)args;
    const int n = a.width;
    float* values = (float*)thread->scratch;
    for (int64_t row = begin; row < end; row++) {
        const int64_t entry = a.token_ids[row] - a.first;
        TUILI_WITH_FLOAT(a.out_dtype, O, {
            O* target = TUILI_ROW(O, a.out, row, n);
            if (entry < 0 || entry >= a.rows) {
                memset(target, 0, n * sizeof(O));
                continue;
            }
            widen_entry(a, entry, values);
            for (int i = 0; i < n; i += W) {
                F v = load_at(values, i, n);
                if (a.scale != 1.0f) v = mul(v, set1(a.scale));
                store_at(target, i, n, v);
            }
        });
    }
}

}  // namespace TUILI_ISA

TUILI_DEFINE_KIND(block_linear) = {"block_linear", sizeof(TuiliBlockLinearArgs), TUILI_ISA::block_linear_chunks,
                                   TUILI_ISA::block_linear_run, nullptr};
TUILI_DEFINE_KIND(embed_blocks) = {"embed_blocks", sizeof(TuiliEmbedBlocksArgs), nullptr, nullptr,
                                   TUILI_ISA::embed_blocks_rows};
