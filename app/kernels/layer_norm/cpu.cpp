// Residual addition, LayerNorm and int8 of a row while it is in the first-level cache.
#include "../native/rows.h"

namespace TUILI_ISA {

template <typename X, typename Wt>
TUILI_INLINE void layer_norm_row(const TuiliLayerNormArgs& a, int64_t row, float* normed) {
    const int n = a.width;
    const X* x = TUILI_ROW(const X, a.x, row, n);
    if (a.residual != nullptr) {
        X* residual = TUILI_ROW(X, a.residual, row, n);
        for (int i = 0; i < n; i += W) store_at(residual, i, n, add(load_at(residual, i, n), load_at(x, i, n)));
        x = residual;
    }
    F sums = zero();
    for (int i = 0; i < n; i += W) sums = add(sums, load_at(x, i, n));
    const F mean = set1(hsum(sums) / (float)n);
    // The variance is that of the distances as they are kept, past whose end zeros are read.
    for (int i = 0; i < n; i += W) store_at(normed, i, n, sub(load_at(x, i, n), mean));
    const F inverse = inverse_rms(normed, n, a.eps);
    const Wt *weight = (const Wt*)a.weight, *bias = (const Wt*)a.bias;
    for (int i = 0; i < n; i += W) {
        const F shift = bias == nullptr ? zero() : load_at(bias, i, n);
        store_at(normed, i, n, fma(mul(load_at(normed, i, n), inverse), load_at(weight, i, n), shift));
    }
}

static void layer_norm_rows(const void* args, const TuiliStep*, int64_t begin, int64_t end, const TuiliThread* thread) {
    const TuiliLayerNormArgs& a = *(const TuiliLayerNormArgs*)args;
    const int n = a.width;
    for (int64_t row = begin; row < end; row++) {
        float* normed = a.out_dtype == TUILI_F32 ? TUILI_ROW(float, a.out, row, n) : (float*)thread->scratch;
        TUILI_WITH_FLOAT(a.dtype, X, TUILI_WITH_FLOAT(a.weight_dtype, Wt, (layer_norm_row<X, Wt>(a, row, normed))));
        store_act_row(normed, n, a.out_dtype, a.out, a.out_scale, row);
    }
}

}  // namespace TUILI_ISA

TUILI_DEFINE_KIND(layer_norm) = {"layer_norm", sizeof(TuiliLayerNormArgs), nullptr, nullptr,
                                 TUILI_ISA::layer_norm_rows};
