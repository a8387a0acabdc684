"""The house's docstrings in the words of Markdown."""

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(class|func|meth|mod):`~?([\w.]+)`")
_SOURCES = re.compile(r"^References:\n((?: +\S.*\n?)+)", re.MULTILINE)


class HouseDocstrings(griffe.Extension):
    """Turn references, sections and code of reStructuredText into Markdown's."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:  # noqa: ANN401
        """Rewrite the docstring of what was found.

        Args:
            obj: a module, class, function or attribute.
        """
        if obj.docstring is None:
            return
        text = _ROLE.sub(lambda found: _link(*found.groups(), obj), obj.docstring.value)
        text = text.replace("::\n\n", ":\n\n")
        text = re.sub(r"(?m)^Example:$", "Examples:", text)
        obj.docstring.value = _SOURCES.sub(_as_paragraph, text)


def _link(role: str, name: str, obj: griffe.Object) -> str:
    """Return a link where the site has the name, else the name as code."""
    home = obj.module
    if role == "meth":
        home = obj if obj.is_class else obj.parent
    full = name if name.startswith(("saiopt.", "torch.")) else f"{home.path}.{name}"
    shown = name.removeprefix("saiopt.")
    return f'<autoref optional identifier="{full}"><code>{shown}</code></autoref>'


def _as_paragraph(sources: re.Match[str]) -> str:
    return f"**Source:** {' '.join(sources[1].split())}\n"
