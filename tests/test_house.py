"""The map of the house in CONTRIBUTING.md is the house, and every room says what lives there."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

from tests.house import is_core, lines_of_code, parts, reaches, speaks_of_ctrl_c
from tests.test_layers import FLOORS, imports, room, sources

ROOT = Path(__file__).parent.parent
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
EVERYWHERE = ["gstalk", "tests", "benchmarks", "examples", "docs"]
MADE_OF_NAMES = {"gstalk"}  # gstalk/__init__.py, which only hands names on

# Figures of `python -m tests.house` that are not to grow again. What is larger has its reason here.
MOST_LINES = {"class": 300, "function": 50}
LARGER = {
    "gstalk.testing.wire: Client": "a method for each command of the protocol",
    "gstalk.pool.permits: Asking": "one decision over the state of all servers, whose parts are read together",
    "gstalk.cli.work: work": "an option and its sentence for each thing that a worker can be told",
    "gstalk.conn: put_many": "a put for each body, in its own lines: a function for it would be called a million times",
    "gstalk.protocol.stream: receive": "the parser's loop: its branches look at the same few locals, for each reply",
}
REACHES_FOR = {
    "gstalk.connection.connection": ({"_owner", "_state"}, "a Job is a user's object: what we note there is private"),
    "gstalk.connection.reserved": ({"_state"}, "the one that writes a job's state"),
    "gstalk.connection.threads": ({"_resolver", "_threadpool"}, "to ask gevent's hub for them would make them"),
    "gstalk.pool.handling": ({"_state"}, "whether the handler has settled its job"),
}
SPEAK_OF_CTRL_C = {
    "gstalk.connection.hooks", "gstalk.connection.interrupts", "gstalk.connection.pipeline", "gstalk.consumer",
    "gstalk.pool.crew", "gstalk.pool.handling",
}  # fmt: skip


def test_map_has_every_room_on_its_floor():
    lines = re.findall(r"^    floor (\d)   (.+(?:\n {14}.+)*)$", CONTRIBUTING, re.MULTILINE)  # a floor may be two lines
    parts = {int(number): re.split(r"\n? {2,}", rest) for number, rest in lines}  # names, then a floor's sentence
    drawn = {number: {part.rstrip("/") for part in found if " " not in part} for number, found in parts.items()}
    assert [drawn[number] for number in sorted(drawn)] == [floor for floor in FLOORS if floor != MADE_OF_NAMES]


def test_table_of_rooms_names_every_room_of_the_folders():
    named = set(re.findall(r"`(\w+\.\w+)`", CONTRIBUTING.partition("| room |")[2].partition("Each state")[0]))
    folders = {"protocol", "connection", "pool"}
    there = {module.removeprefix("gstalk.") for module in sources()}
    assert named == {module for module in there if module.partition(".")[0] in folders and "." in module}


def test_floors_have_no_room_that_is_gone():
    assert set().union(*FLOORS) - MADE_OF_NAMES == {room(module) for module in sources()} - MADE_OF_NAMES - {"testing"}


def test_ways_through_the_house_lead_through_what_is_there():
    rooms = {module.removeprefix("gstalk.") for module in sources()}
    places = set(re.findall(r"`([\w.]+)`", CONTRIBUTING))
    ways = [
        place for place in places if "." in place and place.partition(".")[0] in {r.partition(".")[0] for r in rooms}
    ]
    assert len(ways) > 15
    for way in ways:
        here = max((each for each in rooms if f"{way}.".startswith(f"{each}.")), key=len)
        found: object = importlib.import_module(f"gstalk.{here}")
        for name in way.removeprefix(here).split(".")[1:]:
            assert hasattr(found, name), way
            found = getattr(found, name)


def test_every_module_says_what_lives_there():
    wrong = []
    for path in [path for top in EVERYWHERE for path in sorted((ROOT / top).rglob("*.py"))]:
        text = path.read_text("utf-8")
        said = (ast.get_docstring(ast.parse(text)) or "").partition("\n\n")[0]
        enough = 5 if path.parts[len(ROOT.parts)] == "gstalk" else 3  # words: a name is no explanation
        if text and (len(said.split()) < enough or said[-1] not in ".:?!"):  # an empty file makes a folder a package
            wrong.append(f"{path.relative_to(ROOT)}: {said!r}")
    assert wrong == []


def test_no_two_rooms_say_the_same():
    said = [(ast.get_docstring(ast.parse(source)) or "").partition("\n\n")[0] for source in sources().values()]
    assert [each for each in said if said.count(each) > 1] == []


def test_make_targets_that_are_written_about_are_there():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "tests" / "README.md"]
    said = [word for page in pages for word in re.findall(r"(?:`|^ {4})make ([a-z]+)", page.read_text("utf-8"), re.M)]
    assert set(said) - targets == set()
    assert {"test", "docs", "bench", "soak", "lint", "demo"} <= set(said)


def named_after(room: str) -> str:
    """`pool.put_queue` has a file `test_put_queue.py`, `__main__` has `test_main.py`."""
    return f"test_{room.rpartition('.')[2].strip('_')}.py"


def test_every_room_has_a_test_file_of_its_name():
    """A private room of the command line is part of those that import it: their test files answer for it."""
    modules = {module for module in sources() if not (ROOT / module.replace(".", "/")).is_dir()}
    imported = {found.module for source in sources().values() for found in imports(ast.parse(source), modules)}
    rooms = {module.removeprefix("gstalk.") for module in modules if ".cli._" not in module or module not in imported}
    there = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    assert {room for room in rooms if named_after(room) not in there} == set()


# -- figures -----------------------------------------------------------------------------------------------------


def test_no_class_and_no_function_is_larger_than_one_can_see_at_a_time():
    every = [part for each in sources().items() for part in parts(*each)]
    assert {f"{part.module}: {part.name}" for part in every if part.lines > MOST_LINES[part.kind]} == set(LARGER)


def test_no_room_reaches_for_what_is_private_to_another():
    found = {module: names for module, source in sources().items() if (names := reaches(source))}
    assert found == {module: names for module, (names, _) in REACHES_FOR.items()}


def test_few_rooms_of_the_core_speak_of_ctrl_c():
    found = {module for module, source in sources().items() if is_core(module) and speaks_of_ctrl_c(source)}
    assert found == SPEAK_OF_CTRL_C


def test_lines_of_code_are_those_without_blanks_comments_and_docstrings():
    source = '"""What lives here."""\n\nx = """two\nlines"""\n\n\n'
    source += 'def f():\n    """It.\n\n    Well.\n    """\n    # no\n    g()\n'
    assert lines_of_code(source) == {3, 4, 7, 13}
    assert [part.lines for part in parts("here", source)] == [2]


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("x = job._state", {"_state"}),
        ("job._state = 'lost'", {"_state"}),
        ("class A:\n    def __init__(self): self._x = 1\ndef f(a: A): return a._x", set()),
        ("class A:\n    _x: int\ndef f(a: A): return a._x", set()),
        ("import os\nos._exit(0)\nrow._fields\na.__dict__", set()),
    ],
)
def test_what_another_module_keeps_private_is_told_from_ones_own(source, names):
    assert reaches(source) == names
