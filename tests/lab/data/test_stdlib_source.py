from pathlib import Path

import pytest

from saiopt.lab.data.stdlib_source import read_stdlib


@pytest.fixture
def library(tmp_path: Path) -> Path:
    for number in range(60):
        path = tmp_path / f"package{number % 3}" / f"module{number}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"<file {number}>" + "x" * 4000)
    return tmp_path


def test_whole_files_are_held_out(library: Path) -> None:
    text = read_stdlib(library)
    for number in range(60):
        mark = f"<file {number}>".encode()
        assert (mark in text.train) != (mark in text.held_out)
    assert 0 < len(text.held_out) < len(text.train)


def test_tests_and_installed_packages_are_left_out(library: Path) -> None:
    before = read_stdlib(library)
    for folder in ("test", "package0/tests", "site-packages/numpy"):
        (library / folder).mkdir(parents=True)
        (library / folder / "more.py").write_text("<left out>" * 1000)
    assert read_stdlib(library) == before


def test_a_file_keeps_its_side_when_others_come_and_go(library: Path) -> None:
    before = read_stdlib(library)
    (library / "package0" / "module0.py").unlink()
    after = read_stdlib(library)
    for number in range(1, 60):
        mark = f"<file {number}>".encode()
        assert (mark in before.train) == (mark in after.train)
    assert after.fingerprint != before.fingerprint


def test_the_fingerprint_follows_the_text(library: Path) -> None:
    before = read_stdlib(library).fingerprint
    assert read_stdlib(library).fingerprint == before
    (library / "package1" / "module1.py").write_text("y" * 4013)
    assert read_stdlib(library).fingerprint != before


def test_missing_sources_are_named_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"\.py source files .*, got 0 bytes"):
        read_stdlib(tmp_path)
