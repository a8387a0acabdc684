"""The examples of frameworks train, and go on after an interruption to equal bits."""

import frameworks
import pytest

RUNS = [(name, world) for name, (_, of) in frameworks.CASES.items() for world in of]


def test_every_example_is_trained_and_short():
    texts = {path.stem: path.read_text() for path in frameworks.EXAMPLES.glob("*.py")}
    assert set(texts) == set(frameworks.CASES)
    for name, text in texts.items():
        assert sum(bool(line) for line in text.splitlines()) <= 40, name


@pytest.mark.parametrize(("name", "world"), RUNS)
@pytest.mark.filterwarnings("ignore")
def test_an_example_that_is_interrupted_ends_equal(name, world, tmp_path):
    assert frameworks.resumes_equal(name, world, tmp_path)
