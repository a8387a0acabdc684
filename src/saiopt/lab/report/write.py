"""The report as a file."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from saiopt.lab.atomic import write_atomically
from saiopt.lab.report.comparison_section import comparison_section
from saiopt.lab.report.gsnr_section import gsnr_section
from saiopt.lab.report.markup import table
from saiopt.lab.report.page import page
from saiopt.lab.report.runs_section import recipe_name, require_run, runs_section
from saiopt.lab.report.sources import Found, Source, environments
from saiopt.lab.report.sweep_section import sweep_section
from saiopt.lab.report.titles import titles

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


# What looking into a file raises that is not as a command writes it.
_DAMAGE = (KeyError, TypeError, ValueError, AttributeError, IndexError)


def write_report(found: Found, output: Path) -> list[str]:
    """Write one page about all sources.

    Args:
        found: From :func:`saiopt.lab.report.sources.find_sources`.
        output: File to write; its folder exists.

    Returns:
        A sentence on all that was left out, which the page has too.
    """
    left_out = list(found.left_out)
    sources = _sound(found.sources, left_out)
    names = titles(sources)
    sections: list[tuple[str, str]] = []
    for index, source in enumerate(sources):
        if source.kind in _SECTIONS:
            html = _SECTIONS[source.kind](source, f"p{index}")
            sections.append((names[source.folder], html))
    by_recipe: dict[str, list[Source]] = {}
    for source in sources:
        if source.kind == "run":
            by_recipe.setdefault(recipe_name(source), []).append(source)
    for index, (recipe, runs) in enumerate(by_recipe.items()):
        heading, html, notes = runs_section(recipe, runs, f"r{index}")
        sections.append((heading, html))
        left_out += notes
    sections.append(_environment_section(sources))
    text = page(_summary(sources), left_out, sections)
    write_atomically(output, lambda file: file.write(text.encode()))
    return left_out


def _sound(sources: Sequence[Source], left_out: list[str]) -> list[Source]:
    """Return the sources of which a section can be written, and tell of the others."""
    sound = []
    for source in sources:
        try:
            titles([source])
            if source.kind == "run":
                require_run(source)
            else:
                _SECTIONS[source.kind](source, "p")
        except _DAMAGE as error:
            reason = f"{type(error).__name__}: {error}"
            left_out.append(f"{source.folder} is not as a command writes it ({reason})")
        else:
            sound.append(source)
    return sound


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
