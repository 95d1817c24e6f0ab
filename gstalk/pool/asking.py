"""Connections that reserve for a crew.

`Asking` in `schedule` decides which of them asks for how many jobs, who waits on its server, and who is recalled; here
that is carried out, in the hub.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from gevent import get_hub
from gevent.pool import Group

from gstalk.config import Config
from gstalk.connection.clock import monotonic
from gstalk.connection.connection import Link
from gstalk.connection.critical import section_of
from gstalk.connection.damaged_job import bury_ruined
from gstalk.connection.hooks import Hooks
from gstalk.connection.loop import InHub
from gstalk.errors import DeadlineSoonError, DisconnectedError, ProtocolError
from gstalk.job import Job
from gstalk.pool.crew import ConsumerLane, Crew
from gstalk.pool.keeper import Server
from gstalk.pool.schedule import SILENT, Asking
from gstalk.protocol import commands
from gstalk.protocol.request import Request

__all__ = ["Asker"]


class Asker(InHub):
    """Asks the servers for jobs, as many as a crew has room for.

    Args:
        config: Of the Consumer.
        hooks: Told of reserves that fail.
        crew: Who gets the jobs.
        aside: Where greenlets that tell are kept.
        on_change: Called when the first connection has come, with `True`, or the last one has gone, with `False`.

    Attributes:
        is_over: No more jobs are asked for; one that still comes goes back.
    """

    def __init__(
        self, config: Config, hooks: Hooks, crew: Crew, aside: Group, on_change: Callable[[bool], object]
    ) -> None:
        self.is_over = False
        self._config = config
        self._hooks = hooks
        self._crew = crew
        self._aside = aside
        self._on_change = on_change
        self.hub = get_hub()
        self.section = section_of(self.hub)
        self._asking = Asking(config.num_greenlets)
        self._lanes: dict[Link, ConsumerLane] = {}
        self._due = False  # a look at what to ask
        self._timer: Any = None

    # -- connections -------------------------------------------------------------------------------------------

    def up(self, server: Server, link: Link) -> None:
        """A connection is there."""
        self._lanes[link] = lane = ConsumerLane(server.uri, link, self._config.num_greenlets)
        self._asking.lanes.append(lane)
        link.reserved.on_settled = self.look_soon  # one that holds no job any more may wait on its server
        self._on_change(True)
        self.look_soon()

    def down(self, server: Server, link: Link) -> None:
        """A connection is gone."""
        lane = self._lanes.get(link)
        if lane in self._asking.lanes:  # else a signal has struck here before
            self._asking.lanes.remove(lane)
        self._lanes.pop(link, None)
        if not self._lanes:
            self._on_change(False)
        self.look_soon()

    def end(self) -> None:
        """Ask for no more jobs: waits leave at once, and an ask that still finds one gives it back."""
        self.is_over = True
        self.stop_timer()
        for lane in list(self._lanes.values()):
            if lane.wait is not None:
                lane.wait.then = None
                lane.wait = None
                lane.link.leave_wait()

    # -- what to ask -------------------------------------------------------------------------------------------

    def look_soon(self) -> None:
        """Look once in this turn of the loop at what to ask, however many handlers have ended in it."""
        if not self._due:
            for _ in range(2):  # a signal may strike the first one before its first line
                self.soon(self._look)
            self._due = True

    def struck(self, error: BaseException) -> None:
        """A signal's exception has hit the asking: its counts can't be trusted, so every connection begins anew."""
        self._due = False
        for link in list(self._lanes):
            link.pipe.struck(error)
        self.look_soon()

    def _look(self) -> None:
        if not self._due:
            return
        self._due = False
        if self.is_over:
            return
        now = monotonic()
        any_held = False
        for lane in list(self._lanes.values()):  # a send that fails takes its connection out
            any_held |= self._look_at(lane, now)
        self._asking.running = self._crew.running
        actions, again = self._asking.decide(now)
        for what, each, count in actions:
            assert isinstance(each, ConsumerLane)
            if what == "ask":
                each.asks += count
                for _ in range(count):
                    each.link.ask(0, partial(self._got, each))
            elif what == "wait":
                each.asks += 1
                each.waiting = True
                seconds = int(self._config.reserve_timeout)  # type: ignore[arg-type]
                each.wait = each.link.ask(seconds, partial(self._got, each), partial(self._recall, each))
            else:
                self._recall(each)
        self.stop_timer()
        if any_held:
            again = min(again, SILENT)
        if again < float("inf"):
            self._timer = self.once(again, self._on_timer)

    def _look_at(self, lane: ConsumerLane, now: float) -> bool:
        """Take note of how a connection is; tell whether it holds jobs."""
        pipe = lane.link.pipe
        # Late, or so it seems: the hub may have been blocked, and the answer be there.
        if lane.asks and lane.is_late(now):
            pipe.catch_up()
        lane.held = bool(lane.link.reserved.by_id)
        lane.busy = bool(pipe.requests) or not pipe.attached
        if lane.held and not lane.busy and now - pipe.read_at > SILENT:
            # The server forgets to expire a job while its connection is silent; and a dead line shows itself.
            pipe.append(commands.plain(commands.LIST_TUBE_USED), pipe.request(commands.LIST_TUBE_USED))
        return lane.held

    def _on_timer(self) -> None:
        self.stop_timer()
        self._due = True
        self._look()

    def stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.close()
            self._timer = None

    def _recall(self, lane: ConsumerLane) -> None:
        """End a wait: its permit is needed elsewhere, or a command is to go out on its connection."""
        if lane.wait is not None:
            lane.wait.then = None
            lane.wait = None
            lane.link.recall()
            self._asking.recalled(lane, monotonic())
            self.look_soon()

    # -- answers -----------------------------------------------------------------------------------------------

    def _got(self, lane: ConsumerLane, request: Request) -> None:
        """In the hub: the answer to an ask."""
        now = lane.link.pipe.read_at
        waited, lane.wait = lane.waiting, None
        if request.error is not None:
            if isinstance(request.error, DeadlineSoonError):
                self._asking.deadline_soon(lane, now)
            else:
                self._asking.answered(lane, False, now)
                if not isinstance(request.error, DisconnectedError):
                    self._aside.spawn(self._tell_failure, lane, request.error)
        elif request.result is None:
            if waited:
                self._asking.slice_over(lane, now)
            else:
                self._asking.answered(lane, False, now)
        else:
            was_overdue = lane.overdue > 0
            self._asking.answered(lane, True, now)
            job: Job = request.result
            if self.is_over:
                lane.link.give_back(job)
                return
            if was_overdue:
                self._asking.running = self._crew.running
            if was_overdue and not self._asking.has_room():  # its permit has been used elsewhere
                lane.link.give_back(job)
            else:
                self._crew.offer(lane, job)
        self.look_soon()

    def _tell_failure(self, lane: ConsumerLane, error: BaseException) -> None:
        """Tell; and put a job that the server has ruined out of the way, or nobody would get beyond it."""
        if self._crew.is_copy:
            return
        message = f"reserve at {lane.server} failed"
        known: dict[str, Any] = {"uri": lane.server}
        if isinstance(error, ProtocolError) and error.job_id is not None:
            link, job_id = lane.link, error.job_id
            if bury_ruined(self.hub, link.address, self._config, link.server.id, job_id):
                message += f"; job {job_id} has no end, the server has ruined it: buried"
                known |= {"job_id": job_id, "outcome": "buried"}
        self._hooks.error(error, message, **known)
