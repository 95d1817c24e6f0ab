"""gstalk.protocol.stats: what beanstalkd 1.12 and 1.13 write, and what nobody may write."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gstalk.errors import ProtocolError
from gstalk.protocol.stats import JobStats, ServerStats, TubeStats, parse_dict, parse_list

# Taken from beanstalkd 1.12, which quotes its version alone.
SERVER_1_12 = b"""---
current-jobs-urgent: 1
current-jobs-ready: 1
current-jobs-reserved: 0
current-jobs-delayed: 0
current-jobs-buried: 0
cmd-put: 1
cmd-peek: 0
cmd-peek-ready: 0
cmd-peek-delayed: 0
cmd-peek-buried: 0
cmd-reserve: 0
cmd-reserve-with-timeout: 0
cmd-delete: 0
cmd-release: 0
cmd-use: 1
cmd-watch: 3
cmd-ignore: 0
cmd-bury: 0
cmd-kick: 0
cmd-touch: 0
cmd-stats: 1
cmd-stats-job: 0
cmd-stats-tube: 0
cmd-list-tubes: 0
cmd-list-tube-used: 0
cmd-list-tubes-watched: 0
cmd-pause-tube: 0
job-timeouts: 0
total-jobs: 1
max-job-size: 65535
current-tubes: 5
current-connections: 1
current-producers: 1
current-workers: 0
current-waiting: 0
total-connections: 1
pid: 6329
version: "1.12"
rusage-utime: 0.000000
rusage-stime: 0.002473
uptime: 1
binlog-oldest-index: 0
binlog-current-index: 0
binlog-records-migrated: 0
binlog-records-written: 0
binlog-max-size: 10485760
draining: false
id: 5da0fe56ef7f9c21
hostname: queue
os: #1 SMP PREEMPT_DYNAMIC @0
platform: x86_64

"""
TUBE_1_12 = b"""---
name: 123
current-jobs-urgent: 1
current-jobs-ready: 1
current-jobs-reserved: 0
current-jobs-delayed: 0
current-jobs-buried: 0
total-jobs: 1
current-using: 1
current-watching: 0
current-waiting: 0
cmd-delete: 0
cmd-pause-tube: 0
pause: 0
pause-time-left: 0

"""
JOB_1_12 = b"""---
id: 1
tube: 123
state: ready
pri: 7
age: 0
delay: 0
ttr: 60
time-left: 0
file: 0
reserves: 0
timeouts: 0
releases: 0
buries: 0
kicks: 0

"""

# As 1.13 writes it: some values in quotes.
SERVER_1_13 = (
    SERVER_1_12.replace(b'"1.12"', b'"1.13"')
    .replace(b"hostname: queue", b'hostname: "queue"')
    .replace(b"os: #1 SMP PREEMPT_DYNAMIC @0", b'os: "#1 SMP PREEMPT_DYNAMIC @0"')
    .replace(b"platform: x86_64", b'platform: "x86_64"')
)
TUBE_1_13 = TUBE_1_12.replace(b"name: 123", b'name: "123"')
JOB_1_13 = JOB_1_12.replace(b"tube: 123", b'tube: "123"')

SAMPLES = [
    (ServerStats, SERVER_1_12),
    (ServerStats, SERVER_1_13),
    (TubeStats, TUBE_1_12),
    (TubeStats, TUBE_1_13),
    (JobStats, JOB_1_12),
    (JobStats, JOB_1_13),
]


@pytest.mark.parametrize(("kind", "data"), SAMPLES)
def test_parse_sample_fills_every_field_in_the_servers_order(kind, data):
    stats = kind.parse(data)
    named = [each.name for each in dataclasses.fields(kind) if each.name != "extra"]
    assert [line.partition(b":")[0].decode().replace("-", "_") for line in data.split(b"\n")[1:-2]] == named
    assert None not in [getattr(stats, name) for name in named]
    assert stats.extra == {}


@pytest.mark.parametrize(("data", "version"), [(SERVER_1_12, "1.12"), (SERVER_1_13, "1.13")])
def test_parse_server_stats_types(data, version):
    stats = ServerStats.parse(data)
    assert (stats.current_jobs_ready, stats.max_job_size, stats.binlog_max_size) == (1, 65535, 10485760)
    assert (stats.rusage_utime, stats.rusage_stime, type(stats.rusage_utime)) == (0.0, 0.002473, float)
    assert (stats.version, stats.id, stats.draining) == (version, "5da0fe56ef7f9c21", False)
    assert (stats.hostname, stats.os, stats.platform) == ("queue", "#1 SMP PREEMPT_DYNAMIC @0", "x86_64")


def test_parse_server_id_of_digits_stays_a_str():
    assert ServerStats.parse(b"---\nid: 1234567890123456\ndraining: true\n").id == "1234567890123456"


def test_parse_draining_true():
    assert ServerStats.parse(b"---\ndraining: true\n").draining is True


@pytest.mark.parametrize("data", [TUBE_1_12, TUBE_1_13])
def test_parse_tube_stats_types(data):
    stats = TubeStats.parse(data)
    assert (stats.name, stats.current_jobs_ready, stats.pause_time_left) == ("123", 1, 0)


@pytest.mark.parametrize("data", [JOB_1_12, JOB_1_13])
def test_parse_job_stats_types(data):
    stats = JobStats.parse(data)
    assert (stats.id, stats.tube, stats.state, stats.pri, stats.ttr) == (1, "123", "ready", 7, 60)


@pytest.mark.parametrize("tube", ["123", "null", "true", "no", "1e5", "0x1F", "1_000", "2001-01-01", ".inf", "a;b/c"])
def test_parse_tube_that_yaml_would_change_stays_itself(tube):
    for text in (tube, f'"{tube}"'):
        assert TubeStats.parse(f"---\nname: {text}\n".encode()).name == tube
        assert JobStats.parse(f"---\ntube: {text}\n".encode()).tube == tube
        assert parse_list(f"---\n- default\n- {text}\n\n".encode()) == ["default", tube]


def test_parse_largest_numbers():
    assert JobStats.parse(b"---\nid: 18446744073709551615\n").id == 2**64 - 1
    assert TubeStats.parse(b"---\npause-time-left: -1\n").pause_time_left == -1


def test_parse_field_that_the_server_lacks_is_none():
    stats = ServerStats.parse(b"---\npid: 7\n")
    assert (stats.pid, stats.uptime, stats.extra) == (7, None, {})


def test_parse_field_that_is_new_is_in_extra():
    stats = JobStats.parse(b'---\nid: 1\ncmd-new: 5\nmood: "good: very"\n')
    assert (stats.id, stats.extra) == (1, {"cmd-new": "5", "mood": "good: very"})


@pytest.mark.parametrize("kind", [ServerStats, TubeStats, JobStats])
def test_parse_field_called_extra_is_no_surprise(kind):
    assert kind.parse(b"---\nextra: 5\n").extra == {"extra": "5"}


@pytest.mark.parametrize("kind", [ServerStats, TubeStats, JobStats])
def test_stats_are_frozen(kind):
    with pytest.raises(dataclasses.FrozenInstanceError):
        kind.parse(b"---\n").extra = {}


def test_parse_list_as_servers_write_it():
    assert parse_list(b"---\n- default\n- 123\n- null\n- true\n- 1e5\n\n") == ["default", "123", "null", "true", "1e5"]
    assert parse_list(b"---\n\n") == []


def test_parse_dict_value_keeps_its_colons_and_signs():
    assert parse_dict(b"---\nos: #1 SMP: x\nempty:\n") == {"os": "#1 SMP: x", "empty": ""}


@pytest.mark.parametrize(
    "value",
    [b"", b"x", b"+1", b"1_0", b"1.0", b"1e5", b"0x1", b"1 2", b"--1", b"-", b"\xd9\xa1", b"\xc2\xb2", b"9" * 5000],
)
def test_parse_number_that_is_none_is_a_protocol_error(value):
    with pytest.raises(ProtocolError, match="^pid is "):
        ServerStats.parse(b"---\npid: " + value + b"\n")


@pytest.mark.parametrize(
    "value", [b"", b"x", b"-1.0", b"1e5", b"nan", b"inf", b".5", b"1.x", b"1.2.3", b"1_0.0", b"1,5"]
)
def test_parse_float_that_is_none_is_a_protocol_error(value):
    with pytest.raises(ProtocolError, match="^rusage-utime is "):
        ServerStats.parse(b"---\nrusage-utime: " + value + b"\n")


@pytest.mark.parametrize("value", [b"", b"yes", b"True", b"1"])
def test_parse_bool_that_is_none_is_a_protocol_error(value):
    with pytest.raises(ProtocolError, match="^draining is "):
        ServerStats.parse(b"---\ndraining: " + value + b"\n")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"pid: 7\n",
        b"--- \npid: 7\n",
        b"---\npid 7\n",
        b"---\n: 7\n",
        b"---\n\xff: 7\n",
        b"---\npid: 7\n- x\n",
        b"{}",
    ],
)
def test_parse_dict_malformed_is_a_protocol_error(data):
    with pytest.raises(ProtocolError):
        parse_dict(data)


@pytest.mark.parametrize("data", [b"", b"- default\n", b"---\ndefault\n", b"---\n-\n", b"---\n- \n", b"---\n- \xff\n"])
def test_parse_list_malformed_is_a_protocol_error(data):
    with pytest.raises(ProtocolError):
        parse_list(data)


@given(st.binary() | st.lists(st.sampled_from(SERVER_1_13.split(b"\n"))).map(b"\n".join))
def test_parse_any_bytes_give_a_result_or_a_protocol_error(data):
    for parse in (ServerStats.parse, TubeStats.parse, JobStats.parse, parse_dict, parse_list):
        for text in (data, b"---\n" + data):
            try:
                parse(text)
            except ProtocolError:
                pass
