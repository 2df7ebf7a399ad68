// Residual addition, RMSNorm and int8 of a row while it is in the first-level cache.
#include "../native/rows.h"

namespace TUILI_ISA {

template <typename X, typename Wt>
TUILI_INLINE void add_norm_row(const TuiliAddNormArgs& a, int64_t row, float* normed) {
    const int n = a.width;
    const X* x = TUILI_ROW(const X, a.x, row, n);
    if (a.residual != nullptr) {
        X* residual = TUILI_ROW(X, a.residual, row, n);
        for (int i = 0; i < n; i += W) store_at(residual, i, n, add(load_at(residual, i, n), load_at(x, i, n)));
        x = residual;
    }
    if (a.weight == nullptr) {
        for (int i = 0; i < n; i += W) store_at(normed, i, n, load_at(x, i, n));
        return;
    }
    const F inverse = inverse_rms(x, n, a.eps);
    const Wt* weight = (const Wt*)a.weight;
    for (int i = 0; i < n; i += W)
        store_at(normed, i, n, mul(mul(load_at(x, i, n), inverse), load_at(weight, i, n)));
}

static void add_norm_rows(const void* args, const TuiliStep*, int64_t begin, int64_t end, const TuiliThread* thread) {
    const TuiliAddNormArgs& a = *(const TuiliAddNormArgs*)args;
    const int n = a.width;
    for (int64_t row = begin; row < end; row++) {
        float* normed = a.out_dtype == TUILI_F32 ? TUILI_ROW(float, a.out, row, n) : (float*)thread->scratch;
        TUILI_WITH_FLOAT(a.dtype, X, TUILI_WITH_FLOAT(a.weight_dtype, Wt, (add_norm_row<X, Wt>(a, row, normed))));
        store_act_row(normed, n, a.out_dtype, a.out, a.out_scale, row);
    }
}

}  // namespace TUILI_ISA

TUILI_DEFINE_KIND(add_norm) = {"add_norm", sizeof(TuiliAddNormArgs), nullptr, nullptr, TUILI_ISA::add_norm_rows};
