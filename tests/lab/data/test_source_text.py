from pathlib import Path

import pytest

from saiopt.lab.data.source_text import is_held_out, read_sources


@pytest.fixture
def roots(tmp_path: Path) -> dict[str, Path]:
    found = {name: tmp_path / f"installed-{name}" for name in ("first", "second")}
    for name, root in found.items():
        for number in range(60):
            path = root / f"part{number % 3}" / f"module{number}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"<{name} {number}>" + "x" * 400)
    return found


def marks(roots: dict[str, Path]) -> dict[str, bytes]:
    return {
        f"{name}/part{number % 3}/module{number}.py": f"<{name} {number}>".encode()
        for name in roots
        for number in range(60)
    }


def test_every_file_of_every_root_is_on_one_side_only(roots: dict[str, Path]) -> None:
    text = read_sources(roots)
    for name, mark in marks(roots).items():
        assert (mark in text.held_out) == is_held_out(name)
        assert (mark in text.train) != (mark in text.held_out)
    assert len(text.train) + len(text.held_out) > 120 * 400


def test_the_sides_do_not_depend_on_where_the_roots_lie(
    roots: dict[str, Path], tmp_path: Path
) -> None:
    before = read_sources(roots)
    moved = {name: root.rename(tmp_path / name[::-1]) for name, root in roots.items()}
    assert read_sources(dict(reversed(moved.items()))) == before


def test_files_of_the_same_path_have_sides_of_their_own(
    roots: dict[str, Path],
) -> None:
    sides = {
        is_held_out(name) == is_held_out(f"second{name[5:]}")
        for name in marks({"first": roots["first"]})
    }
    assert sides == {True, False}


def test_a_folder_of_tests_is_left_out_wherever_it_lies(
    roots: dict[str, Path],
) -> None:
    before = read_sources(roots)
    for folder in ("tests", "part0/test/deeper", "part1/idle_test"):
        (roots["first"] / folder).mkdir(parents=True)
        (roots["first"] / folder / "more.py").write_text("<left out>" * 100)
    assert read_sources(roots) == before
    (roots["first"] / "testing").mkdir()
    (roots["first"] / "testing" / "more.py").write_text("<not left out>")
    assert read_sources(roots) != before


def test_a_root_below_a_folder_of_tests_is_read(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "some.py").write_text("<some>")
    text = read_sources({"some": tmp_path / "tests"})
    assert text.train + text.held_out == b"<some>"
