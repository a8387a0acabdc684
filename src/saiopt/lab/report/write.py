"""The report as a file."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from saiopt.lab.atomic import write_atomically
from saiopt.lab.report.runs_section import recipe_name, require_run, runs_section
from saiopt.lab.report.section import Section
from saiopt.lab.report.sections import comparison_section, gsnr_section, sweep_section
from saiopt.lab.report.sources import Found, Source, environments
from saiopt.lab.report.titles import titles
from saiopt.lab.table import TextTable, text_columns

_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=StrictUndefined,
)
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
    sound = _sound(found.sources, left_out)
    sources = [source for source, _ in sound]
    names = titles(sources)
    sections = [
        dataclasses.replace(section, heading=names[source.folder])
        for source, section in sound
        if section is not None
    ]
    by_recipe: dict[str, list[Source]] = {}
    for source in sources:
        if source.kind == "run":
            by_recipe.setdefault(recipe_name(source), []).append(source)
    for recipe, runs in by_recipe.items():
        section, faults = runs_section(recipe, runs)
        sections.append(section)
        left_out += faults
    sections.append(_environment_section(sources))
    text = page(_summary(sources), left_out, sections)
    write_atomically(output, lambda file: file.write(text.encode()))
    return left_out


def page(summary: str, left_out: Sequence[str], sections: Sequence[Section]) -> str:
    """Write a document that needs nothing from elsewhere.

    Args:
        summary: One line under the title.
        left_out: Sentences on what could not be read.
        sections: In their order.

    Returns:
        HTML.
    """
    template = _TEMPLATES.get_template("page.html")
    return template.render(summary=summary, left_out=left_out, sections=sections)


def _sound(
    sources: Sequence[Source], left_out: list[str]
) -> list[tuple[Source, Section | None]]:
    """Return the sources that can be reported, and tell of the others.

    With each is its section, None of a run, which shares one with others.
    """
    sound: list[tuple[Source, Section | None]] = []
    for source in sources:
        section = None
        try:
            titles([source])
            if source.kind == "run":
                require_run(source)
            else:
                section = _SECTIONS[source.kind](source)
                # A table is written where it is shown.
                page("", [], [section])
        except _DAMAGE as error:
            reason = f"{type(error).__name__}: {error}"
            left_out.append(f"{source.folder} is not as a command writes it ({reason})")
        else:
            sound.append((source, section))
    return sound


def _summary(sources: Sequence[Source]) -> str:
    counts = Counter(source.kind for source in sources)
    parts = [
        f"{counts[kind]} {names[counts[kind] > 1]}"
        for kind, names in _NAMES.items()
        if counts[kind]
    ]
    return ", ".join(parts)


def _environment_section(sources: Sequence[Source]) -> Section:
    values = environments(sources).items()
    rows = [(name.replace("_", " "), ", ".join(v)) for name, v in values]
    table = TextTable(text_columns("", "of all runs", wrapping=["of all runs"]), rows)
    return Section("Environment", tables=[table])
