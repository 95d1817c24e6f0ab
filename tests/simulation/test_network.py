"""The sockets in memory behave as the kernel's do: the same steps on both, step by step the same outcome."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from random import Random
from time import sleep
from typing import Any

import pytest

from tests.simulation.loop import VirtualLoop
from tests.simulation.network import Endpoint, Line

# Each step: who does what. "near" and "far" are the two sides; what is read or raised is the outcome.
ENDS = {
    "the end of the stream comes behind the bytes": "far send abc, far close, near recv, near recv, near recv",
    "a close with something unread is a reset": "near send abc, settle, far close, near recv, near recv, near send x",
    "what had arrived before a reset can be read": "far send abc, near send a, settle, far close, near recv, near recv",
    "the first send to one that has gone is taken": "far close, near send abc, near recv, settle, near send abc",
    "a half-close leaves the other direction": "near shut, far recv, far send abc, near recv, far close, near recv",
    "a send after a half-close fails": "near shut, near send abc, near recv",
    "bytes before a half-close arrive": "near send abc, near shut, far recv, far recv",
    "a half-close after the other side's end": "far close, settle, near shut, near recv, near recv",
    "a reset after the end of the stream": "far close, near send a, settle, near recv, near send b, near recv",
    "nothing to read": "near recv, far recv",
    "a half-close of a reset connection": "near send abc, settle, far close, settle, near shut, near recv",
    "both close": "near close, far recv, far send a, settle, far send b",
    "a close after a half-close": "near send a, near shut, near close, far recv, far recv, far send x",
}


class Pair:
    """The two ends of a connection."""

    sides: dict[str, Any]

    def do(self, who: str, what: str, *args: str) -> Any:
        side = self.sides[who]
        if what == "send":
            return side.send(args[0].encode())
        if what == "recv":
            return side.recv(100)
        return self.shut(side) if what == "shut" else side.close()

    def shut(self, side: Any) -> None:
        raise NotImplementedError

    def settle(self) -> None:
        """Have what is under way arrive."""
        raise NotImplementedError

    def close(self) -> None:
        pass


class Real(Pair):
    """Two sockets over loopback."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            near = socket.create_connection(listener.getsockname())
            far, _ = listener.accept()
        self.sides = {"near": near, "far": far}
        for side in self.sides.values():
            side.setblocking(False)

    def shut(self, side: Any) -> None:
        side.shutdown(socket.SHUT_WR)

    def settle(self) -> None:
        sleep(0.01)

    def close(self) -> None:
        for side in self.sides.values():
            side.close()


def join(near: Endpoint, far: Endpoint) -> None:
    near.peer, far.peer = far, near
    near.is_connected = far.is_connected = True


class Simulated(Pair):
    """Two ends of a simulated connection."""

    def __init__(self) -> None:
        self.loop = VirtualLoop(Random(0))
        line = Line(Random(0), 0.0001, 0.0001, 0.0, 10_000)
        near, far = Endpoint(self.loop, line), Endpoint(self.loop, line)
        join(near, far)
        self.sides = {"near": near, "far": far}

    def shut(self, side: Any) -> None:
        side.shut()

    def settle(self) -> None:
        timer = self.loop.timer(1.0)
        timer.start(lambda: None)
        self.loop.run()


def outcomes(pair: Pair, steps: str) -> Iterator[tuple[str, Any]]:
    for step in steps.split(", "):
        if step == "settle":
            pair.settle()
            continue
        if " recv" in step:
            pair.settle()
        try:
            yield step, pair.do(*step.split())
        except OSError as error:
            yield step, errno.errorcode[error.errno or 0]


@pytest.mark.parametrize("what", ENDS)
def test_connection_ends_as_the_kernels(what):
    found = []
    for pair in (Real(), Simulated()):
        found.append(list(outcomes(pair, ENDS[what])))
        pair.close()
    assert found[1] == found[0]


def test_full_buffer_takes_a_part_then_nothing():
    pair = Simulated()
    near, far = pair.sides["near"], pair.sides["far"]
    assert near.send(b"x" * 25_000) == 10_000
    with pytest.raises(BlockingIOError):
        near.send(b"x")
    pair.settle()
    assert not near.ready() & 2
    while far.received:
        far.recv(4000)
    assert near.ready() & 2


def test_pieces_arrive_in_order_whatever_their_latency():
    loop = VirtualLoop(Random(1))
    line = Line(Random(1), 0.0, 0.1, 1.0, 100_000)
    near, far = Endpoint(loop, line), Endpoint(loop, line)
    join(near, far)
    sent = b"".join(b"%d," % number for number in range(500))
    for start in range(0, len(sent), 37):
        near.send(sent[start : start + 37])
    timer = loop.timer(50.0)
    timer.start(lambda: None)
    loop.run()
    assert bytes(far.received) == sent
