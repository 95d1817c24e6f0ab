"""docs/cli.md says what the commands say."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import pytest

from gstalk.cli import cli

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_cli", ROOT / "docs" / "make_cli.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.limit(180)
@pytest.mark.slow
def test_transcripts_are_current(maker, tmp_path):
    """Made anew, it is the same: else run `python docs/make_cli.py`."""
    if shutil.which("bash") is None:
        pytest.skip("no bash on this machine")
    text = maker.PAGE.read_text(encoding="utf-8")
    assert maker.made(text, tmp_path) == text


def test_every_command_is_there(maker):
    text = maker.PAGE.read_text(encoding="utf-8")
    assert [name for name in cli.commands if f"`{name}" not in text and f"gstalk {name}" not in text] == []
