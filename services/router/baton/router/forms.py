"""Forms: whether answers can be held to what requests ask for, found out in a process beside the router, once each."""

from __future__ import annotations

from collections import OrderedDict

import msgspec

from baton.errors import InvalidRequest, QueueFull, refuse
from baton.logs import get_logger
from baton.router.helper_process import HelperDied, HelperPool, HelperTooSlow
from baton.structured_outputs import StructuredOutputs

CHECK_S = 2.0
_MAX_VERDICTS = 1024
_MAX_NBYTES = 16 * 2**20
"""Of the forms whose verdicts are kept."""
_MAX_WAITING = 64
_log = get_logger("forms")


class Forms:
    """Verdicts on forms; the processes start with the first."""

    def __init__(self) -> None:
        self._checkers = HelperPool("baton.router.check_form", 2)
        self._verdicts: OrderedDict[bytes, InvalidRequest | None] = OrderedDict()
        self._nbytes = 0
        self._num_waiting = 0

    async def close(self) -> None:
        await self._checkers.close()

    async def check(self, form: StructuredOutputs) -> None:
        """Let a form pass that a grammar can be made of.

        Raises:
            InvalidRequest: none can be made, or not in 2 s; its field is the form's own.
            QueueFull: too many wait to be checked.
        """
        key = msgspec.msgpack.encode(form)
        if key in self._verdicts:
            self._verdicts.move_to_end(key)
        else:
            verdict = await self._ask(form, key)
            if key not in self._verdicts:
                self._verdicts[key] = verdict
                self._nbytes += len(key)
            while len(self._verdicts) > _MAX_VERDICTS or self._nbytes > _MAX_NBYTES:
                self._nbytes -= len(self._verdicts.popitem(last=False)[0])
        verdict = self._verdicts.get(key)
        if verdict is not None:
            raise type(verdict)(str(verdict), field=verdict.field)

    async def _ask(self, form: StructuredOutputs, frame: bytes) -> InvalidRequest | None:
        if self._num_waiting >= _MAX_WAITING:
            raise QueueFull(f"{_MAX_WAITING} grammars are waiting to be checked. Try again in a second.")
        self._num_waiting += 1
        try:
            answer = await self._checkers.ask(frame, CHECK_S)
        except (HelperTooSlow, HelperDied) as error:
            _log.warning("form_not_checked", kind=form.kind, nbytes=len(frame), reason=str(error))
            answer = {"reason": str(error)}
        finally:
            self._num_waiting -= 1
        if "reason" in answer:
            limit = f"no grammar can be made of it: {answer['reason']}"
            return refuse(form.kind, getattr(form, form.kind), limit, "Simplify it.")
        return InvalidRequest(answer["refusal"], field=answer["field"]) if answer else None
