"""The command line: parses, calls one function, prints."""

import sys
from collections.abc import Sequence

from saiopt.cli.refusal import RefusalError, require_extras

_REFUSED = 2
_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: Instead of ``sys.argv[1:]``.

    Returns:
        Exit code: 0, 2 for bad input or a damaged run folder, 130 for Ctrl-C.
    """
    try:
        require_extras()
        from saiopt.cli.parsing import parse

        parse(sys.argv[1:] if arguments is None else arguments)()
    except RefusalError as refusal:
        sys.stderr.write(f"saiopt: {refusal}\n")
        return _REFUSED
    except KeyboardInterrupt:
        sys.stderr.write(
            "saiopt: interrupted; the same command keeps what is finished and goes on "
            "from the last checkpoint\n"
        )
        return _INTERRUPTED
    return 0
