"""`incidents.html` of the dashboard: docs/incidents.md, as a gateway serves it without a way out.

    PYTHONPATH=build/typing:tests/support python -m house.incidents_page

writes it.
"""

from __future__ import annotations

import re
from pathlib import Path

import markdown

ROOT = Path(__file__).resolve().parents[3]
SOURCE = ROOT / "docs" / "incidents.md"
BOARD = ROOT / "producer" / "gateway" / "board" / "page" / "index.html"
PAGE = BOARD.with_name("incidents.html")
# Behind the beginning of the dashboard itself, up to its styles.
_FRAME = """\
{head}
</head>
<body>
<main class="page">
<p><a href="./">The dashboard</a></p>
{body}
</main>
</body>
</html>
"""
# Other pages of docs/ are not served.
_LINK = re.compile(r'<a href="[\w./-]+\.md(?:#[\w-]+)?">([\w.]+)</a>')


def written() -> str:
    """Return the page."""
    body = markdown.markdown(SOURCE.read_text(encoding="utf-8"), extensions=["fenced_code", "toc"])
    head = BOARD.read_text(encoding="utf-8").partition('\n<link rel="modulepreload"')[0]
    head = head.replace("<title>tokenbus", "<title>Incidents · tokenbus")
    return _FRAME.format(head=head, body=_LINK.sub(r"<code>docs/\1</code>", body))


if __name__ == "__main__":
    PAGE.write_text(written(), encoding="utf-8")
