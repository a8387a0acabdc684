"""A contract for import-linter: no circle between files."""

import itertools
from collections.abc import Sequence

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, output


class NoCircles(Contract):
    """No file imports itself by way of others.

    Imports inside functions and under ``TYPE_CHECKING`` count, and a package's
    ``__init__`` is a file like any other. The contract ``acyclic_siblings`` of
    import-linter asks for something else: it compares whole folders, and leaves out
    what an ``__init__`` and the files beside it import from each other.
    """

    type_name = "no_circles"

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        """Look for circles.

        Args:
            graph: The files and what they import.
            verbose: Changes nothing.

        Returns:
            Whether there is none; ``circles`` has the imports of each as text.
        """
        circles = [_imports(graph, circle) for circle in find_circles(graph)]
        return ContractCheck(kept=not circles, metadata={"circles": circles})

    def render_broken_contract(self, check: ContractCheck) -> None:
        """Print every circle, one import per line.

        Args:
            check: From :meth:`check`.
        """
        for first, *others in check.metadata["circles"]:
            output.print_error(f"- {first}", bold=False)
            for line in others:
                output.print_error(f"  {line}", bold=False)
            output.new_line()


def find_circles(graph: ImportGraph) -> list[tuple[str, ...]]:
    """Find circles of imports, at least one where there is any.

    Args:
        graph: The files and what they import.

    Returns:
        The files of each circle, from the first in the alphabet back to it: for each
        import of that file the shortest circle that starts so.
    """
    return [
        (importer, *way_back)
        for importer in sorted(graph.modules)
        for imported in sorted(graph.find_modules_directly_imported_by(importer))
        if (way_back := _shortest_way(graph, imported, importer))
        and importer == min(way_back)
    ]


def _shortest_way(graph: ImportGraph, start: str, end: str) -> tuple[str, ...] | None:
    # grimp raises where a file imports itself.
    return (end,) if start == end else graph.find_shortest_chain(start, end)


def _imports(graph: ImportGraph, circle: Sequence[str]) -> list[str]:
    lines = []
    for importer, imported in itertools.pairwise(circle):
        found = graph.get_import_details(importer=importer, imported=imported)
        numbers = ", ".join(f"l.{detail['line_number']}" for detail in found)
        lines.append(f"{importer} -> {imported} ({numbers})")
    return lines
