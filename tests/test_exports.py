"""What `import gstalk` gives, name by name and argument by argument: the interface is a promise."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import gstalk

ROOT = Path(__file__).parent.parent
NEEDED_BY_CLI = ("click", "rich")  # the extra `cli`

PUBLIC = """
    dial Conn Job Producer Consumer Config PutParams RetryPolicy Event Address parse_uri validate_uris
    ServerStats TubeStats JobStats Retry Bury TimeLimitExceeded
    GstalkError InvalidArgumentError
    ServerError NotFoundError BuriedError NotIgnoredError DeadlineSoonError
    JobTooBigError DrainingError OutOfMemoryError InternalError
    ProtocolError BadFormatError UnknownCommandError ExpectedCrlfError
    DisconnectedError ConnectError ConnectionLostError ConnectionClosedError CommandTimeoutError PutTimeoutError
    WrongHubError PutManyError JobFinishedError JobNotFinishedError RetriesExhaustedError JobLostError
""".split()

# As documented; `...` stands for a default that is none of the values one may pass.
SIGNATURES = {
    "dial": "uri, config=None, **options",
    "parse_uri": "text",
    "validate_uris": "uris",
    "PutParams": "priority=1024, delay=0, ttr=60",
    "RetryPolicy": "max_attempts=25, first_delay=1, factor=2, max_delay=300, jitter=True, exhausted='bury'",
    "Retry": "delay=None, priority=None",
    "Bury": "priority=None",
    "Producer": "uris, config=None, **options",
    "Producer.put": "tube, body, params=None, *, priority=None, delay=None, ttr=None, timeout=...",
    "Producer.put_many": "tube, bodies, params=None, *, priority=None, delay=None, ttr=None, timeout=...",
    "Producer.wait_connected": "timeout=None",
    "Producer.stop": "timeout=...",
    "Consumer": "uris, tubes, config=None, **options",
    "Consumer.receive": "handler",
    "Consumer.stop": "timeout=...",
    "Consumer.wait_connected": "timeout=None",
    "Consumer.watch": "tube, handler=None",
    "Consumer.ignore": "tube",
    "Conn.put": "tube, body, params=None, *, priority=None, delay=None, ttr=None",
    "Conn.put_many": "tube, bodies, params=None, *, priority=None, delay=None, ttr=None",
    "Conn.reserve": "",
    "Conn.reserve_with_timeout": "timeout",
    "Conn.reserve_job": "job_id",
    "Conn.delete": "job",
    "Conn.touch": "job",
    "Conn.kick_job": "job",
    "Conn.release": "job, priority=None, delay=0",
    "Conn.bury": "job, priority=None",
    "Conn.kick": "tube, bound",
    "Conn.peek": "job_id",
    "Conn.peek_ready": "tube",
    "Conn.peek_delayed": "tube",
    "Conn.peek_buried": "tube",
    "Conn.use": "tube",
    "Conn.watch": "tube",
    "Conn.ignore": "tube",
    "Conn.list_tubes": "",
    "Conn.list_tubes_watched": "",
    "Conn.list_tube_used": "",
    "Conn.stats": "",
    "Conn.stats_tube": "tube",
    "Conn.stats_job": "job",
    "Conn.pause_tube": "tube, delay",
    "Conn.close": "",
    "Job.delete": "",
    "Job.release": "priority=None, delay=0",
    "Job.bury": "priority=None",
    "Job.touch": "",
    "Job.kick": "",
    "Job.stats": "",
    "Job.time_left": "",
}
PROPERTIES = {
    "Conn": {"uri", "is_connected"},
    "Job": {"id", "body", "tube", "reserved_at", "is_finished", "is_lost", "uri"},
    "Producer": {"is_connected"},
    "Consumer": {"is_connected", "tubes"},
    "Address": {"is_tls"},
}
CONTEXT_MANAGERS = ("Conn", "Producer")


def modules() -> list[str]:
    # __main__ would run the program.
    found = [each.name for each in pkgutil.walk_packages(gstalk.__path__, "gstalk.")]
    return ["gstalk", *(name for name in found if not name.endswith("__main__"))]


@pytest.mark.parametrize("name", modules())
def test_module_all_is_true(name):
    if name.removeprefix("gstalk.").lstrip("_").startswith("cli"):
        for extra in NEEDED_BY_CLI:
            pytest.importorskip(extra)
    if name == "gstalk.otel":
        pytest.importorskip("opentelemetry")
    module = importlib.import_module(name)
    if name in ("gstalk.protocol", "gstalk.connection", "gstalk.pool"):  # hold rooms, and no names of their own
        return
    assert len(set(module.__all__)) == len(module.__all__)
    assert [each for each in module.__all__ if not hasattr(module, each)] == []


def test_package_gives_exactly_the_documented_names():
    assert sorted(gstalk.__all__) == sorted(PUBLIC)


def test_version_is_the_one_of_setup():
    assert re.findall(r'VERSION = "(.+?)"', (ROOT / "setup.py").read_text("utf-8")) == [gstalk.__version__]


def shown(function: object) -> str:
    """A signature without `self` and annotations."""
    signature = inspect.signature(function)  # type: ignore[arg-type]
    parameters = [
        each.replace(annotation=inspect.Parameter.empty)
        for each in signature.parameters.values()
        if each.name != "self"
    ]
    return str(signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty))[1:-1]


def find(path: str) -> object:
    found: object = gstalk
    for name in path.split("."):
        found = getattr(found, name)
    return found


@pytest.mark.parametrize("path", SIGNATURES)
def test_signature_is_the_documented_one(path):
    assert shown(find(path)) == SIGNATURES[path]


@pytest.mark.parametrize("name", ["Conn", "Job", "Producer", "Consumer"])
def test_class_has_the_documented_members_and_no_others(name):
    kind = getattr(gstalk, name)
    documented = {path.partition(".")[2] for path in SIGNATURES if path.startswith(f"{name}.")} | PROPERTIES[name]
    assert {each for each in dir(kind) if not each.startswith("_")} == documented


@pytest.mark.parametrize("name", PROPERTIES)
def test_property_is_no_method(name):
    for each in PROPERTIES[name]:
        assert not inspect.isfunction(getattr(getattr(gstalk, name), each))


@pytest.mark.parametrize("name", CONTEXT_MANAGERS)
def test_context_manager_is_one(name):
    kind = getattr(gstalk, name)
    assert hasattr(kind, "__enter__")
    assert hasattr(kind, "__exit__")


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_has_a_docstring(name):
    # A dataclass without one gets its signature as docstring.
    doc = getattr(gstalk, name).__doc__
    assert doc
    assert not doc.startswith(f"{name}(")


def test_import_patches_nothing_and_needs_gevent_alone():
    script = """
import sys
before = set(sys.modules)
import gstalk
from gevent import monkey
assert not monkey.saved, "patched"
found = {name.partition(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)
print(" ".join(sorted(each for each in found if getattr(sys.modules.get(each), "__file__", None))))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) - {"zope", "cffi", "_cffi_backend", "psutil"} == {"gevent", "greenlet", "gstalk"}
