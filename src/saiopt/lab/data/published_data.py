"""Data sets and models in the form in which they are published."""

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar

from saiopt.lab.atomic import full_disk
from saiopt.lab.data.cache_folder import make_cache_folder

if TYPE_CHECKING:
    from datasets import Dataset

_T = TypeVar("_T")
_TABLES = {
    "parquet": "parquet",
    "arrow": "arrow",
    "jsonl": "json",
    "json": "json",
    "csv": "csv",
}


class _SplitError(FileNotFoundError):
    """A folder of data is there, but not with the split that is asked for."""


def require(package: str, extra: str) -> ModuleType:
    """Import a package that only some recipes need.

    Args:
        package: Its name.
        extra: The extra that installs it.

    Returns:
        The package.

    Raises:
        FileNotFoundError: If it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise FileNotFoundError(
            f"this recipe needs the package {package}, install it with "
            f"pip install 'saiopt[{extra}]'"
        ) from error


def read_table(source: str, split: str, columns: tuple[str, ...]) -> "Dataset":
    """Open one split of a data set.

    Args:
        source: The data set's name on the hub; or a folder that ``save_to_disk`` wrote,
            with files such as ``train-00000.parquet`` (also .arrow, .jsonl, .csv), or
            with images in ``train/<class>/``.
        split: Such as ``"train"``.
        columns: What it must have.

    Returns:
        The rows.

    Raises:
        FileNotFoundError: If it cannot be had, lacks the split or a column, or its
            images have other classes than those of ``train``.
    """
    datasets = require("datasets", "published")
    path = Path(source)
    if path.exists():
        table = _obtain(source, "data", lambda: _read_folder(datasets, path, split))
    else:
        cache = str(make_cache_folder() / "datasets")
        table = _obtain(
            source,
            "data",
            lambda: datasets.load_dataset(source, split=split, cache_dir=cache),
        )
    missing = [name for name in columns if name not in table.column_names]
    if missing:
        raise FileNotFoundError(
            f"task.data must have the columns {', '.join(columns)}, got {source} with "
            f"{', '.join(table.column_names)}"
        )
    return table


def read_checkpoint(source: str, field: str, load: Callable[[str], _T]) -> _T:
    """Load a checkpoint or a tokenizer.

    Args:
        source: Its name on the hub, or its folder.
        field: The task's field that names it.
        load: Called with ``source``; such as a ``from_pretrained``.

    Returns:
        What ``load`` returns.

    Raises:
        FileNotFoundError: If it cannot be had.
    """
    return _obtain(source, field, lambda: load(source))


def _read_folder(datasets: ModuleType, path: Path, split: str) -> "Dataset":
    if (path / "state.json").exists():
        return _only_table(datasets.load_from_disk(str(path)), path, split)
    if (path / "dataset_dict.json").exists():
        tables = datasets.load_from_disk(str(path))
        if split not in tables:
            raise _lacks(path, split, f"with {', '.join(tables)} only")
        return tables[split]
    cache = str(make_cache_folder() / "datasets")
    for suffix, kind in _TABLES.items():
        files = sorted(str(file) for file in path.rglob(f"{split}*.{suffix}"))
        if files:
            return datasets.load_dataset(
                kind, data_files=files, split="train", cache_dir=cache
            )
    if not (path / split).is_dir():
        raise _lacks(path, split, "without it")
    _check_classes(path, split)
    return datasets.load_dataset(
        "imagefolder", data_dir=str(path / split), split="train", cache_dir=cache
    )


def _only_table(table: "Dataset", path: Path, split: str) -> "Dataset":
    """Return the table of a folder that holds one, if it is the split."""
    # A part of a split is named like train[:10%].
    held = str(table.split or "train").split("[")[0]
    if held != split:
        raise _lacks(path, split, f"with {held} only")
    return table


def _check_classes(path: Path, split: str) -> None:
    """See that numbers mean the same classes in all splits of a folder of images."""
    if not (path / "train").is_dir():
        return
    asked, trained = _classes(path / split), _classes(path / "train")
    if asked != trained:
        differing = ", ".join(sorted(asked ^ trained)[:3])
        raise _SplitError(
            f"task.data must have the same classes in {split} as in train, got {path} "
            f"with {differing} in one of them"
        )


def _classes(folder: Path) -> set[str]:
    visible = (entry for entry in folder.iterdir() if not entry.name.startswith("."))
    return {entry.name for entry in visible if entry.is_dir()}


def _lacks(path: Path, split: str, how: str) -> _SplitError:
    return _SplitError(f"task.data must have the split {split}, got {path} {how}")


def _is_missing_folder(source: str) -> bool:
    """Tell whether a source is no folder here, and cannot be a name on the hub."""
    is_path = source.count("/") != 1 or source.startswith((".", "/", "~"))
    return is_path and not Path(source).expanduser().exists()


def _obtain(source: str, field: str, load: Callable[[], _T]) -> _T:
    if _is_missing_folder(source):
        raise FileNotFoundError(
            f"task.{field} must be a folder that exists, or owner/name on the hub, got "
            f"{source}"
        )
    try:
        return load()
    except Exception as error:  # the hub's clients raise whatever their parts raise
        if isinstance(error, _SplitError) or full_disk(error) is not None:
            raise
        kind = "dataset" if field == "data" else "model"
        raise FileNotFoundError(
            f"task.{field} must be a folder or in reach on the hub, got {source}; with "
            f"a network, fetch it by 'hf download --repo-type {kind} {source} "
            f"--local-dir FOLDER' and give --set task.{field}=FOLDER "
            f"({type(error).__name__})"
        ) from error
