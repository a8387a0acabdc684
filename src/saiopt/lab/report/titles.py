"""Headings that tell what is reported apart."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from saiopt.lab.report.sources import Source

_WORDS = {"comparison": "comparison", "sweep": "sweep"}


def titles(sources: Sequence[Source]) -> dict[Path, str]:
    """Name comparisons, sweeps and measurements by what they do not have in common.

    Args:
        sources: Of any kind; single runs get no title.

    Returns:
        Title by folder.
    """
    groups: dict[str, list[Source]] = {}
    for source in sources:
        if source.kind != "run":
            groups.setdefault(_base(source), []).append(source)
    return {
        source.folder: ", ".join([base, *differing])
        for base, group in groups.items()
        for source, differing in zip(group, _differing(group), strict=True)
    }


def varied(fields: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name the fields that are not the same in all.

    Args:
        fields: By name, of each.

    Returns:
        Names.
    """
    names = dict.fromkeys(name for each in fields for name in each)
    return [name for name in names if len({str(f.get(name)) for f in fields}) > 1]


def _base(source: Source) -> str:
    if source.kind == "gsnr":
        described = source.described
        recipe = described.get("recipe", {}).get("name", source.folder.name)
        return f"{recipe}: g-SNR with {described.get('optimizer', 'an optimizer')}"
    return f"{source.content['recipe']}: {_WORDS[source.kind]}"


def _differing(group: Sequence[Source]) -> list[list[str]]:
    fields = [source.fields | _own(source) for source in group]
    names = varied(fields)
    found = [
        [f"{name} {each[name]}" for name in names if name in each] for each in fields
    ]
    texts = [", ".join(parts) for parts in found]
    return [
        [*parts, source.folder.name] if texts.count(text) > 1 else parts
        for parts, text, source in zip(found, texts, group, strict=True)
    ]


def _own(source: Source) -> dict[str, str]:
    """Return what a comparison or a sweep has beyond the recipe of its runs."""
    if source.kind == "comparison":
        rows, runs = source.content["rows"], source.content["runs"]
        return {
            "of": " ".join(f"{row['optimizer']} {row['lr']:g}" for row in rows),
            "seeds": " ".join(str(s) for s in dict.fromkeys(r["seed"] for r in runs)),
        }
    if source.kind == "sweep":
        return {
            "of": " ".join(
                tried["optimizer"] for tried in source.content["optimizers"]
            ),
            "seeds": " ".join(map(str, source.content["seeds"])),
        }
    described = source.described
    return {name: str(described.get(name, "")) for name in ("lr", "seed", "gsnr_every")}
