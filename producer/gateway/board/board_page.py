"""The board's page: files that lie beside this module, and the headers that they go out with.

The page loads nothing from anywhere else, and its headers hold it to that. Its style lies in it, so
that it is painted once it has come, whatever becomes of the files that it asks for.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
from dataclasses import dataclass
from functools import cache
from importlib import resources

INDEX = "index.html"
_STYLE = "board.css"
_STYLE_LINK = f'<link rel="stylesheet" href="{_STYLE}">'.encode()
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'{style}; img-src 'self';"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none';"
    " require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Files of one release: asked for each time, and told in a word that they are the same.
    "Cache-Control": "no-cache",
    "Vary": "Accept-Encoding",
}


@dataclass(frozen=True, slots=True)
class PageFile:
    """One file of the page, plain and compressed, and the headers of both."""

    content: bytes
    gzipped: bytes
    media_type: str
    headers: dict[str, str]

    @property
    def etag(self) -> str:
        """Return the name of its content."""
        return self.headers["ETag"]


@cache
def page_files() -> dict[str, PageFile]:
    """Return the files of the page by name."""
    found = {}
    for entry in (resources.files(__package__) / "page").iterdir():
        media_type = _TYPES.get(f".{entry.name.rpartition('.')[2]}")
        if media_type is not None:
            found[entry.name] = (entry.read_bytes(), media_type)
    style = found[_STYLE][0]
    return {
        name: _styled(content, style) if name == INDEX else _page_file(content, media_type)
        for name, (content, media_type) in found.items()
    }


def _styled(index: bytes, style: bytes) -> PageFile:
    """Return the page with its style in the place of the link, which the policy names by a hash."""
    digest = base64.b64encode(hashlib.sha256(style).digest()).decode()
    content = index.replace(_STYLE_LINK, b"<style>" + style + b"</style>")
    return _page_file(content, _TYPES[".html"], f" 'sha256-{digest}'")


def _page_file(content: bytes, media_type: str, style: str = "") -> PageFile:
    # Weak: it names the content in either coding.
    etag = f'W/"{hashlib.sha256(content).hexdigest()[:16]}"'
    policy = {"Content-Security-Policy": _POLICY.format(style=style), "ETag": etag}
    return PageFile(content, gzip.compress(content, 9, mtime=0), media_type, _HEADERS | policy)
