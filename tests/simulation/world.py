"""One world: a loop in virtual time, a network, servers, and gstalk as it is shipped on top of them.

While a world runs, four things stand in another's place: gevent's hub has the virtual loop, `clock.monotonic` tells
its time and `chance` follows its seed wherever gstalk has imported them, and `transport.Socket` makes sockets in
memory. Nothing else of gstalk is touched. The servers' addresses say who dials: 10.0.<process>.<server>.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import random
import re
import sys
import warnings
import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

import gevent
from gevent import _hub_local
from gevent.hub import Hub

from gstalk.connection import clock
from gstalk.connection import transport as _transport
from gstalk.pool.chance import chance
from tests.simulation.loop import EndlessError, VirtualLoop
from tests.simulation.network import FOREVER, Endpoint, Line, SimulatedSocket, network_of
from tests.simulation.program import Program
from tests.simulation.servers import HOSTILE, Copy, RecordingClient, Server

__all__ = ["Violation", "World", "running"]

FIRST_DESCRIPTOR = 1 << 20  # the system has none of these, so that nothing real can be hit
FAULTS_OF_A_LINE = ("stall", "blackhole", "reset", "cut", "hostile")
REAL = {"monotonic": clock.monotonic, "chance": chance}
transport: Any = _transport  # whose `Socket` is replaced


@dataclass(frozen=True)
class Violation:
    """A promise that was broken: which, and what was seen."""

    promise: str
    what: str

    def __str__(self) -> str:
        return f"{self.promise}: {self.what}"


class QuietHub(Hub):
    """A hub that keeps what greenlets die of, instead of printing it."""

    world: World

    def handle_error(self, context: Any, type: Any, value: Any, tb: Any) -> None:
        self.world.uncaught(context, value)


class World:
    """All that there is.

    Attributes:
        violations: The promises broken so far.
        faults: How many faults there were, by kind.
        disturbed: Processes whose connections were stalled, frozen or cut: for them some bounds are wider.
        blocked: Seconds for which the hub was kept by computing.
    """

    def __init__(self, program: Program, is_traced: bool = False) -> None:
        self.program = program
        self.is_traced = is_traced
        self.traced: list[str] = []
        self.violations: list[Violation] = []
        self.faults: Counter[str] = Counter()
        self.rng = Random(f"world {program.seed}")
        self.loop = VirtualLoop(Random(f"order {program.seed}"))
        self.began = self.loop.time
        self.blocked = 0.0
        self.is_healed = False
        self.stalled_until = 0.0  # the last of the lines that will move again
        self.disturbed: set[int] = set()
        self.dead: set[int] = set()
        self.greenlets: list[weakref.ref[Any]] = []
        self.on_reserved: Callable[[Server, Copy, RecordingClient], None] = lambda server, copy, client: None
        self.allowed: Callable[[BaseException], bool] = lambda error: False
        self.sockets: dict[int, SimulatedSocket] = self.loop.descriptors
        self.on_ready: Callable[[Server, Any], None] = lambda server, job: None
        self.on_half_close: Callable[[int, int], None] = lambda process, server: None
        self.on_ask: Callable[[int, int], None] = lambda process, server: None
        self.on_dial: Callable[[int, int], None] = lambda process, server: None
        self.is_ending: Callable[[int], bool] = lambda process: False
        self.troubled: set[int] = set()  # servers that have had a fault, or a line to them
        self.connects: Counter[tuple[int, int]] = Counter()  # how often a process has dialed a server
        self.sent: dict[int, list[bytearray]] = defaultdict(list)  # what the kernel took of each process, by socket
        self._connections = 0
        self._pairs: list[tuple[int, int, SimulatedSocket, Endpoint]] = []  # process, server, and the near end
        self._holes: dict[tuple[int, int], float] = {}  # where a dial is not answered, until when
        self.servers = [
            Server(
                self,
                number,
                durable=plan.durable,
                silent_expiry=plan.silent_expiry,
                max_job_size=plan.max_job_size,
                rng=Random(f"server {program.seed} {number}"),
            )
            for number, plan in enumerate(program.servers)
        ]

    # -- telling -----------------------------------------------------------------------------------------------

    @property
    def way(self) -> float:
        """Seconds within which a command and its reply have gone their ways, in a world without faults."""
        return 4 * (self.program.latency + self.program.jitter) + 0.01

    @property
    def is_swift(self) -> bool:
        """Whether nothing has happened so far, and the network takes no time to speak of: bounds are narrow then."""
        program = self.program
        is_fast = program.latency + program.jitter <= 4e-4 and program.capacity >= 70_000
        return is_fast and not self.faults and not self.blocked

    def now(self) -> float:
        return self.loop.time

    def trace(self, who: str, what: str) -> None:
        if self.is_traced:
            what = re.sub(" at 0x[0-9a-f]+", "", what)  # which is another one in each run
            self.traced.append(f"{self.loop.time - self.began:10.6f} {self.loop.events:6} {who:12} {what}")

    def violation(self, promise: str, what: str) -> None:
        self.trace("ORACLE", f"{promise}: {what}")
        self.violations.append(Violation(promise, what))

    def uncaught(self, context: Any, error: BaseException) -> None:
        if not isinstance(error, (gevent.GreenletExit, EndlessError)) and not self.allowed(error):
            where = ""
            trace = error.__traceback__
            while trace is not None:
                where = f" at {trace.tb_frame.f_code.co_name}:{trace.tb_lineno}"
                trace = trace.tb_next
            self.violation("uncaught", f"{error!r} in {context!r}{where}"[:400])

    def job_reserved(self, server: Server, copy: Copy, client: RecordingClient) -> None:
        copy.reserved[client.process] += 1
        self.on_reserved(server, copy, client)

    # -- the network -------------------------------------------------------------------------------------------

    def address(self, process: int, server: int) -> str:
        return f"10.0.{process}.{server}:11300"

    def opened(self, socket: SimulatedSocket) -> int:
        number = FIRST_DESCRIPTOR
        while number in self.sockets:
            number += 1
        self.sockets[number] = socket
        return number

    def half_closed(self, socket: SimulatedSocket) -> None:
        for process, number, each, _ in self._pairs:
            if each is socket:
                self.on_half_close(process, number)

    def closed(self, socket: SimulatedSocket) -> None:
        self._look_at_unread(socket)
        if socket.watchers:
            self.violation("watcher", f"a socket was closed that {len(socket.watchers)} watchers looked at")
        del self.sockets[socket.fileno()]

    def _look_at_unread(self, socket: SimulatedSocket) -> None:
        """What has come before a connection's end is read, before that is told."""
        for process, number, each, near in self._pairs:
            is_honest = process not in self.dead and not self.servers[number].was_hostile and not self.blocked
            if each is socket and near.has_unread_reply and is_honest and not self.is_ending(process):
                self.violation("unread", f"process {process} has not read {bytes(near.received[:60])!r}")

    def connect(self, socket: SimulatedSocket, place: tuple[str, int]) -> int:
        process, number = (int(part) for part in place[0].split(".")[2:])
        self._connections += 1
        self.connects[process, number] += 1
        self.on_dial(process, number)
        plan = self.program
        rng = Random(f"line {plan.seed} {self._connections}")
        line = Line(rng, plan.latency, plan.jitter, plan.slicing, plan.capacity)
        near, far = Endpoint(self.loop, line), Endpoint(self.loop, line)
        near.peer, far.peer = far, near
        socket.endpoint = near
        near.record = bytearray()
        self.sent[process].append(near.record)
        near.notify = lambda: self.loop.look_at(socket)
        self._pairs.append((process, number, socket, near))
        self.loop.after(2 * line.delay(), lambda: self._established(process, number, socket, near, far))
        return errno.EINPROGRESS

    def _established(self, process: int, number: int, socket: SimulatedSocket, near: Endpoint, far: Endpoint) -> None:
        if near.is_closed:
            return
        until = FOREVER if process in self.dead else self._holes.get((process, number), 0.0)
        if until > self.loop.time:
            if until < FOREVER:
                self.loop.at(until, lambda: self._established(process, number, socket, near, far))
            return
        server = self.servers[number]
        if server.is_up:
            near.is_connected = far.is_connected = True
            server.accept(far, process)
        else:
            near.error = errno.ECONNREFUSED
            near.is_reset = True
        near.notify()

    def living(self, process: int, server: int | None = None) -> list[Endpoint]:
        self._pairs = [pair for pair in self._pairs if not pair[3].is_closed]
        return [near for p, s, _, near in self._pairs if p == process and server in (None, s)]

    def is_gone(self, endpoint: Endpoint) -> bool:
        """Whether the client's side of a connection is over."""
        return endpoint.is_closed or endpoint.is_reset

    # -- faults ------------------------------------------------------------------------------------------------

    def schedule(self) -> None:
        for fault in self.program.faults:
            self.loop.after(fault.at, lambda fault=fault: self._strike(fault.what, fault.args))  # type: ignore[misc]

    def _strike(self, what: str, args: tuple[Any, ...]) -> None:
        if self.is_healed:
            return
        self.faults[what] += 1
        if what != "kill_process":
            self.troubled.add(args[1 if what in FAULTS_OF_A_LINE else 0])
        self.trace("FAULT", f"{what} {args}")
        getattr(self, f"_{what}")(*args)

    def _disturb(self, server: int) -> None:
        """Also those who have not come yet: a server may die of what they ask."""
        plans = enumerate(self.program.processes)
        self.disturbed |= {number for number, plan in plans if server in (*plan.servers, *plan.conns)}

    def _kill(self, number: int, seconds: float) -> None:
        server = self.servers[number]
        self._disturb(number)
        server.kill()
        self.loop.after(seconds, server.start)

    def _ambush(self, number: int, word: str) -> None:
        """The server dies when it has carried out the next such command, before it answers, and is there again."""
        self._disturb(number)
        self.servers[number].ambush = word

    def _freeze(self, number: int, seconds: float) -> None:
        self._disturb(number)
        self.servers[number].freeze(seconds)

    def _stall(self, process: int, number: int, seconds: float, way: str) -> None:
        self.disturbed.add(process)
        self.stalled_until = max(self.stalled_until, self.loop.time + seconds)
        self._holes[process, number] = self.loop.time + seconds
        for near in self.living(process, number):
            if way != "back":
                near.stall(seconds)
            if way != "there":
                near.peer.stall(seconds)

    def _blackhole(self, process: int, number: int, way: str) -> None:
        self.disturbed.add(process)
        for near in self.living(process, number):
            if way != "back":
                near.stall(FOREVER)
            if way != "there":
                near.peer.stall(FOREVER)
                self.loop.after(30.0, near._given_up)

    def _reset(self, process: int, number: int, loses: bool) -> None:
        """Connections are reset; `loses`: with what is on its way."""
        self.disturbed.add(process)
        for near in self.living(process, number):
            if near.is_connected:
                if loses:
                    near.cut()
                else:
                    near._travel(b"", b"RST")
                    near.fail(errno.ECONNRESET)

    def _cut(self, process: int, number: int) -> None:
        """The server's side closes."""
        self.disturbed.add(process)
        for near in self.living(process, number):
            if near.is_connected and not near.peer.is_closed:
                near.peer._travel(b"", b"FIN")
                near.peer.fail(errno.ECONNRESET)

    def _full(self, number: int, seconds: float) -> None:
        server = self.servers[number]
        server.fill(True)
        self.loop.after(seconds, lambda: server.fill(False))

    def _drain(self, number: int) -> None:
        self.servers[number].drain()

    def _pause(self, number: int, tube: str, seconds: int) -> None:
        self.servers[number].pause(tube, seconds)

    def _kill_process(self, process: int) -> None:
        """All its connections are gone at once, and no new ones come."""
        self.disturbed.add(process)
        self.dead.add(process)
        for near in self.living(process):
            if near.is_connected:
                near._travel(b"", b"RST" if near.received else b"FIN")
            near.fail(errno.ECONNRESET)

    def _hostile(self, process: int, number: int, which: int) -> None:
        self.disturbed.add(process)
        self.servers[number].be_hostile(HOSTILE[which % len(HOSTILE)], process)

    def heal(self) -> None:
        """No more faults: all servers are there, and take jobs; only connections that are gone are gone."""
        self.is_healed = True
        self._holes.clear()
        for server in self.servers:
            server.start()
            server.ambush = ""
            server.fill(False)
            server.be_honest()


@contextlib.contextmanager
def running(world: World) -> Iterator[QuietHub]:
    """Have gevent and gstalk live in a world."""
    own = gevent.get_hub()
    loop: Any = world.loop
    hub = QuietHub(loop=loop)
    hub.world = world
    state, was_collecting = random.getstate(), gc.isenabled()
    ours = {"monotonic": world.now, "chance": random.random}
    taken = [
        (module, what)
        for name, module in list(sys.modules.items())
        for what, real in REAL.items()
        if name.partition(".")[0] == "gstalk" and vars(module).get(what) is real
    ]
    real_socket = transport.Socket
    logger = logging.getLogger("gstalk")  # told of hooks that raise, as those here do
    was_disabled, logger.disabled = logger.disabled, True

    def spawned(greenlet: Any) -> None:
        world.greenlets.append(weakref.ref(greenlet))

    gc.disable()  # what it collects, and when, is not of the seed
    random.seed(world.program.seed)
    _hub_local.set_hub(hub)
    for module, what in taken:
        setattr(module, what, ours[what])
    transport.Socket = network_of(world)
    gevent.Greenlet.add_spawn_callback(spawned)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            yield hub
    finally:
        gevent.Greenlet.remove_spawn_callback(spawned)
        transport.Socket = real_socket
        logger.disabled = was_disabled
        for module, what in taken:
            setattr(module, what, REAL[what])
        hub.destroy()
        _hub_local.set_hub(own)
        random.setstate(state)
        if was_collecting:
            gc.enable()
