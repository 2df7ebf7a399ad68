"""Device functions that several kernels use.

Triton's interpreter multiplies and rounds bf16 wrongly without a sign; the functions here do it in fp32 there.
"""

# Triton reads annotations: no `from __future__ import annotations` in files with kernels.
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from app.kernels.gpu.launch import INTERPRETED

_INTERPRETED: tl.constexpr = tl.constexpr(INTERPRETED)
_ROUND_MAGIC: tl.constexpr = tl.constexpr(12582912.0)


@triton.jit
def wait_for_inputs(PDL: tl.constexpr):
    """Waits until the kernels before this one have written their results.

    With programmatic dependent launch a kernel starts while the one before it still runs, and waits here until that
    one has ended: its launch costs no time of its own. Every kernel has to wait: after one that ends without having
    waited, the next could overtake the kernels before both.

    What no kernel writes once ``embed`` has waited may be read before: weights, constants, positions of rows and
    tokens. The latter have to be read past the L1, which may still hold those of the step before.
    """
    if PDL:
        gdc_wait()


@triton.jit
def let_next_start(PDL: tl.constexpr):
    """Lets the next kernel start, and wait for this one, as soon as every program has come here.

    Most kernels call this first. A kernel whose programs just fit the GPU calls it near its end: the next kernel's
    programs would otherwise be spread unevenly over the multiprocessors that are free.
    """
    if PDL:
        gdc_launch_dependents()


@triton.jit
def _dot_interpreted(a, b, acc):
    """``acc + a @ b``, summed in fp64: bits of numpy's fp32 product depend on a row's place in the tile, which those of
    tensor cores do not."""
    product = tl.dot(a.to(tl.float64), b.to(tl.float64), tl.zeros(acc.shape, tl.float64), out_dtype=tl.float64)
    return (acc.to(tl.float64) + product).to(tl.float32)


@triton.jit
def dot(a, b, acc):
    """``acc + a @ b`` in fp32, of floating tiles of one dtype; fp32 ones are not cut to tf32."""
    if _INTERPRETED:
        return _dot_interpreted(a, b, acc)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def dot_fp32(a, b, acc):
    """``acc + a @ b`` of fp32 tiles on tensor cores: each factor is the sum of two tf32 numbers, about as exact as it
    is itself, and the product of both rests is left out."""
    if _INTERPRETED:
        return _dot_interpreted(a, b, acc)
    return tl.dot(a, b, acc, input_precision="tf32x3")


@triton.jit
def dot_int8(a, b, acc):
    """``acc + a @ b`` in int32, exact, of int8 tiles."""
    return tl.dot(a, b, acc, out_dtype=tl.int32)


@triton.jit
def add_products_int8(a, b, acc):
    """``acc`` plus the products of the four int8 values in each of the int32 words of ``a`` and ``b``, exact."""
    a, b = tl.broadcast(a, b)
    if _INTERPRETED:
        for byte in tl.static_range(4):
            acc += ((a << 8 * byte) >> 24) * ((b << 8 * byte) >> 24)
    else:
        acc = tl.inline_asm_elementwise(
            "dp4a.s32.s32 $0, $1, $2, $3;", "=r,r,r,r", [a, b, acc], dtype=tl.int32, is_pure=True, pack=1
        )
    return acc


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
def widen_pairs(pairs, dtype: tl.constexpr):
    """(low, high) bytes of int16 ``pairs``, each an int8 value, as ``dtype``.

    Without a conversion instruction, of which a GPU makes few: a byte is set into the mantissa of a number whose last
    bit is worth 1, from which that number is taken away again (for fp16 1024 + 128; bf16 is one bit short, so that the
    sign chooses between 128 and 256).
    """
    if _INTERPRETED or dtype == tl.float32:
        low = ((pairs << 8) >> 8).to(tl.float32).to(dtype)
        high = (pairs >> 8).to(tl.float32).to(dtype)
    elif dtype == tl.float16:
        low, high = tl.inline_asm_elementwise(
            """{
            .reg .b32 low, high, zero;
            mov.b32 zero, 0x64806480;
            lop3.b32 low, $2, 0x00ff00ff, 0x64806480, 0x6a;
            shr.u32 high, $2, 8;
            lop3.b32 high, high, 0x00ff00ff, 0x64806480, 0x6a;
            sub.f16x2 $0, low, zero;
            sub.f16x2 $1, high, zero;
            }""",
            "=r,=r,r",
            [pairs],
            dtype=(tl.float16, tl.float16),
            is_pure=True,
            pack=2,
        )
    else:
        low, high = tl.inline_asm_elementwise(
            """{
            .reg .b32 bytes, value, minus, one;
            mov.b32 one, 0x3f803f80;
            lop3.b32 value, $2, 0x007f007f, 0x43004300, 0xea;
            lop3.b32 minus, $2, 0x00800080, 0xc300c300, 0xea;
            fma.rn.bf16x2 $0, value, one, minus;
            shr.u32 bytes, $2, 8;
            lop3.b32 value, bytes, 0x007f007f, 0x43004300, 0xea;
            lop3.b32 minus, bytes, 0x00800080, 0xc300c300, 0xea;
            fma.rn.bf16x2 $1, value, one, minus;
            }""",
            "=r,=r,r",
            [pairs],
            dtype=(tl.bfloat16, tl.bfloat16),
            is_pure=True,
            pack=2,
        )
    return low, high


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """fp32 ``x`` under the function that an :class:`~app.kernels.activation.Activation` names."""
    if ACTIVATION == "silu":
        y = x / (1.0 + tl.exp(-x))
    elif ACTIVATION == "gelu":
        y = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":  # (1 + tanh u) / 2 is 1 / (1 + e^-2u)
        y = x / (1.0 + tl.exp(x * (-1.5957691216057308 - 0.07135481627159736 * x * x)))
    elif ACTIVATION == "relu2":
        y = tl.where(x <= 0.0, 0.0, x * x)  # a maximum would drop a NaN
    else:
        tl.static_assert(ACTIVATION == "none")
        y = x
    return y


@triton.jit
def tanh(x):
    """tanh of fp32 ``x`` to about 2 units in the last place: Cephes' tanhf (an odd polynomial near zero), beyond 0.625
    by e^2|x|. libdevice has it, the interpreter has no libdevice."""
    square = x * x
    near = -5.70498872745e-3 * square + 2.06390887954e-2
    near = near * square - 5.37397155531e-2
    near = near * square + 1.33314422036e-1
    near = near * square - 3.33332819422e-1
    near = near * square * x + x
    far = 1.0 - 2.0 / (tl.exp(2.0 * tl.abs(x)) + 1.0)
    return tl.where(tl.abs(x) < 0.625, near, tl.where(x < 0, -far, far))


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
def _quotient(x, divisor):
    """``x / divisor`` correctly rounded, which leaves values that lie half between two integers where they are.

    As Markstein does it ("Computation of elementary functions on the IBM RISC System/6000 processor", 1990): a product
    with the reciprocal, and a correction by what it leaves of x; a division takes a GPU ten times the instructions.
    """
    if _INTERPRETED:  # has no fused product
        return tl.div_rn(x, divisor)
    lift = tl.where(divisor < 2.0**-100, 2.0**64, 1.0)  # what is left over must not be too small for a float
    x, divisor = x * lift, divisor * lift
    inverse = tl.broadcast_to(tl.div_rn(1.0, divisor), x.shape)
    divisor = tl.broadcast_to(divisor, x.shape)
    quotient = x * inverse
    return tl.fma(tl.fma(-quotient, divisor, x), inverse, quotient)


@triton.jit
def quantize_int8(x, scale):
    """int8 of fp32 ``x`` and its scale (broadcast against it), as ``app.kernels.int8.quantize``; scale 0 gives 0."""
    scaled = _quotient(x, tl.where(scale == 0, 1.0, scale))
    return round_even(tl.minimum(tl.maximum(scaled, -127.0), 127.0)).to(tl.int8)


@triton.jit
def store_row(out, out_scale, row, columns, inside, value):
    """Stores a program's whole row of fp32 in ``out`` from element ``row`` on, rounded once. With ``out_scale`` it is
    stored as int8, and its scale there at the program's number."""
    if out_scale is not None:
        scale = int8_scale(value)
        tl.store(out_scale + tl.program_id(0), scale)
        tl.store(out + row + columns, quantize_int8(value, scale), mask=inside)
    else:
        tl.store(out + row + columns, to_dtype(value, out.dtype.element_ty), mask=inside)
