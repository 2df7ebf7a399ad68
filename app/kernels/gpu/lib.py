"""Device functions that several kernels use.

Triton's interpreter multiplies and rounds bf16 wrongly without a sign; the functions here do it in fp32 there.
"""

# Triton reads annotations: no `from __future__ import annotations` in files with kernels.
import triton
import triton.language as tl

from app.kernels.gpu.launch import INTERPRETED

_INTERPRETED: tl.constexpr = tl.constexpr(INTERPRETED)
_ROUND_MAGIC: tl.constexpr = tl.constexpr(12582912.0)


@triton.jit
def _dot_interpreted(a, b, acc):
    """In fp64: the bits of numpy's fp32 product hang on where in the tile a row stands, which no tensor core's do."""
    product = tl.dot(a.to(tl.float64), b.to(tl.float64), tl.zeros(acc.shape, tl.float64), out_dtype=tl.float64)
    return (acc.to(tl.float64) + product).to(tl.float32)


@triton.jit
def dot(a, b, acc):
    """``acc + a @ b`` in fp32, of floating tiles of one dtype; fp32 ones are not cut to tf32."""
    if _INTERPRETED:
        return _dot_interpreted(a, b, acc)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def dot_int8(a, b, acc):
    """``acc + a @ b`` in int32, exact, of int8 tiles."""
    return tl.dot(a, b, acc, out_dtype=tl.int32)


@triton.jit
def dot_int8_weight(a, b, acc):
    """``acc + a @ b`` in fp32, of a floating tile and an int8 one, whose values any floating dtype holds exactly."""
    if _INTERPRETED:
        return _dot_interpreted(a, b, acc)
    return tl.dot(a, b.to(a.dtype), acc, input_precision="ieee")


@triton.jit
def widen(x, dtype: tl.constexpr):
    """``x``, of that dtype or int8, as ``dtype``; any floating dtype holds int8 values exactly."""
    if x.dtype == dtype:
        return x
    if _INTERPRETED:
        return x.to(tl.float32).to(dtype)
    return x.to(dtype)


@triton.jit
def silu_mul(gate, up):
    """``gate * sigmoid(gate) * up`` in fp32."""
    return gate / (1.0 + tl.exp(-gate)) * up


@triton.jit
def to_dtype(x, dtype: tl.constexpr):
    """fp32 ``x`` as ``dtype``, rounded half to even."""
    if _INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        rounded = bits + 0x7FFF + ((bits >> 16) & 1)
        # A NaN keeps its bits: rounding up could carry it into the sign.
        bits = tl.where(x == x, rounded, bits) & -65536
        return bits.to(tl.float32, bitcast=True).to(dtype)
    return x.to(dtype)


@triton.jit
def round_even(x):
    """``x`` rounded half to even, |x| below 2^22; libdevice has it, the interpreter has no libdevice."""
    return (x + _ROUND_MAGIC) - _ROUND_MAGIC


@triton.jit
def int8_scale(x, axis: tl.constexpr = 0):
    """``max|x| / 127`` in fp32 of a row [K], or along ``axis``; not finite where x is not."""
    # As integers: the bits of positive floats order like the floats, and those of a NaN lie above all of them, while a
    # maximum of floats would drop it.
    peak = tl.max(tl.abs(x).to(tl.int32, bitcast=True), axis=axis)
    return tl.div_rn(peak.to(tl.float32, bitcast=True), 127.0)


@triton.jit
def quantize_int8(x, scale):
    """int8 of fp32 ``x`` and its scale (broadcast against it), as ``app.kernels.int8.quantize``; scale 0 gives 0."""
    divisor = tl.where(scale == 0, 1.0, scale)
    # Exact division: a reciprocal would move values that lie half between two integers.
    scaled = tl.div_rn(x, divisor)
    return round_even(tl.minimum(tl.maximum(scaled, -127.0), 127.0)).to(tl.int8)
