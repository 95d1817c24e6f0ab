"""Each example runs, on the embedded server and on the real one; so does each snippet of the README."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import gstalk
from gstalk.testing import Beanstalkd, Server
from tests.servers import wait_until

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted(path for path in (ROOT / "examples").glob("*.py") if path.stem != "tls")  # tls: tests/io/test_tls.py
SNIPPETS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(params=["memory", "real"])
def uri(request: pytest.FixtureRequest) -> Iterator[str]:
    with Server() if request.param == "memory" else Beanstalkd() as server:
        yield server.uri


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(path: Path, uri: str) -> None:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(uri)
    with gstalk.dial(uri) as conn:
        assert conn.stats().current_jobs_reserved == 0
        wait_until(lambda: conn.stats().current_connections == 1)  # the server has yet to see that the others are gone


@pytest.mark.parametrize("path", [*EXAMPLES, ROOT / "examples" / "tls.py"], ids=lambda path: path.stem)
def test_example_is_short_and_says_what_it_shows(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 60
    assert text.startswith('"""')
    assert f"Run: python examples/{path.name}" in text


@pytest.mark.filterwarnings("ignore:unclosed connection:ResourceWarning")
def test_readme_snippets_run(uri: str) -> None:
    assert len(SNIPPETS) >= 5
    for snippet in SNIPPETS:
        exec(compile(snippet.replace("localhost:11300", uri), "README.md", "exec"), {"__name__": "readme"})
