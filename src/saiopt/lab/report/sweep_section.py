"""What the report says about a sweep."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from saiopt.lab.differences import differences
from saiopt.lab.progress import duration
from saiopt.lab.report.markup import details, note, picture, table
from saiopt.lab.report.sources import Source


def sweep_section(source: Source, prefix: str) -> str:
    """Report a sweep.

    Args:
        source: Its folder.
        prefix: For the ids of its pictures.

    Returns:
        HTML.
    """
    content = source.content
    label = content["metric"]["label"]
    html = ""
    for name in ("heat_maps", "learning_rates", "matched_decay"):
        title = f"{label}, {name.replace('_', ' ')}"
        html += picture(source.folder / f"{name}.svg", title, f"{prefix}-{name}")
    tried = content["optimizers"]
    html += table(
        ("optimizer", "best lr", "decay", label, "diverged"),
        [_row(optimizer) for optimizer in tried],
        _winner(content),
    )
    html += "".join(note(text, "warn") for text in _warnings(tried))
    html += details("All cells", _cells(tried, label))
    seeds = ", ".join(map(str, content["seeds"]))
    steps = source.fields.get("steps")
    told = [
        content["sampler"],
        f"seeds {seeds}",
        *([f"steps {steps}"] if steps else []),
    ]
    finished = [f"finished {source.finished}"] if source.finished else []
    return html + note(", ".join([*told, *finished, source.folder.name]))


def _winner(content: Mapping[str, Any]) -> int | None:
    """Return the row whose best cell can be told from the best ones of all others."""
    names = [optimizer["optimizer"] for optimizer in content["optimizers"]]
    values = {
        optimizer["optimizer"]: (optimizer["best"] or {}).get("values", {})
        for optimizer in content["optimizers"]
    }
    higher = content["metric"]["higher_is_better"]
    found = differences(content["recipe"], values, higher_is_better=higher)
    return None if found.winner is None else names.index(found.winner)


def _warnings(tried: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for optimizer in tried:
        name, missing = optimizer["optimizer"], optimizer["missing"]
        if optimizer["borders"]:
            where = " and the ".join(optimizer["borders"])
            yield (
                f"{name}: the best cell lies at the {where} tried; widen the range "
                "before using it"
            )
        if missing:
            total = missing + len(optimizer["cells"])
            yield (
                f"{name}: {missing} of {total} cells were not finished; the best may "
                "be among them"
            )


def _row(optimizer: Mapping[str, Any]) -> Sequence[str]:
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
