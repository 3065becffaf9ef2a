"""The page's files, read once. They hold no data, so they need no key; what they ask for does."""

from __future__ import annotations

from importlib.resources import files

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.responses import Response

_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
"""Nothing from elsewhere, nothing inline, no text read as markup: what a model wrote can start no script, whatever it is."""
_HEADERS = {
    "content-security-policy": CSP,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def page_routes() -> APIRouter:
    """Serve the page at `/` and what it loads under `/page/`."""
    routes = APIRouter(include_in_schema=False)
    found = {file.name: file.read_bytes() for file in files(__package__).iterdir() if _type(file.name)}

    @routes.get("/")
    async def index() -> Response:
        return _file("index.html")

    @routes.get("/page/{name}")
    async def file(name: str) -> Response:
        return _file(name)

    def _file(name: str) -> Response:
        if name not in found:
            raise HTTPException(404)
        return Response(found[name], media_type=_type(name), headers=_HEADERS)

    return routes


def _type(name: str) -> str | None:
    return _TYPES.get(name.rpartition(".")[2])
