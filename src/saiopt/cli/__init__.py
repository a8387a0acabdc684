"""The command line: parses, calls one function, prints."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from importlib.metadata import version

from saiopt.cli.output import forget_stdout, open_streams
from saiopt.cli.refusal import (
    LostError,
    RefusalError,
    refusing_failures,
    require_extras,
)

_INTERRUPTED = 130
_TERMINATED = 143
_UNREAD = 141
_GOES_ON = (
    "the same command keeps what is finished and goes on from the last checkpoint, if "
    "it writes any"
)


class _TerminatedError(BaseException):
    """The process was told to end, by a scheduler or by torchrun."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: Instead of ``sys.argv[1:]``.

    Returns:
        Exit code: 0, 1 after the loss of another process, 2 for bad input or a damaged
        run folder, 3 if a run has diverged, 130 for Ctrl-C, 141 where nobody reads
        stdout any more, 143 for SIGTERM.
    """
    open_streams()
    try:
        _carry_out(sys.argv[1:] if arguments is None else arguments)
        # Otherwise the interpreter would notice at its end that nobody reads.
        sys.stdout.flush()
    except RefusalError as refusal:
        # Under torchrun every process refuses alike, and one of them says so.
        if os.environ.get("RANK", "0") == "0" or isinstance(refusal, LostError):
            sys.stderr.write(f"saiopt: {refusal}\n")
        return refusal.exit_code
    except KeyboardInterrupt:
        sys.stderr.write(f"saiopt: interrupted; {_GOES_ON}\n")
        return _INTERRUPTED
    except _TerminatedError:
        sys.stderr.write(f"saiopt: told to end; {_GOES_ON}\n")
        return _TERMINATED
    except BrokenPipeError:
        forget_stdout()
        return _UNREAD
    return 0


def _carry_out(arguments: Sequence[str]) -> None:
    if list(arguments) == ["--version"]:
        sys.stdout.write(f"saiopt {version('saiopt')}\n")
        return
    require_extras()
    with _noticing_termination(), refusing_failures():
        from saiopt.cli.parsing import parse

        parse(arguments)()


@contextlib.contextmanager
def _noticing_termination() -> Iterator[None]:
    """End with a sentence on SIGTERM.

    torchrun sends it to all other processes when one has ended, often before these
    have noticed it themselves.
    """

    def end(*_: object) -> None:
        raise _TerminatedError

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
