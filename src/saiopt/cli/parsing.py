"""From arguments to a command that can be called."""

from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from io import StringIO

import tyro

from saiopt.cli.compare import Compare
from saiopt.cli.gsnr import Gsnr
from saiopt.cli.recipes import Recipes
from saiopt.cli.refusal import RefusalError
from saiopt.cli.train import Train

_COMMANDS = {"compare": Compare, "train": Train, "gsnr": Gsnr, "recipes": Recipes}


def parse(arguments: Sequence[str]) -> Callable[[], None]:
    """Read a command line.

    Args:
        arguments: Without the program's name.

    Returns:
        The command.

    Raises:
        RefusalError: If it cannot be read.
        SystemExit: If it asked for help, which has been printed.
    """
    frame = StringIO()
    try:
        with redirect_stderr(frame):
            return tyro.extras.subcommand_cli_from_dict(
                _COMMANDS,
                prog="saiopt",
                description="Train models with SGD-SaI and its rivals.",
                args=list(arguments),
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise RefusalError(_sentence(frame.getvalue())) from None


def _sentence(frame: str) -> str:
    """Return the first sentence of a framed message."""
    lines = [line.strip("│ ") for line in frame.splitlines()[1:-1]]
    rule = next((i for i, line in enumerate(lines) if line.startswith("─")), None)
    return " ".join(lines[:rule]).partition(". ")[0]
