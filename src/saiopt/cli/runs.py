"""``saiopt runs``."""

import dataclasses
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from saiopt.cli.output import new_console, print_json, print_tables
from saiopt.cli.refusal import RefusalError


@dataclasses.dataclass(frozen=True)
class Runs:
    """List all finished runs, one row each.

    Args:
        folders: Runs folders, such as those of several machines.
        csv: Write all columns to this file.
        json: Print JSON only, with all columns.
    """

    folders: Annotated[
        Positional[tuple[Path, ...]],
        arg(metavar="[FOLDER ...]", help_behavior_hint="(default: runs)"),
    ] = ()
    csv: Annotated[Path | None, arg(metavar="PATH", help_behavior_hint="")] = None
    json: Annotated[bool, arg(help_behavior_hint="")] = False

    def __call__(self) -> None:
        """Print the table, or write it."""
        from saiopt.lab.report.run_list import run_list
        from saiopt.lab.report.run_table import find_runs, write_csv

        folders = self.folders or (Path("runs"),)
        found = find_runs(folders)
        if not found.rows:
            listed = " ".join(map(str, folders))
            raise RefusalError(f"folders must hold finished runs, got {listed}")
        if self.csv is not None:
            try:
                with self.csv.open("w", newline="", encoding="utf-8") as file:
                    write_csv(found.rows, file)
            except OSError as error:
                raise RefusalError(
                    f"csv must be a file that can be written, got {self.csv}"
                ) from error
        if self.json:
            print_json(found.rows)
            return
        console = new_console()
        print_tables(console, run_list(found.rows))
        for sentence in found.left_out:
            console.print(f"Left out: {sentence}", style="yellow", soft_wrap=True)
        if self.csv is not None:
            console.print(f"\nAll columns: {self.csv}", soft_wrap=True)
