"""The update rule as a Triton kernel: one program for a run of groups of one block.

The kernel is given a table of addresses instead of tensors, so that one launch serves
all blocks that share their dtypes. Multiply-adds are written out, and the compiler must
not fuse others (``enable_fp_fusion=False``): codes are rounded as in
:mod:`saiopt.low_bit`, with which the hash and the codes here agree.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false
# ruff: noqa: ANN001, ANN201, ANN202, N803, SIM108, SIM300

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

GROUP = tl.constexpr(32)


class Row(NamedTuple):
    """Hold what a row of the table says of a block: first addresses, 0 for none.

    Args:
        param: θ, or the target of a look ahead.
        grad: g; 0 leaves the block out.
        momentum: m or its codes.
        momentum_scale: the scales of the codes.
        scale: s.
        seed: the rounding seed.
        row_scale: factors on s.
        column_scale: factors on s.
        column_map: where the layout is "reordered", which column an entry of a row
            belongs to, in the order of memory, int32.
        param_map: where the layout is "gathered", where the columns of a row lie, in
            entries from its first, int32.
        grad_map: the same of g.
        momentum_map: the same of m.
        param_stride: from row to row in entries, where the layout is "gathered".
        grad_stride: the same of g.
        momentum_stride: the same of m.
        cols: entries of a row.
        num_groups: of all rows.
        start: index of the first entry in the whole block.
        pitch: from the index of an entry to that of its neighbour in the next row.
        first_program: of those that share the block's groups.
    """

    param: int
    grad: int
    momentum: int
    momentum_scale: int
    scale: int
    seed: int
    row_scale: int
    column_scale: int
    column_map: int
    param_map: int
    grad_map: int
    momentum_map: int
    param_stride: int
    grad_stride: int
    momentum_stride: int
    cols: int
    num_groups: int
    start: int
    pitch: int
    first_program: int


NUM_FIELDS = tl.constexpr(len(Row._fields))
(
    PARAM,
    GRAD,
    MOMENTUM_BUFFER,
    MOMENTUM_SCALE,
    SCALE,
    SEED,
    ROW_SCALE,
    COLUMN_SCALE,
    COLUMN_MAP,
    PARAM_MAP,
    GRAD_MAP,
    MOMENTUM_MAP,
    PARAM_STRIDE,
    GRAD_STRIDE,
    MOMENTUM_STRIDE,
    COLS,
    NUM_GROUPS,
    START,
    PITCH,
    FIRST_PROGRAM,
) = map(tl.constexpr, range(len(Row._fields)))


@triton.jit
def _pointer(row, FIELD: tl.constexpr, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """Read an address from the table."""
    pointer = tl.load(row + FIELD).to(tl.pointer_type(DTYPE))
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
def _dither(index, seed):
    """Return 16 random bits as uint32."""
    bits = (index.to(tl.uint32) * 0x9E3779B1) ^ _mix(seed)
    return ((bits ^ (bits >> 16)) * 0x7FEB352D) >> 16


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
    """Return int32 codes and the groups' scales as float32, shape (groups, 1).

    Dithered codes have scales below 0.
    """
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
        # In 2⁻¹⁶ of a code, cut off towards 0.
        levels = values * inverse * 65536.0
        levels = tl.maximum(tl.minimum(levels, MAX_CODE * 65536.0), -MAX_CODE * 65536.0)
        whole = tl.where(finite, levels, 0.0).to(tl.int32)
        codes = (whole + noise.to(tl.int32)) >> 16
        codes = tl.where(codes == 0, -MAX_CODE - 1.0, codes).to(tl.int32)
        codes = tl.where(finite & (values != 0.0), codes, 0)
        scale = -scale
    else:
        codes = tl.minimum(tl.abs(values) * inverse + 0.5, MAX_CODE)
        codes = tl.where(finite, codes, 0.0).to(tl.int32)
        codes = tl.where(values < 0, -codes, codes)
    return codes, scale


@triton.jit
def _decode(codes, scale, noise, MAX_CODE: tl.constexpr, STOCHASTIC: tl.constexpr):
    """Return what codes stand for, their dither taken off again."""
    dithered = scale < 0.0
    levels = tl.where(dithered & (codes == -MAX_CODE - 1.0), 0.0, codes)
    if STOCHASTIC:
        off = 0.5 - noise.to(tl.float32) * 0.0000152587890625
        levels += tl.where(dithered & (codes != 0.0), off, 0.0)
    return levels * tl.abs(scale)


@triton.jit
def _lines(row, group, lane, held, LAYOUT: tl.constexpr, WHOLE: tl.constexpr):
    """Return the rows and first columns of groups, and which entries there are."""
    if WHOLE and LAYOUT == "run":
        # Nobody asks for rows and columns, and dividing costs.
        line, start, mask = group, group, held & (lane >= 0)
    else:
        cols = tl.load(row + COLS)
        per_row = (cols + GROUP - 1) // GROUP
        line, start = group // per_row, (group % per_row) * GROUP
        mask = held & (lane >= 0 if WHOLE else start + lane < cols)
    return line, start, mask


@triton.jit
def _entries(row, group, lane, line, start, WHOLE: tl.constexpr):
    """Return places of entries that lie one behind the other, and of their codes.

    Those are the first bytes of the groups and the ends of the rows' bytes, where two
    share a byte.
    """
    if WHOLE:
        entry = group * GROUP + lane
        first_byte, byte_end = group * (GROUP // 2), group * (GROUP // 2) + GROUP // 2
    else:
        cols = tl.load(row + COLS)
        entry = line * cols + start + lane
        row_bytes = (cols + 1) // 2
        first_byte, byte_end = line * row_bytes + start // 2, (line + 1) * row_bytes
    return entry, first_byte, byte_end


@triton.jit
def _gathered(
    row,
    entry,
    line,
    column,
    mask,
    MAP: tl.constexpr,
    STRIDE: tl.constexpr,
    LAYOUT: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """Return the places of a tensor's entries."""
    if LAYOUT == "gathered":
        places = _pointer(row, MAP, tl.int32, WHOLE) + column
        entry = line * tl.load(row + STRIDE) + tl.load(places, mask, other=0)
    return entry


@triton.jit
def _step_size(
    row, step, line, column, held, mask, LAYOUT: tl.constexpr, ALIGNED: tl.constexpr
):
    """Return the step size times the factors of the rows and of the columns."""
    if LAYOUT != "run":
        rows = _pointer(row, ROW_SCALE, tl.float32, False)
        has_rows = held & (tl.load(row + ROW_SCALE) != 0)
        columns = _pointer(row, COLUMN_SCALE, tl.float32, ALIGNED)
        has_columns = mask & (tl.load(row + COLUMN_SCALE) != 0)
        step = step * tl.load(rows + line, has_rows, other=1.0)
        step = step * tl.load(columns + column, has_columns, other=1.0)
    return step


@triton.jit
def _average(old, grad, weight):
    """Return the new m, or where μ = 0, which forgets even what is not finite, g."""
    base = tl.where(weight < 0, grad, old)
    return tl.where(weight == 0, grad, tl.fma(grad - old, weight, base))


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


# Numbers that are 1 or multiples of 16 would else get kernels of their own.
@triton.jit(do_not_specialize=["first_program"])
def update_kernel(
    table,
    owners,
    first_program,
    lr,
    weight_decay,
    weight,
    multiplier,
    DTYPE: tl.constexpr,
    GRAD_DTYPE: tl.constexpr,
    MOMENTUM: tl.constexpr,
    BITS: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    LOOKS_AHEAD: tl.constexpr,
    LR_ON_DEVICE: tl.constexpr,
    LAYOUT: tl.constexpr,
    WHOLE: tl.constexpr,
    ALIGNED: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """Update `GROUPS` groups of a block, or advance their m and look ahead.

    To look ahead, μ m + (1-μ) g of the new m is written where θ would be, as float32.

    Args:
        table: int64, shape (blocks, `NUM_FIELDS`): a :class:`Row` for each block.
        owners: int32, shape (programs,): the block of each program.
        first_program: number of the first program.
        lr: η, a number or the address of one.
        weight_decay: λ.
        weight: of g - m in the new m, which is m + weight (g - m) where it is positive,
            g + weight (g - m) where it is negative, and g where it is 0.
        multiplier: of η s in the step, with its sign.
        DTYPE: of θ, or of the target.
        GRAD_DTYPE: of g.
        MOMENTUM: dtype of m or of what holds its codes, None without momentum.
        BITS: of a code, 0 where m is not coded.
        STOCHASTIC: whether results round stochastically.
        LOOKS_AHEAD: whether to look ahead.
        LR_ON_DEVICE: whether `lr` is an address.
        LAYOUT: how entries lie, as `Layout` in :mod:`saiopt.update.triton` says.
        WHOLE: whether the rows of all blocks are whole groups.
        ALIGNED: whether all addresses are multiples of 16.
        GROUPS: groups of a program.
    """
    program = tl.program_id(0) + first_program
    row = table + tl.load(owners + program) * NUM_FIELDS
    first = program - tl.load(row + FIRST_PROGRAM)
    group = first * GROUPS + tl.arange(0, GROUPS)[:, None]
    lane = tl.arange(0, GROUP)[None, :]
    held = (group < tl.load(row + NUM_GROUPS)) & (tl.load(row + GRAD) != 0)
    line, start, mask = _lines(row, group, lane, held, LAYOUT, WHOLE)
    entry, first_byte, byte_end = _entries(row, group, lane, line, start, WHOLE)
    column = start + lane

    param_at = _gathered(
        row, entry, line, column, mask, PARAM_MAP, PARAM_STRIDE, LAYOUT, WHOLE
    )
    grad_at = _gathered(
        row, entry, line, column, mask, GRAD_MAP, GRAD_STRIDE, LAYOUT, WHOLE
    )
    if LAYOUT == "reordered":
        columns = _pointer(row, COLUMN_MAP, tl.int32, WHOLE)
        column = tl.load(columns + column, mask, other=0)

    if STOCHASTIC:
        index = entry
        if LAYOUT != "run":
            index = line * tl.load(row + PITCH) + column
        index += tl.load(row + START)
        seed = tl.load(_pointer(row, SEED, tl.int32, False)).to(tl.uint32, bitcast=True)
        noise = _mix(index.to(tl.uint32) ^ _mix(seed + 1))
    else:
        noise = entry.to(tl.uint32)
    high = noise >> 16

    params = _pointer(row, PARAM, DTYPE, ALIGNED) + param_at
    if not LOOKS_AHEAD:
        param = tl.load(params, mask, other=0.0).to(tl.float32)
    grads = _pointer(row, GRAD, GRAD_DTYPE, ALIGNED) + grad_at
    grad = tl.load(grads, mask, other=0.0).to(tl.float32)
    momentum = grad

    if BITS > 0:
        scales = _pointer(row, MOMENTUM_SCALE, tl.bfloat16, ALIGNED) + group
    if MOMENTUM is not None:
        buffer = _pointer(row, MOMENTUM_BUFFER, MOMENTUM, ALIGNED)
        momentum_at = entry
        if BITS == 0:
            momentum_at = _gathered(
                row,
                entry,
                line,
                column,
                mask,
                MOMENTUM_MAP,
                MOMENTUM_STRIDE,
                LAYOUT,
                WHOLE,
            )
        runs = mask & (weight != 0)
        old = _load_codes(buffer, momentum_at, first_byte, lane, runs, BITS)
        if BITS > 0:
            unit = tl.load(scales, held & (weight != 0), other=0.0).to(tl.float32)
            dither = noise
            if STOCHASTIC:
                # The noise of the last step, which the codes were made with.
                dither = _dither(index, seed)
            old = _decode(old, unit, dither, 2.0 ** (BITS - 1) - 1.0, STOCHASTIC)
        # What is forgotten may not be finite, and the gradient neither.
        momentum = _average(old, grad, weight)

    if LOOKS_AHEAD:
        param = grad
        if MOMENTUM is not None:
            param = _average(momentum, grad, weight)
    else:
        if LR_ON_DEVICE:
            lr = tl.load(lr).to(tl.float32)
        step = multiplier * (lr * tl.load(_pointer(row, SCALE, tl.float32, False)))
        step = _step_size(row, step, line, column, held, mask, LAYOUT, ALIGNED)
        param = tl.fma(momentum, step, param * (1.0 - lr * weight_decay))
    _store(params, param, noise & 0xFFFF, mask, DTYPE, STOCHASTIC)

    if BITS > 0:
        momentum = tl.where(mask, momentum, 0.0)
        if STOCHASTIC:
            high = _dither(index, seed + 1)
        codes, scale = _encode(momentum, high, 2.0 ** (BITS - 1) - 1.0, STOCHASTIC)
        _store(scales, scale, high, held, tl.bfloat16, False)
        _store_codes(
            buffer, codes, entry, first_byte, byte_end, held, mask, BITS, GROUPS
        )
    elif MOMENTUM is not None:
        _store(buffer + momentum_at, momentum, high, mask, MOMENTUM, STOCHASTIC)
