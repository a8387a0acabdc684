"""What there is to report on."""

import dataclasses
import json
from collections.abc import Iterable, Sequence
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
    def run_folders(self) -> list[str]:
        """Names of the runs that this is made of."""
        if self.kind == "comparison":
            return [run["folder"] for run in self.content["runs"]]
        if self.kind == "sweep":
            cells = [c for o in self.content["optimizers"] for c in o["cells"]]
            return [name for cell in cells for name in cell["folders"]]
        return [self.folder.name]


def find_sources(folders: Sequence[Path], runs_dir: Path) -> list[Source]:
    """Read folders, or all of a runs folder.

    Args:
        folders: Chosen ones; none for all that ``runs_dir`` holds.
        runs_dir: Where run folders live.

    Returns:
        Comparisons, sweeps, measurements of g-SNR, and runs that are in none of the
        comparisons and sweeps, each in the order of their names.

    Raises:
        ValueError: If a chosen folder holds nothing, nothing is there, or a file is
            damaged.
    """
    for folder in folders:
        if _main_file(folder) is None:
            raise ValueError(
                "runs must be folders that a finished command has written, got "
                f"{folder}"
            )
    found = folders or [f for f in _subfolders(runs_dir) if _main_file(f) is not None]
    if not found:
        raise ValueError(f"runs_dir must hold finished runs, got {runs_dir}")
    sources = [_source(folder) for folder in found]
    parents = [s for s in sources if s.kind in {"comparison", "sweep"}]
    covered = {name for parent in parents for name in parent.run_folders}
    kept = [s for s in sources if s.kind != "run" or s.folder.name not in covered]
    order = list(_FILES.values())
    return sorted(kept, key=lambda s: (order.index(s.kind), s.folder.name))


def environments(sources: Iterable[Source]) -> dict[str, list[str]]:
    """Collect where the runs of some sources were made.

    Args:
        sources: To be reported.

    Returns:
        The different values of each entry, as text, the most common first.
    """
    paths = {s.folder.parent / name for s in sources for name in s.run_folders}
    paths |= {s.folder for s in sources if s.kind in {"gsnr", "run"}}
    counts: dict[str, dict[str, int]] = {}
    for path in sorted(paths):
        file = path / "environment.json"
        for name, value in (_read(file) if file.exists() else {}).items():
            column = counts.setdefault(name, {})
            text = "none" if value is None else str(value)
            column[text] = column.get(text, 0) + 1
    return {
        name: sorted(column, key=lambda text: -column[text])
        for name, column in counts.items()
    }


def _source(folder: Path) -> Source:
    name = _main_file(folder) or ""
    return Source(_FILES[name], folder, _read(folder / name))


def _main_file(folder: Path) -> str | None:
    return next((name for name in _FILES if (folder / name).exists()), None)


def _subfolders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir())


def _read(path: Path) -> Any:  # noqa: ANN401 - JSON
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path.name} must be readable JSON, got {path}") from error
