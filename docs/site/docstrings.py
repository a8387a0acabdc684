"""The house's docstrings in the words of Markdown."""

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|mod):`~?([\w.]+)`")


class HouseDocstrings(griffe.Extension):
    """Turn references, sections and code of reStructuredText into Markdown's."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:  # noqa: ANN401
        """Rewrite the docstring of what was found.

        Args:
            obj: a module, class, function or attribute.
        """
        if obj.docstring is None:
            return
        text = _ROLE.sub(lambda found: _reference(found[1], obj), obj.docstring.value)
        text = re.sub(r"::\n\n", ":\n\n", text)
        obj.docstring.value = re.sub(r"(?m)^Example:$", "Examples:", text)


def _reference(name: str, obj: griffe.Object) -> str:
    """Return a link where the site has the name, else the name as code."""
    # A name without a module is one of the same module's.
    full = name if "." in name else f"{obj.module.path}.{name}"
    shown = name.removeprefix("saiopt.")
    return f'<autoref optional identifier="{full}"><code>{shown}</code></autoref>'
