"""Where commands print."""

import json
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def new_console() -> "Console":
    """Open stdout for tables."""
    from rich.console import Console

    return Console(highlight=False)


def print_json(value: object) -> None:
    """Print JSON and nothing else.

    Args:
        value: JSON types.
    """
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")
