"""An upload: a form of fields and one file, bounded in size and in silence."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from baton.errors import InvalidRequest, refuse, unsupported
from baton.router.config import RouterConfig
from baton.router.http_request import BodyTooLong, BodyTooSlow

PURPOSES = ("batch",)
_FORM_NBYTES = 2**16
"""Of the form around the file."""


async def read_upload(http: Request, config: RouterConfig) -> tuple[UploadFile, str]:
    """Read the form; return the file, which the caller closes, and its purpose.

    Raises:
        InvalidRequest: it is no such form, too long, too slow, or has a field that is not served.
    """
    kind = http.headers.get("content-type", "")
    if not kind.startswith("multipart/form-data"):
        raise refuse(
            "content-type", kind[:80], "a file is sent as multipart/form-data", "Send fields file and purpose."
        )
    try:
        parser = MultiPartParser(
            http.headers, _bounded(http, config), max_files=1, max_fields=8, max_part_size=_FORM_NBYTES
        )
        form = await parser.parse()
    except MultiPartException as error:
        raise InvalidRequest(f"The form is not valid: {error.message}", field="file") from None
    try:
        return _file_of(form)
    except BaseException:
        await form.close()
        raise


def _file_of(form: FormData) -> tuple[UploadFile, str]:
    for name in form:
        if name not in ("file", "purpose"):
            reason = "files stay until they are deleted" if name.startswith("expires_after") else "it is not served"
            raise unsupported(name[:80], form[name], reason)
    file, purpose = form.get("file"), form.get("purpose")
    if not isinstance(file, UploadFile):
        raise InvalidRequest("file is missing: send the bytes of a file, with its name.", field="file")
    if purpose not in PURPOSES:
        raise refuse("purpose", purpose, f"served is {', '.join(PURPOSES)}")
    return file, str(purpose)


async def _bounded(http: Request, config: RouterConfig) -> AsyncGenerator[bytes, None]:
    limit, nbytes = config.max_file_nbytes, 0
    parts = http.stream()
    while True:
        try:
            async with asyncio.timeout(config.body_timeout_s):
                part = await anext(parts, None)
        except TimeoutError:
            raise BodyTooSlow(f"Nothing of the file arrived for {config.body_timeout_s:g} s.") from None
        except ClientDisconnect:
            raise InvalidRequest("The upload broke off.") from None
        if part is None:
            return
        nbytes += len(part)
        if nbytes > limit + _FORM_NBYTES:
            raise BodyTooLong(
                f"file is not valid: at most {limit} bytes are taken. Send several, or raise --max-file-nbytes.",
                field="file",
                code="file_too_long",
            )
        yield part
