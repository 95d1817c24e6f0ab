"""What tests/README.md says of the oracle is true to the code: each promise has its line, each exemption its row."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
README = (HERE.parent / "README.md").read_text("utf-8")
# What the world and its processes note of themselves, and the oracle asks before it asks for a promise.
FLAGS = set(
    "is_clean is_swift was_hostile blocked has_dropped changes_tubes was_interrupted is_ending dead latency stopped_at "
    "silent_expiry troubled full pause drain stall blackhole".split()
)


def functions() -> Iterator[ast.FunctionDef]:
    for path in HERE.glob("*.py"):
        if not path.name.startswith("test_"):
            yield from (
                node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.FunctionDef)
            )


def promises_in(function: ast.AST) -> set[str]:
    """The names of what it finds broken: the first argument of `violation`, the second one of `within`."""
    found = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            place = {"violation": 0, "within": 1}.get(node.func.attr, len(node.args))
            named = node.args[place] if place < len(node.args) else None
            if isinstance(named, ast.Constant):
                found.add(str(named.value))
    return found


def flags_in(function: ast.AST) -> set[str]:
    names = {node.attr for node in ast.walk(function) if isinstance(node, ast.Attribute)}
    faults = {
        str(node.slice.value)
        for node in ast.walk(function)
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant)
    }
    return FLAGS & (names | faults)


def rows(heading: str) -> list[list[str]]:
    """The rows of the first table behind a line that begins so, without its head."""
    table = README.partition(heading)[2].partition("\n|")[2].partition("\n\n")[0]
    return [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]


def named_in(cell: str) -> set[str]:
    return set(re.findall("`([^`]+)`", cell))


def test_each_promise_has_its_row():
    said = set().union(*(named_in(row[1]) for row in rows("A seed does the same")))
    assert set().union(*map(promises_in, functions())) - said == set()


def test_each_exemption_has_its_row_and_no_row_forgives_what_the_code_does_not():
    forgiven: dict[str, set[str]] = defaultdict(set)
    for function in functions():
        if promises := promises_in(function):
            for flag in flags_in(function):
                forgiven[flag] |= promises
    said = {name: named_in(row[2]) for row in rows("### What the oracle forgives") for name in named_in(row[0])}
    assert set(said) == set(forgiven)
    assert {name: promises - forgiven[name] for name, promises in said.items() if promises - forgiven[name]} == {}
