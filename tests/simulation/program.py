"""What happens in a simulated world, as a value: servers, processes with their actors and steps, faults.

`generate` makes one of a seed. A program is printed as Python, so that a shrunk one can stand in a test. Whatever a
step chooses by chance it chooses by a number of its own, so that a program with steps taken away does the same with
those that are left.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

__all__ = ["Actor", "Fault", "Process", "Program", "ServerPlan", "Step", "generate", "written"]


@dataclass(frozen=True)
class Step:
    """One thing that an actor does.

    Attributes:
        what: Its name, in `actors`.
        args: What that takes.
        limit: Seconds after which the actor's own `gevent.Timeout` ends it.
        strike: Events after which an exception of the actor's is thrown into it.
        pick: The number by which it chooses.
    """

    what: str
    args: tuple[Any, ...] = ()
    limit: float | None = None
    strike: int | None = None
    pick: int = 0


@dataclass(frozen=True)
class Actor:
    """A greenlet: its steps, one after the other. `conn`: which of its process's Conns it uses."""

    steps: tuple[Step, ...]
    start: float = 0.0
    conn: int = 0

    @property
    def receives(self) -> bool:
        """Whether it is in a Consumer's `receive`, which only a stop ends."""
        return any(step.what.startswith("receive") for step in self.steps)


@dataclass(frozen=True)
class Process:
    """A process, whose connections can all be gone at once.

    Attributes:
        conns: The server of each of its Conns.
        servers: Those of its Producer, or of its Consumer.
        consumes: The tubes of a Consumer; a process has a Producer unless it has one.
        options: For all of them.
        handlers: What handlers do; chosen by the job.
    """

    actors: tuple[Actor, ...] = ()
    conns: tuple[int, ...] = ()
    servers: tuple[int, ...] = ()
    consumes: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    retry: dict[str, Any] = field(default_factory=dict)
    handlers: tuple[str, ...] = ("delete",)

    @property
    def changes_tubes(self) -> bool:
        """Whether the tubes that its Consumer watches change."""
        return any(step.what == "change_tubes" for actor in self.actors for step in actor.steps)


@dataclass(frozen=True)
class Fault:
    """What happens to the world at a time: a name in `World`, and what that takes."""

    at: float
    what: str
    args: tuple[Any, ...] = ()


@dataclass(frozen=True)
class ServerPlan:
    durable: bool = True
    silent_expiry: bool = True
    max_job_size: int = 65535


@dataclass(frozen=True)
class Program:
    """All of it. `seed`: of what the program leaves to chance, such as latencies and the order of what is ready."""

    seed: int
    servers: tuple[ServerPlan, ...] = (ServerPlan(),)
    processes: tuple[Process, ...] = ()
    faults: tuple[Fault, ...] = ()
    latency: float = 0.0001
    jitter: float = 0.0001
    slicing: float = 0.2
    capacity: int = 200_000

    @property
    def size(self) -> int:
        """How much there is of it, for whoever makes it smaller."""
        steps = sum(len(actor.steps) for process in self.processes for actor in process.actors)
        actors = sum(len(process.actors) for process in self.processes)
        return steps + 2 * actors + 3 * len(self.processes) + 2 * len(self.faults) + len(self.servers)


def written(value: Any) -> str:
    """Write a program as Python, without what is as it is by default."""
    if isinstance(value, Program | Process | Actor | Step | Fault | ServerPlan):
        standard = {name: each.default for name, each in type(value).__dataclass_fields__.items()}
        parts = [
            f"{name}={written(found)}"
            for name in type(value).__dataclass_fields__
            if (found := getattr(value, name)) != standard[name] and found != {}
        ]
        return f"{type(value).__name__}({', '.join(parts)})"
    if isinstance(value, tuple):
        return f"({''.join(f'{written(each)}, ' for each in value).rstrip()})"
    return repr(value)


TUBES = ("a", "b", "c")
HANDLERS = (
    "delete delete delete nothing raise retry retry-later bury sleep hang overrun touch release bury-self spawn exit "
    "forget-timeout timeout put peek compute twice"
).split()


def generate(seed: int) -> Program:
    """Make a program of a seed."""
    rng = Random(f"program {seed}")
    count = rng.choice((1, 1, 1, 2, 2, 3))
    servers = tuple(
        ServerPlan(rng.random() < 0.7, rng.random() < 0.7, rng.choice((65535, 65535, 2000))) for _ in range(count)
    )
    duration = rng.choice((0.02, 0.2, 1.0, 4.0, 12.0))
    processes = []
    for _ in range(rng.choice((1, 1, 2, 2, 3))):
        kind = rng.choice(("conns", "conns", "producer", "consumer", "consumer"))
        processes.append(_process(rng, kind, count, duration))
    if any(each.consumes for each in processes) and not any(each.actors for each in processes if not each.consumes):
        processes.append(_process(rng, "producer", count, duration))
    calm = rng.random() < 0.2
    faults = () if calm else tuple(_fault(rng, count, len(processes), duration) for _ in range(rng.randint(0, 5)))
    if rng.random() < 0.05:
        server = rng.randrange(count)
        processes.append(_met(rng, server))
        faults += (Fault(round(0.1 * rng.random(), 6), "ambush", (server, "end")),) * (rng.random() < 0.7)
    latency = rng.choice((0.00002, 0.0001, 0.0001, 0.001, 0.01))
    if rng.random() < 0.02:  # one server of two stands still for a while, and nothing else happens
        servers, faults, latency = (ServerPlan(), ServerPlan()), (Fault(0.05, "freeze", (0, 12.0)),), 0.0001
        processes = [_going_on(rng)]
    elif rng.random() < 0.02:  # a server takes nothing back
        faults = (Fault(0.05, "full", (0, 3.0)),)
        processes.append(_leaving(rng, latency))
    special = Random(f"special {seed}")  # one of its own: so that other seeds' programs stay what they were
    if special.random() < 0.08:
        servers, processes, faults, latency = special.choice(
            (_crowding, _closing, _stopping, _starving, _filling, _neighbour)
        )(special)
    return Program(
        seed,
        servers,
        tuple(processes),
        tuple(sorted(faults, key=lambda fault: fault.at)),
        latency,
        latency * rng.choice((0.0, 0.5, 3.0)),
        rng.choice((0.0, 0.1, 0.5, 1.0)),
        rng.choice([size for size in (700, 4000, 70_000, 200_000, 1_000_000) if size > 7e6 * latency]),
    )


def _process(rng: Random, kind: str, servers: int, duration: float) -> Process:
    options: dict[str, Any] = {
        "conn_timeout": rng.choice((0.3, 1, 5)),
        "reconnect_timeout": rng.choice((0.1, 1, 3)),
        "reserve_timeout": rng.choice((1, 2, 30)),
    }
    if rng.random() < 0.3:
        options["retry_ambiguous"] = False
    if rng.random() < 0.3:
        options["multiply"] = 2
    if rng.random() < 0.4:
        options["events"] = True  # an `event_func` of the world's
    chosen = tuple(sorted(rng.sample(range(servers), rng.randint(1, servers))))
    if kind == "consumer":
        options["num_greenlets"] = rng.choice((1, 1, 2, 4, 8))
        options["stop_timeout"] = rng.choice((0, 0.1, 1, 5))
        for name in ("auto_delete", "auto_touch"):
            if rng.random() < 0.3:
                options[name] = True
        if rng.random() < 0.2:
            options["time_limit"] = rng.choice((0.05, 1, 3))
        steps = [
            Step("receive", (rng.choice((0.001, 0.05, 1.0, 5.0)) * rng.random(), rng.choice((None, None, 0, 0.5))))
            for _ in range(rng.randint(0, 3))
        ]
        steps = [_struck(rng, step, 0.2) for step in steps] + [Step("receive-on")]
        actors = [Actor(tuple(steps), rng.random() * 0.01)]
        if rng.random() < 0.3:
            actors.append(_changing(rng, duration))
        if rng.random() < 0.3:
            options["mapping"] = True
        if rng.random() < 0.3:
            options["given_up"] = rng.choice(("raise", "hang", "dead letter"))
        return Process(
            tuple(actors),
            (),
            chosen,
            tuple(rng.sample(TUBES, rng.randint(1, 3))),
            options,
            {
                "max_attempts": (most := rng.choice((1, 2, 4, None))),
                "first_delay": rng.choice((0, 1)) if most is not None else 1,
                "max_delay": 2,
                "exhausted": rng.choice(("bury", "bury", "delete")),
            },
            tuple(rng.choice(HANDLERS) for _ in range(rng.randint(1, 4))),
        )
    makers = _PRODUCING if kind == "producer" else _CONNECTED
    conns = () if kind == "producer" else tuple(rng.randrange(servers) for _ in range(rng.choice((1, 1, 2))))
    actors = []
    for _ in range(rng.choice((1, 2, 3, 5, 8))):
        steps = []
        for _ in range(rng.randint(1, 8)):
            if rng.random() < 0.2:
                steps.append(Step("sleep", (round(rng.choice((0.0, 0.001, 0.1, 1.0)) * duration * rng.random(), 6),)))
            steps.append(_struck(rng, rng.choice(makers)(rng), 0.25))
        actors.append(Actor(tuple(steps), round(rng.choice((0.0, 0.0, 0.1)) * rng.random(), 6), rng.randrange(2)))
    return Process(tuple(actors), conns, chosen, (), options)


def _going_on(rng: Random) -> Process:
    """Puts, one after the other, to two servers."""
    options = {"conn_timeout": rng.choice((0.3, 1)), "reconnect_timeout": 1, "reserve_timeout": 1, "multiply": 2}
    steps = []
    for _ in range(12):
        steps += [Step("put", (rng.choice(TUBES), 0, None, 0, 60, 15)), Step("sleep", (0.5 * rng.random(),))]
    return Process((Actor(tuple(steps)),), (), (0, 1), (), options)


def _leaving(rng: Random, latency: float) -> Process:
    """Who reserves, and is interrupted while the job is on its way."""
    options = {"conn_timeout": 1, "reconnect_timeout": 1, "reserve_timeout": 30}
    puts = tuple(Step("put", ("default", 0, None, 0, 60, 15)) for _ in range(4))
    leaves = []
    for _ in range(5):
        what = rng.choice(("reserve", "reserve_with_timeout", "reserve_job"))
        args = (0.5,) if what == "reserve_with_timeout" else ()
        leaves.append(Step(what, args, round(4 * latency * rng.random(), 6), None, rng.getrandbits(32)))
    return Process((Actor(puts), Actor((Step("sleep", (0.1,)), *leaves))), (0,), (0,), (), options)


Situation = tuple[tuple[ServerPlan, ...], list[Process], tuple[Fault, ...], float]  # and its latency


def _putting(rng: Random, tube: str, count: int, pause: float, servers: tuple[int, ...]) -> Process:
    """Jobs that come one after the other."""
    steps = []
    for _ in range(count):
        steps += [Step("put", (tube, 0, None, 0, 60, 15)), Step("sleep", (round(2 * pause * rng.random(), 6),))]
    return Process((Actor(tuple(steps)),), (), servers, (), {"conn_timeout": 5, "reconnect_timeout": 1})


def _crowding(rng: Random) -> Situation:
    """Several who reserve on one Conn, each without time, while jobs come."""
    latency = rng.choice((0.001, 0.01))
    steps = []
    for _ in range(15):
        steps += [
            Step("reserve_with_timeout", (rng.choice((0, 0, 0, 0.01)),)),
            Step("settle", ("delete", None), pick=rng.getrandbits(32)),
            Step("sleep", (round(4 * latency * rng.random(), 6),)),
        ]
    actors = tuple(Actor(tuple(steps[3 * number :]), 0.05) for number in range(3))
    options = {"conn_timeout": 5, "reconnect_timeout": 1, "reserve_timeout": 1}
    reserving = Process(actors, (0,), (0,), (), options)
    return (ServerPlan(),), [_putting(rng, "default", 20, 4 * latency, (0,)), reserving], (), latency


def _closing(rng: Random) -> Situation:
    """A Conn that is closed while jobs are asked for and deleted on it."""
    latency = rng.choice((0.001, 0.01))
    asks = Actor((Step("reserve_with_timeout", (1,)),) * 20)
    deletes = tuple(Step("settle", ("delete", None), pick=rng.getrandbits(32)) for _ in range(30))
    closes = (Step("sleep", (round((10 + 20 * rng.random()) * latency, 6),)), Step("close"))
    options = {"conn_timeout": 1, "reconnect_timeout": 1, "reserve_timeout": 30}
    process = Process((asks, Actor(deletes, 10 * latency), Actor(closes)), (0,), (0,), (), options)
    return (ServerPlan(),), [_putting(rng, "default", 30, latency, (0,)), process], (), latency


def _stopping(rng: Random) -> Situation:
    """A Consumer that is stopped while some of its handlers work on, and jobs still come."""
    options = {"conn_timeout": 5, "reconnect_timeout": 1, "reserve_timeout": rng.choice((1, 30))}
    options |= {"num_greenlets": 4, "stop_timeout": 3}
    receives = Actor((Step("receive", (round(0.2 + 0.8 * rng.random(), 6), None)), Step("receive-on")))
    retry = {"max_attempts": None, "first_delay": 1, "max_delay": 2, "exhausted": "bury"}
    handlers = ("overrun", *("delete",) * rng.choice((2, 15)))
    consumer = Process((receives,), (), (0, 1), ("a",), options, retry, handlers)
    pause = rng.choice((0.0, 0.02, 0.1))
    return (ServerPlan(), ServerPlan()), [consumer, _putting(rng, "a", 40, pause, (0, 1))], (), 0.001


def _starving(rng: Random) -> Situation:
    """A Consumer with few handlers, which one of its servers has enough jobs for, and the others none."""
    number = rng.choice((2, 3))
    options = {"conn_timeout": 5, "reconnect_timeout": 1, "reserve_timeout": 30, "stop_timeout": 1}
    options |= {"num_greenlets": rng.choice((2, 3))}
    retry = {"max_attempts": None, "first_delay": 1, "max_delay": 2, "exhausted": "bury"}
    consumer = Process((Actor((Step("receive-on"),)),), (), tuple(range(number)), ("a",), options, retry, ("sleep",))
    return (ServerPlan(),) * number, [consumer, _putting(rng, "a", 40, 0.02, (0,))], (), 0.0001


def _filling(rng: Random) -> Situation:
    """More puts than a connection takes at once, and a few beside them."""
    many = Actor((Step("put_many", ("a", rng.choice((600, 1100)), 0, 15)), Step("put", ("a", 0, None, 0, 60, 15))))
    few = Actor(tuple(Step("put", (rng.choice(TUBES), 0, None, 0, 60, 3)) for _ in range(5)))
    options = {"conn_timeout": 5, "reconnect_timeout": 1, "multiply": rng.choice((1, 2))}
    return (ServerPlan(),), [Process((many, few, few), (), (0,), (), options)], (), rng.choice((0.0001, 0.001))


def _neighbour(rng: Random) -> Situation:
    """A Consumer with several connections to each of two servers, one of which goes and comes back."""
    options = {"conn_timeout": 5, "reconnect_timeout": 1, "reserve_timeout": 30, "multiply": rng.choice((2, 3))}
    options |= {"num_greenlets": rng.choice((1, 2, 3, 4)), "stop_timeout": 1}
    retry = {"max_attempts": None, "first_delay": 1, "max_delay": 2, "exhausted": "bury"}
    handlers = tuple(rng.choice(("delete", "sleep", "sleep", "overrun")) for _ in range(4))
    consumer = Process((Actor((Step("receive-on"),)),), (), (0, 1), ("a",), options, retry, handlers)
    faults = tuple(Fault(round(2 * rng.random(), 6), "kill", (1, rng.choice((0.3, 3.0)))) for _ in range(3))
    return (ServerPlan(), ServerPlan()), [consumer, _putting(rng, "a", 40, 0.05, (0, 1))], faults, 0.0001


def _changing(rng: Random, duration: float) -> Actor:
    """Who changes the tubes that a Consumer watches, now and then."""
    steps = []
    for _ in range(rng.randint(1, 5)):
        steps.append(Step("sleep", (round(rng.choice((0.0, 0.01, 0.5)) * duration * rng.random(), 6),)))
        steps.append(_struck(rng, Step("change_tubes", (rng.choice(("watch", "ignore")), rng.choice(TUBES))), 0.15))
    return Actor(tuple(steps), rng.random() * 0.01)


def _met(rng: Random, server: int) -> Process:
    """A Conn whose wait is met by a command: it is recalled, and dialed anew."""
    waits = Step("reserve", (), round(0.2 + 0.5 * rng.random(), 6), None, rng.getrandbits(32))
    meets = (Step("sleep", (round(0.2 * rng.random(), 6),)), _struck(rng, rng.choice(_CONNECTED)(rng), 0.1))
    later = (Step("sleep", (round(0.5 * rng.random(), 6),)), Step("ask", ("stats",)))
    options = {"conn_timeout": 1, "reconnect_timeout": 1, "reserve_timeout": 30}
    return Process((Actor((waits,)), Actor((*meets, *later))), (server,), (server,), (), options)


def _struck(rng: Random, step: Step, chance: float) -> Step:
    step = replace(step, pick=rng.getrandbits(32))
    if step.what == "reserve" or rng.random() < chance:
        limit = rng.choice((0.0001, 0.001, 0.05, 0.5, 2.0)) * rng.random()
        if step.what == "reserve" or rng.random() < 0.5:
            return replace(step, limit=round(limit, 6))
        return replace(step, strike=rng.choice((1, 3, 10, 30)) + rng.randrange(10))
    return step


def _body(rng: Random) -> int:
    return rng.choice((0, 0, 0, 0, 50, 1000, 3000, 60_000, 70_000)) if rng.random() < 0.5 else 0


def _put(rng: Random) -> Step:
    return Step(
        "put",
        (
            rng.choice(TUBES),
            _body(rng),
            rng.choice((None, None, 0, 1, 5000)),
            rng.choice((0, 0, 0, 1, 3)),
            rng.choice((1, 2, 5, 60)),
            rng.choice((15, 15, 3, 0.5, 0)),
        ),
    )


def _put_many(rng: Random) -> Step:
    count, size = rng.choice((1, 3, 3, 10, 70)), _body(rng) % 5000
    if rng.random() < 0.004:
        count, size = 1100, 0  # more than a connection takes at once; they cost as much as fifty other steps
    return Step("put_many", (rng.choice(TUBES), count, size, rng.choice((15, 3, 0.5))))


def _simple(what: str, *choices: tuple[Any, ...]) -> Callable[[Random], Step]:
    return lambda rng: Step(what, tuple(rng.choice(each) for each in choices))


_reserving = (
    _simple("reserve"),
    _simple("reserve_with_timeout", (0, 0, 0.01, 0.5, 1, 2.5)),
    _simple("reserve_with_timeout", (0, 0, 0.01, 0.5, 1, 2.5)),
    _simple("reserve_job"),
)
_settling = (
    _simple("settle", ("delete", "delete", "release", "bury", "touch", "time_left", "stats", "drop"), (None, 7)),
    _simple("settle", ("delete", "delete", "release", "bury", "touch"), (None, 7)),
)
_PRODUCING: tuple[Callable[[Random], Step], ...] = (
    *(_put,) * 6,
    *(_put_many,) * 3,
    _simple("stop_producer", (None, 0, 0.1)),
    _simple("wait_connected", (0.01, 1)),
    _simple("compute", (0.001, 0.1, 2.0)),
)
_CONNECTED: tuple[Callable[[Random], Step], ...] = (
    *(_put,) * 4,
    _put_many,
    *_reserving,
    *_reserving,
    *_settling,
    *_settling,
    _simple("by_id", ("delete", "release", "bury", "touch", "kick_job", "peek", "stats_job")),
    _simple("by_tube", ("kick", "peek_ready", "peek_delayed", "peek_buried", "stats_tube", "use"), TUBES),
    _simple("ask", ("stats", "list_tubes", "list_tubes_watched", "list_tube_used")),
    _simple("watch", TUBES),
    _simple("ignore", (*TUBES, "default")),
    _simple("pause_tube", TUBES, (0, 1)),
    _simple("close"),
    _simple("drop_conn"),
    _simple("compute", (0.001, 0.1, 2.0)),
)


def _fault(rng: Random, servers: int, processes: int, duration: float) -> Fault:
    at = round(duration * rng.random() * rng.choice((0.05, 1.0)), 6)
    server, process = rng.randrange(servers), rng.randrange(processes)
    what, *args = rng.choice(
        (
            ("kill", server, rng.choice((0.0, 0.3, 3.0))),
            ("kill", server, rng.choice((0.0, 0.3, 3.0))),
            ("ambush", server, rng.choice(("end", "end", "put", "delete", "release", "reserve-with-timeout", "stats"))),
            ("ambush", server, rng.choice(("end", "end", "put", "delete", "stats-job", "bury", "use"))),
            ("freeze", server, rng.choice((0.01, 0.5, 4.0, 12.0))),
            ("freeze", server, rng.choice((4.0, 12.0))),
            ("stall", process, server, rng.choice((0.01, 0.5, 4.0, 12.0)), rng.choice(("there", "back", "both"))),
            ("blackhole", process, server, rng.choice(("there", "back", "both"))),
            ("reset", process, server, rng.random() < 0.5),
            ("reset", process, server, rng.random() < 0.5),
            ("cut", process, server),
            ("full", server, rng.choice((0.1, 2.0))),
            ("full", server, rng.choice((2.0, 5.0))),
            ("drain", server),
            ("pause", server, rng.choice(TUBES), rng.choice((1, 3))),
            ("kill_process", process),
            ("hostile", process, server, rng.randrange(100)),
        )
    )
    return Fault(at, what, tuple(args))
