"""Faults planted into gstalk, to see whether the simulation finds them, and after how many seeds.

    python -m tests.simulation.mutants [--most 2000] [--jobs 2] [name ...]

Each is one line changed in a copy of the package. A mutant that is not found asks for a better actor, or a better line
of the oracle, or is one that no run here can tell from the real thing: `UNSEEN` says of such why.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tests.simulation.runner import ROOT

__all__ = ["MUTANTS", "UNSEEN", "Mutant", "seeds_until_found"]


class Mutant(NamedTuple):
    """`old` stands once in the module; `new` in its place breaks a promise."""

    name: str
    module: str
    old: str
    new: str


MUTANTS = [
    # The list of those that once survived all tests.
    Mutant(
        "a job is not given back when the reserve's caller leaves",
        "connection/reserving.py",
        "        elif isinstance(caller.result, Job):\n            self._connection.give_back(caller.result)",
        "        elif False:\n            pass",
    ),
    Mutant(
        "a job is not given back when reserve_job's caller is hit",
        "connection/reserving.py",
        "            if request.waiter is None:\n                self._connection.give_back(job)",
        "            if False:\n                self._connection.give_back(job)",
    ),
    Mutant(
        "the failure of a give-back is ignored",
        "connection/connection.py",
        '        if state_of(request.subject) == "held":\n            self.pipe.fail(',
        "        if False:\n            self.pipe.fail(",
    ),
    Mutant(
        "a settling that failed does not mark the job lost",
        "connection/reserved.py",
        '        if job._state == "settling" and request.command in SETTLING:\n            job._state = "lost"',
        '        if False:\n            job._state = "lost"',
    ),
    Mutant(
        "an offer of room is not passed on",
        "connection/pipeline.py",
        "                else:  # the room was offered to us\n                    self._offer_room()",
        "                else:  # the room was offered to us\n                    pass",
    ),
    Mutant(
        "dismissed before the answer",
        "connection/reserving.py",
        "(quiet or c.ask <= self._answered)]",
        "(quiet or True)]",
    ),
    Mutant(
        "asks answered with sent no at the end",
        "connection/reserving.py",
        'sent: Sent = "maybe" if self._callers[0].ask > self._answered else "no"',
        'sent: Sent = "no"',
    ),
    Mutant(
        "a starved server takes from itself",
        "pool/permits.py",
        "needy[0] if len(self._hot) + len(self._turns) == 1 else None",
        "None",
    ),
    Mutant(
        "a recalled connection asks at once",
        "pool/permits.py",
        "        source.recalled_at = now\n        source.next_ask = now + REST",
        "        source.recalled_at = now\n        source.next_ask = now",
    ),
    Mutant(
        "a stall is not noted when the connection goes down",
        "pool/keeper.py",
        "                    server.health.stall()",
        "                    pass",
    ),
    Mutant(
        "a backoff is never reset",
        "pool/keeper.py",
        "                backoff.reset()",
        "                pass",
    ),
    # Others, in every room.
    Mutant(
        "replies are matched from the wrong end",
        "protocol/stream.py",
        "            request = requests[0]\n            command",
        "            request = requests[-1]\n            command",
    ),
    Mutant(
        "a body is taken one byte short",
        "protocol/stream.py",
        "int(text), data[start:end]",
        "int(text), data[start : end - (end > 99)]",
    ),
    Mutant(
        "what was not sent is said to be",
        "protocol/request.py",
        "    if request.end > sent:",
        "    if request.end > sent + 10**9:",
    ),
    Mutant(
        "what was sent is said not to be",
        "protocol/request.py",
        "    if request.end > sent:",
        "    if request.end >= sent:",
    ),
    Mutant(
        "the rest of a full socket's write is dropped",
        "connection/transport.py",
        "            self._backlog += view[taken:]\n        return False",
        "            self._backlog += view[taken + 1:]\n        return False",
    ),
    Mutant(
        "the end of the stream is not noticed",
        "connection/pipeline.py",
        '                self.fail(ConnectionLostError, "the server closed the connection")',
        "                pass",
    ),
    Mutant(
        "a reset loses what had come before",
        "connection/pipeline.py",
        "            self._read_rest(error)\n            return\n        self._limit",
        "            self.fail(ConnectionLostError, str(error), error)\n            return\n        self._limit",
    ),
    Mutant(
        "a failed connection wakes nobody",
        "connection/ending.py",
        "        self._wake_soon()\n        if self.on_failure is not None:",
        "        if self.on_failure is not None:",
    ),
    Mutant(
        "the reader is left on a closed socket",
        "connection/pipeline.py",
        "for each in (self._reader, self._writer, self._timer, self._holder) if",
        "for each in (self._writer, self._timer, self._holder) if",
    ),
    Mutant(
        "a waiter stays marked after his timeout",
        "connection/calls.py",
        "    finally:\n        call.waiter = None\n\n\ndef wait_for",
        "    finally:\n        pass\n\n\ndef wait_for",
    ),
    Mutant(
        "a put stays in the tube that was used before",
        "connection/channel.py",
        "            if tube is None or tube == self.used:",
        "            if True:",
    ),
    Mutant(
        "the progress timer is never set",
        "connection/pipeline.py",
        "        if self._timer is None:\n            self._set_timer(self.conn_timeout or UNLIMITED)",
        "        pass",
    ),
    Mutant(
        "a dial has no limit",
        "connection/connect.py",
        "    mine = gevent.Timeout(conn_timeout)",
        "    mine = gevent.Timeout(None)",
    ),
    Mutant(
        "a recall dials without what was watched",
        "connection/channel.py",
        "self._limit, used, self.watched)",
        "self._limit, used)",
    ),
    Mutant(
        "a recall does not compare the server's id",
        "connection/recall.py",
        "            if server.id != self._server_id:",
        "            if False:",
    ),
    Mutant(
        "a recall does not half-close",
        "connection/recall.py",
        "            if not self._end_wait():",
        "            if False:",
    ),
    Mutant(
        "a job goes back with another priority",
        "connection/connection.py",
        "lambda p: commands.release(job.id, p, 0), True)",
        "lambda p: commands.release(job.id, 1 + p, 0), True)",
    ),
    Mutant(
        "a job that is reserved again isn't lost",
        "connection/reserved.py",
        "        if job.id in self.by_id:\n            self._let_go(job.id)",
        "        if False:\n            self._let_go(job.id)",
    ),
    Mutant(
        "jobs aren't lost with their connection",
        "connection/channel.py",
        "        self.reserved.lose_all()",
        "        pass",
    ),
    Mutant(
        "DEADLINE_SOON is asked again at once",
        "connection/reserving.py",
        "                self._quiet_until = monotonic() + QUIET",
        "                self._quiet_until = monotonic()",
    ),
    Mutant(
        "a reserve's time is not looked at",
        "connection/reserving.py",
        "        elif caller.ask <= self._answered:\n            self._ask(caller)",
        "        elif False:\n            self._ask(caller)",
    ),
    Mutant(
        "a put counts itself twice as done",
        "pool/put_queue.py",
        "            member.in_flight -= 1  # no section",
        "            member.in_flight -= 2  # no section",
    ),
    Mutant(
        "a full connection never comes back into the queue",
        "pool/put_queue.py",
        "        if not member.in_queue:\n            self._enqueue(member)\n\n    def _enqueue",
        "        if False:\n            self._enqueue(member)\n\n    def _enqueue",
    ),
    Mutant(
        "a put's time isn't looked at while it is in flight",
        "pool/put_queue.py",
        "            if member.earliest <= now:",
        "            if False:",
    ),
    Mutant(
        "puts in line are not served when a connection comes",
        "pool/put_queue.py",
        "            self._queue.put_nowait(member)\n            self._serve_soon()",
        "            self._queue.put_nowait(member)",
    ),
    Mutant(
        "a put in line is wakened before it is answered",
        "pool/put_queue.py",
        "            self.send(put, put.tube, put.data, None, now, member)\n",
        "            self.send(put, put.tube, put.data, None, now, member)\n            put.succeed()\n",
    ),
    Mutant(
        "a put that was interrupted in line is sent all the same",
        "pool/put_queue.py",
        "            self._line.pop(put, None)\n            self._line_changed()\n        else:",
        "            pass\n        else:",
    ),
    Mutant(
        "an ambiguous put is always tried again",
        "pool/schedule.py",
        "    again = not once and retry_ambiguous and maybes + 1 < MOST_MAYBES",
        "    again = not once",
    ),
    Mutant(
        "a sent put is taken for unsent",
        "pool/puts.py",
        '        return "maybe" if self._maybes else "no"',
        '        return "no"',
    ),
    Mutant(
        "a batch's results stand beside the wrong body",
        "pool/puts.py",
        "        results[body.number], self.under_way, is_last =",
        "        results[len(results) - 1 - body.number], self.under_way, is_last =",
    ),
    Mutant(
        "one permit too many",
        "pool/permits.py",
        "        free = self.permits - self.running - self._asked",
        "        free = self.permits + 1 - self.running - self._asked",
    ),
    Mutant(
        "a permit is lost with each ask that found nothing",
        "pool/permits.py",
        "        elif group is not None:\n            self._asked -= 1",
        "        elif group is not None:\n            self._asked -= source.hot",
    ),
    Mutant(
        "a killed handler's greenlet is not replaced",
        "consumer.py",
        "        while self._stop_at is None:\n            self._crew.fill()\n            self._asker",
        "        self._crew.fill()\n        while self._stop_at is None:\n            self._asker",
    ),
    Mutant(
        "a job that comes after the stop is not given back",
        "pool/asking.py",
        "            if self.is_over:\n                source.connection.give_back(job)\n                return",
        "            if self.is_over:\n                return",
    ),
    Mutant(
        "a stop does not end the waits",
        "pool/asking.py",
        "                source.connection.leave_wait()",
        "                pass",
    ),
    Mutant(
        "receive returns before the servers have let go",
        "consumer.py",
        "            self._guarded(self._until_gone)",
        "            self.pool.cut()",
    ),
    Mutant(
        "handlers are never killed",
        "consumer.py",
        "                self._crew.kill()",
        "                pass",
    ),
    Mutant(
        "a failed job is not settled",
        "pool/handling.py",
        "            self._settle(failure, telling)",
        "            pass",
    ),
    Mutant(
        "attempts are not counted",
        "retry.py",
        "return self.max_attempts is not None and reserves >= self.max_attempts * (kicks + 1)",
        "return self.max_attempts is not None and reserves > self.max_attempts * (kicks + 1)",
    ),
    Mutant(
        "a reserve without time waits with others",
        "connection/reserving.py",
        "if self._may_wait and has_time and not",
        "if self._may_wait and not",
    ),
    Mutant(
        "a Conn waits again after a recall",
        "connection/reserving.py",
        "        self._may_wait = False\n        self._wait.then = None",
        "        self._wait.then = None",
    ),
    Mutant(
        "a job that has not run is deleted for its attempts",
        "retry.py",
        'policy.exhausted if has_run else "bury"',
        "policy.exhausted",
    ),
    Mutant(
        "one permit is never lent",
        "pool/permits.py",
        "        keep = max(self._kept, 0 if for_all else 1)",
        "        keep = max(self._kept, 1)",
    ),
    Mutant(
        "a recall keeps two permits",
        "pool/permits.py",
        "        self._kept += 1",
        "        self._kept += 2",
    ),
    Mutant(
        "waits are recalled as often as anybody starves",
        "pool/permits.py",
        "victim.recalled_at + RECALL_EVERY)",
        "victim.recalled_at)",
    ),
    Mutant(
        "nobody is told that a job is given up",
        "pool/handling.py",
        "                if self._fate.is_given_up and not self._is_told:",
        "                if False:",
    ),
    Mutant(
        "an ignored tube is ignored by later connections alone",
        "pool/asking.py",
        "                if watch or ignore:\n                    requests += self._tell_tubes(source, watch, ignore)",
        "                if watch or ignore:\n                    source.tubes = self._watch_list.tubes",
    ),
    Mutant(
        "a job's own handler is another tube's",
        "pool/handling.py",
        "    handler = by_tube.get(str(job.tube))\n",
        "    handler = next(iter(by_tube.values()))\n",
    ),
    Mutant(
        "auto_delete deletes what was settled already",
        "pool/handling.py",
        "            connection.delete_unwaited(job)\n        elif",
        "            pass\n        elif",
    ),
    Mutant(
        "a server that is left alone is never used again",
        "pool/put_queue.py",
        "        server.health.rest()",
        "        pass",
    ),
    Mutant(
        "a keeper dials no more after its first connection",
        "pool/keeper.py",
        "            self._pause(backoff.pause(chance()))",
        "            self._pause(backoff.pause(chance()) + 1000 * (connects > 0))",
    ),
    Mutant(
        "a stopped Producer does not wait for its puts",
        "pool/hubs.py",
        "                mine.wait_idle(seconds)",
        "                pass",
    ),
]


#: Those that no seed finds: why, and which test does.
UNSEEN = {
    "a job is not given back when the reserve's caller leaves": "he is wakened in the read that answers him, so "
    "that only a signal handler can strike between: faults/test_signal_everywhere.py::"
    "test_job_goes_back_where_ctrl_c_strikes_a_reserve_as_it_returns",
    "an offer of room is not passed on": "the next reply makes it again; where none is to come, and both are struck in "
    "one turn: io/test_pipeline.py::test_room_offered_to_callers_who_were_interrupted_is_offered_to_the_next",
    "a full connection never comes back into the queue": "most puts give theirs back elsewhere, and the tick looks: "
    "io/test_put_queue.py::test_connection_with_as_many_puts_as_it_may_have_is_out_of_the_queue_until_one_has_ended",
    "a starved server takes from itself": "it takes several connections to one server, and the loss of another one "
    "while all handlers work; then it costs a dial: "
    "unit/test_permits.py::test_starved_connection_takes_nothing_from_its_own_server",
    "a reserve without time waits with others": "its caller's time must be over in the moment between its answer and "
    "its next ask: simulation/test_found.py, and "
    "io/test_reserving.py::test_reserve_whose_time_is_over_does_not_wait_with_others",
    "a job that has not run is deleted for its attempts": "the job before it must leave a timeout behind that strikes "
    "while the server is asked about this one: "
    "io/test_handling.py::test_job_that_is_hit_before_its_handler_is_not_deleted_unrun",
}


def seeds_until_found(mutant: Mutant, most: int, first: int = 0) -> tuple[int | None, str]:
    """Say after how many seeds a mutant is found, and by which promise; `None`: by none of so many."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as place:
        shutil.copytree(ROOT / "gstalk", Path(place) / "gstalk", ignore=shutil.ignore_patterns("__pycache__", "cli"))
        module = Path(place) / "gstalk" / mutant.module
        text = module.read_text("utf-8")
        if text.count(mutant.old) != 1:
            raise ValueError(f"{mutant.name}: what it changes stands {text.count(mutant.old)} times in {mutant.module}")
        module.write_text(text.replace(mutant.old, mutant.new), "utf-8")
        told = subprocess.run(
            [sys.executable, "-c", "from tests.simulation.mutants import _child; _child()", json.dumps([first, most])],
            env=os.environ | {"PYTHONPATH": f"{place}:{ROOT}", "PYTHONDONTWRITEBYTECODE": "1"},
            cwd=place,
            capture_output=True,
            text=True,
            check=False,
        )
    if told.returncode:
        return 0, f"ends the process: {told.stderr.strip().splitlines()[-1][:100]}"
    count, promise = json.loads(told.stdout.splitlines()[-1])
    return count, promise


def _child() -> None:
    import gstalk
    from tests.simulation.oracle import run
    from tests.simulation.program import generate

    assert gstalk.__file__ is not None
    assert "mutant-" in gstalk.__file__, gstalk.__file__
    first, most = json.loads(sys.argv[1])
    for number in range(most):
        outcome = run(generate(first + number))
        if outcome.violations:
            print(json.dumps([number + 1, str(outcome.violations[0])[:150]]))
            return
    print(json.dumps([None, "not found"]))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.mutants")
    parser.add_argument("--most", type=int, default=2000)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    chosen = [each for each in MUTANTS if not arguments.names or any(name in each.name for name in arguments.names)]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        found = pool.map(lambda mutant: seeds_until_found(mutant, arguments.most), chosen)
        for mutant, (count, promise) in zip(chosen, found, strict=True):
            print(f"{count if count is not None else '-':>6}  {mutant.name}  [{mutant.module}]  {promise}", flush=True)


if __name__ == "__main__":
    main()
