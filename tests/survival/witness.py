"""A proxy that reads along: what clients asked, and what the server said, whether or not it arrived."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable

from gstalk.testing import FaultProxy

__all__ = ["Copy", "Witness"]

Copy = tuple[str, int, bytes]  # a job as a server has it: the URI, its id there, and the head of its body

_OF_THE_HOLDER = {b"delete", b"release", b"bury", b"touch"}
_WITH_BODY = {b"OK", b"RESERVED", b"FOUND"}


class Witness(FaultProxy):
    """A `FaultProxy` that understands the protocol.

    Args:
        upstream: The server.
        head_of: From a body to what identifies it; `b""` for a body that is ruined.

    Attributes:
        inserted: The copies that the server said to have, each `INSERTED id` that it answered.
        deletes: The copies whose delete was asked for by a client.
        foreign: Commands about a job that the connection they came on hadn't reserved.
        ruined: The ids of jobs whose bodies the server itself handed out in ruins.
        said: How often the server said what.
    """

    def __init__(self, upstream: str, head_of: Callable[[bytes], bytes]) -> None:
        super().__init__(upstream, on_data=self._read_along)
        self.upstream = upstream
        self._head_of = head_of
        self._conversations: dict[int, _Conversation] = {}
        self._heads: dict[int, bytes] = {}
        self.inserted: set[Copy] = set()
        self.deletes: set[Copy] = set()
        self.foreign: list[bytes] = []
        self.ruined: set[int] = set()
        self.said: Counter[str] = Counter()

    def __enter__(self) -> Witness:
        self.start()
        return self

    def head(self, job_id: int) -> bytes:
        """What was put under this id last."""
        return self._heads.get(job_id, b"")

    def insert(self, job_id: int, head: bytes) -> None:
        """The server said that it has this job."""
        self._heads[job_id] = head
        self.inserted.add((self.uri, job_id, head))

    def _read_along(self, direction: str, data: bytes, number: int) -> None:
        conversation = self._conversations.get(number)
        if conversation is None:
            conversation = self._conversations[number] = _Conversation()
        if direction == "up":
            for line, body in conversation.asked(data):
                self._asked(conversation, line, body)
        else:
            for asked, line, body in conversation.answered(data):
                self._answered(conversation, asked, line, body)

    def _asked(self, conversation: _Conversation, line: bytes, body: bytes) -> None:
        word, _, rest = line.partition(b" ")
        head = self._head_of(body) if word == b"put" else b""
        conversation.pending.append((line, head))
        if word in _OF_THE_HOLDER:
            job_id = int(rest.split(b" ")[0])
            if job_id not in conversation.reserved:
                self.foreign.append(line)
            if word == b"delete":  # a delete on its way when its server is killed may meet another job under this id
                self.deletes.add((self.uri, job_id, conversation.reserved.get(job_id) or self.head(job_id)))

    def _answered(self, conversation: _Conversation, asked: tuple[bytes, bytes], line: bytes, body: bytes) -> None:
        words = line.split(b" ")
        self.said[words[0].decode()] += 1
        if words[0] == b"INSERTED":
            self.insert(int(words[1]), asked[1])
        elif words[0] == b"RESERVED":
            job_id, head = int(words[1]), self._head_of(body)
            conversation.reserved[job_id] = head
            if head:
                self._heads[job_id] = head
            else:
                self.ruined.add(job_id)


class _Conversation:
    """One connection, both ways: replies come in the order of the commands."""

    def __init__(self) -> None:
        self.pending: deque[tuple[bytes, bytes]] = deque()
        self.reserved: dict[int, bytes] = {}  # the heads, by id
        self._up = bytearray()
        self._down = bytearray()

    def asked(self, data: bytes) -> list[tuple[bytes, bytes]]:
        """The commands that are complete now, each with its body."""
        return _frames(self._up, data, lambda line: line.startswith(b"put "))

    def answered(self, data: bytes) -> list[tuple[tuple[bytes, bytes], bytes, bytes]]:
        """The replies that are complete now, each with its command and its body."""
        frames = _frames(self._down, data, lambda line: line.partition(b" ")[0] in _WITH_BODY)
        return [(self.pending.popleft(), line, body) for line, body in frames]


def _frames(buffer: bytearray, data: bytes, has_body: Callable[[bytes], bool]) -> list[tuple[bytes, bytes]]:
    """Take whole lines out of a stream, and the bodies of those that have one."""
    buffer += data
    frames = []
    at = 0
    while (end := buffer.find(b"\r\n", at)) >= 0:
        line, body = bytes(buffer[at:end]), b""
        end += 2
        if has_body(line):
            size = int(line.rpartition(b" ")[2])
            if len(buffer) < end + size + 2:
                break
            body = bytes(buffer[end : end + size])
            end += size + 2
        frames.append((line, body))
        at = end
    del buffer[:at]
    return frames
