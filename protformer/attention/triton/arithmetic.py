"""What the kernels share: products on tensor cores that are good to fp32, the element-wise families, tiles of rows.

Precision. A bf16 tensor core multiplies exactly and adds in fp32: what is lost is lost in rounding the operands. So
each operand is a sum of bf16 terms: one where it came as bf16 (or is the projection, which bf16 represents), two where
it came as fp16 (exact), three where it came as fp32 or as an input times an fp32 scale (exact: logits are exponents).
What a kernel computed itself (features, states, gradients) has two terms, 2^-17 of each, and with fp32 inputs three;
with one, 2^-9, the gradients of queries of small norm would drown. Products of two terms below the last kept term are
left out. Three terms against three are six products, as dear as tf32x3 on Hopper and 8 times more exact; against the
projection they are three, in half the shared memory.
"""
# ruff: noqa: N803, SIM108 (a kernel's constants in capitals; ifs that are decided at compile time)

import math
from typing import no_type_check

import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from triton import knobs  # pyright: ignore[reportMissingImports]

# The families, by the numbers that the kernels know them by.
CODES = {
    "exponential": 0,
    "trigonometric": 1,
    "cosine": 2,
    "relu": 3,
    "squared_relu": 4,
    "elu": 5,
    "softplus": 6,
    "sigmoid": 7,
}
EXPONENTIAL = tl.constexpr(CODES["exponential"])
COSINE = tl.constexpr(CODES["cosine"])  # the last with key weights; trigonometric and cosine are signed
RELU = tl.constexpr(CODES["relu"])  # the first of the activations: no key weights, no stabiliser
SQUARED_RELU = tl.constexpr(CODES["squared_relu"])
ELU = tl.constexpr(CODES["elu"])
SOFTPLUS = tl.constexpr(CODES["softplus"])

# Minus infinity that can be subtracted from itself: log weights of rows that are not there, maxima of nothing.
NOTHING = tl.constexpr(-1e30)
# A causal row whose product within the chunk lies this many e-folds below its scale is computed exactly instead.
FAINT = tl.constexpr(46.0)
FAINT_SUM = tl.constexpr(math.exp(-46.0))

# Triton's interpreter multiplies bf16 as the integers that they are stored as: there the rounded terms go back to fp32.
INTERPRETED = tl.constexpr(bool(knobs.runtime.interpret))

# Numbers that differ from pack to pack: a kernel is not compiled anew because one happens to be a multiple of 16, or 1.
VARYING = ("segments", "slots", "total", "split", "length", "first_head")

# `no_type_check` keeps jaxtyping's import hook from wrapping kernels, which Triton reads as source.


@triton.jit
@no_type_check
def _dot(a, b, acc):
    if INTERPRETED:
        acc = tl.dot(a.to(tl.float32), b.to(tl.float32), acc)
    else:
        acc = tl.dot(a, b, acc)
    return acc


@triton.jit
@no_type_check
def product(a, b, acc, A_TERMS: tl.constexpr, B_TERMS: tl.constexpr):
    """acc + a @ b, with each operand as that many bf16 terms."""
    a0 = a.to(tl.bfloat16)
    b0 = b.to(tl.bfloat16)
    acc = _dot(a0, b0, acc)
    if A_TERMS >= 2:
        a_rest = a.to(tl.float32) - a0.to(tl.float32)
        a1 = a_rest.to(tl.bfloat16)
        acc = _dot(a1, b0, acc)
        if A_TERMS >= 3:
            a2 = (a_rest - a1.to(tl.float32)).to(tl.bfloat16)
            acc = _dot(a2, b0, acc)
    if B_TERMS >= 2:
        b_rest = b.to(tl.float32) - b0.to(tl.float32)
        b1 = b_rest.to(tl.bfloat16)
        acc = _dot(a0, b1, acc)
        if B_TERMS >= 3:
            b2 = (b_rest - b1.to(tl.float32)).to(tl.bfloat16)
            acc = _dot(a0, b2, acc)
        if (A_TERMS >= 2) & (A_TERMS + B_TERMS >= 5):
            acc = _dot(a1, b1, acc)
    return acc


@triton.jit
@no_type_check
def _cosine(x, quarters):
    """cos(x + quarters pi/2), to 1e-7 for |x| < 1000 (and to what fp32 can tell of larger angles).

    Reduction by pi/2 in three parts and the polynomials of Cephes' sinf and cosf. The library's functions have a branch
    for huge arguments, which is compiled for each element of a tile: minutes of compilation, and slower.
    """
    turns = tl.floor(x * 0.6366197723675814 + 0.5)
    rest = x - turns * 1.5703125
    rest = rest - turns * 4.837512969970703125e-4
    rest = rest - turns * 7.54978995489188216e-8
    rest = tl.minimum(tl.maximum(rest, -0.8), 0.8)  # (so that what is beyond stays within +-1)
    square = rest * rest
    sine = ((-1.9515295891e-4 * square + 8.3321608736e-3) * square - 1.6666654611e-1) * square * rest + rest
    cosine = ((2.443315711809948e-5 * square - 1.388731625493765e-3) * square + 4.166664568298827e-2) * square * square
    cosine = cosine - 0.5 * square + 1.0
    quadrant = (turns.to(tl.int32) + quarters) & 3
    value = tl.where((quadrant & 1) == 1, sine, cosine)
    return tl.where((quadrant == 1) | (quadrant == 2), -value, value)


@triton.jit
@no_type_check
def feature(logits, phase, epsilon, FAMILY: tl.constexpr):
    """A family's function of the logits (not the exponential's); phase 1 is the sine half of the trigonometric one."""
    if FAMILY <= COSINE:
        value = _cosine(logits, 3 * phase)
    elif FAMILY == RELU:
        value = tl.maximum(logits, 0.0) + epsilon
    elif FAMILY == SQUARED_RELU:
        positive = tl.maximum(logits, 0.0)
        value = positive * positive + epsilon
    elif FAMILY == ELU:
        value = tl.where(logits > 0, logits + 1.0, tl.exp(tl.minimum(logits, 0.0))) + epsilon
    elif FAMILY == SOFTPLUS:
        small = tl.exp(-tl.abs(logits))
        one = 1.0 + small
        # log(1 + small) to its last digit (Kahan); `one` - 1 is the part of `small` that the sum kept
        kept = tl.where(one == 1.0, 1.0, one - 1.0)
        tail = tl.where(one == 1.0, small, tl.log(one) * (small / kept))
        value = tl.maximum(logits, 0.0) + tail + epsilon
    else:
        value = 1.0 / (1.0 + tl.exp(-logits)) + epsilon
    return value


@triton.jit
@no_type_check
def derivative(logits, phase, FAMILY: tl.constexpr):
    """d feature / d logit."""
    if FAMILY <= COSINE:
        value = _cosine(logits, 3 * phase + 1)
    elif FAMILY == RELU:
        value = tl.where(logits > 0, 1.0, 0.0)
    elif FAMILY == SQUARED_RELU:
        value = 2.0 * tl.maximum(logits, 0.0)
    elif FAMILY == ELU:
        value = tl.exp(tl.minimum(logits, 0.0))
    elif FAMILY == SOFTPLUS:
        value = 1.0 / (1.0 + tl.exp(-logits))
    else:
        sigmoid = 1.0 / (1.0 + tl.exp(-logits))
        value = sigmoid * (1.0 - sigmoid)
    return value


@triton.jit
@no_type_check
def load_rows(base, stride, rows, valid, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """A tile [rows, BLOCK_D] of one head of a packed tensor, zeros where there is nothing."""
    dims = tl.arange(0, BLOCK_D)
    there = valid[:, None]
    if DIM != BLOCK_D:
        there = there & (dims < DIM)[None, :]
    # (row times stride can pass 2^31)
    return tl.load(base + rows[:, None].to(tl.int64) * stride + dims[None, :], mask=there, other=0.0)


@triton.jit
@no_type_check
def store_rows(base, stride, rows, valid, values, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    dims = tl.arange(0, BLOCK_D)
    there = valid[:, None]
    if DIM != BLOCK_D:
        there = there & (dims < DIM)[None, :]
    where = base + rows[:, None].to(tl.int64) * stride + dims[None, :]
    tl.store(where, values.to(base.dtype.element_ty), mask=there)


@triton.jit
@no_type_check
def load_projection(base, first, ROWS: tl.constexpr, DIM: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows `first` and on of one head's projection, [BLOCK_F, BLOCK_D]."""
    features = first + tl.arange(0, BLOCK_F)
    dims = tl.arange(0, BLOCK_D)
    there = (features < ROWS)[:, None] & (dims < DIM)[None, :]
    return tl.load(base + features[:, None] * DIM + dims[None, :], mask=there, other=0.0)


# What an adaptation says of one segment and head is one record of fp32 numbers, packed by `launch`:
# query_scale [DIM], key_scale [DIM], tilt [DIM], offset [ROWS], norm_scale [1].


@triton.jit
@no_type_check
def scale_of(record, PART: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """The scales of queries (PART 0) or keys (1), or the tilt (2): [BLOCK_D]."""
    dims = tl.arange(0, BLOCK_D)
    return tl.load(record + PART * DIM + dims, mask=dims < DIM, other=0.0)


@triton.jit
@no_type_check
def offset_of(record, first, ROWS: tl.constexpr, DIM: tl.constexpr, BLOCK_F: tl.constexpr):
    features = first + tl.arange(0, BLOCK_F)
    return tl.load(record + 3 * DIM + features, mask=features < ROWS, other=0.0)


@triton.jit
@no_type_check
def scaled(x, record, PART: tl.constexpr, SCALED: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows times their scale, in fp32 where there is one."""
    y = x
    if SCALED:
        y = x.to(tl.float32) * scale_of(record, PART, DIM, BLOCK_D)[None, :]
    return y


@triton.jit
@no_type_check
def key_weights(
    y, valid, record, norm_factor, FAMILY: tl.constexpr, ADAPTED: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Log weights of keys: -norm_factor norm_scale |y|^2 + tilt . y, and NOTHING for rows that are not there."""
    wide = y.to(tl.float32)
    if FAMILY >= RELU:
        weight = tl.sum(wide, 1) * 0.0
    else:
        factor = norm_factor
        if ADAPTED:
            factor = norm_factor * tl.load(record + 3 * DIM + ROWS)
        weight = -factor * tl.sum(wide * wide, 1)
        if ADAPTED:
            weight += tl.sum(wide * scale_of(record, 2, DIM, BLOCK_D)[None, :], 1)
    return tl.where(valid, weight, NOTHING)


@triton.jit
@no_type_check
def key_gradient(
    grad, y, grad_weight, record, norm_factor, FAMILY: tl.constexpr, ADAPTED: tl.constexpr, SCALED: tl.constexpr,
    ROWS: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The gradient of the keys from (d logits) W and that of the log weights."""
    if FAMILY < RELU:
        factor = norm_factor
        if ADAPTED:
            factor = norm_factor * tl.load(record + 3 * DIM + ROWS)
        grad -= (2.0 * factor) * y.to(tl.float32) * grad_weight[:, None]
        if ADAPTED:
            grad += grad_weight[:, None] * scale_of(record, 2, DIM, BLOCK_D)[None, :]
    if SCALED:
        grad = grad * scale_of(record, 1, DIM, BLOCK_D)[None, :]
    return grad


@triton.jit
@no_type_check
def floored(den, FAMILY: tl.constexpr, ROWS: tl.constexpr):
    """A denominator that can be divided by: signed features can sum to zero, activations to less than fp32 holds."""
    if FAMILY < RELU:
        least = 1e-6 * ROWS
        den = tl.where(tl.abs(den) >= least, den, tl.where(den < 0, -least, least))
    else:
        den = tl.maximum(den, 1.1754943508222875e-38)
    return den


@triton.jit
@no_type_check
def only_if(condition, mask):
    """`mask` where one condition for the whole block holds, else nothing (`&` of the two is an integer in the
    interpreter of Triton 3.9, which then refuses it as a mask)."""
    return tl.where(condition, mask, mask & False)


@triton.jit
@no_type_check
def load_state(
    maxima, sums, states, first, live, exists, DIM: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Features `first` and on of one slot: their maxima, sums and states; those of nothing where none exists."""
    features = first + tl.arange(0, BLOCK_F)
    dims = tl.arange(0, BLOCK_D)
    there = only_if(exists, live)
    maximum = tl.load(maxima + features, mask=there, other=NOTHING)
    total = tl.load(sums + features, mask=there, other=0.0)
    where = states + features[:, None] * DIM + dims[None, :]
    state = tl.load(where, mask=there[:, None] & (dims < DIM)[None, :], other=0.0)
    return maximum, total, state


@triton.jit
@no_type_check
def store_state(
    maxima, sums, states, first, live, maximum, total, state, DIM: tl.constexpr, BLOCK_F: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    features = first + tl.arange(0, BLOCK_F)
    dims = tl.arange(0, BLOCK_D)
    tl.store(maxima + features, maximum, mask=live)
    tl.store(sums + features, total, mask=live)
    where = states + features[:, None] * DIM + dims[None, :]
    tl.store(where, state, mask=live[:, None] & (dims < DIM)[None, :])
