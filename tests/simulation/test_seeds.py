"""Seeds: the same ones each time, and some fresh ones; `make soak` runs a million. A failure is shrunk and printed."""

from __future__ import annotations

import os
import subprocess
import sys
from random import SystemRandom

import pytest

from tests.conftest import SOAK
from tests.simulation.coverage import ROOMS
from tests.simulation.oracle import run
from tests.simulation.program import Program, generate, written
from tests.simulation.runner import ROOT, Figures, run_seeds, tell_failure

KNOWN, FRESH = 250, 15  # seeds in `make test`
SECONDS = 7.0  # at most for each of these
MILLION = 1_000_000


def look_at(figures: Figures) -> None:
    print(figures)
    for seed in list(figures.failures)[:3]:
        print(tell_failure(seed))
    assert figures.failures == {}


@pytest.mark.slow
def test_known_seeds_keep_every_promise():
    figures = run_seeds(0, KNOWN, jobs=2, seconds=SECONDS)
    assert figures.schedules > 10
    look_at(figures)


@pytest.mark.slow
def test_fresh_seeds_keep_every_promise():
    first = int(os.environ.get("GSTALK_SEED") or SystemRandom().randrange(1 << 40))
    print(f"seeds: GSTALK_SEED={first}, and those that follow")
    look_at(run_seeds(first, FRESH, jobs=2, seconds=SECONDS))


@pytest.mark.soak
@pytest.mark.limit(12 * 3600)
@pytest.mark.skipif(not SOAK, reason="some hours")
def test_a_million_seeds_keep_every_promise(capsys):
    first = int(os.environ.get("GSTALK_SEED") or SystemRandom().randrange(1 << 40))
    figures = run_seeds(first, MILLION, jobs=os.cpu_count() or 1)
    with capsys.disabled():
        print(f"\nGSTALK_SEED={first}: {figures}")
    look_at(figures)


@pytest.mark.soak
@pytest.mark.limit(2 * 3600)
@pytest.mark.skipif(not SOAK, reason="minutes")
def test_states_that_seeds_reach_are_told(capsys):
    """By a process of its own, which measures from the first import on."""
    command = [sys.executable, "-m", "tests.simulation.coverage", "--count", "3000"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    with capsys.disabled():
        print(f"\n{told}")
    assert told.count("gstalk/") >= len(ROOMS)


def test_rooms_whose_states_are_told_are_there():
    assert [room for room in ROOMS if not (ROOT / "gstalk" / f"{room}.py").exists()] == []


def test_seed_runs_the_same_twice():
    first, second = run(generate(3), is_traced=True), run(generate(3), is_traced=True)
    assert first.trace == second.trace
    assert first.events == second.events


def test_seed_runs_the_same_in_another_process():
    seed = 21
    here = run(generate(seed), is_traced=True)
    command = [sys.executable, "-m", "tests.simulation", "--seed", str(seed)]
    there = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    assert there.splitlines()[: len(here.trace)] == here.trace


def test_seed_runs_the_same_whatever_the_number_of_the_process(monkeypatch):
    """`stats` tells it; one digit less, and what slices a reply would cut it elsewhere."""
    seeds, runs = (13, 143), []
    for pid in (7, 1234567):
        monkeypatch.setattr("gstalk.testing.engine.os.getpid", lambda pid=pid: pid)
        runs.append([(outcome.events, outcome.seconds) for outcome in (run(generate(seed)) for seed in seeds)])
    assert runs[0] == runs[1]


def test_program_is_written_as_python():
    names = {name: value for name, value in vars(sys.modules["tests.simulation.program"]).items() if name[0].isupper()}
    for seed in range(30):
        program = generate(seed)
        again = eval(written(program), names)
        assert isinstance(again, Program)
        assert again == program
