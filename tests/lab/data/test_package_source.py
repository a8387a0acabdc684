import importlib
import shutil
from pathlib import Path

import pytest

from saiopt.lab.data.package_source import read_packages
from saiopt.lab.data.source_text import read_sources

PACKAGES = {"first-package": "firstpackage", "second": "second"}


def install(site: Path, package: str, version: str) -> Path:
    for old in site.glob(f"{package.replace('-', '_')}-*.dist-info"):
        shutil.rmtree(old)
    info = site / f"{package.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Name: {package}\nVersion: {version}\n")
    folder = site / PACKAGES[package]
    folder.mkdir(exist_ok=True)
    # To import it would fail.
    (folder / "__init__.py").write_text("raise RuntimeError\n")
    importlib.invalidate_caches()
    return folder


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    for package in PACKAGES:
        folder = install(tmp_path, package, "1.0")
        for number in range(20):
            (folder / f"module{number}.py").write_text(f"<{package} {number}>")
    return tmp_path


def test_the_sources_of_all_packages_are_read_without_importing_them(
    site: Path,
) -> None:
    text = read_packages(PACKAGES)
    plain = read_sources({module: site / module for module in PACKAGES.values()})
    assert (text.train, text.held_out) == (plain.train, plain.held_out)
    assert b"<first-package 7>" in text.train + text.held_out
    assert read_packages(PACKAGES) == text


def test_the_fingerprint_follows_text_and_versions(site: Path) -> None:
    found = [read_packages(PACKAGES)]
    (site / "second" / "module1.py").write_text("<something else>")
    found.append(read_packages(PACKAGES))
    install(site, "second", "1.1")
    found.append(read_packages(PACKAGES))
    assert len({text.fingerprint for text in found}) == 3
    assert (found[1].train, found[1].held_out) == (found[2].train, found[2].held_out)
    install(site, "second", "1.0")
    assert read_packages(PACKAGES) == found[1]


@pytest.mark.parametrize("what", ["folder", "sources", "version"])
def test_a_missing_package_is_named_in_one_sentence(site: Path, what: str) -> None:
    if what == "folder":
        shutil.rmtree(site / "firstpackage")
    elif what == "sources":
        for path in (site / "firstpackage").glob("*.py"):
            path.rename(path.with_suffix(".pyc"))
    else:
        [info] = site.glob("first_package-*.dist-info")
        shutil.rmtree(info)
    importlib.invalidate_caches()
    with pytest.raises(FileNotFoundError, match=r"package first-package, install it"):
        read_packages(PACKAGES)
