// A gate's SiLU times a row, RMSNorm by groups and int8 while the row is in the first-level cache.
#include "../native/rows.h"

namespace TUILI_ISA {

template <typename X>
TUILI_INLINE F gated_at(const X* x, const X* gate, int i, int n) {
    const F z = load_at(gate, i, n);
    return mul(load_at(x, i, n), div(z, add(set1(1.0f), exp(sub(zero(), z)))));
}

template <typename X, typename Wt>
TUILI_INLINE void silu_gate_row(const TuiliSiluGateArgs& a, int64_t row, float* out) {
    const int n = a.width;
    const X* x = TUILI_ROW(const X, a.x, row, a.groups * n);
    const X* gate = TUILI_ROW(const X, a.gate, row, a.gate_stride);
    const Wt* weight = (const Wt*)a.weight;
    if (!weight) {
        const int all = a.groups * n;
        for (int i = 0; i < all; i += W) store_at(out, i, all, gated_at(x, gate, i, all));
        return;
    }
    for (int group = 0; group < a.groups; group++, x += n, gate += n, weight += n, out += n) {
        F squares = zero();
        for (int i = 0; i < n; i += W) {
            const F y = gated_at(x, gate, i, n);
            store_at(out, i, n, y);
            squares = fma(y, y, squares);
        }
        const F inverse = set1(1.0f / __builtin_sqrtf(hsum(squares) / (float)n + a.eps));
        for (int i = 0; i < n; i += W)
            store_at(out, i, n, mul(mul(load_at(out, i, n), inverse), load_at(weight, i, n)));
    }
}

static void silu_gate_rows(const void* args, const TuiliStep*, int64_t begin, int64_t end, const TuiliThread* thread) {
    const TuiliSiluGateArgs& a = *(const TuiliSiluGateArgs*)args;
    const int n = a.groups * a.width;
    for (int64_t row = begin; row < end; row++) {
        float* made = a.out_dtype == TUILI_F32 ? TUILI_ROW(float, a.out, row, n) : (float*)thread->scratch;
        TUILI_WITH_FLOAT(a.dtype, X, TUILI_WITH_FLOAT(a.weight_dtype, Wt, (silu_gate_row<X, Wt>(a, row, made))));
        store_act_row(made, n, a.out_dtype, a.out, a.out_scale, row);
    }
}

}  // namespace TUILI_ISA

TUILI_DEFINE_KIND(silu_gate) = {"silu_gate", sizeof(TuiliSiluGateArgs), nullptr, nullptr, TUILI_ISA::silu_gate_rows};
