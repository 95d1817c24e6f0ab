"""Seeds by the thousand, over processes of their own, and their figures."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, process_time

from tests.simulation.oracle import run
from tests.simulation.program import generate, written
from tests.simulation.shrink import shrink

__all__ = ["Figures", "run_seeds", "tell_failure"]

ROOT = Path(__file__).parent.parent.parent
AT_A_TIME = 50  # seeds between two collections of what has been left in circles


@dataclass
class Figures:
    """What runs were made, and what they found."""

    schedules: int = 0
    cpu: float = 0.0
    virtual: float = 0.0
    events: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    interrupted: Counter[str] = field(default_factory=Counter)
    told: Counter[str] = field(default_factory=Counter)
    failures: dict[int, str] = field(default_factory=dict)

    def add(self, other: Figures) -> None:
        self.schedules += other.schedules
        self.cpu += other.cpu
        self.virtual += other.virtual
        self.events += other.events
        for name in ("faults", "calls", "interrupted", "told"):
            getattr(self, name).update(getattr(other, name))
        self.failures.update(other.failures)

    def __str__(self) -> str:
        rate = self.schedules / self.cpu if self.cpu else 0.0
        return (
            f"{self.schedules} schedules, {rate:.0f} a second of CPU, {self.virtual:.0f} s of virtual time, "
            f"{self.events} events, {sum(self.faults.values())} faults {dict(self.faults)}, "
            f"{sum(self.calls.values())} calls, {sum(self.interrupted.values())} interrupted, "
            f"told {dict(self.told)}, {len(self.failures)} failures"
        )


def run_here(first: int, count: int, until: float | None) -> Figures:
    """Run seeds in this process, as many as there is time for."""
    figures = Figures()
    began = process_time()
    gc.collect()
    gc.freeze()
    for seed in range(first, first + count):
        outcome = run(generate(seed))
        figures.schedules += 1
        figures.virtual += outcome.seconds
        figures.events += outcome.events
        for name in ("faults", "calls", "interrupted", "told"):
            getattr(figures, name).update(getattr(outcome, name))
        if outcome.violations:
            figures.failures[seed] = str(outcome.violations[0])
        if figures.schedules % AT_A_TIME == 0:
            gc.collect()
        if until is not None and monotonic() > until:
            break
    figures.cpu = process_time() - began
    return figures


def run_seeds(first: int, count: int, jobs: int = 1, seconds: float | None = None) -> Figures:
    """Run seeds in processes side by side; each has its share of them."""
    share = -(-count // jobs)
    until = None if seconds is None else monotonic() + seconds
    if jobs == 1:
        return run_here(first, count, until)
    command = [sys.executable, "-c", "from tests.simulation.runner import _child; _child()"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    children = []
    for number in range(jobs):
        asked = json.dumps([first + number * share, min(share, count - number * share), seconds])
        child = subprocess.Popen([*command, asked], stdout=subprocess.PIPE, env=environment, cwd=ROOT, text=True)
        children.append(child)
    figures = Figures()
    for child in children:
        out, _ = child.communicate()
        if child.returncode:
            raise RuntimeError(f"a process of the simulation ended with {child.returncode}")
        told = json.loads(out)
        told["failures"] = {int(seed): promise for seed, promise in told["failures"].items()}
        figures.add(Figures(**told))
    return figures


def _child() -> None:
    first, count, seconds = json.loads(sys.argv[1])
    until = None if seconds is None else monotonic() + seconds
    print(json.dumps(vars(run_here(first, count, until))))


def tell_failure(seed: int) -> str:
    """Shrink a seed's program, and tell all about it."""
    program = generate(seed)
    outcome = shrink(program)
    return "\n".join(
        [
            f"seed {seed}: from {program.size} to {outcome.program.size}; again with "
            f"`python -m tests.simulation --seed {seed}`",
            *outcome.trace,
            *(str(violation) for violation in outcome.violations),
            written(outcome.program),
        ]
    )
