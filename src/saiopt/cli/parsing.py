"""From arguments to a command that can be called."""

from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from io import StringIO

import tyro

from saiopt.cli.bench import Bench
from saiopt.cli.compare import Compare
from saiopt.cli.gsnr import Gsnr
from saiopt.cli.lr import Lr
from saiopt.cli.memory import Memory
from saiopt.cli.noise import Noise
from saiopt.cli.recipes import Recipes
from saiopt.cli.refusal import RefusalError
from saiopt.cli.report import Report
from saiopt.cli.sweep import Sweep
from saiopt.cli.train import Train

_COMMANDS = {
    "compare": Compare,
    "train": Train,
    "sweep": Sweep,
    "gsnr": Gsnr,
    "lr": Lr,
    "report": Report,
    "recipes": Recipes,
    "noise": Noise,
    "memory": Memory,
    "bench": Bench,
}


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


def _sentence(message: str) -> str:
    """Return the first sentence under the title of a message, framed or not."""
    paragraphs: list[list[str]] = [[]]
    for line in message.splitlines():
        text = line.strip("│ ")
        if line.startswith(("╭", "╰")) or not text.strip("─-"):
            paragraphs.append([])
        else:
            paragraphs[-1].append(text)
    filled = [paragraph for paragraph in paragraphs if paragraph]
    # A frame has the title in its border, plain text above a rule.
    body = filled[0] if "╭" in message else filled[1]
    return " ".join(body).partition(". ")[0]
