"""``python -m saiopt``."""

import sys

from saiopt.cli import main

sys.exit(main())
