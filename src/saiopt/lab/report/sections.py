"""What the report says about a comparison, a sweep and a measurement of g-SNR."""

import math
from collections.abc import Mapping
from typing import Any

from saiopt.lab.comparison.comparison_table import comparison_tables
from saiopt.lab.report.section import Section, pictures
from saiopt.lab.report.sources import Source
from saiopt.lab.sweep.table import cell_table, sweep_table
from saiopt.lab.table import TextTable, text_columns


def comparison_section(source: Source) -> Section:
    """Report a comparison.

    Args:
        source: Its folder.

    Returns:
        The section, still without the heading that tells it from the others.
    """
    content, folder = source.content, source.folder
    more = pictures(
        (folder / "seconds.svg", "by seconds"), (folder / "loss.svg", "training loss")
    )
    label = content["metric"]["label"]
    return Section(
        "",
        pictures((folder / "curves.svg", f"{label} by step")),
        comparison_tables(content, on_page=True),
        ("By seconds, and the training loss", more, []) if more else None,
        _comparison_facts(source),
    )


def sweep_section(source: Source) -> Section:
    """Report a sweep.

    Args:
        source: Its folder.

    Returns:
        The section, still without the heading that tells it from the others.
    """
    content = source.content
    label, steps = content["metric"]["label"], source.fields.get("steps")
    seeds = ", ".join(map(str, content["seeds"]))
    facts = [content["sampler"], f"seeds {seeds}"]
    facts += [f"steps {steps}"] if steps else []
    names = ("heat_maps", "learning_rates", "matched_decay")
    return Section(
        "",
        pictures(
            *(
                (source.folder / f"{n}.svg", f"{label}, {n.replace('_', ' ')}")
                for n in names
            )
        ),
        [sweep_table(content, on_page=True)],
        ("All cells", [], [cell_table(content)]),
        ", ".join([*facts, *_finished(source), source.folder.name]),
    )


def gsnr_section(source: Source) -> Section:
    """Report a measurement of g-SNR.

    Args:
        source: Its folder.

    Returns:
        The section, still without the heading that tells it from the others.
    """
    blocks: dict[str, list[Mapping[str, Any]]] = {}
    for row in source.content:
        blocks.setdefault(row["block"], []).append(row)
    numbers = ("n", "√n", "g-SNR", "at end", "/√n", "at end")
    rows = [
        (
            block,
            f"{rows[0]['numel']:,}",
            f"{math.sqrt(rows[0]['numel']):.1f}",
            *(_number(row["gsnr"], 1) for row in (rows[0], rows[-1])),
            *(_number(row["ratio"], 3) for row in (rows[0], rows[-1])),
        )
        for block, rows in blocks.items()
    ]
    table = TextTable(text_columns("block", *numbers, numbers=numbers), rows)
    return Section(
        "",
        pictures((source.folder / "gsnr.svg", "g-SNR/√n by step")),
        more=(f"All {len(rows)} blocks", [], [table]),
        facts=", ".join([*_finished(source), source.folder.name]),
    )


def _comparison_facts(source: Source) -> str:
    """Say what was compared, when, and where it lies."""
    fields, runs = source.fields, source.content["runs"]
    seeds = ", ".join(str(seed) for seed in dict.fromkeys(run["seed"] for run in runs))
    names = ("steps", "batch_size", "schedule", "warmup_fraction", "clip_norm")
    told = [f"{n.replace('_', ' ')} {fields[n]}" for n in names if n in fields]
    task = [f"{n} {value}" for n, value in fields.items() if n.startswith("task.")]
    facts = [*told, *task, f"seeds {seeds}", *_finished(source), source.folder.name]
    return ", ".join(facts)


def _finished(source: Source) -> list[str]:
    return [f"finished {source.finished}"] if source.finished else []


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
