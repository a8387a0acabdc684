"""``saiopt report``."""

import dataclasses
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from saiopt.cli.output import new_console
from saiopt.cli.refusal import RefusalError, refusing


@dataclasses.dataclass(frozen=True)
class Report:
    """Put comparisons, sweeps, g-SNR and runs on one page of HTML.

    Args:
        runs: Folders to report.
        runs_dir: Reported as a whole where no folders are named.
        output: File to write.
    """

    runs: Annotated[
        Positional[tuple[Path, ...]],
        arg(metavar="[FOLDER ...]", help_behavior_hint="(default: all in runs-dir)"),
    ] = ()
    runs_dir: Annotated[Path, arg(metavar="FOLDER")] = Path("runs")
    output: Annotated[Path, arg(metavar="FILE")] = Path("report.html")

    def __call__(self) -> None:
        """Write the page."""
        from saiopt.lab.report.sources import find_sources
        from saiopt.lab.report.write import write_report

        with refusing(ValueError):
            sources = find_sources(self.runs, self.runs_dir)
        try:
            write_report(sources, self.output)
        except OSError as error:
            raise RefusalError(
                f"output must be a file that can be written, got {self.output}"
            ) from error
        new_console().print(f"Report: {self.output}", soft_wrap=True)
