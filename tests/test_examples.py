"""Each example runs, on the embedded server and on the real one; so does each snippet of the README."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from gevent import subprocess

import gstalk
from gstalk.testing import Beanstalkd, Server
from tests.servers import wait_until

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted(path for path in (ROOT / "examples").glob("*.py") if path.stem != "tls")  # tls: tests/io/test_tls.py
SNIPPETS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
ALONE = {"patched", "threads"}  # in a process of their own: one patches it, the other blocks its hub
SAYS = {
    "dead_letters": (
        "finished by given_up_func\n"
        "job 2: b'many apples' failed with ValueError(\"invalid literal for int() with base 10: 'many'\")\n"
        "job 3: b'pears' failed with ValueError("
    ),
    "delayed": "tea is ready\ncall back\ndue in 6 days, 23:59:5",
    "fan_out_fan_in": "sum of squares: 285\n",
    "idempotent": "2 jobs, balance 100\n",
    "outbox": "refused: nobody orders nothing\nput 2 jobs, then 0\nship apples\nship pears\n",
    "patched": "20 jobs of 0.1 s",
    "plain_script": "put [1, 2, 3, 4, 5]\njob 1 says job 0\n",
    "priorities": "[b'alarm', b'first order', b'second order', b'first order', b'clean up']\n",
    "rate_limit": "10 calls in ",
    "repeat": "failed: no space left\nran 3 times\n",
    "threads": "; a Producer puts from any thread\n20 jobs done\n",
    "tubes": "['sent mail to nobody', 'sent mail to somebody', 'shrank cat.jpg']\n",
}


@pytest.fixture(params=["memory", "real"])
def uri(request: pytest.FixtureRequest) -> Iterator[str]:
    with Server() if request.param == "memory" else Beanstalkd() as server:
        yield server.uri


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(path: Path, uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    if path.stem in ALONE:
        command = [sys.executable, "-W", "error", str(path), uri]
        done = subprocess.run(command, capture_output=True, text=True, timeout=50)
        assert (done.returncode, done.stderr) == (0, "")
        said = done.stdout
    else:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.main(uri)
        said = capsys.readouterr().out
    assert SAYS.get(path.stem, "") in said
    with gstalk.dial(uri) as conn:
        wait_until(lambda: conn.stats().current_connections == 1)  # the server has yet to see that the others are gone
        assert conn.stats().current_jobs_reserved == 0


@pytest.mark.parametrize("path", [*EXAMPLES, ROOT / "examples" / "tls.py"], ids=lambda path: path.stem)
def test_example_is_short_and_says_what_it_shows(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 60
    assert text.startswith('"""')
    assert f"Run: python examples/{path.name}" in text


def test_examples_are_all_on_their_page() -> None:
    listed = re.findall(r"^\| `([\w.]+)` \|", (ROOT / "docs" / "examples.md").read_text("utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(
        path.name for path in (ROOT / "examples").iterdir() if path.suffix == ".py" or (path / "app.py").exists()
    )


@pytest.mark.filterwarnings("ignore:unclosed connection:ResourceWarning")
def test_readme_snippets_run(uri: str) -> None:
    assert len(SNIPPETS) >= 5
    for snippet in SNIPPETS:
        exec(compile(snippet.replace("localhost:11300", uri), "README.md", "exec"), {"__name__": "readme"})
