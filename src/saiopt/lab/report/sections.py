"""What the report says about each kind of folder."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from saiopt.lab.progress import duration, milliseconds
from saiopt.lab.report.markup import details, note, picture, table
from saiopt.lab.report.sources import Source

_INTERVALS = "mean ± 95 % Student interval over n seeds"


def comparison_section(source: Source, prefix: str) -> tuple[str, str]:
    """Report a comparison.

    Args:
        source: Its folder.
        prefix: For the ids of its pictures.

    Returns:
        Heading and HTML.
    """
    content = source.content
    metric, rows = content["metric"], content["rows"]
    means = [
        None if row["metric"] is None or row["diverged"] else row["metric"]["mean"]
        for row in rows
    ]
    html = picture(source.folder / "curves.svg", f"{metric['label']} by step", prefix)
    columns = ("optimizer", "lr", "decay", metric["label"])
    html += table(
        (*columns, "state B/param", "step ms", "time"),
        [_comparison_row(row) for row in rows],
        _best(means, metric["higher_is_better"]),
    )
    html += note(f"{_INTERVALS}; {source.folder.name}")
    return f"{content['recipe']}: comparison", html


def sweep_section(source: Source, prefix: str) -> tuple[str, str]:
    """Report a sweep.

    Args:
        source: Its folder.
        prefix: For the ids of its pictures.

    Returns:
        Heading and HTML.
    """
    content = source.content
    label = content["metric"]["label"]
    html = ""
    for name in ("heat_maps", "learning_rates", "matched_decay"):
        title = f"{label}, {name.replace('_', ' ')}"
        html += picture(source.folder / f"{name}.svg", title, f"{prefix}-{name}")
    tried = content["optimizers"]
    best = [optimizer["best"] for optimizer in tried]
    means = [None if cell is None else cell["mean"] for cell in best]
    html += table(
        ("optimizer", "best lr", "decay", label, "diverged"),
        [_sweep_row(optimizer) for optimizer in tried],
        _best(means, content["metric"]["higher_is_better"]),
    )
    for optimizer in tried:
        if optimizer["borders"]:
            where = " and the ".join(optimizer["borders"])
            html += note(
                f"{optimizer['optimizer']}: the best cell lies at the {where} tried; "
                "widen the range before using it",
                "warn",
            )
    html += details("All cells", _cells(tried, label))
    seeds = ", ".join(map(str, content["seeds"]))
    html += note(f"{content['sampler']}, seeds {seeds}; {source.folder.name}")
    return f"{content['recipe']}: sweep", html


def gsnr_section(source: Source, prefix: str) -> tuple[str, str]:
    """Report a measurement of g-SNR.

    Args:
        source: Its folder.
        prefix: For the ids of its pictures.

    Returns:
        Heading and HTML.
    """
    run = source.read("recipe.json") or {}
    html = picture(source.folder / "gsnr.svg", "g-SNR/√n by step", prefix)
    blocks: dict[str, list[Mapping[str, Any]]] = {}
    for row in source.content:
        blocks.setdefault(row["block"], []).append(row)
    lines = [_gsnr_row(block, rows) for block, rows in blocks.items()]
    columns = ("block", "n", "√n", "g-SNR", "at end", "/√n", "at end")
    html += details(f"All {len(lines)} blocks", table(columns, lines))
    html += note(source.folder.name)
    name = run.get("recipe", {}).get("name", source.folder.name)
    return f"{name}: g-SNR with {run.get('optimizer', 'an optimizer')}", html


def environment_section(values: Mapping[str, Sequence[str]]) -> tuple[str, str]:
    """Report where the runs were made.

    Args:
        values: From :func:`saiopt.lab.report.sources.environments`.

    Returns:
        Heading and HTML.
    """
    rows = [(name.replace("_", " "), ", ".join(v)) for name, v in values.items()]
    return "Environment", f"<div class='wrap'>{table(('', 'of all runs'), rows)}</div>"


def value_text(metric: Mapping[str, Any] | None, diverged: Mapping[str, int]) -> str:
    """Write a mean with its interval, and what diverged.

    Args:
        metric: ``mean``, ``half_width`` and ``count``.
        diverged: Steps by seed.

    Returns:
        Such as ``2.1034 ± 0.0121 (n=3)``.
    """
    parts = []
    if metric is not None:
        width = metric["half_width"]
        spread = "" if width is None else f" ± {width:.4f}"
        parts.append(f"{metric['mean']:.4f}{spread} (n={metric['count']})")
    if diverged:
        parts.append(f"diverged (seed {', '.join(diverged)})")
    return ", ".join(parts)


def _comparison_row(row: Mapping[str, Any]) -> Sequence[str]:
    return (
        row["optimizer"],
        f"{row['lr']:g}",
        f"{row['weight_decay']:.3g}",
        value_text(row["metric"], row["diverged"]),
        f"{row['state_bytes_per_parameter']:.2f}",
        milliseconds(row["step_seconds"]),
        duration(row["total_seconds"]),
    )


def _sweep_row(optimizer: Mapping[str, Any]) -> Sequence[str]:
    cells, best = optimizer["cells"], optimizer["best"]
    lost = f"{sum(cell['mean'] is None for cell in cells)} of {len(cells)}"
    if best is None:
        return (optimizer["optimizer"], "", "", "none", lost)
    return (
        optimizer["optimizer"],
        f"{best['lr']:.3g}",
        f"{best['weight_decay']:.3g}",
        f"{best['mean']:.4f} (n={len(best['values'])})",
        lost,
    )


def _cells(optimizers: Sequence[Mapping[str, Any]], label: str) -> str:
    rows = [
        (
            optimizer["optimizer"],
            f"{cell['lr']:.3g}",
            f"{cell['weight_decay']:.3g}",
            "diverged" if cell["mean"] is None else f"{cell['mean']:.4f}",
            duration(cell["total_seconds"]),
        )
        for optimizer in optimizers
        for cell in optimizer["cells"]
    ]
    return table(("optimizer", "lr", "decay", label, "time"), rows)


def _gsnr_row(block: str, rows: Sequence[Mapping[str, Any]]) -> Sequence[str]:
    first, last = rows[0], rows[-1]
    return (
        block,
        f"{first['numel']:,}",
        f"{math.sqrt(first['numel']):.1f}",
        *(_number(row["gsnr"], 1) for row in (first, last)),
        *(_number(row["ratio"], 3) for row in (first, last)),
    )


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _best(values: Sequence[float | None], higher_is_better: bool) -> int | None:
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return None
    return values.index((max if higher_is_better else min)(known))
