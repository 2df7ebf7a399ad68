// What row-wise ops share: rows of either float type, and their int8 form.
#pragma once
#include "simd.h"

namespace TUILI_ISA {

// Calls f with a typed pointer to row `row` of a [rows, width] matrix.
#define TUILI_ROW(T, base, row, width) ((T*)(base) + (row) * (int64_t)(width))

// Loads up to W elements of a row at i; zeros beyond the end.
template <typename T>
TUILI_INLINE F load_at(const T* p, int i, int n) {
    return n - i >= W ? load(p + i) : load_n(p + i, n - i);
}
template <typename T>
TUILI_INLINE void store_at(T* p, int i, int n, F v) {
    if (n - i >= W) {
        store(p + i, v);
    } else {
        store_n(p + i, v, n - i);
    }
}
TUILI_INLINE void store_int8_at(int8_t* p, int i, int n, F v) {
    if (n - i >= W) {
        store_int8(p + i, v);
    } else {
        store_int8_n(p + i, v, n - i);
    }
}

// max |x| of n elements; NaN if there is one.
template <typename T>
TUILI_INLINE float row_absmax(const T* x, int n) {
    F top = zero();
    uint32_t nan = 0;
    for (int i = 0; i < n; i += W) {
        const F v = load_at(x, i, n);
        nan |= nan_bits(v);
        top = max(abs(v), top);
    }
    return nan ? __builtin_nanf("") : hmax(top);
}

// Symmetric int8 of n elements that share a scale (app/kernels/int8.py): x / scale, half to even; the caller makes
// scale from absmax / 127. What is not finite has a scale that is not finite, and any values.
template <typename T>
TUILI_INLINE void row_to_int8(const T* x, int n, float scale, int8_t* out) {
    const F divisor = set1(scale == 0.0f ? 1.0f : scale);
    const F low = set1(-127.0f), high = set1(127.0f);
    for (int i = 0; i < n; i += W) store_int8_at(out, i, n, min(max(div(load_at(x, i, n), divisor), low), high));
}

TUILI_INLINE int act_groups(int n) { return (n + TUILI_ACT_GROUP - 1) / TUILI_ACT_GROUP; }

// A whole group that stays in registers; multiplied by the scale's inverse, which moves no value by more than 2e-5 of a
// step. Returns the scale.
template <typename T>
TUILI_INLINE float quantize_group(const T* x, int8_t* out) {
    enum : int { N = TUILI_ACT_GROUP / W };
    F v[N], top = zero();
    uint32_t nan = 0;
#pragma GCC unroll 8
    for (int i = 0; i < N; i++) {
        v[i] = load(x + i * W);
        nan |= nan_bits(v[i]);
        top = max(abs(v[i]), top);
    }
    const float scale = nan ? __builtin_nanf("") : hmax(top) / 127.0f;
    if (!(scale > 1e-37f)) {  // its inverse may be infinite, or is no number
        row_to_int8(x, TUILI_ACT_GROUP, scale, out);
        return scale;
    }
    const F inverse = set1(1.0f / scale), low = set1(-127.0f), high = set1(127.0f);
#pragma GCC unroll 8
    for (int i = 0; i < N; i++) store_int8(out + i * W, min(max(mul(v[i], inverse), low), high));
    return scale;
}

// A row by groups, a scale each.
template <typename T>
TUILI_INLINE void quantize_row(const T* x, int n, int8_t* out, float* scales) {
    const int whole = n / TUILI_ACT_GROUP * TUILI_ACT_GROUP;
    for (int i = 0; i < whole; i += TUILI_ACT_GROUP) *scales++ = quantize_group(x + i, out + i);
    if (whole == n) return;
    *scales = row_absmax(x + whole, n - whole) / 127.0f;
    row_to_int8(x + whole, n - whole, *scales, out + whole);
}

// 1 / sqrt(mean x^2 + eps).
template <typename T>
TUILI_INLINE F inverse_rms(const T* x, int n, float eps) {
    F squares = zero();
    for (int i = 0; i < n; i += W) {
        const F v = load_at(x, i, n);
        squares = fma(v, v, squares);
    }
    return set1(1.0f / __builtin_sqrtf(hsum(squares) / (float)n + eps));
}

// Row `row` of an activation [rows, n] from fp32 ones; into F32 the caller has written them where they belong.
TUILI_INLINE void store_act_row(const float* x, int n, int32_t dtype, void* out, float* scales, int64_t row) {
    if (dtype == TUILI_I8) {
        quantize_row(x, n, TUILI_ROW(int8_t, out, row, n), TUILI_ROW(float, scales, row, act_groups(n)));
    } else if (dtype == TUILI_BF16) {
        bf16_t* to = TUILI_ROW(bf16_t, out, row, n);
        for (int i = 0; i < n; i += W) store_at(to, i, n, load_at(x, i, n));
    }
}

// Runs a statement with T the C++ type of a dtype, F32 or BF16.
#define TUILI_WITH_FLOAT(dtype, T, ...)       \
    do {                                      \
        if ((dtype) == TUILI_BF16) {          \
            using T = bf16_t;                 \
            __VA_ARGS__;                      \
        } else {                              \
            using T = float;                  \
            __VA_ARGS__;                      \
        }                                     \
    } while (0)

}  // namespace TUILI_ISA
