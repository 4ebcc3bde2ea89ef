"""Self-contained HTML pages: one file with its styles, scripts and data, which loads nothing from elsewhere."""

import html
import json
from collections.abc import Iterable, Sequence

_STYLE = """\
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; color: #1f2328; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { border-bottom: 1px solid #d1d9e0; padding: .3rem .7rem; text-align: right; }
th:first-child, td:first-child { text-align: left; }
"""


def page(title: str, body: str, *, style: str = "", script: str = "", data: object = None) -> str:
    """A complete document. `body` is HTML, and `title` is text.

    `data` is anything that JSON can hold; `script`, which runs after the body, finds it in the constant `DATA`.
    """
    held = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")  # or a text with "</script>" would end it
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f"<style>\n{_STYLE}{style}</style>\n<body>\n{body}\n"
        f"<script>\nconst DATA = {held};\n{script}\n</script>\n</body>\n</html>\n"
    )


def table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A table; cells are text."""
    lines = [f"<tr>{''.join(f'<th>{escape(cell)}</th>' for cell in header)}</tr>"]
    lines += [f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows]
    return f"<table>\n{chr(10).join(lines)}\n</table>"


def escape(text: object) -> str:
    """`text` for use between tags and in attributes."""
    return html.escape(str(text))
