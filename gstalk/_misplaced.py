"""What stands behind a `use` that failed: commands that hit another tube, which is no success.

A put among them is stored, or buried, where nobody looks for it, so it is deleted again.
"""

from __future__ import annotations

from collections.abc import Callable

from gstalk._pipeline import Pipeline
from gstalk.errors import renewed
from gstalk.protocol import commands
from gstalk.protocol.session import Slot

__all__ = ["misplace"]


def misplace(pipe: Pipeline, error: BaseException) -> bool:
    """Have all commands up to the next `use` fail with the error of the one before them; tell whether there is none."""
    for slot in pipe.slots:
        if slot.command is commands.USE:
            return False
        if slot.command.uses:
            slot.duty = _Misplaced(pipe, error, slot.duty)
    return True


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
            slot.error = renewed(self._error)
        if self._duty is not None:
            self._duty(slot)
