"""The pictures of README and site are made by a script from a real run."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import ModuleType

import pytest

from tests.makers import ROOT, load

pytest.importorskip("rich")

PICTURES = sorted((ROOT / "docs" / "_static").glob("*.svg"))


@pytest.fixture
def maker() -> ModuleType:
    return load("make_pictures")


@pytest.mark.slow
def test_cast_of_top_is_made_from_a_real_run(maker):
    frames = maker.look(2, 0.3)
    picture = ElementTree.fromstring(maker.drawn(frames))
    groups = [each for each in picture if each.get("class") == "frame"]
    assert [each.get("style") for each in groups] == ["animation-delay: 0s", "animation-delay: 1s"]
    for group in groups:
        said = [each.text or "" for each in group if each.tag.endswith("text")]
        assert said[0].startswith("beanstalk://q1:11300  beanstalkd 1.")
        assert {"mail", "thumbnails", "invoices", "reminders"} <= {each.strip() for each in said}


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.name)
def test_picture_is_whole_and_loads_nothing(path: Path) -> None:
    text = path.read_text("utf-8")
    ElementTree.fromstring(text)
    for word in ("<script", "<image", "@import", "url(http", 'href="http', "@font-face"):
        assert word not in text.replace('href="http://www.w3.org', "")
    assert len(text) < 60_000
