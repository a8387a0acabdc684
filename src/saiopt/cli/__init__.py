"""The command line: parses, calls one function, prints."""

import os
import sys
from collections.abc import Sequence

from saiopt.cli.refusal import (
    LostError,
    RefusalError,
    refusing_failures,
    require_extras,
)

_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: Instead of ``sys.argv[1:]``.

    Returns:
        Exit code: 0, 1 after the loss of another process, 2 for bad input or a damaged
        run folder, 130 for Ctrl-C.
    """
    try:
        require_extras()
        with refusing_failures():
            from saiopt.cli.parsing import parse

            parse(sys.argv[1:] if arguments is None else arguments)()
    except RefusalError as refusal:
        # Under torchrun every process refuses alike, and one of them says so.
        if os.environ.get("RANK", "0") == "0" or isinstance(refusal, LostError):
            sys.stderr.write(f"saiopt: {refusal}\n")
        return refusal.exit_code
    except KeyboardInterrupt:
        sys.stderr.write(
            "saiopt: interrupted; the same command keeps what is finished and goes on "
            "from the last checkpoint\n"
        )
        return _INTERRUPTED
    return 0
