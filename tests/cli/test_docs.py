"""docs/cli.md says what the commands say."""

from __future__ import annotations

import shutil
from types import ModuleType

import pytest

from gstalk.cli import cli
from tests.makers import load


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    return load("make_cli")


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
