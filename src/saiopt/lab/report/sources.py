"""What there is to report on."""

import contextlib
import dataclasses
import datetime
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

Kind: TypeAlias = Literal["comparison", "sweep", "gsnr", "run"]
# A run that measured g-SNR is also a run: the file that says more comes first.
_FILES: dict[str, Kind] = {
    "comparison.json": "comparison",
    "sweep.json": "sweep",
    "gsnr.json": "gsnr",
    "result.json": "run",
}
_NEEDED: dict[Kind, set[str]] = {
    "comparison": {"recipe", "metric", "rows", "runs"},
    "sweep": {"recipe", "metric", "optimizers", "seeds", "sampler"},
    "gsnr": set(),
    "run": {"status", "step", "metrics", "total_seconds"},
}


@dataclasses.dataclass(frozen=True)
class Source:
    """A folder that a command has written.

    Args:
        kind: Which command's.
        folder: The folder.
        content: Its main file.
    """

    kind: Kind
    folder: Path
    content: Any

    def read(self, name: str) -> dict[str, Any] | None:
        """Read another JSON file of the folder, None where it is missing.

        Args:
            name: Of the file.

        Returns:
            Its content.
        """
        path = self.folder / name
        return _read(path) if path.exists() else None

    @property
    def described(self) -> dict[str, Any]:
        """What the first of its runs is, nothing where that is not told."""
        return self._first_run("recipe.json")

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of its runs' recipe, and the code and hardware that made them."""
        recipe = dict(self.described.get("recipe", {}))
        task = {f"task.{name}": value for name, value in recipe.pop("task", {}).items()}
        # The decay per step is what the column of the decay says.
        recipe.pop("decay_per_step", None)
        origin = self._first_run("environment.json")
        made = {name: origin.get(name, "") for name in ("code", "hardware")}
        return recipe | task | made

    def _first_run(self, name: str) -> dict[str, Any]:
        for folder in self.run_folders[:1]:
            path = self.folder.parent / folder / name
            return _read(path) if path.exists() else {}
        return {}

    @property
    def finished(self) -> str:
        """The day and minute at which the last of its runs ended."""
        paths = (self.folder.parent / n / "result.json" for n in self.run_folders)
        times = [path.stat().st_mtime for path in paths if path.exists()]
        if not times:
            return ""
        return datetime.datetime.fromtimestamp(max(times)).strftime("%Y-%m-%d %H:%M")

    @property
    def run_folders(self) -> list[str]:
        """Names of the runs that this is made of."""
        if self.kind == "comparison":
            return [run["folder"] for run in self.content["runs"]]
        if self.kind == "sweep":
            cells = [c for o in self.content["optimizers"] for c in o["cells"]]
            return [name for cell in cells for name in cell["folders"]]
        return [self.folder.name]


@dataclasses.dataclass(frozen=True)
class Found:
    """What there is, and what cannot be read.

    Args:
        sources: Comparisons, sweeps, measurements of g-SNR, and runs that are in none
            of the comparisons and sweeps, each in the order of their names.
        left_out: A sentence on each folder that is damaged.
    """

    sources: Sequence[Source]
    left_out: Sequence[str]


def find_sources(folders: Sequence[Path], runs_dir: Path) -> Found:
    """Read folders, or all of a runs folder.

    Args:
        folders: Chosen ones, or whole runs folders; none for all that ``runs_dir``
            holds.
        runs_dir: Where run folders live.

    Returns:
        What is there.

    Raises:
        ValueError: If a chosen folder holds nothing, or nothing is there that can be
            read.
    """
    found = [path for folder in folders or [runs_dir] for path in _within(folder)]
    for folder in folders:
        if not _within(folder):
            raise ValueError(
                "runs must be folders that a finished command has written, or hold "
                f"some, got {folder}"
            )
    if not found:
        raise ValueError(f"runs_dir must hold finished runs, got {runs_dir}")
    sources, left_out = [], []
    for folder in dict.fromkeys(found):
        try:
            sources.append(read_source(folder))
        except ValueError as error:
            left_out.append(str(error))
    if not sources:
        raise ValueError("; ".join(left_out))
    parents = [s for s in sources if s.kind in {"comparison", "sweep"}]
    covered = {p.folder.parent / name for p in parents for name in p.run_folders}
    kept = [s for s in sources if s.kind != "run" or s.folder not in covered]
    order = list(_FILES.values())
    kept.sort(key=lambda s: (order.index(s.kind), s.folder.name))
    return Found(kept, left_out)


def environments(sources: Iterable[Source]) -> dict[str, list[str]]:
    """Collect where the runs of some sources were made.

    Args:
        sources: To be reported.

    Returns:
        The different values of each entry, as text, the most common first. Where there
        are several, each says of how many runs it is, and names one of them.
    """
    paths = {s.folder.parent / name for s in sources for name in s.run_folders}
    paths |= {s.folder for s in sources if s.kind in {"gsnr", "run"}}
    columns: dict[str, dict[str, list[str]]] = {}
    for path in sorted(paths):
        for name, value in _environment(path).items():
            text = "none" if value is None else str(value)
            columns.setdefault(name, {}).setdefault(text, []).append(path.name)
    return {name: _told_apart(column) for name, column in columns.items()}


def _told_apart(column: Mapping[str, Sequence[str]]) -> list[str]:
    if len(column) == 1:
        return list(column)
    ordered = sorted(column.items(), key=lambda item: -len(item[1]))
    return [
        f"{text} ({len(runs)} run{'s' * (len(runs) > 1)}, such as {runs[0]})"
        for text, runs in ordered
    ]


def _environment(run: Path) -> Mapping[str, Any]:
    """Return where a run was made, nothing where that cannot be read."""
    with contextlib.suppress(ValueError, OSError):
        value = json.loads((run / "environment.json").read_text("utf-8"))
        return value if isinstance(value, dict) else {}
    return {}


def read_source(folder: Path, name: str | None = None) -> Source:
    """Read a file of a folder, and see that it says what a reader needs.

    Args:
        folder: That a command has written.
        name: Of the file; None for the folder's main one.

    Returns:
        The source.

    Raises:
        ValueError: If a file of the folder is damaged.
    """
    name = name or main_file(folder) or ""
    source = Source(_FILES[name], folder, _read(folder / name))
    content, needed = source.content, _NEEDED[source.kind]
    missing = needed - (set(content) if isinstance(content, dict) else set())
    if missing:
        raise ValueError(f"{folder / name} lacks {', '.join(sorted(missing))}")
    if source.kind == "gsnr" and not isinstance(content, list):
        raise ValueError(f"{folder / name} must hold rows")
    for other in ("recipe.json", "environment.json"):
        source.read(other)
    return source


def _within(folder: Path) -> list[Path]:
    """Return a folder that a command has written, or all such folders in it."""
    if main_file(folder) is not None:
        return [folder]
    return [path for path in _subfolders(folder) if main_file(path) is not None]


def main_file(folder: Path) -> str | None:
    """Return the file that says what a folder is of, None of another folder.

    Args:
        folder: Any.

    Returns:
        The file's name.
    """
    return next((name for name in _FILES if (folder / name).exists()), None)


def _subfolders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir())


def _read(path: Path) -> Any:  # noqa: ANN401 - JSON
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} must be readable JSON") from error
