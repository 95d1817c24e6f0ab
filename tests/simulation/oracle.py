"""A run of a program, from its first event to the last, and what is asked of the world then.

Actors judge what they see at once. Here is what only the whole shows: where every put is, who deleted what, whether
everybody is served again when the faults are over, and what is left when everything has been stopped.
"""

from __future__ import annotations

import gc
import traceback
from collections import Counter
from dataclasses import dataclass
from typing import Any

import gevent

import gstalk
from tests.simulation.actors import SLACK, HandlerError, Ledger, Life, Putting, StruckError, StruckOSError
from tests.simulation.loop import EndlessError
from tests.simulation.program import Program
from tests.simulation.servers import Copy, Job, Server
from tests.simulation.world import Violation, World, running

__all__ = ["Outcome", "run"]

LONGEST = 120.0  # virtual seconds that actors may take, beyond what each promise bounds
AGAIN = 15.0  # seconds after the last fault within which everybody is connected again: pauses of 3 s, dials of 5 s
SERVED = 45.0  # seconds after that within which Consumers have emptied their tubes


@dataclass
class Outcome:
    """What came of a run."""

    program: Program
    violations: list[Violation]
    trace: list[str]
    seconds: float
    events: int
    faults: Counter[str]
    calls: Counter[str]
    interrupted: Counter[str]
    told: Counter[str]

    @property
    def signature(self) -> str | None:
        """What was broken first; a smaller program is to break the same."""
        return self.violations[0].promise if self.violations else None


def run(program: Program, is_traced: bool = False) -> Outcome:
    """Let a program happen."""
    world = World(program, is_traced)
    ledger = Ledger()
    with running(world) as hub:
        judge = Judge(world, ledger)
        world.allowed = lambda error: isinstance(
            error, (gstalk.GstalkError, HandlerError, StruckError, StruckOSError, gevent.Timeout)
        )
        root = gevent.spawn(judge.live)
        root.name = "root"
        try:
            hub.join()
            if not root.ready():
                world.violation("waits", f"the loop has ended, and somebody still waits: {judge.stuck()}")
            judge.look_at_what_is_left(root)
        except EndlessError as error:
            world.violation("endless", str(error))
        del root, judge
    gc.collect(0)
    return Outcome(
        program,
        world.violations,
        world.traced,
        world.now() - world.began,
        world.loop.events,
        world.faults,
        ledger.calls,
        ledger.interrupted,
        ledger.told,
    )


class Judge:
    """Begins a world, waits for its end, heals it, looks whether all works, stops everything, and looks once more."""

    def __init__(self, world: World, ledger: Ledger) -> None:
        self.world, self.ledger = world, ledger
        self.lives = [Life(world, ledger, number, plan) for number, plan in enumerate(world.program.processes)]
        self.active_before = set(world.loop.active)
        world.on_ready = self._became_ready
        world.is_ending = lambda process: process >= len(self.lives) or self.lives[process].is_ending
        world.on_half_close = lambda process, server: self.lives[process].half_closed(server)
        world.on_ask = lambda process, server: self.lives[process].asked(server)
        world.on_dial = lambda process, server: self.lives[process].dialed(server)

    def _became_ready(self, server: Server, job: Job) -> None:
        for life in self.lives:
            life.became_ready(server, job)

    def live(self) -> None:
        try:
            self._live()
        except EndlessError:
            raise
        except BaseException:
            self.world.violation("judge", traceback.format_exc())

    def _live(self) -> None:
        world = self.world
        world.schedule()
        for life in self.lives:
            life.start()
        working = [actor for life in self.lives for actor in life.actors_who(receive=False)]
        consuming = [actor for life in self.lives for actor in life.actors_who(receive=True)]
        gevent.joinall(working, timeout=LONGEST)
        for life in self.lives:
            for actor in life.actors_who(receive=False):
                doing = life.doing.get(life.actors.index(actor))
                if not actor.ready() and (doing is None or doing.step.what != "put_many"):  # its time is each body's
                    world.violation("waits", f"{doing}: still waits: {_where(actor)}")
        gevent.killall([actor for actor in working if not actor.ready()], block=True, timeout=20)
        last = max((fault.at for fault in world.program.faults), default=0.0)
        gevent.sleep(max(world.began + last - world.now(), 0.0))
        world.heal()
        gevent.sleep(max(world.stalled_until - world.now(), 0.0))
        for life in self.lives:
            life.is_calm = True
        world.trace("JUDGE", "calm")
        self._look_whether_all_works(consuming)
        self._look_for_hidden_reservations()
        world.trace("JUDGE", "the end")
        self._end(consuming)
        self._look_at_jobs()
        self._look_at_puts()
        self._look_at_dials()
        self._look_at_settlings()

    # -- whether all works ---------------------------------------------------------------------------------------

    def _look_whether_all_works(self, consuming: list[Any]) -> None:
        world = self.world
        # A line that is silent for ever is given up after half a minute.
        again = AGAIN + (35.0 if world.faults["blackhole"] else 0.0)
        gevent.sleep(1.0)
        for life in self.lives:
            if life.number in world.dead or life.producer is None or world.faults["drain"]:
                continue
            ends = world.now() + again
            while (trouble := self._put_after_all(life)) and world.now() < ends:
                gevent.sleep(0.5)
            if trouble:
                world.violation("served", f"process {life.number} can't put when all is well: {trouble}")
        for life in self.lives:
            self._look_for_jobs_without_handlers(life)
            for _ in range(3):
                self._look_whether_it_comes_back(life)
            self._look_whether_it_is_quiet(life)
        ends = world.now() + again + SERVED
        count = 1_000_000
        while (left := self._unserved()) and world.now() < ends:
            if len(left) < count - 30:  # they are many, and get fewer
                count, ends = len(left), max(ends, world.now() + SERVED)
            gevent.sleep(0.5)
        if left:
            world.violation("served", f"ready jobs that no Consumer takes: {left[:20]}")

    def _look_whether_it_comes_back(self, life: Life) -> None:
        """A connection that was good, and is cut, is made anew within half a second."""
        world, producer = self.world, life.producer
        if producer is None or life.number in world.dead or world.program.latency > 0.005 or life.number % 2:
            return
        pool = producer._queue.pool
        each = life.plan.options.get("multiply", 1)
        if not all(server.is_usable and len(server.connections) == each for server in pool.servers):
            return
        for server in life.plan.servers:
            life.cuts += len(world.living(life.number, server))
            world._cut(life.number, server)
        gevent.sleep(4 * (world.program.latency + world.program.jitter))
        began = world.now()
        if not producer.wait_connected(0.5 + 0.1):
            world.violation("back", f"process {life.number} is not connected {world.now() - began:.2f} s after a cut")

    def _look_for_jobs_without_handlers(self, life: Life) -> None:
        """A Consumer holds no job for long but those that its handlers work at."""
        world = self.world
        if not life.receiving or not life.is_clean or world.faults["full"] or world.program.latency > 0.005:
            return

        def idle() -> set[tuple[int, int, int, int]]:
            held = [copy for server in world.servers for copy in server.reserved_by(life.number)]
            return {
                (copy.server, copy.epoch, copy.id, copy.reserved[life.number])
                for copy in held
                if not life.running[copy.server, copy.epoch, copy.id]
                if not life.giving_up[copy.server, copy.epoch, copy.id]
            }

        before = idle()
        if before:
            gevent.sleep(1.5)  # a release that was refused is tried again after a second
            if still := before & idle():
                world.violation("idle", f"process {life.number} holds {still}, and no handler works at them")

    def _look_whether_it_is_quiet(self, life: Life) -> None:
        """A Consumer that can lend each server a permit, and has nothing to do, asks nothing but its slices."""
        world = self.world
        options = life.plan.options
        if not life.receiving or not life.is_clean or options["num_greenlets"] - life.kept < len(life.plan.servers):
            return
        if world.program.latency > 0.005 or self._unserved() or any(life.running.values()) or self._delayed(life):
            return
        gevent.sleep(1.5)
        before = [server.commands[life.number] for server in world.servers]
        was_busy, receiving = any(life.running.values()), life.doing.get(0)
        gevent.sleep(2.0)
        asked = sum(server.commands[life.number] for server in world.servers) - sum(before)
        slices = (2.0 / options["reserve_timeout"] + 1) * len(life.plan.servers)
        if (
            asked > slices
            and not was_busy
            and receiving is life.doing.get(0)
            and not any(life.running.values())
            and not self._delayed(life)
        ):
            world.violation("quiet", f"process {life.number} asked {asked} times in 2 s, and nothing was there")

    def _delayed(self, life: Life) -> bool:
        """Whether jobs may still come to a Consumer."""
        assert life.consumer is not None
        tubes = {name.encode() for name in life.consumer.tubes}
        engines = [self.world.servers[number].engine for number in life.plan.servers]
        jobs = [job for engine in engines for job in engine.jobs.values() if job.tube.name in tubes]
        return any(job.state in ("delayed", "reserved", "ready") for job in jobs)

    def _put_after_all(self, life: Life) -> str:
        """Put once more; returns what came between."""
        assert life.producer is not None
        body = b"after all %d at %f" % (life.number, self.world.now())
        putting = Putting(body, life.number, life.plan.servers, "z", (None, None, None), 3)
        self.ledger.puts.append(putting)
        try:
            putting.result = life.producer.put("z", body, timeout=5)
        except gstalk.GstalkError as error:
            putting.failed(error)
        return putting.error

    def _unserved(self) -> list[tuple[int, int]]:
        """Ready jobs of servers and tubes that a living Consumer watches."""
        found = []
        for life in self.lives:
            if life.receiving and life.number not in self.world.dead:
                for number in life.plan.servers:
                    engine = self.world.servers[number].engine
                    assert life.consumer is not None
                    for name in life.consumer.tubes:
                        tube = engine.tubes.get(name.encode())
                        if tube is not None and not tube.pause:
                            found += [(number, job.id) for job in tube.ready]
        return found

    def _look_for_hidden_reservations(self) -> None:
        """What a Conn's server holds for it, somebody was given."""
        for life in self.lives:
            if not life.plan.conns:
                continue
            known = {(each.server, each.job.id) for each in life.held if not each.job.is_lost}
            for server in self.world.servers:
                for copy in server.reserved_by(life.number, but_leaving=True):
                    name = (server.number, copy.id)
                    if name not in known and not server.was_hostile and not self._was_dropped(life, copy):
                        self.world.violation(
                            "hidden", f"job {name} is reserved for process {life.number}, unknown to it"
                        )

    def _was_dropped(self, life: Life, copy: Copy) -> bool:
        return any(wish[:2] == (life.number, copy.body) for wish in self.ledger.wishes)

    # -- the end -------------------------------------------------------------------------------------------------

    def _end(self, consuming: list[Any]) -> None:
        world = self.world
        for life in self.lives:
            life.is_over = True
            if life.consumer is not None and life.receiving:
                began = world.now()
                life.note_stop()
                life.consumer.stop(timeout=1)
                actors = life.actors_who(receive=True)
                gevent.joinall(actors, timeout=5.0)
                took = world.now() - began
                if not all(actor.ready() for actor in actors):
                    world.violation("receive", f"process {life.number}: receive still runs {took:.3f} s after stop(1)")
                elif took > 3.0 + SLACK:
                    world.violation("receive", f"process {life.number}: took {took:.3f} s after stop(1)")
        gevent.killall(consuming, block=True, timeout=30)
        for life in self.lives:
            self._close(life)
        gevent.joinall([child for life in self.lives for child in life.children], timeout=30)
        if any(life.has_dropped for life in self.lives):
            gc.collect(0)  # a Conn that was dropped may stand in a circle
        gevent.sleep(2.0 + 3 * world.program.latency)

    def _close(self, life: Life) -> None:
        world = self.world
        for producer in life.producers:
            queue = producer._queue
            producer.stop(timeout=1)
            if queue.puts or any(member.pipe.requests for member in queue._members.values()):
                world.violation("requests", f"process {life.number}: {queue.puts} puts are under way for ever")
        for conn in life.all_conns:
            began = world.now()
            conn.close()
            if world.now() - began > life.patience + SLACK:
                world.violation("close", f"a close took {world.now() - began:.3f} s")
        for each in life.held:
            if each.job._state == "settling":
                world.violation("settled", f"job {each.job.id} is being settled for ever")
            elif "delete" in each.called and each.job.is_finished:
                copies = world.servers[each.server].by_body.get(each.job.body, [])
                if not any(copy.deleted_by is not None or copy.settled for copy in copies):
                    world.violation("finished", f"job {each.job.id} is said to be finished")
        life.held.clear()
        life.conns.clear()
        life.all_conns.clear()
        life.producers.clear()
        life.producer = life.consumer = None

    def stuck(self) -> list[str]:
        greenlets = [found for each in self.world.greenlets if (found := each()) is not None and not found.ready()]
        return [f"{greenlet!r} {_where(greenlet)}" for greenlet in greenlets][:5]

    def look_at_what_is_left(self, root: Any) -> None:
        """No socket, watcher, timer, callback or greenlet; nothing that the servers still hold for anybody."""
        world = self.world
        if world.sockets or world.loop.active - self.active_before or self._greenlets_left(root):
            gc.collect(0)  # it costs a twentieth of a run, and mostly nothing stands in circles
        alive, watchers = self._greenlets_left(root), world.loop.active - self.active_before
        if alive:
            world.violation("left", f"greenlets: {[f'{each!r} {_where(each)}' for each in alive][:3]}")
        if watchers:
            world.violation("left", f"watchers: {[(type(each).__name__, each.callback) for each in watchers][:3]}")
        if world.loop.pending_callbacks:
            world.violation("left", f"{world.loop.pending_callbacks} callbacks")
        if world.sockets:
            world.violation("left", f"{len(world.sockets)} sockets")
        for server in world.servers:
            for life in self.lives:
                # A server doesn't notice a client that a silent line has cut off from it, for hours.
                is_known = life.number not in world.dead and not world.faults["blackhole"]
                if is_known and (held := server.reserved_by(life.number)):
                    world.violation(
                        "left", f"server {server.number} holds {[copy.id for copy in held]} for {life.number}"
                    )

    def _greenlets_left(self, root: Any) -> list[Any]:
        left = [found for each in self.world.greenlets if (found := each()) is not None and found is not root]
        return [greenlet for greenlet in left if not greenlet.ready()]

    def _look_at_dials(self) -> None:
        """Who loses no connection dials no other, but for a recall: a Conn one, a Consumer for another server."""
        for life in self.lives:
            multiply = life.plan.options.get("multiply", 1)
            alone = len(life.plan.servers) == 1 and not life.plan.changes_tubes
            for server in range(len(self.world.servers)):
                most = 2 * life.dials[server] + life.cuts
                if server in life.plan.servers:
                    most += multiply * (life.producers_made + life.receives)
                found = self.world.connects[life.number, server]
                if found > most and self.world.is_swift and (alone or not life.plan.consumes):
                    self.world.violation("dials", f"process {life.number}: {found} to server {server}, not {most}")

    # -- what the record shows -----------------------------------------------------------------------------------

    def _copies(self) -> list[Copy]:
        return [copy for server in self.world.servers for copy in server.copies.values()]

    def _look_at_puts(self) -> None:
        world = self.world
        hostile = any(server.was_hostile for server in world.servers)
        for put in self.ledger.puts:
            copies = [copy for number in put.servers for copy in world.servers[number].by_body.get(put.body, [])]
            what = f"put of {put.body[:30]!r} by process {put.process}"
            if len(copies) > put.most:
                world.violation("copies", f"{what}: {len(copies)}, at most {put.most} promised")
            if put.result is not None:
                if not any(copy.id == put.result for copy in copies):
                    world.violation("acknowledged", f"{what}: id {put.result}, but the servers have {copies}")
                if put.most > 1 and len(copies) > 1 and not self._was_disturbed(put):
                    world.violation("doubled", f"{what}: {len(copies)} copies, and nothing had come between")
            elif put.sent == "maybe" and put.is_of_conn and not self._was_sent(put) and not self._was_cut_short(put):
                world.violation("sent", f"{what}: {put.error}, but the kernel never had all of it")
            elif copies and put.sent == "no" and not hostile:
                world.violation("unsent", f"{what}: {put.error}, but the servers have {copies}")
            for copy in copies:
                pri, delay, ttr = (1024 if put.params[0] is None else put.params[0]), put.params[1] or 0, put.params[2]
                if (copy.tube, copy.pri, copy.delay, copy.ttr) != (put.tube, pri, delay, 60 if ttr is None else ttr):
                    world.violation("parameters", f"{what}: {copy}")

    def _was_sent(self, put: Putting) -> bool:
        return any(put.body + b"\r\n" in sent for sent in self.world.sent[put.process])

    def _was_cut_short(self, put: Putting) -> bool:
        """Whether a close that was to send it, before which somebody's delete waited, may not have come to its end."""
        is_cut = self.lives[put.process].was_interrupted or put.process in self.world.disturbed or self.world.blocked
        return bool(is_cut) and "you closed it" in put.error

    def _was_disturbed(self, put: Putting) -> bool:
        return put.process in self.world.disturbed or bool(self.world.faults) or bool(self.world.blocked)

    def _look_at_jobs(self) -> None:
        """What is gone was deleted by somebody who wished it."""
        wishes = self.ledger.wishes
        for copy in self._copies():
            server = self.world.servers[copy.server]
            name = (copy.server, copy.id)
            if copy.deleted_by is not None:
                by = copy.deleted_by
                # What stands behind a `use` that failed is deleted by gstalk itself.
                is_wished = (by, copy.body, "delete") in wishes or (by, name, "delete") in wishes
                if not is_wished and not server.was_hostile:
                    self.world.violation("deleted", f"job {name} by process {by}, who never asked for that")
            elif not copy.is_lost and copy.epoch == server.epoch and copy.id not in server.engine.jobs:
                self.world.violation("gone", f"job {name}")

    def _look_at_settlings(self) -> None:
        """Priorities are changed by those alone who asked for it."""
        for copy in self._copies():
            if self.world.servers[copy.server].was_hostile:
                continue
            name = (copy.server, copy.id)
            for what, by, before, after in copy.priorities:
                wished = {(by, copy.body, "priority", after), (by, name, what)} & self.ledger.wishes
                if before != after and what in ("release", "bury") and not wished:
                    self.world.violation("priority", f"job {name} went from {before} to {after} by process {by}")


def _where(greenlet: Any) -> str:
    frame = greenlet.gr_frame
    places = []
    while frame is not None:
        places.append(f"{frame.f_code.co_name}:{frame.f_lineno}")
        frame = frame.f_back
    return " < ".join(places[:8])
