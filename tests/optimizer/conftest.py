import pytest

from saiopt.optimizer import binding, sgdsai
from saiopt.update import library

# Options under which an optimizer takes an execution on this machine.
ASKED = {
    "fused": {},
    "two_pass": {},
    "foreach": {"foreach": True},
    "reference": {"foreach": False},
}


@pytest.fixture(params=ASKED)
def every_execution(request, monkeypatch):
    """The options that ask for an execution, one after the other."""
    reason = library.load()
    if request.param == "fused" and isinstance(reason, str):
        pytest.skip(f"no kernel: {reason}")
    if request.param == "two_pass":
        monkeypatch.setattr(library, "load", lambda: "no compiler")
        monkeypatch.setattr(binding, "warn_of_slow_codes", lambda: None)
    return ASKED[request.param]


@pytest.fixture
def bindings(monkeypatch):
    """Counts how often blocks are bound."""
    made = []

    class Counted(sgdsai.Binding):
        def __init__(self, *arguments):
            made.append(self)
            super().__init__(*arguments)

    monkeypatch.setattr(sgdsai, "Binding", Counted)
    return made
