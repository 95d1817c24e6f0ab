"""What stands behind a `use` that failed: commands that hit another tube, which is no success.

A put among them is stored, or buried, where nobody looks for it, so it is deleted again.
"""

from __future__ import annotations

from collections.abc import Callable

from gstalk.connection.pipeline import Pipeline
from gstalk.protocol import commands
from gstalk.protocol.session import Slot
from gstalk.traces import bare

__all__ = ["blame", "misplace"]


def misplace(pipe: Pipeline, error: BaseException) -> bool:
    """Have all commands up to the next `use` fail with the error of the one before them; tell whether there is none."""
    for slot in pipe.slots:
        if slot.command is commands.USE:
            return False
        if slot.command.uses:
            slot.duty = _Misplaced(pipe, error, slot.duty)
    return True


def blame(pipe: Pipeline, use: Slot) -> None:
    """The server broke the protocol in its answer to a `use`: the command right behind that has the same error."""
    if len(pipe.slots) > 1 and pipe.slots[0] is use and pipe.slots[1].command.uses and use.error is not None:
        pipe.slots[1].error = bare(use.error)


class _Misplaced:
    """The duty of such a command."""

    def __init__(self, pipe: Pipeline, error: BaseException, duty: Callable[[Slot], None] | None) -> None:
        self._pipe = pipe
        self._error = error
        self._duty = duty

    def __call__(self, slot: Slot) -> None:
        # By the reply, also where its caller was told earlier that it is late; else a BuriedError has the id.
        stored = slot.result if isinstance(slot.result, int) else getattr(slot.error, "job_id", None)
        if slot.command is commands.PUT and stored is not None:
            self._pipe.append(commands.by_id(commands.DELETE, stored), self._pipe.slot(commands.DELETE, stored))
        if slot.error is None or stored is not None:
            slot.error = bare(self._error)
        if self._duty is not None:
            self._duty(slot)
