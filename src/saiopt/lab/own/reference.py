"""What a user's file or module holds under a name."""

import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from saiopt.choices import asking


def is_reference(text: str) -> bool:
    """Tell whether a text names something of a user's, not something of the lab.

    Args:
        text: Such as ``vit-digits`` or ``my.py:recipe``.

    Returns:
        True for ``file.py:name``, ``package.module:name`` and ``file.py``.
    """
    return ":" in text or text.endswith(".py")


def resolve(argument: str, reference: str) -> object:
    """Load a file or a module, and return what it holds under a name.

    A file is loaded as if it were run from its folder: what lies beside it can be
    imported. It is loaded once, and again when it has changed.

    Args:
        argument: What the reference stands for, for messages.
        reference: ``file.py:name`` or ``package.module:name``.

    Returns:
        The object.

    Raises:
        ValueError: If there is no such file, module or name, or it cannot be loaded.
    """
    place, _, name = reference.rpartition(":")
    if not place or not name:
        raise ValueError(
            f"{argument} must be given as file.py:name, got {reference}; which name in "
            "it is meant?"
        )
    module = _load(argument, place)
    if not hasattr(module, name):
        known = [known for known in vars(module) if not known.startswith("_")]
        raise ValueError(
            f"{argument} must be a name in {place}, got {asking(name, known)}"
        )
    return getattr(module, name)


def _load(argument: str, place: str) -> ModuleType:
    try:
        if place.endswith(".py"):
            return _load_file(argument, Path(place))
        if (folder := str(Path.cwd())) not in sys.path:
            sys.path.insert(0, folder)
        return importlib.import_module(place)
    except (ValueError, KeyboardInterrupt):
        raise
    except Exception as error:  # a user's file may raise anything
        raise ValueError(
            f"{argument} must be in a file or module that can be loaded, got {place} "
            f"({type(error).__name__}{_line(error, place)}: {error})"
        ) from error


def _load_file(argument: str, path: Path) -> ModuleType:
    if not path.is_file():
        raise ValueError(f"{argument} must be in a file that exists, got {path}")
    path = path.resolve()
    # A changed file is another module, of which nothing is remembered.
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    name = f"{path.stem}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _line(error: BaseException, place: str) -> str:
    """Say where in a file an error was raised, as far as it was in that file."""
    number = error.lineno if isinstance(error, SyntaxError) else None
    trace = error.__traceback__
    while trace is not None:
        if Path(trace.tb_frame.f_code.co_filename).name == Path(place).name:
            number = trace.tb_lineno
        trace = trace.tb_next
    return "" if number is None else f" in line {number}"
