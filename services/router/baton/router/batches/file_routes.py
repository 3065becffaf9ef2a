"""/v1/files: upload, list, look at, read, delete. A file is its key's own."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from baton.errors import InvalidRequest
from baton.router.batches.batches import Batches
from baton.router.batches.files import Files, NoSuchFile
from baton.router.batches.pages import page_of, read_query
from baton.router.batches.upload import read_upload
from baton.router.json_answers import JSON
from baton.router.openapi_file import errors
from baton.router.router_state import RouterState

_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "enum": ["batch"]},
                    },
                }
            }
        },
    }
}


class FileInUse(InvalidRequest):
    """A batch has not read all of it yet."""

    status = 409


def file_routes(router: RouterState, batches: Batches) -> APIRouter:
    routes = APIRouter()
    config = router.config

    def files_of(http: Request) -> Files:
        return batches.files(http.state.tenant)

    @routes.post("/v1/files", summary="Upload a file", responses=errors(400, 408, 413, 507), openapi_extra=_FORM)
    async def upload(http: Request) -> Response:
        files = files_of(http)
        file, purpose = await read_upload(http, config)
        try:
            stored = await asyncio.to_thread(
                files.add, file.file, (file.filename or "file")[:255], purpose, most=config.max_files
            )
        finally:
            await file.close()
        return JSON(stored.shown())

    @routes.get("/v1/files", summary="List files", responses=errors(400))
    async def list_files(http: Request) -> Response:
        files, query = files_of(http), read_query(http, ("purpose", "limit", "order", "after"))
        purpose = query.get("purpose")

        def load(file_id: str) -> dict[str, Any] | None:
            try:
                stored = files.get(file_id)
            except NoSuchFile:
                return None
            return stored.shown() if purpose in (None, stored.purpose) else None

        def page() -> dict[str, Any]:
            return page_of(files.newest_first(), query, load, most=10_000, usual=10_000)

        return JSON(await asyncio.to_thread(page))

    @routes.get("/v1/files/{file_id}", summary="Describe a file", responses=errors(400, 404))
    async def describe(http: Request, file_id: str) -> Response:
        return JSON((await asyncio.to_thread(files_of(http).get, file_id)).shown())

    @routes.get("/v1/files/{file_id}/content", summary="Read a file", responses=errors(400, 404))
    async def content(http: Request, file_id: str) -> Response:
        path = await asyncio.to_thread(files_of(http).content, file_id)
        return FileResponse(path, media_type="application/octet-stream")

    @routes.delete("/v1/files/{file_id}", summary="Delete a file", responses=errors(400, 404, 409))
    async def delete(http: Request, file_id: str) -> Response:
        files, own = files_of(http), batches.of(http.state.tenant)

        def forget() -> None:
            for folder in own.open():
                if folder.load().input_file_id == file_id:
                    raise FileInUse(
                        f"file_id={file_id[:80]!r} cannot be deleted: {folder.path.name} reads it. Cancel that first.",
                        field="file_id",
                    )
            files.delete(file_id)

        await asyncio.to_thread(forget)
        return JSON({"id": file_id, "object": "file", "deleted": True})

    return routes
