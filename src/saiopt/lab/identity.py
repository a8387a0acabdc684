"""What tells one run from another: hashes of its settings and of its code."""

import ast
import functools
import hashlib
import json
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
# They draw what others have measured.
_INSTALLED = frozenset({"site-packages", "dist-packages"})
_DRAWING = frozenset({"saiopt.analysis.gsnr_plot", "saiopt.analysis.image_grid"})
_C_SUFFIXES = frozenset({".c", ".h", ".cpp", ".hpp", ".cu", ".cuh"})
# Strings come first, since they may hold what looks like a comment.
_C_COMMENT = re.compile(r'("(?:\\.|[^"\\\n])*")|/\*.*?\*/|//[^\n]*', re.DOTALL)


def identity_hash(value: object) -> str:
    """Hash JSON types.

    Args:
        value: Numbers, strings, lists and dictionaries.

    Returns:
        Eight hexadecimal digits.
    """
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


@functools.cache
def code_hash(*modules: str) -> str:
    """Hash the code that some modules execute, as far as it can change a number.

    Args:
        modules: Names of modules, of this package or loaded from elsewhere.

    Returns:
        Eight hexadecimal digits, which comments, docstrings and formatting leave alone.
    """
    return identity_hash(executed(modules))


def executed(modules: Iterable[str], package: Path = _PACKAGE) -> dict[str, str]:
    """Collect the code of some modules and of all that they import from this package.

    An import counts wherever it stands, unless only type checkers see it. With a module
    count the C sources in its folder and below. What draws does not count. Of a module
    from elsewhere, what it imports from its own folder and below counts too, and
    nothing that is installed.

    Args:
        modules: Names of modules, of this package or loaded from elsewhere.
        package: Folder of this package's sources.

    Returns:
        Code without comments, docstrings and formatting, by module or file.
    """
    found: dict[str, str] = {}
    folders: set[Path] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        path = _source(name, package)
        if path is None or name in _DRAWING:
            continue
        is_ours = _is_ours(name, package)
        # A script's module has another name in the processes that it starts.
        key = name if is_ours else f"{path.parent.name}/{path.name}"
        if key in found:
            continue
        tree = ast.parse(path.read_bytes())
        found[key] = _python_form(tree)
        parent = name if path.stem == "__init__" else name.rpartition(".")[0]
        waiting += [
            n
            for n in _imports(tree, parent)
            if _is_ours(n, package) or (not is_ours and _lies_beside(n, path))
        ]
        if is_ours:
            folders.add(path.parent)
    for folder in folders:
        found |= _c_forms(folder, package)
    return found


def _is_ours(module: str, package: Path) -> bool:
    return module.partition(".")[0] == package.name


def is_written_here(module: str) -> bool:
    """Tell whether a module is a user's file, not installed and not of this package.

    Args:
        module: Its name.

    Returns:
        False of what has no file too.
    """
    path = None if _is_ours(module, _PACKAGE) else _source(module, _PACKAGE)
    return path is not None and not _is_installed(path)


def _lies_beside(module: str, path: Path) -> bool:
    """Tell whether a module lies in the folder of a user's file or below."""
    other = _source(module, _PACKAGE)
    if other is None or _is_installed(other):
        return False
    return other.resolve().is_relative_to(path.resolve().parent)


def _is_installed(path: Path) -> bool:
    places = {
        Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib")
    }
    found = path.resolve()
    return bool(_INSTALLED & set(found.parts)) or any(map(found.is_relative_to, places))


def _source(module: str, package: Path) -> Path | None:
    """Return a module's file, None of what is no module or has no source."""
    if not _is_ours(module, package):
        file = getattr(sys.modules.get(module), "__file__", None)
        return Path(file) if file and file.endswith(".py") else None
    place = package.parent.joinpath(*module.split("."))
    files = (place.with_suffix(".py"), place / "__init__.py")
    return next((file for file in files if file.is_file()), None)


def _imports(tree: ast.AST, parent: str) -> Iterator[str]:
    """Yield the names of modules that code may import, and of what it takes from them.

    Args:
        tree: The code.
        parent: The package in which it lies.

    Yields:
        Absolute names; some are of attributes, not of modules.
    """
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, parent)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and _is_for_type_checkers(node.test):
            waiting += node.orelse
        elif not isinstance(node, ast.expr):  # which holds no statement
            waiting += ast.iter_child_nodes(node)


def _absolute(node: ast.ImportFrom, parent: str) -> str:
    if not node.level:
        return node.module or ""
    parts = parent.split(".")
    above = parts[: len(parts) - node.level + 1]
    return ".".join([*above, node.module] if node.module else above)


def _is_for_type_checkers(test: ast.expr) -> bool:
    name = getattr(test, "id", None) or getattr(test, "attr", None)
    return name == "TYPE_CHECKING"


def _python_form(node: object) -> str:
    """Write code in one way, which no version of Python changes.

    ``ast.dump`` names fields that are empty in some versions and missing in others.
    """
    if isinstance(node, list):
        return " ".join(_python_form(item) for item in node if not _is_docstring(item))
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = ((name, getattr(node, name, None)) for name in node._fields)
    forms = ((name, _python_form(value)) for name, value in fields if value is not None)
    written = (f"{name}=({form})" for name, form in forms if form)
    return f"{type(node).__name__}({' '.join(written)})"


def _is_docstring(node: object) -> bool:
    # Wherever it stands, a statement that is only a constant does nothing.
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _c_forms(folder: Path, package: Path) -> dict[str, str]:
    return {
        str(path.relative_to(package)): _c_form(path.read_text("utf-8"))
        for path in folder.rglob("*")
        if path.suffix in _C_SUFFIXES
    }


def _c_form(text: str) -> str:
    bare = _C_COMMENT.sub(lambda match: match.group(1) or " ", text)
    lines = (" ".join(line.split()) for line in bare.splitlines())
    return "\n".join(line for line in lines if line)
