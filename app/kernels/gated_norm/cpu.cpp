// RMSNorm of each head of a row, its gate and int8 while the row is in the first-level cache.
#include "../native/rows.h"

namespace TUILI_ISA {

template <typename X, typename Wt>
TUILI_INLINE void gated_norm_row(const TuiliGatedNormArgs& a, int64_t row, float* out) {
    const int n = a.width;
    const Wt* weight = (const Wt*)a.weight;
    for (int head = 0; head < a.heads; head++, out += n) {
        const X* x = TUILI_ROW(const X, a.x, row, a.heads * n) + head * n;
        const X* gate = TUILI_ROW(const X, a.gate, row, a.gate_stride) + head * n;
        F squares = zero();
        for (int i = 0; i < n; i += W) {
            const F v = load_at(x, i, n);
            squares = fma(v, v, squares);
        }
        const F inverse = set1(1.0f / __builtin_sqrtf(hsum(squares) / (float)n + a.eps));
        for (int i = 0; i < n; i += W) {
            const F z = load_at(gate, i, n);
            const F silu = div(z, add(set1(1.0f), exp(sub(zero(), z))));
            store_at(out, i, n, mul(mul(mul(load_at(x, i, n), inverse), load_at(weight, i, n)), silu));
        }
    }
}

static void gated_norm_rows(const void* args, const TuiliStep*, int64_t begin, int64_t end, const TuiliThread* thread) {
    const TuiliGatedNormArgs& a = *(const TuiliGatedNormArgs*)args;
    const int n = a.heads * a.width;
    for (int64_t row = begin; row < end; row++) {
        float* normed = a.out_dtype == TUILI_F32 ? TUILI_ROW(float, a.out, row, n) : (float*)thread->scratch;
        TUILI_WITH_FLOAT(a.dtype, X, TUILI_WITH_FLOAT(a.weight_dtype, Wt, (gated_norm_row<X, Wt>(a, row, normed))));
        store_act_row(normed, n, a.out_dtype, a.out, a.out_scale, row);
    }
}

}  // namespace TUILI_ISA

TUILI_DEFINE_KIND(gated_norm) = {"gated_norm", sizeof(TuiliGatedNormArgs), nullptr, nullptr,
                                 TUILI_ISA::gated_norm_rows};
