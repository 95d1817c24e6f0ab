"""The house in figures: how large its rooms are, who reaches into another's, who speaks of Ctrl-C.

    python -m tests.house

`test_house.py` holds the bounds. A line of code is one with something on it that is neither comment nor docstring: a
promise told at length is no fault.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.test_layers import ROOT, sources

TALKS = re.compile(r"Ctrl-C|SIGINT|KeyboardInterrupt")
# Begin with an underscore, and are documented for everybody all the same.
DOCUMENTED = {"os._exit", "sys._current_frames", "sys._getframe"}
OF_NAMED_TUPLES = {"_asdict", "_fields", "_make", "_replace"}
LAID_OUT = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.COMMENT, tokenize.ENDMARKER}

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


class Part(NamedTuple):
    """A class or a function, and how many lines of code it has."""

    module: str
    name: str
    kind: str
    lines: int


def lines_of_code(source: str) -> set[int]:
    """The numbers of the lines on which there is code."""
    found: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in LAID_OUT:
            found.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, Documented) and ast.get_docstring(node) is not None:
            found.difference_update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return found


def parts(module: str, source: str) -> Iterator[Part]:
    """All classes and functions."""
    code = lines_of_code(source)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            kind = "class" if isinstance(node, ast.ClassDef) else "function"
            lines = len(code & set(range(node.lineno, (node.end_lineno or 0) + 1)))
            yield Part(module, node.name, kind, lines)


def reaches(source: str) -> set[str]:
    """The private names of others that this module reaches for, such as `_state` in `job._state`.

    A name is its own if a class or a function of the module has it.
    """
    tree = ast.parse(source)
    own: set[str] = set()
    used: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            own.add(node.name)
        elif isinstance(node, ast.Attribute) and re.match("_(?!_)", node.attr):
            holder = ast.unparse(node.value)
            if holder in ("self", "cls"):
                own.add(node.attr)
            elif f"{holder}.{node.attr}" not in DOCUMENTED:
                used.add(node.attr)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):  # a dataclass's field
            own.add(node.target.id)
    return used - own - OF_NAMED_TUPLES


def is_core(module: str) -> bool:
    """Whether it is what programs run: neither the command line nor the testing wing."""
    return module.split(".")[1:2] not in (["cli"], ["testing"], ["__main__"])


def speaks_of_ctrl_c(source: str) -> int:
    """How often."""
    return len(TALKS.findall(source))


def wing(path: Path) -> str:
    """What a file's lines are added to."""
    top, *rest = path.relative_to(ROOT).parts
    return f"{top}/{rest[0]}" if top == "gstalk" and len(rest) > 1 else top


def main() -> None:
    sizes: Counter[str] = Counter()
    for top in ("gstalk", "tests", "examples", "benchmarks"):
        for path in sorted((ROOT / top).rglob("*.py")):
            sizes[wing(path)] += len(lines_of_code(path.read_text("utf-8")))
    core = sum(len(lines_of_code(source)) for module, source in sources().items() if is_core(module))
    print(f"lines of code in the core, without cli and testing: {core:,}")
    print(*(f"  {lines:6,} {name}" for name, lines in sizes.items()), sep="\n")
    print("\nlines of code in the largest rooms, classes and functions")
    rooms = sorted(((len(lines_of_code(source)), module) for module, source in sources().items()), reverse=True)
    print(*(f"  {lines:6,} {module}" for lines, module in rooms[:8]), sep="\n")
    every = sorted((part for each in sources().items() for part in parts(*each)), key=lambda part: -part.lines)
    for kind in ("class", "function"):
        largest = [part for part in every if part.kind == kind][:8]
        print(*(f"  {part.lines:6,} {kind} {part.module}: {part.name}" for part in largest), sep="\n")
    print("\nprivate names of others that rooms reach for")
    for module, source in sources().items():
        if found := reaches(source):
            print(f"  {module}: {', '.join(sorted(found))}")
    print("\nrooms of the core that speak of Ctrl-C, and how often")
    for module, source in sources().items():
        if is_core(module) and (times := speaks_of_ctrl_c(source)):
            print(f"  {module}: {times}")


if __name__ == "__main__":
    main()
