"""The sources of installed packages as text."""

import dataclasses
import importlib.util
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from saiopt.lab.data.source_text import SourceText, read_sources
from saiopt.lab.identity import identity_hash


def read_packages(packages: Mapping[str, str]) -> SourceText:
    """Read the ``.py`` files of installed packages, without their tests.

    The fingerprint follows the packages' versions too, so that nothing that was trained
    on one of them is taken for a run on another.

    Args:
        packages: Name of the module by name of the package.

    Returns:
        Training and held-out text, as :func:`read_sources` splits it by names that
        begin with the module's.

    Raises:
        FileNotFoundError: If a package is missing, or has no source files.
    """
    found = {name: _located(name, module) for name, module in packages.items()}
    roots = {packages[name]: root for name, (root, _) in found.items()}
    versions = {name: held for name, (_, held) in found.items()}
    text = read_sources(roots)
    mark = identity_hash([versions, text.fingerprint])
    return dataclasses.replace(text, fingerprint=mark)


def _located(package: str, module: str) -> tuple[Path, str]:
    """Return a package's folder, found without importing it, and its version."""
    spec = importlib.util.find_spec(module)
    places = (spec and spec.submodule_search_locations) or []
    root = next((Path(p) for p in places if any(Path(p).rglob("*.py"))), None)
    try:
        if root is not None:
            return root, version(package)
    except PackageNotFoundError:
        pass
    raise FileNotFoundError(
        f"this recipe reads the .py source files of the package {package}, install it "
        "with pip install 'saiopt[lab]'"
    )
