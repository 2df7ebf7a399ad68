// What a linear layer does to its outputs, in fp32.
#pragma once
#include "simd.h"

namespace TUILI_ISA {

TUILI_INLINE F silu(F x) { return div(x, add(set1(1.0f), exp(sub(zero(), x)))); }

// x times the normal distribution's cumulative function, to about 1e-7 of the result at positive x and of |x|, 1 at most,
// at negative x.
//
// With t = |x| / sqrt 2: below 1 half of 1 + erf, erf / t being a polynomial of t^2; beyond it erfc = exp(t * a
// polynomial of t), which goes to zero with the result. Both were fitted for the smallest largest relative error
// (Lawson's algorithm); past t = 5, where 1e-12 is left, a line goes on downwards.
static F gelu(F x) {
    const F t = mul(abs(x), set1(0.707106781f)), square = mul(t, t);
    F p = set1(7.853860734e-5f);
    p = fma(p, square, set1(-8.010193705e-4f));
    p = fma(p, square, set1(5.188327748e-3f));
    p = fma(p, square, set1(-2.685381100e-2f));
    p = fma(p, square, set1(1.128358543e-1f));
    p = fma(p, square, set1(-3.761262596e-1f));
    p = fma(p, square, set1(1.128379107f));
    const F half = set1(0.5f);
    const F near = fma(mul(p, mul(x, set1(0.707106781f))), half, half);
    const F inside = min(set1(5.0f), t);  // a NaN stays one
    F q = set1(-3.002999804e-8f);
    q = fma(q, inside, set1(1.935599130e-6f));
    q = fma(q, inside, set1(-4.469000487e-5f));
    q = fma(q, inside, set1(5.617957213e-4f));
    q = fma(q, inside, set1(-4.529348575e-3f));
    q = fma(q, inside, set1(2.562788315e-2f));
    q = fma(q, inside, set1(-1.084819138e-1f));
    q = fma(q, inside, set1(-6.337124705e-1f));
    q = fma(q, inside, set1(-1.129028797f));
    const F tail = mul(half, exp(fma(sub(t, inside), set1(-16.0f), mul(q, inside))));
    const F far = select_lt(x, zero(), tail, sub(set1(1.0f), tail));
    return mul(x, select_lt(t, set1(1.0f), near, far));
}

// x / 2 * (1 + tanh u) with u = sqrt(2 / pi) * (x + 0.044715 x^3), which is x / (1 + e^-2u).
static F gelu_tanh(F x) {
    const F u = mul(x, fma(mul(x, x), set1(-2.0f * 0.7978845608f * 0.044715f), set1(-2.0f * 0.7978845608f)));
    return div(x, add(set1(1.0f), exp(u)));
}

TUILI_INLINE F relu2(F x) {
    const F above = max(zero(), x);  // a NaN stays one
    return mul(above, above);
}

// `activation` is a TuiliActivation other than none.
TUILI_INLINE F activate(int32_t activation, F x) {
    switch (activation) {
        case TUILI_SILU: return silu(x);
        case TUILI_GELU: return gelu(x);
        case TUILI_GELU_TANH: return gelu_tanh(x);
        default: return relu2(x);
    }
}

}  // namespace TUILI_ISA
