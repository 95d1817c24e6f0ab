"""How `gstalk work` starts itself anew: with the interpreter's flags, and from where it was started."""

from __future__ import annotations

import os
import signal
import sys
import zipfile

import pytest
from gevent import subprocess

from gstalk.cli._anew import interpreter_flags
from tests.cli.working import ROOT, Working
from tests.conftest import SOAK
from tests.servers import wait_until

pytestmark = [pytest.mark.real, pytest.mark.slow]

BURST = ("--burst", "--auto-delete")
FLAGS_NOW = """
import sys

names = "optimize no_user_site no_site bytes_warning dont_write_bytecode ignore_environment isolated dev_mode".split()


def now():
    values = [getattr(sys.flags, name) for name in names] + [getattr(sys.flags, "safe_path", None)]
    values += [sys.stdout.write_through, sorted(sys._xoptions), sys.warnoptions, "site" in sys.modules]
    return repr(values).replace(" ", "")
"""
SAYS_FLAGS = f"""{FLAGS_NOW}
from tasks import note


def handle(job):
    note(now().encode(), job)
"""
# The file that a pex or a zipapp begins with: it alone knows where the libraries are.
PACKED = """
import sys
sys.path[:] = {path!r}
from gstalk.cli import main
main()
"""
ALL = ("-O", "-s", "-b", "-B", "-u", "-X", "mine", "-X", "utf8", "-Wignore::ImportWarning", "-W", "once")
FLAGS: list[tuple[tuple[str, ...], str]] = [
    (ALL, "module"),
    (("-OOsbbBu",), "packed"),
    (("-I", "-X", "dev", "-Wignore::ResourceWarning"), "module"),
    (("-E", "-S"), "packed"),  # without its site-packages the interpreter itself finds no gstalk
    (("-P",), "module"),
]
if sys.version_info < (3, 11):
    FLAGS.pop()  # -P is new in Python 3.11
if SOAK:  # `make soak` crosses them
    FLAGS = [(flags, way) for flags, _ in FLAGS for way in ("module", "packed") if "-S" not in flags or way == "packed"]


def said_flags(worker: Working) -> list[str]:
    return [line.partition(b" ")[0].decode() for line in (worker.place / "log").read_bytes().splitlines()]


@pytest.fixture(scope="module")
def compiled() -> None:
    """With -B the interpreter keeps nothing of what it compiles: have it find it, or each start takes seconds."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    program = "from gevent import monkey; monkey.patch_all(); import ctypes, gstalk.cli, rich.progress"
    for flag in ("-O", "-OO"):
        subprocess.check_call([sys.executable, flag, "-c", program], env=environment)


@pytest.mark.soak
@pytest.mark.parametrize(("flags", "way"), FLAGS, ids=lambda part: part if isinstance(part, str) else " ".join(part))
@pytest.mark.usefixtures("compiled")
def test_interpreters_flags_are_kept_by_whatever_starts_anew(start, conn, tube, tmp_path, flags, way):
    """--patch begins anew in this process, --processes in others: all run as the interpreter does with these flags."""
    (tmp_path / "flags.py").write_text(SAYS_FLAGS)
    packed = tmp_path / "packed.pyz"
    with zipfile.ZipFile(packed, "w") as file:
        file.writestr("__main__.py", PACKED.format(path=[str(ROOT), *sys.path]))
    program = (*flags, *(("-m", "gstalk") if way == "module" else (str(packed),)))
    ways = [(), ("--patch",), ("--processes", "1"), ("--processes", "1", "--patch")]
    workers = []
    for number, args in enumerate(ways):  # side by side, each with a tube of its own
        conn.put(f"{tube}-{number}", b"x")
        workers.append(start("flags:handle", *BURST, *args, program=program, tubes=(f"{tube}-{number}",)))
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    told = subprocess.check_output([sys.executable, *flags, "-c", f"{FLAGS_NOW}\nprint(now())"], env=environment)
    assert [worker.end() for worker in workers] == [0] * len(ways)
    assert said_flags(workers[0]) == [told.decode().strip()] * len(ways)


def test_reload_keeps_the_interpreters_flags(start, conn, tube, tmp_path):
    (tmp_path / "flags.py").write_text(SAYS_FLAGS)
    worker = start("flags:handle", "--reload", "--auto-delete", program=("-O", "-u", "-m", "gstalk"))
    conn.put(tube, b"x")
    wait_until(lambda: (tmp_path / "log").exists(), 30)
    (tmp_path / "flags.py").write_text(f"{SAYS_FLAGS}\n")
    worker.wait_said("restarting")
    conn.put(tube, b"x")
    wait_until(lambda: len(said_flags(worker)) == 2, 30)
    worker.signal(signal.SIGTERM)
    assert worker.end() == 0
    first, second = said_flags(worker)
    assert first == second
    assert first.startswith("[1,")


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("-m gstalk work -O", ""),
        ("-O -m gstalk", "-O"),
        ("-Om gstalk", "-O"),
        ("-OO -s -P -b -E -I -B -u -d -q -v /usr/bin/gstalk work", "-OO -s -P -b -E -I -B -u -d -q -v"),
        ("-sEc program -O", "-sE"),
        ("-W error -Wonce -bWignore -X dev -Xutf8 app.pyz", "-Werror -Wonce -bWignore -Xdev -Xutf8"),
        ("-ix -Oi -xu app.py", "-O -u"),
        ("--check-hash-based-pycs always -u app.py", "--check-hash-based-pycs always -u"),
        ("-O -- -u", "-O"),
        ("-u -", "-u"),
        ("", ""),
        ("work --tube mail", ""),
    ],
)  # fmt: skip
def test_interpreters_flags_are_those_before_the_program(said, kept):
    assert interpreter_flags(["python", *said.split()]) == kept.split()
