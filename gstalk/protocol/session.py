"""The order of a connection: which reply belongs to which command. No socket, no clock, nothing waits.

beanstalkd answers the commands of a connection in order, so a FIFO of slots is all that links a reply to its command.
A slot's life:

    open        in the FIFO; `result` is PENDING, `error` is None
    answered    taken out; `result` or `error` is set, then its `duty` is called, and it stands in `done`
    failed      the connection ended first: `error` says why and, in `sent`, whether the server may have acted

Nobody takes a slot out of the middle. A caller who gives up leaves his slot where it is: the reply is read when it
comes, the duty (a settled job, a reservation that nobody waits for) is still carried out, and nobody is woken.

`receive` takes whatever a read brought, cut anywhere. Every reply is held against the words that its own command
allows, echoes of ids and tubes too. After the first one that doesn't fit, the stream means nothing any more:
`receive` returns the `ProtocolError`, and whoever owns the socket closes it and calls `fail`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from gstalk.errors import DisconnectedError, ProtocolError
from gstalk.protocol.commands import Command
from gstalk.protocol.replies import BODIED, Malformed, body_size, job_id

__all__ = ["PENDING", "Call", "Session", "Slot", "WaitSlot", "lost"]

PENDING: Any = type("Pending", (), {"__repr__": lambda self: "PENDING"})()
MAX_LINE = 256  # the longest reply line is USING with a tube of 200 bytes
PROGRESS = 65536  # so many bytes of an unfinished reply count as progress


class Call:
    """Something that a greenlet waits for: `result` or `error` is set once, then `waiter` is woken."""

    __slots__ = ("error", "result", "waiter")

    def __init__(self) -> None:
        self.result: Any = PENDING
        self.error: BaseException | None = None
        self.waiter: Any = None

    def take_error(self) -> BaseException:
        """Hand the error over to the one who raises it: kept here, it would hold the frames that hold this call."""
        error = self.error
        assert error is not None
        self.result = self.error = None
        return error


class Slot(Call):
    """A command in flight.

    Args:
        command: Which command this is, and so which replies it may have.
        session: Whose; for messages.
        key: The job id or the tube (as bytes) that the reply must echo, or that messages name.
        duty: Called with the slot when it is answered or failed, whoever still waits; it must not switch.
    """

    __slots__ = ("command", "duty", "end", "extra", "key", "session")
    patience = 0.0  # seconds that the server may take on top

    def __init__(
        self,
        command: Command,
        session: Session,
        key: Any = None,
        duty: Callable[[Slot], None] | None = None,
        extra: Any = None,
    ) -> None:
        # Not Call.__init__: a put makes one of these, and the call alone would cost a tenth of its time.
        self.result = PENDING
        self.error = None
        self.waiter = None
        self.command = command
        self.session = session
        self.key = key
        self.duty = duty
        self.extra = extra  # whatever the duty needs: a Job, a batch
        self.end = 0  # where its last byte stands in the stream of all that was sent

    def __str__(self) -> str:
        key = self.key.decode("ascii") if isinstance(self.key, bytes) else self.key
        what = self.command.name if key is None else f"{self.command.name} {key}"
        return f"{what} at {self.session.uri}"


class WaitSlot(Slot):
    """A reserve that the server may answer later, by `patience` seconds."""

    __slots__ = ("patience",)


class Session:
    """The FIFO of a connection's commands, and the parser that answers them.

    Attributes:
        slots: Commands that have no reply yet, oldest first.
        done: Calls answered or failed since the owner last woke their greenlets; duties may add to it.
    """

    __slots__ = ("_kept", "_need", "_progress", "done", "slots", "uri")

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.slots: deque[Slot] = deque()
        self.done: list[Call] = []
        self._kept = bytearray()  # what has arrived of an unfinished reply
        self._need = 0  # no use in parsing before so many are there
        self._progress = 0  # where the last PROGRESS mark was

    def receive(self, data: bytes) -> ProtocolError | None:
        """Take what a read brought, answer the slots that it completes, and put them in `done`.

        Returns:
            The error, if the server broke the protocol: nothing after it can be trusted.
        """
        if self._kept:
            self._kept += data
            if len(self._kept) < self._need:
                return None
            data = bytes(self._kept)
            self._kept.clear()
        slots = self.slots
        done = self.done
        find = data.find
        position, length = 0, len(data)
        while position < length and (end := find(b"\r\n", position)) >= 0:
            word, blank, rest = data[position:end].partition(b" ")
            if not slots:
                return self._broken(None, data[position:end])
            slot = slots[0]
            parse = slot.command.replies.get(word)
            if parse is None or (blank and not rest):
                return self._broken(slot, data[position:end])
            try:
                if word in BODIED:
                    size = body_size(word, rest)
                    start = end + 2
                    after = start + size
                    if length < after + 2:
                        self._keep(data[position:], after + 2 - position)
                        return None
                    if data[after : after + 2] != b"\r\n":
                        ruined = None if word == b"OK" else job_id(rest.partition(b" ")[0])
                        error = self._broken(slot, data[position:end])
                        error.job_id = ruined
                        return error
                    parse(slot, rest, data[start:after])
                    position = after + 2
                else:
                    parse(slot, rest, b"")
                    position = end + 2
            except Malformed:
                return self._broken(slot, data[position:end])
            except ProtocolError as error:  # a word that ends the connection, or a body that isn't statistics
                return self._refused(slot, error)
            done.append(slot)  # before it leaves the FIFO: a signal that comes between must not lose it
            try:
                slots.popleft()
                if slot.duty is not None:
                    slot.duty(slot)
            except BaseException:  # a signal's: `fail` calls the duty again, or the second step would never be told
                if not slots or slots[0] is not slot:
                    slots.appendleft(slot)
                raise
        if position < length:
            if length - position > MAX_LINE:
                return self._broken(slots[0] if slots else None, data[position : position + MAX_LINE])
            if not slots:
                return self._broken(None, data[position:])
            self._keep(data[position:], 0)
        return None

    def progressed(self) -> bool:
        """Tell whether an unfinished reply has grown by another 64 KiB since this last said so."""
        if len(self._kept) - self._progress < PROGRESS:
            return False
        self._progress = len(self._kept)
        return True

    def fail(self, make: Callable[[Slot], BaseException]) -> None:
        """Fail every slot still open with the error that `make` builds for it. A signal ends it: call it again."""
        while self.slots:
            slot = self.slots[0]
            if slot.error is None:
                slot.error = make(slot)
            self.done.append(slot)
            if slot.duty is not None:
                slot.duty(slot)
            self.slots.popleft()

    def _keep(self, rest: bytes, need: int) -> None:
        self._kept += rest
        self._need = need
        self._progress = 0

    def _broken(self, slot: Slot | None, line: bytes) -> ProtocolError:
        got = ascii(line[:200].decode("latin-1"))
        if slot is None:
            return ProtocolError(f"{self.uri}: got {got} without having asked; connection closed")
        expected = " or ".join(word.decode("ascii") for word in slot.command.expected)
        return self._refused(slot, ProtocolError(f"{slot}: expected {expected}, got {got}; connection closed"))

    def _refused(self, slot: Slot, error: ProtocolError) -> ProtocolError:
        """The slot whose reply broke the protocol has this error; `fail` gives the others that of a lost connection."""
        slot.result = PENDING
        slot.error = error.with_traceback(None)  # a parser may have raised it, and the slot stands in these frames
        return error


def lost(slot: Slot, kind: type[DisconnectedError], why: str, sent: int) -> DisconnectedError:
    """Build the error of a slot whose connection ended; `sent` is how much of the stream the kernel took."""
    if slot.end > sent:
        return kind(f"{slot}: {why}; it was not sent", "no")
    return kind(f"{slot}: {why}; the server may have acted", "maybe")
