"""The update rule as a Triton kernel: one program for a run of groups of one block.

The kernel is given a table of addresses instead of tensors, so that one launch serves
all blocks that share their dtypes. Multiply-adds are written out, and the compiler must
not fuse others (``enable_fp_fusion=False``): codes are rounded as in
:mod:`saiopt.low_bit`, with which the hash and the codes here agree.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false
# ruff: noqa: ANN001, ANN201, ANN202, N803, SIM108, SIM300

from __future__ import annotations

import triton
import triton.language as tl

GROUP = tl.constexpr(32)
NUM_COLUMNS = 9


@triton.jit
def _pointer(row, COLUMN: tl.constexpr, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """Read an address from the table."""
    pointer = tl.load(row + COLUMN).to(tl.pointer_type(DTYPE))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
def _mix(bits):
    """Scramble uint32 values."""
    bits = (bits ^ (bits >> 16)) * 0x7FEB352D
    bits = (bits ^ (bits >> 15)) * 0x846CA68B
    return bits ^ (bits >> 16)


@triton.jit
def _store(
    pointers, values, noise, mask, DTYPE: tl.constexpr, STOCHASTIC: tl.constexpr
):
    """Store float32 values with one rounding; noise is uint32, 0 … 2¹⁶-1."""
    if DTYPE == tl.bfloat16:
        bits = values.to(tl.uint32, bitcast=True)
        magnitude = bits & 0x7FFFFFFF
        if STOCHASTIC:
            rounded = bits + noise
        else:
            rounded = bits + (((bits >> 16) & 1) + 0x7FFF)
        kept = tl.where(magnitude > 0x7F800000, bits | 0x400000, bits)
        upper = tl.where(magnitude < 0x7F800000, rounded, kept) >> 16
        stored = upper.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        stored = values.to(DTYPE)
    tl.store(pointers, stored, mask)


@triton.jit
def _encode(values, noise, MAX_CODE: tl.constexpr, STOCHASTIC: tl.constexpr):
    """Return int32 codes and the groups' scales as float32, shape (groups, 1)."""
    # As integers, magnitudes are in order, and infinities and NaN come last.
    magnitudes = values.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    largest = tl.max(magnitudes, axis=1, keep_dims=True)
    finite = largest < 0x7F800000
    level = tl.div_rn(largest.to(tl.float32, bitcast=True), MAX_CODE)
    # Adding all that bfloat16 cuts off rounds up.
    bits = (level.to(tl.int32, bitcast=True) + 0xFFFF) & -0x10000
    bits = tl.where(finite, tl.maximum(bits, 0x00800000), 0x7FC00000)
    scale = bits.to(tl.float32, bitcast=True)
    inverse = tl.where(finite, tl.div_rn(1.0, scale), 0.0)
    if STOCHASTIC:
        above = noise.to(tl.float32) * 0.0000152587890625
    else:
        above = 0.5
    codes = tl.minimum(tl.abs(values) * inverse + above, MAX_CODE)
    codes = tl.where(finite, codes, 0.0).to(tl.int32)
    return tl.where(values < 0, -codes, codes), scale


@triton.jit
def _entries(row, group, lane, held, WHOLE: tl.constexpr):
    """Return the groups' entries, first bytes and byte ends of codes, and a mask."""
    if WHOLE:
        entry = group * GROUP + lane
        first_byte, byte_end = group * (GROUP // 2), group * (GROUP // 2) + GROUP // 2
        mask = held & (lane >= 0)
    else:
        cols = tl.load(row + 6)
        per_row = (cols + GROUP - 1) // GROUP
        line, column = group // per_row, (group % per_row) * GROUP
        entry = line * cols + column + lane
        row_bytes = (cols + 1) // 2
        first_byte, byte_end = line * row_bytes + column // 2, (line + 1) * row_bytes
        mask = held & (column + lane < cols)
    return entry, first_byte, byte_end, mask


@triton.jit
def _load_codes(buffer, entry, first_byte, lane, mask, BITS: tl.constexpr):
    """Read stored momentum, or its codes, as float32."""
    if BITS == 4:
        bytes_ = tl.load(buffer + first_byte + lane // 2, mask, other=0)
        nibble = (bytes_.to(tl.int32) >> (4 * (lane % 2))) & 15
        stored = ((nibble ^ 8) - 8).to(tl.float32)
    else:
        stored = tl.load(buffer + entry, mask, other=0).to(tl.float32)
    return stored


@triton.jit
def _store_codes(
    buffer,
    codes,
    entry,
    first_byte,
    byte_end,
    held,
    mask,
    BITS: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """Write codes; two of 4 bits share a byte, the even entry in its lower half."""
    if BITS == 4:
        upper = tl.arange(0, GROUP)[None, :] % 2
        halves = tl.reshape((codes & 15) << (4 * upper), (GROUPS, 16, 2))
        at = first_byte + tl.arange(0, 16)[None, :]
        packed = tl.sum(halves, axis=2).to(tl.uint8)
        tl.store(buffer + at, packed, held & (at < byte_end))
    else:
        tl.store(buffer + entry, codes.to(tl.int8), mask)


@triton.jit
def update_kernel(
    table,
    owners,
    lr,
    weight_decay,
    weight,
    sign,
    DTYPE: tl.constexpr,
    MOMENTUM: tl.constexpr,
    BITS: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    FROM_GRAD: tl.constexpr,
    FORGETS: tl.constexpr,
    LR_ON_DEVICE: tl.constexpr,
    WHOLE: tl.constexpr,
    ALIGNED: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """Update `GROUPS` groups of a block.

    Args:
        table: int64, shape (blocks, `NUM_COLUMNS`): addresses of θ, g, m, the momentum
            scales, s and the seed, then columns, groups and first program of a block.
        owners: int32, shape (programs,): the block of each program.
        lr: η, a number or the address of one.
        weight_decay: λ.
        weight: of the average m = base + weight (g - m).
        sign: of the step.
        DTYPE: of θ and g.
        MOMENTUM: dtype of m or of what holds its codes, None without momentum.
        BITS: of a code, 0 where m is not coded.
        STOCHASTIC: whether results round stochastically.
        FROM_GRAD: whether the average's base is g instead of m.
        FORGETS: whether m = g.
        LR_ON_DEVICE: whether `lr` is an address.
        WHOLE: whether the rows of all blocks are whole groups.
        ALIGNED: whether all addresses are multiples of 16.
        GROUPS: groups of a program.
    """
    program = tl.program_id(0)
    row = table + tl.load(owners + program) * 9
    group = (program - tl.load(row + 8)) * GROUPS + tl.arange(0, GROUPS)[:, None]
    lane = tl.arange(0, GROUP)[None, :]
    held = group < tl.load(row + 7)
    entry, first_byte, byte_end, mask = _entries(row, group, lane, held, WHOLE)

    if STOCHASTIC:
        seed = tl.load(_pointer(row, 5, tl.int32, False)).to(tl.uint32, bitcast=True)
        noise = _mix(entry.to(tl.uint32) ^ _mix(seed))
    else:
        noise = entry.to(tl.uint32)
    high = noise >> 16

    params = _pointer(row, 0, DTYPE, ALIGNED) + entry
    param = tl.load(params, mask, other=0.0).to(tl.float32)
    grads = _pointer(row, 1, DTYPE, ALIGNED) + entry
    momentum = tl.load(grads, mask, other=0.0).to(tl.float32)

    if BITS > 0:
        scales = _pointer(row, 3, tl.bfloat16, ALIGNED) + group
    if MOMENTUM is not None:
        buffer = _pointer(row, 2, MOMENTUM, ALIGNED)
        if not FORGETS:
            old = _load_codes(buffer, entry, first_byte, lane, mask, BITS)
            if BITS > 0:
                old *= tl.load(scales, held, other=0.0).to(tl.float32)
            difference = momentum - old
            if FROM_GRAD:
                momentum = tl.fma(difference, weight, momentum)
            else:
                momentum = tl.fma(difference, weight, old)

    if LR_ON_DEVICE:
        lr = tl.load(lr).to(tl.float32)
    step = sign * (lr * tl.load(_pointer(row, 4, tl.float32, False)))
    param = tl.fma(momentum, step, param * (1.0 - lr * weight_decay))
    _store(params, param, noise & 0xFFFF, mask, DTYPE, STOCHASTIC)

    if BITS > 0:
        momentum = tl.where(mask, momentum, 0.0)
        codes, scale = _encode(momentum, high, 2.0 ** (BITS - 1) - 1.0, STOCHASTIC)
        _store(scales, scale, high, held, tl.bfloat16, False)
        _store_codes(
            buffer, codes, entry, first_byte, byte_end, held, mask, BITS, GROUPS
        )
    elif MOMENTUM is not None:
        _store(buffer + entry, momentum, high, mask, MOMENTUM, STOCHASTIC)
