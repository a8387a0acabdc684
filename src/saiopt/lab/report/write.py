"""The report as a file."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from saiopt.lab.atomic import write_atomically
from saiopt.lab.report.comparison_section import comparison_section
from saiopt.lab.report.gsnr_section import gsnr_section
from saiopt.lab.report.markup import table
from saiopt.lab.report.page import page
from saiopt.lab.report.runs_section import recipe_name, runs_section
from saiopt.lab.report.sources import Source, environments
from saiopt.lab.report.sweep_section import sweep_section

_SECTIONS = {
    "comparison": comparison_section,
    "sweep": sweep_section,
    "gsnr": gsnr_section,
}
_NAMES = {
    "comparison": ("comparison", "comparisons"),
    "sweep": ("sweep", "sweeps"),
    "gsnr": ("measurement of g-SNR", "measurements of g-SNR"),
    "run": ("single run", "single runs"),
}


def write_report(sources: Sequence[Source], output: Path) -> None:
    """Write one page about all sources.

    Args:
        sources: From :func:`saiopt.lab.report.sources.find_sources`.
        output: File to write; its folder exists.
    """
    sections = [
        _SECTIONS[source.kind](source, f"p{index}")
        for index, source in enumerate(sources)
        if source.kind in _SECTIONS
    ]
    by_recipe: dict[str, list[Source]] = {}
    for source in sources:
        if source.kind == "run":
            by_recipe.setdefault(recipe_name(source), []).append(source)
    for index, (recipe, runs) in enumerate(by_recipe.items()):
        sections.append(runs_section(recipe, runs, f"r{index}"))
    sections.append(_environment_section(sources))
    text = page(_summary(sources), sections)
    write_atomically(output, lambda file: file.write(text.encode()))


def _summary(sources: Sequence[Source]) -> str:
    counts = Counter(source.kind for source in sources)
    parts = [
        f"{counts[kind]} {names[counts[kind] > 1]}"
        for kind, names in _NAMES.items()
        if counts[kind]
    ]
    return ", ".join(parts)


def _environment_section(sources: Sequence[Source]) -> tuple[str, str]:
    values = environments(sources).items()
    rows = [(name.replace("_", " "), ", ".join(v)) for name, v in values]
    return "Environment", f"<div class='wrap'>{table(('', 'of all runs'), rows)}</div>"
