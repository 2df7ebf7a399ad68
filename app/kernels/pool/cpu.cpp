// The vector of each sequence, from the hidden states of its tokens.
#include "../native/rows.h"

namespace TUILI_ISA {

static int64_t pool_chunks(const void*, const TuiliStep* step, int32_t) { return step->count[TUILI_ROWS]; }

template <typename X>
static void pool_row(const TuiliPoolArgs& a, int64_t row) {
    const int n = a.width, kind = a.modes[row] & ~TUILI_NORMALIZE;
    int64_t begin = a.cu_seqlens[row], end = a.cu_seqlens[row + 1];
    const float inverse = kind == TUILI_POOL_MEAN ? 1.0f / (float)(end - begin) : 1.0f;
    if (kind == TUILI_POOL_FIRST) end = begin + 1;
    if (kind == TUILI_POOL_LAST) begin = end - 1;
    float* out = TUILI_ROW(float, a.out, row, n);
    for (int i = 0; i < n; i += W) {
        F sum = zero();
        for (int64_t t = begin; t < end; t++) sum = add(sum, load_at(TUILI_ROW(const X, a.hidden, t, n), i, n));
        store_at(out, i, n, mul(sum, set1(inverse)));
    }
    if (!(a.modes[row] & TUILI_NORMALIZE)) return;
    F squares = zero();
    for (int i = 0; i < n; i += W) {
        const F v = load_at(out, i, n);
        squares = fma(v, v, squares);
    }
    const float length = __builtin_sqrtf(hsum(squares));
    const F factor = set1(1.0f / (length < 1e-12f ? 1e-12f : length));
    for (int i = 0; i < n; i += W) store_at(out, i, n, mul(load_at(out, i, n), factor));
}

static void pool_run(const void* args, const TuiliStep*, int64_t row, const TuiliThread*) {
    const TuiliPoolArgs& a = *(const TuiliPoolArgs*)args;
    TUILI_WITH_FLOAT(a.dtype, X, pool_row<X>(a, row));
}

}  // namespace TUILI_ISA

TUILI_DEFINE_KIND(pool) = {"pool", sizeof(TuiliPoolArgs), TUILI_ISA::pool_chunks, TUILI_ISA::pool_run, nullptr};
