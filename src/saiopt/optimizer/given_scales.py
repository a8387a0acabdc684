"""Scales that a block is given instead of measuring them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from saiopt.distributed.shards import copy_whole, whole_entries
from saiopt.scaling import Scales

from .state import is_concrete

# One number for a block, or with it those of its rows and columns.
BlockScale: TypeAlias = float | Scales
_AXES = ("row", "column")
# More than any rule asks for.
_ENOUGH = torch.iinfo(torch.int32).max


def held_scale(entry: Mapping[str, Tensor]) -> BlockScale:
    """Return the scale of a block, from all ranks that share it.

    Args:
        entry: its state by key.

    Returns:
        One number, or copies of those of rows and columns on the CPU with it; 0 where
        the block has none yet.
    """
    scale = entry["scale"].item()
    vectors = {a: entry[f"{a}_scale"] for a in _AXES if f"{a}_scale" in entry}
    if scale == 0 or not vectors:
        return abs(scale)
    wholes = {
        axis: whole_entries(v).detach().to("cpu", copy=True)
        for axis, v in vectors.items()
    }
    return Scales(torch.tensor(abs(scale), device="cpu"), **wholes)


def misfit_of_scale(scale: BlockScale, entry: Mapping[str, Tensor]) -> str:
    """Return why a block cannot be given a scale, "" if it can.

    Args:
        scale: what is given.
        entry: the block's state by key.

    Returns:
        The end of a sentence, or "".
    """
    shapes = {a: entry[f"{a}_scale"].shape for a in _AXES if f"{a}_scale" in entry}
    if not isinstance(scale, Scales):
        needs = ", ".join(f"{axis} {tuple(shape)}" for axis, shape in shapes.items())
        return f"must be Scales of shapes {needs}, or 0" if needs and scale else ""
    for axis in _AXES:
        found, shape = getattr(scale, axis), shapes.get(axis)
        if (None if found is None else found.shape) != shape:
            return f"must have {axis} scales of shape {shape and tuple(shape)}"
    numbers = (scale.block, *(getattr(scale, axis) for axis in shapes))
    fine = [((t.float() > 0) & t.float().isfinite()).all() for t in numbers]
    return "" if all(fine) else "must be positive and finite as float32"


def give_scale(scale: BlockScale, entry: Mapping[str, Tensor]) -> None:
    """Write a scale into a block's state; one that runs goes on with it.

    Args:
        scale: what fits it; 0 lets the block measure anew.
        entry: the block's state by key, changed in place.
    """
    number = scale.block.item() if isinstance(scale, Scales) else scale
    for axis in _AXES:
        if isinstance(scale, Scales) and f"{axis}_scale" in entry:
            copy_whole(entry[f"{axis}_scale"], getattr(scale, axis))
    held = entry["scale"]
    waits = not is_concrete(held) or held.item() <= 0
    held.fill_(-number if waits else number)
    if "num_measured" in entry:
        entry["num_measured"].fill_(_ENOUGH if number else 0)
        for key in ("block_sum", "row_share", "column_share"):
            if key in entry:
                entry[key].zero_()
