// Two RMSNorms around a residual addition, and int8, of a row while it is in the first-level cache.
#include "../native/rows.h"

namespace TUILI_ISA {

template <typename X, typename Wt, bool kFactor>
TUILI_INLINE void norm_add_norm_row(const TuiliNormAddNormArgs& a, int64_t row, float* normed) {
    const int n = a.width;
    const X* x = TUILI_ROW(const X, a.x, row, n);
    X* residual = TUILI_ROW(X, a.residual, row, n);
    const Wt *x_weight = (const Wt*)a.x_weight, *weight = (const Wt*)a.weight;
    F inverse = inverse_rms(x, n, a.eps);
    for (int i = 0; i < n; i += W) {
        const F v = mul(mul(load_at(x, i, n), inverse), load_at(x_weight, i, n));
        const F sum = add(load_at(residual, i, n), v);
        store_at(residual, i, n, kFactor ? mul(sum, set1(*a.factor)) : sum);
    }
    if (a.weight == nullptr) {
        for (int i = 0; i < n; i += W) store_at(normed, i, n, load_at(residual, i, n));
        return;
    }
    inverse = inverse_rms(residual, n, a.eps);
    for (int i = 0; i < n; i += W)
        store_at(normed, i, n, mul(mul(load_at(residual, i, n), inverse), load_at(weight, i, n)));
}

static void norm_add_norm_rows(const void* args, const TuiliStep*, int64_t begin, int64_t end,
                               const TuiliThread* thread) {
    const TuiliNormAddNormArgs& a = *(const TuiliNormAddNormArgs*)args;
    const int n = a.width;
    for (int64_t row = begin; row < end; row++) {
        float* normed = a.out_dtype == TUILI_F32 ? TUILI_ROW(float, a.out, row, n) : (float*)thread->scratch;
        TUILI_WITH_FLOAT(a.dtype, X, TUILI_WITH_FLOAT(a.weight_dtype, Wt, {
            if (a.factor == nullptr) {
                norm_add_norm_row<X, Wt, false>(a, row, normed);
            } else {
                norm_add_norm_row<X, Wt, true>(a, row, normed);
            }
        }));
        store_act_row(normed, n, a.out_dtype, a.out, a.out_scale, row);
    }
}

}  // namespace TUILI_ISA

TUILI_DEFINE_KIND(norm_add_norm) = {"norm_add_norm", sizeof(TuiliNormAddNormArgs), nullptr, nullptr,
                                    TUILI_ISA::norm_add_norm_rows};
