"""Data sets and models in the form in which they are published."""

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar

from saiopt.lab.atomic import full_disk
from saiopt.lab.pretraining import cache_folder

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
        FileNotFoundError: If it cannot be had, or lacks a column.
    """
    datasets = require("datasets", "published")
    path = Path(source)
    if path.exists():
        table = _obtain(source, "data", lambda: _read_folder(datasets, path, split))
    else:
        cache = str(cache_folder() / "datasets")
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
        return datasets.load_from_disk(str(path))
    if (path / "dataset_dict.json").exists():
        return datasets.load_from_disk(str(path))[split]
    cache = str(cache_folder() / "datasets")
    for suffix, kind in _TABLES.items():
        files = sorted(str(file) for file in path.rglob(f"{split}*.{suffix}"))
        if files:
            return datasets.load_dataset(
                kind, data_files=files, split="train", cache_dir=cache
            )
    if not (path / split).is_dir():
        raise FileNotFoundError(f"no {split} in {path}")
    return datasets.load_dataset(
        "imagefolder", data_dir=str(path / split), split="train", cache_dir=cache
    )


def _obtain(source: str, field: str, load: Callable[[], _T]) -> _T:
    try:
        return load()
    except Exception as error:  # the hub's clients raise whatever their parts raise
        if full_disk(error) is not None:
            raise
        kind = "dataset" if field == "data" else "model"
        raise FileNotFoundError(
            f"task.{field} must be a folder or in reach on the hub, got {source}; with "
            f"a network, fetch it by 'hf download --repo-type {kind} {source} "
            f"--local-dir FOLDER' and give --set task.{field}=FOLDER "
            f"({type(error).__name__})"
        ) from error
