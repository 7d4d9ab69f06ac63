"""The page at `/`: a conversation in the browser, and the tree of every step."""

from importlib import resources

from fastapi import FastAPI
from fastapi.responses import Response

_FILES = {
    "index.html": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "api.js": "text/javascript; charset=utf-8",
    "reply.js": "text/javascript; charset=utf-8",
    "markdown.js": "text/javascript; charset=utf-8",
    "tree.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}

_HEADERS = {
    # Nothing from elsewhere, and no script that stands in the text of a reply.
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def _path(name: str) -> str:
    return "/" if name == "index.html" else f"/static/{name}"


PAGE_PATHS = frozenset(map(_path, _FILES))
"""Paths of the page, which needs no key; what it asks for does."""


def add_page(app: FastAPI) -> None:
    """Adds the page's files to an application."""
    folder = resources.files("medusa_trt.serving") / "static"
    for name, media_type in _FILES.items():
        _add_file(app, _path(name), (folder / name).read_bytes(), media_type)


def _add_file(app: FastAPI, path: str, data: bytes, media_type: str) -> None:
    @app.get(path, include_in_schema=False)
    async def get_file() -> Response:
        return Response(data, media_type=media_type, headers=_HEADERS)
