"""The page around the sections."""

from collections.abc import Sequence
from html import escape

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #5b6470; --line: #d9dee4;
  --paper: #ffffff; --link: #0060a0; --warn: #8a4b00; --mark: #eef5fb; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7eb; --soft: #9aa4b0; --line: #363c44; --paper: #1c1f23;
    --link: #6cb6f0; --warn: #f0b460; --mark: #24313d; }
  svg { filter: invert(0.89) hue-rotate(180deg); } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 60rem; color: var(--ink);
  background: var(--paper); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; }
h2 { font-size: 1.2rem; margin: 2.75rem 0 .5rem; padding-top: .75rem;
  border-top: 1px solid var(--line); overflow-wrap: anywhere; }
p { margin: .5rem 0; overflow-wrap: anywhere; }
a { color: var(--link); }
nav ul { padding: 0; margin: .75rem 0; list-style: none; }
nav li { margin: .15rem 0; overflow-wrap: anywhere; }
.note { color: var(--soft); font-size: .9rem; }
.warn { color: var(--warn); }
/* A shadow at an edge says that there is more to see beyond it. */
.scroll { overflow-x: auto; margin: .75rem 0;
  background: linear-gradient(90deg, var(--paper) 30%, transparent) left / 2.5rem 100%,
    linear-gradient(270deg, var(--paper) 30%, transparent) right / 2.5rem 100%,
    linear-gradient(90deg, #0003, transparent) left / .75rem 100%,
    linear-gradient(270deg, #0003, transparent) right / .75rem 100%;
  background-repeat: no-repeat; background-attachment: local, local, scroll, scroll; }
table { border-collapse: collapse; font-size: .9rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 500; }
th:first-child, td:first-child { text-align: left; padding-left: .25rem; }
.wrap td { white-space: normal; text-align: left; overflow-wrap: anywhere; }
.wrap td:first-child { white-space: nowrap; vertical-align: top; }
.best { font-weight: 650; background: var(--mark); }
figure { padding: 0; }
svg { display: block; width: 100%; height: auto; }
@media (max-width: 40rem) { th, td { padding: .3rem .45rem; }
  th { white-space: normal; vertical-align: bottom; } }
summary { cursor: pointer; color: var(--link); margin: .5rem 0; }
"""


def page(
    summary: str, left_out: Sequence[str], sections: Sequence[tuple[str, str]]
) -> str:
    """Write a document that needs nothing from elsewhere.

    Args:
        summary: One line under the title.
        left_out: Sentences on what could not be read.
        sections: Headings and their HTML.

    Returns:
        HTML.
    """
    links = "".join(
        f"<li><a href='#s{index}'>{escape(title)}</a></li>\n"
        for index, (title, _) in enumerate(sections)
    )
    body = "".join(
        f"<section id='s{index}'>\n<h2>{escape(title)}</h2>\n{content}</section>\n"
        for index, (title, content) in enumerate(sections)
    )
    return (
        "<!DOCTYPE html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
        f"<title>saiopt report</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>saiopt report</h1>\n<p class='note'>{escape(summary)}</p>\n"
        + "".join(f"<p class='warn'>Left out: {escape(s)}</p>\n" for s in left_out)
        + f"<nav><ul>\n{links}</ul></nav>\n{body}</body>\n</html>\n"
    )
