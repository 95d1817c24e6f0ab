"""docs/operations.md names the lines that gstalk logs: they are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import gstalk

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
CODE = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "gstalk").rglob("*.py"))
LINES = re.findall(r"^\| (?:info|error) \| `(.*?)`", TEXT, re.MULTILINE)
FILLED_IN = r"\b(?:URI|ID|N|WHY|SECONDS|HOOK)\b"


def test_there_are_lines():
    assert len(LINES) > 15


@pytest.mark.parametrize("line", LINES)
def test_line_of_the_log_is_made_of_what_the_code_says(line):
    parts = [part.strip() for part in re.split(rf"{FILLED_IN}|[;:,]", line)]
    assert [part for part in parts if part not in CODE] == []


def test_snippets_are_python():
    for snippet in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL):
        compile(snippet, "operations.md", "exec")


def test_settings_and_their_defaults_are_those_of_config():
    for name, default in re.findall(r"^\| `(\w+)` \| (\d+) s \|", TEXT, re.MULTILINE):
        assert getattr(gstalk.Config(), name) == int(default)
