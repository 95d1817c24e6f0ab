"""The benchmarks run: each client at each workload and wire, with few operations. How fast is not asked here."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
from gevent import subprocess

from benchmarks import many, scale, shapes
from benchmarks.__main__ import options
from benchmarks.cases import FLOOR, GROUPS, PACED, Case
from benchmarks.figures import judge
from benchmarks.raw import Raw
from benchmarks.report import table
from benchmarks.rounds import Bed, Result, run_group
from gstalk.testing import Beanstalkd

pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler"),
    pytest.mark.skipif(sys.platform != "linux", reason="the meter reads Linux's clocks"),
]


@pytest.fixture(scope="module")
def bed() -> Iterator[Bed]:
    with Raw() as raw, Bed(raw) as bed:
        yield bed


def few(case: Case) -> Case:
    return replace(case, long=4000 / replace(case, long=1.0).count)


def ours(group: str) -> list[Case]:
    return [few(case) for case in GROUPS[group] if case.family == "gstalk" or case.client in ("raw C", PACED, FLOOR)]


@pytest.mark.parametrize("group", ["put", "work", "mixed", "lockstep", "instant", "wires", "servers", "tubes"])
def test_each_case_of_ours_is_measured(bed, group):
    cases = {(case.workload, case.client, case.wire, case.servers, case.tubes): case for case in ours(group)}
    for case in cases.values():
        measured = bed.measure(case)
        assert measured["rate"] > 100, case
        assert measured["cpu"] > 0, case
        assert 0 < measured["busy"] < 1.2, case


def test_results_become_a_table_and_figures(bed):
    cases = [few(Case("put", client, 64)) for client in ("raw C", "raw C, gathering", PACED, "gstalk Conn")]
    results = run_group("put", cases, bed, rounds=2, patience=0, say=lambda text: None)
    shown = table(results)
    assert shown.count("raw C") == 2  # the better one, and the paced
    assert "| gstalk Conn" in shown
    assert [each.name for each in judge(results, {}, 1.0)] == ["Conn.put, of the raw limit"]


def test_ratio_is_the_median_of_the_rounds_ratios():
    raw = Result("put", Case("put", "raw C"), [100.0, 400.0, 300.0], 1e-6, 1.0, 0.0)
    conn = Result("put", Case("put", "gstalk Conn"), [100.0, 200.0, 300.0], 1e-6, 1.0, 0.0)
    (figure,) = judge([raw, conn], {}, 1.0)
    assert (figure.value, figure.met) == (1.0, True)


def test_more_is_promised_of_the_raw_limit_where_system_calls_are_dear():
    raw = Result("put", Case("put", "raw C"), [100.0], 1e-6, 1.0, 0.0)
    conn = Result("put", Case("put", "gstalk Conn"), [95.0], 1e-6, 1.0, 0.0)
    assert [judge([raw, conn], {}, system_call)[0].met for system_call in (0.5, 5.0)] == [True, False]


def test_cpu_is_held_against_a_gevent_program_that_does_nothing_else():
    measured = (("put", FLOOR, 2e-6), ("put", "gstalk Conn", 2.6e-6), ("put_many", "gstalk Conn", 2e-6))
    results = [
        Result("instant", Case(workload, client, wire="instant"), [1.0], cpu, 1.0, 0.0)
        for workload, client, cpu in measured
    ]
    put, many = judge(results, {}, 1.0)
    assert put.value == pytest.approx(1.3)
    assert put.met
    assert (many.value, many.met) == (1.0, False)
    assert "1.30 |" in table(results)


def test_a_system_call_takes_some_time(bed):
    assert 0.05 < bed.raw.system_call() < 100


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("nothing", "no such thing to measure: nothing"),
        ("--rounds 0", "--rounds is at least 1"),
        ("put --client zz", "no client whose name has 'zz' in it"),
        ("put --json /no/such/place", "no such directory: /no/such"),
        ("latency --plot x.svg", "--plot draws put and work"),
        ("--scale greenlets 10/x", "no such thing to measure: 10/x"),
    ],
)
def test_wrong_arguments_are_told_before_anything_is_measured(line, said, capsys):
    with pytest.raises(SystemExit):
        options(line.split())
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_ended_in_the_middle_leaves_no_server(number):
    code = f"""
import os, signal
from benchmarks.__main__ import *
from benchmarks import rounds
measure_once = rounds.Bed._measure
def measure(bed, case, servers):
    print(servers[0].pid, flush=True)
    os.kill(os.getpid(), signal.{number})
    return measure_once(bed, case, servers)
rounds.Bed._measure = measure
run(["put", "--rounds", "1", "--client", "gstalk Conn"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode
    assert "Traceback" not in done.stderr
    with pytest.raises(ProcessLookupError):
        os.kill(int(done.stdout.split()[0]), 0)


def test_scale_measures_each_shape(monkeypatch):
    for name, few in {"JOBS": 200, "IDLE": 0.1, "LATENCIES": 5, "DIALS": 0.4}.items():
        monkeypatch.setattr(shapes, name, few)
    with Beanstalkd() as one, Beanstalkd() as two:
        found = shapes.measure([one.uri, two.uri], 2, 1)
    assert found["asks/s"] == 0
    assert found["busy: asks/s"] > 0
    assert found["CPU us a job"] > 1
    assert 0 < found["p50 ms"] < 1000


@pytest.mark.parametrize("what", many.MANY)
def test_scale_measures_many_of_each_thing(monkeypatch, what):
    for name, few in {"PUTS": 300, "JOBS": 300, "SPARSE": 5}.items():
        monkeypatch.setattr(many, name, few)
    with Beanstalkd() as server:
        found = many.MANY[what]([server.uri], 120 if what != "servers" else 1)
    assert len(found) >= 3
    assert all(value > 0.1 for name, value in found.items() if "KB" not in name)


def test_scale_makes_a_table_of_the_medians(monkeypatch):
    said = iter([1.0, 5.0, 6.0, 2.0, 3.0, 1000.0])
    monkeypatch.setattr(scale, "MANY", {"jobs": (0, 1000)})
    monkeypatch.setattr(scale, "many", lambda bed, what, number: {"put": next(said), **({"KB": 4.0} if number else {})})
    assert scale.measure(None, "jobs", 3, lambda text: None).splitlines() == [  # type: ignore[arg-type]
        "| jobs | put | KB |",
        "|---|---:|---:|",
        "| 0 | 2.0 |  |",
        "| 1,000 | 6.0 | 4.0 |",
    ]
