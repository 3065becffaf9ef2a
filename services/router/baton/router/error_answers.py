"""How errors are answered: one error object, whatever failed."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from baton.errors import BatonError
from baton.router.admission import Refused
from baton.router.auth import NotAuthorized
from baton.router.json_response import JSON
from baton.router.openai.refusals import error_object, error_of, failure_object


def answer_errors(app: FastAPI) -> None:
    """Answer every exception of an application with an error object."""
    app.add_exception_handler(BatonError, _on_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_failure)


async def _on_error(_http: Request, error: Exception) -> Response:
    assert isinstance(error, BatonError)
    headers = {}
    if isinstance(error, Refused):
        headers["retry-after"] = str(error.retry_after_s)
    elif error.retryable:
        headers["retry-after"] = "1"
    if isinstance(error, NotAuthorized):
        headers["www-authenticate"] = "Bearer"
    return JSON(error_of(error), status_code=error.status, headers=headers)


async def _on_http_error(http: Request, error: Exception) -> Response:
    """What the framework refuses: unknown paths and methods."""
    assert isinstance(error, HTTPException)
    path = http.scope["path"][:80]
    missing = f"There is no {path} here."
    if path in ("/chat/completions", "/completions", "/models"):
        missing += f" There is /v1{path}: end the base URL with /v1."
    message = {404: missing, 405: f"{http.method} is not served on {path}."}.get(error.status_code, str(error.detail))
    return JSON(error_object(message, error.status_code), status_code=error.status_code, headers=error.headers)


async def _on_failure(http: Request, _error: Exception) -> Response:
    """A mistake of ours; the envelope logs it."""
    return JSON(failure_object(http.scope["state"]["request_id"]), status_code=500)
