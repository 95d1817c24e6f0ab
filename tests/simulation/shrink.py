"""Make a program that breaks a promise smaller, while it still breaks the same one.

What is taken away is tried from the coarse to the fine: processes, actors, faults, halves of an actor's steps, single
steps; then what makes a step or the network special. Each candidate is run; the first that still fails goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tests.simulation.oracle import Outcome, run
from tests.simulation.program import Actor, Fault, Process, Program, Step

__all__ = ["shrink"]

MOST_RUNS = 600


def shrink(program: Program, most_runs: int = MOST_RUNS) -> Outcome:
    """Return the outcome, with its trace, of the smallest program found."""
    wanted = run(program).signature
    runs = 0
    progressed = True
    while progressed and runs < most_runs:
        progressed = False
        for smaller in _smaller(program):
            runs += 1
            if run(smaller).signature == wanted:
                program, progressed = smaller, True
                break
            if runs >= most_runs:
                break
    return run(program, is_traced=True)


def _without(items: tuple, place: int, count: int = 1) -> tuple:  # type: ignore[type-arg]
    return items[:place] + items[place + count :]


def _smaller(program: Program) -> Iterator[Program]:
    for place in reversed(range(len(program.processes))):
        if len(program.processes) > 1:
            yield _without_process(program, place)
    for count in (2, 1):
        for place in reversed(range(len(program.faults) - count + 1)):
            yield replace(program, faults=_without(program.faults, place, count))
    for number, process in enumerate(program.processes):
        for smaller in _smaller_processes(process):
            yield _with_process(program, number, smaller)
    for number, fault in enumerate(program.faults):
        if fault.at != round(fault.at, 3):
            faults = list(program.faults)
            faults[number] = Fault(round(fault.at, 3), fault.what, fault.args)
            yield replace(program, faults=tuple(faults))
    plain = Program(program.seed)
    yield from (
        smaller
        for smaller in (
            replace(program, slicing=0.0),
            replace(program, jitter=0.0),
            replace(program, capacity=plain.capacity),
            replace(program, latency=plain.latency),
        )
        if smaller != program
    )


def _with_process(program: Program, number: int, process: Process) -> Program:
    processes = list(program.processes)
    processes[number] = process
    return replace(program, processes=tuple(processes))


def _without_process(program: Program, place: int) -> Program:
    """Faults name processes by their number."""
    faults = []
    for fault in program.faults:
        if fault.what in ("stall", "blackhole", "reset", "cut", "kill_process", "hostile"):
            if fault.args[0] == place:
                continue
            if fault.args[0] > place:
                fault = replace(fault, args=(fault.args[0] - 1, *fault.args[1:]))
        faults.append(fault)
    return replace(program, processes=_without(program.processes, place), faults=tuple(faults))


def _smaller_processes(process: Process) -> Iterator[Process]:
    if len(process.actors) > 1:
        for place in reversed(range(len(process.actors))):
            yield replace(process, actors=_without(process.actors, place))
    for number, actor in enumerate(process.actors):
        for smaller in _smaller_actors(actor):
            actors = list(process.actors)
            actors[number] = smaller
            yield replace(process, actors=tuple(actors))
    if len(process.handlers) > 1:
        for place in range(len(process.handlers)):
            yield replace(process, handlers=(process.handlers[place],))
    for name in process.options:
        if name not in ("conn_timeout", "num_greenlets", "stop_timeout", "reserve_timeout", "reconnect_timeout"):
            yield replace(process, options={key: value for key, value in process.options.items() if key != name})


def _smaller_actors(actor: Actor) -> Iterator[Actor]:
    steps = actor.steps
    for count in (len(steps) // 2, 1):
        if count:
            for place in reversed(range(0, len(steps) - count + 1, count)):
                yield replace(actor, steps=_without(steps, place, count))
    for place, step in enumerate(steps):
        for simpler in _simpler(step):
            yield replace(actor, steps=(*steps[:place], simpler, *steps[place + 1 :]))
    if actor.start:
        yield replace(actor, start=0.0)


def _simpler(step: Step) -> Iterator[Step]:
    if step.strike is not None or (step.limit is not None and step.what != "reserve"):
        yield replace(step, strike=None, limit=None)
    if step.what == "put_many" and step.args[1] > 1:
        yield replace(step, args=(step.args[0], step.args[1] // 2, *step.args[2:]))
    if step.what == "put" and step.args[1:5] != (0, None, 0, None):
        yield replace(step, args=(step.args[0], 0, None, 0, None, step.args[5]))
