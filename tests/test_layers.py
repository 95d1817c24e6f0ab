"""The floors of the house: a room imports from the floors below it, and below the waterline nothing waits."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent

FLOORS = [
    {"protocol", "errors", "uri", "config", "retry", "job", "records", "traces"},
    {"connection"},
    {"pool"},
    {"conn", "producer", "consumer"},
    {"gstalk"},  # gstalk/__init__.py, which only hands names on
    {"cli", "__main__", "otel"},
]
# Decisions and records of the floors above.
BELOW_THE_WATERLINE = FLOORS[0] | {"pool.schedule", "pool.permits", "connection.reserved"}
BANNED = {"gevent", "ssl", "socket", "select", "threading", "random", "time"}
FOR_ITS_TYPE = {("gstalk.config", "ssl")}  # whoever reads a Config's annotations looks for it there
MAY_USE_TESTING = {"testing", "cli", "__main__"}  # `serve` and `demo` run the embedded server
MAY_IMPORT_LATE = MAY_USE_TESTING  # what an extra brings is imported where it is used
MOST_LINES = 500


def room(module: str) -> str:
    """`gstalk.protocol.stats` is in the room `protocol`, `gstalk._cli_jobs` and `gstalk.cli_jobs` in `cli`."""
    name = module.removeprefix("gstalk.").partition(".")[0]
    return "cli" if name.lstrip("_").startswith("cli") else name


def is_below_the_waterline(module: str) -> bool:
    return bool({room(module), module.removeprefix("gstalk.")} & BELOW_THE_WATERLINE)


def floor(module: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room(module) in rooms)


class Import(NamedTuple):
    module: str
    line: int
    late: bool  # inside a function


def imports(tree: ast.AST, known: set[str], late: bool = False) -> Iterator[Import]:
    """All imports but those for type checkers only."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            yield from (found for each in node.orelse for found in imports(ast.Module([each], []), known, late))
        elif isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise AssertionError(f"line {node.lineno}: a relative import, which this can't follow")
            for alias in node.names:  # `from gstalk import uri` imports a module, not a name of gstalk/__init__.py
                deeper = f"{node.module}.{alias.name}"
                yield Import(deeper if deeper in known else str(node.module), node.lineno, late)
        else:
            function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from imports(node, known, late or function)


def docstring_lines(tree: ast.AST) -> int:
    """A promise told at length is no fault: the limit is for code."""
    return sum(
        (node.body[0].end_lineno or 0) - node.body[0].lineno + 1
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None
    )


def faults(sources: dict[str, str]) -> list[str]:
    """What is wrong with these modules, one sentence each."""
    found: list[str] = []
    graph: dict[str, set[str]] = {}
    for module, source in sources.items():
        graph[module] = set()
        tree = ast.parse(source)
        lines = source.count("\n") - docstring_lines(tree)
        if lines > MOST_LINES:
            found.append(f"{module} has {lines} lines, at most {MOST_LINES} allowed")
        if any(isinstance(node, ast.Name) and node.id == "__import__" for node in ast.walk(tree)):
            found.append(f"{module} calls __import__")
        for name, line, late in imports(tree, set(sources)):
            where = f"{module}, line {line}: imports {name}"
            here, there = room(module), room(name)
            if late and here not in MAY_IMPORT_LATE:
                found.append(f"{where} inside a function")
            if (
                here != "testing"
                and is_below_the_waterline(module)
                and name.partition(".")[0] in BANNED | {"importlib"}
                and (module, name) not in FOR_ITS_TYPE
            ):
                found.append(f"{where} below the waterline")
            if name.partition(".")[0] != "gstalk":
                continue
            if name not in sources:
                found.append(f"{where}, which isn't there")
            elif there == "testing":
                if here not in MAY_USE_TESTING:
                    found.append(f"{where} from the testing wing")
            elif here == "testing" and there == "protocol":
                found.append(f"{where}: a fake shares no parser with the client")
            elif here != "testing" and floor(name) > floor(module):
                found.append(f"{where} from a floor above")
            if not late:
                graph[module].add(name)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found.append(f"a cycle: {' -> '.join(error.args[1])}")
    return found


def sources() -> dict[str, str]:
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path.read_text("utf-8")
        for path in sorted((ROOT / "gstalk").rglob("*.py"))
    }


def test_house_has_no_faults():
    assert faults(sources()) == []


def test_house_every_room_has_its_floor():
    assert {room(module) for module in sources()} - {"testing"}.union(*FLOORS) == set()


@pytest.mark.parametrize(
    ("module", "source", "fault"),
    [
        ("gstalk.uri", "import time", "gstalk.uri, line 1: imports time below the waterline"),
        ("gstalk.uri", "from gevent import socket", "gstalk.uri, line 1: imports gevent below the waterline"),
        ("gstalk.uri", "import gevent.socket", "gstalk.uri, line 1: imports gevent.socket below the waterline"),
        ("gstalk.protocol.x", "import importlib", "gstalk.protocol.x, line 1: imports importlib below the waterline"),
        ("gstalk.uri", "x = __import__('time')", "gstalk.uri calls __import__"),
        ("gstalk.uri", "import gstalk.conn", "gstalk.uri, line 1: imports gstalk.conn from a floor above"),
        (
            "gstalk.pool.keeper",
            "from gstalk import producer",
            "gstalk.pool.keeper, line 1: imports gstalk.producer from a floor above",
        ),
        ("gstalk.conn", "from gstalk import Config", "gstalk.conn, line 1: imports gstalk from a floor above"),
        ("gstalk.conn", "import gstalk.nowhere", "gstalk.conn, line 1: imports gstalk.nowhere, which isn't there"),
        (
            "gstalk.producer",
            "from gstalk.testing import Server",
            "gstalk.producer, line 1: imports gstalk.testing from the testing wing",
        ),
        (
            "gstalk.testing",
            "import gstalk.protocol",
            "gstalk.testing, line 1: imports gstalk.protocol: a fake shares no parser with the client",
        ),
        ("gstalk.conn", "def f():\n    import json", "gstalk.conn, line 2: imports json inside a function"),
        ("gstalk.conn", "#\n" * 501, "gstalk.conn has 501 lines, at most 500 allowed"),
        (
            "gstalk.uri",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import ssl\nelse:\n    import time",
            "gstalk.uri, line 5: imports time below the waterline",
        ),
    ],
)
def test_guard_wrong_source_is_found(module, source, fault):
    others = dict.fromkeys(("gstalk", "gstalk.conn", "gstalk.producer", "gstalk.protocol", "gstalk.testing"), "")
    assert faults({**others, module: source}) == [fault]


def test_guard_cycle_on_one_floor_is_found():
    found = faults({"gstalk.uri": "import gstalk.job", "gstalk.job": "from gstalk.uri import x"})
    assert found == ["a cycle: gstalk.job -> gstalk.uri -> gstalk.job"] or found == [
        "a cycle: gstalk.uri -> gstalk.job -> gstalk.uri"
    ]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("gstalk.conn", "import gevent, time\nfrom gstalk import uri"),
        ("gstalk.cli", "def serve():\n    from gstalk.testing import Server"),
        ("gstalk._cli_jobs", "import gstalk"),
        ("gstalk.testing", "import gstalk.conn"),
        ("gstalk.conn", "#\n" * 500),
        ("gstalk.uri", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import ssl"),
    ],
)
def test_guard_right_source_passes(module, source):
    others = dict.fromkeys(("gstalk", "gstalk.uri", "gstalk.conn", "gstalk.testing"), "")
    assert faults({**others, module: source}) == []
