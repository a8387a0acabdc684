"""What a sweep has found: the best cell of each optimizer, and whether to trust it."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from saiopt.lab.atomic import alone, write_json
from saiopt.lab.identity import identity_hash
from saiopt.lab.sweep.board import Board, Cell
from saiopt.lab.sweep.pictures import draw
from saiopt.lab.sweep.plan import Sweep

# TPE samples a continuum: this share of the range, in decades, counts as its border.
_BORDER_SHARE = 0.05


@dataclasses.dataclass(frozen=True)
class Finding:
    """One optimizer's cells.

    Args:
        sweep: What was tried.
        cells: All complete ones.
    """

    sweep: Sweep
    cells: Sequence[Cell]

    @property
    def best(self) -> Cell | None:
        """The cell of the best mean, the smaller learning rate in a tie."""
        means = [cell.mean for cell in self.cells if cell.mean is not None]
        higher = self.sweep.recipe.metric.higher_is_better
        best = (max if higher else min)(means, default=None)
        return next(
            (c for c in self.cells if c.mean is not None and c.mean == best), None
        )

    @property
    def borders(self) -> list[str]:
        """Where the best cell touches the border of what was tried."""
        if self.best is None:
            return []
        values = {"lr": self.best.lr, "weight_decay": self.best.weight_decay}
        words = {"lr": "lr", "weight_decay": "weight decay"}
        found = []
        for name, (low, high) in self.sweep.ranges.items():
            if low == high:
                continue
            margin = _margin(low, high) if self.sweep.sampler == "tpe" else 1.0
            if values[name] <= low * margin:
                found.append(f"smallest {words[name]}")
            elif values[name] >= high / margin:
                found.append(f"largest {words[name]}")
        return found

    @property
    def missing(self) -> int:
        """Number of cells that are not complete."""
        return len(self.sweep.cells()) - len(self.cells)


@dataclasses.dataclass(frozen=True)
class Findings:
    """All optimizers of a sweep.

    Args:
        findings: One per optimizer.
        folder: Where table and pictures are kept.
    """

    findings: Sequence[Finding]
    folder: Path


def gather(boards: Sequence[Board], runs_dir: Path, published: str | None) -> Findings:
    """Read what is complete, and write ``sweep.json`` and the pictures.

    Args:
        boards: Of one recipe.
        runs_dir: Where the sweep's folder is made.
        published: Name of a published grid to draw beside ours.

    Returns:
        The findings.
    """
    recipe = boards[0].sweep.recipe
    names = [board.study_name for board in boards]
    folder = runs_dir / f"sweep-{recipe.name}-{identity_hash(names)}"
    folder.mkdir(parents=True, exist_ok=True)
    # Whoever writes last has also read last.
    with alone(folder / "lock"):
        findings = [Finding(board.sweep, board.cells()) for board in boards]
        result = Findings(findings, folder)
        write_json(folder / "sweep.json", as_json(result))
        draw([(f.sweep, f.cells) for f in findings], folder, published)
    return result


def as_json(findings: Findings) -> dict[str, Any]:
    """Return findings as JSON types.

    Args:
        findings: To be written.

    Returns:
        Recipe, metric, and every optimizer's cells with the best one.
    """
    sweep = findings.findings[0].sweep
    return {
        "recipe": sweep.recipe.name,
        "metric": dataclasses.asdict(sweep.recipe.metric),
        "sampler": sweep.sampler,
        "seeds": list(sweep.seeds),
        "optimizers": [_as_json(finding) for finding in findings.findings],
        "folder": str(findings.folder),
    }


def _as_json(finding: Finding) -> dict[str, Any]:
    best = finding.best
    return {
        "optimizer": finding.sweep.title,
        "settings": finding.sweep.runs({"lr": finding.sweep.lrs[0]})[0].all_settings,
        "lrs": finding.sweep.lrs,
        "weight_decays": finding.sweep.weight_decays,
        "best": None if best is None else _cell_as_json(best),
        "borders": finding.borders,
        "missing": finding.missing,
        "cells": [_cell_as_json(cell) for cell in finding.cells],
    }


def _cell_as_json(cell: Cell) -> dict[str, Any]:
    return {**dataclasses.asdict(cell), "mean": cell.mean}


def _margin(low: float, high: float) -> float:
    return 10 ** (_BORDER_SHARE * math.log10(high / low))
