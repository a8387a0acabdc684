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
from saiopt.cli.noise_perceptron import Perceptron
from saiopt.cli.noise_phase import Phase
from saiopt.cli.recipes import Recipes
from saiopt.cli.refusal import RefusalError
from saiopt.cli.report import Report
from saiopt.cli.runs import Runs
from saiopt.cli.sentences import empty_option, sentence
from saiopt.cli.sweep import Sweep
from saiopt.cli.train import Train

_COMMANDS = {
    "compare": Compare,
    "train": Train,
    "sweep": Sweep,
    "gsnr": Gsnr,
    "lr": Lr,
    "report": Report,
    "runs": Runs,
    "recipes": Recipes,
    "noise": Noise,
    "memory": Memory,
    "bench": Bench,
}
_LEAVES = {
    **{name: command for name, command in _COMMANDS.items() if command is not Noise},
    "noise perceptron": Perceptron,
    "noise phase": Phase,
}
_DESCRIPTION = """Train models with SGD-SaI and its rivals.

saiopt --version prints the version. A command ends with 0, with 3 if a run that it was
to train diverged, 2 if it refused what it was given, 1 if another process was lost, 130
after Ctrl-C, 143 after SIGTERM, and 141 if nobody reads what it prints any more.
"""


def parse(arguments: Sequence[str]) -> Callable[[], None]:
    """Read a command line.

    Args:
        arguments: Without the program's name.

    Returns:
        The command.

    Raises:
        RefusalError: If it cannot be read, or a list of values is empty.
        SystemExit: If it asked for help, which has been printed.
    """
    frame = StringIO()
    try:
        with redirect_stderr(frame):
            command = tyro.extras.subcommand_cli_from_dict(
                _COMMANDS,
                prog="saiopt",
                description=_DESCRIPTION,
                args=list(arguments),
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        message = frame.getvalue()
        raise RefusalError(sentence(message, arguments, _LEAVES)) from None
    chosen = command.study if isinstance(command, Noise) else command
    empty = empty_option(chosen, arguments)
    if empty is not None:
        raise RefusalError(empty)
    return command
