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
        runs: Folders to report, of runs or of other runs folders.
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
            found = find_sources(self.runs, self.runs_dir)
        was_there = self.output.exists()
        try:
            left_out = write_report(found, self.output)
        except OSError as error:
            raise RefusalError(
                f"output must be a file that can be written, got {self.output}"
            ) from error
        console = new_console()
        for sentence in left_out:
            console.print(f"Left out: {sentence}", style="yellow", soft_wrap=True)
        replaced = ", in place of the one before" if was_there else ""
        console.print(f"Report: {self.output}{replaced}", soft_wrap=True)
