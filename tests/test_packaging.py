"""What `pip install gstalk` brings: built as a release is, installed in a clean environment, used from outside."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path
from typing import Any, NamedTuple

import gevent
import pytest

import gstalk
from gstalk.testing import Beanstalkd
from tests.conftest import SOAK

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
MADE = (".*_cache", ".git", ".hypothesis", ".tox", ".venv", "__pycache__", "build", "dist", "site", "*.egg-info")


DOCUMENTS = f"gstalk-{gstalk.__version__}.data/data/share/doc/gstalk/"
BUILD = "import sys; from setuptools import build_meta; build_meta.build_{}(sys.argv[1])"


SMOKE = """
import sys
import gstalk
with gstalk.Producer(sys.argv[1]) as producer:
    job_id = producer.put("smoke", b"hello")
consumer = gstalk.Consumer(sys.argv[1], "smoke")
def handler(job):
    assert (job.id, job.body) == (job_id, b"hello")
    job.delete()
    consumer.stop()
consumer.receive(handler)
print(gstalk.__file__, gstalk.__version__)
"""


class Release(NamedTuple):
    wheel: Path
    sdist: Path


def run(*command: object, cwd: Path | None = None) -> str:
    """Run a program to its good end; what it said."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """An sdist of this tree, and a wheel from that sdist, as `python -m build` makes them."""
    place = tmp_path_factory.mktemp("release")
    shutil.copytree(ROOT, place / "tree", ignore=shutil.ignore_patterns(*MADE))
    run(sys.executable, "-c", BUILD.format("sdist"), place, cwd=place / "tree")
    (sdist,) = place.glob("*.tar.gz")
    run("tar", "-xzf", sdist, "-C", place)
    run(sys.executable, "-c", BUILD.format("wheel"), place, cwd=place / sdist.name.removesuffix(".tar.gz"))
    (wheel,) = place.glob("*.whl")
    return Release(wheel, sdist)


@pytest.fixture(scope="session")
def metadata(release: Release) -> Message:
    with zipfile.ZipFile(release.wheel) as wheel:
        return message_from_bytes(wheel.read(f"gstalk-{gstalk.__version__}.dist-info/METADATA"))


@pytest.fixture(scope="session")
def python(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the wheel in it, and on its path what the wheel needs."""
    place = tmp_path_factory.mktemp("clean")
    run(sys.executable, "-m", "venv", "--without-pip", place)
    python = place / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", release.wheel)
    # Its own packages come first, so gstalk is the wheel's, whatever gstalk there is beside gevent.
    (packages,) = place.glob("lib/python3*/site-packages")
    (packages / "needed.pth").write_text(f"{Path(gevent.__file__).parents[1]}\n")
    return python


# -- what is in it -----------------------------------------------------------------------------------------------


def test_wheel_needs_gevent_and_nothing_else(metadata):
    needed = metadata.get_all("Requires-Dist")
    assert [re.split("[<>=]", each)[0] for each in needed if "extra ==" not in each] == ["gevent"]


def test_wheel_every_extra_is_documented(metadata):
    pages = (ROOT / "README.md").read_text("utf-8") + (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    extras = metadata.get_all("Provides-Extra")
    assert "cli" in extras
    assert [each for each in extras if f"gstalk[{each}]" not in pages] == []


def test_wheel_has_the_package_and_nothing_else(release, figures):
    with zipfile.ZipFile(release.wheel) as wheel:
        names = wheel.namelist()
        figures["wheel"] = release.wheel.stat().st_size
        figures["unpacked"] = sum(each.file_size for each in wheel.infolist())
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "gstalk").rglob("*.py")}
    inside = {name for name in names if ".dist-info/" not in name and not name.startswith(DOCUMENTS)}
    assert inside == modules | {"gstalk/py.typed", "_gstalk_pytest.py", "_gstalk_script.py"}


def test_wheel_brings_documentation_and_examples(release):
    with zipfile.ZipFile(release.wheel) as wheel:
        inside = {name.removeprefix(DOCUMENTS): wheel.read(name) for name in wheel.namelist() if DOCUMENTS in name}
    wanted = [*(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "reference").glob("*.rst"), ROOT / "README.md"]
    wanted += [path for path in (ROOT / "examples").rglob("*") if path.suffix in (".py", ".json", ".yml")]
    assert [path.name for path in wanted if inside.get(str(path.relative_to(ROOT))) != path.read_bytes()] == []
    assert [name for name in inside if name.startswith("docs/examples/")] == []


# -- its page on the index ---------------------------------------------------------------------------------------

LINK = re.compile(r"!?\[[^]]*\]\(([^)]*)\)")


def test_readme_links_lead_to_files():
    links = LINK.findall((ROOT / "README.md").read_text("utf-8"))
    local = [link for link in links if not link.startswith("https:")]
    assert len(local) > 20
    assert [link for link in local if not (ROOT / link).exists()] == []


def test_page_without_a_home_links_to_no_file(metadata):
    links = LINK.findall(str(metadata.get_payload()))
    assert [link for link in links if not link.startswith("https:")] == []
    assert metadata.get_all("Project-URL") is None


def test_page_with_a_home_links_to_its_files(monkeypatch):
    """A release sets one line of setup.py, and all links are made of that."""
    text = (ROOT / "setup.py").read_text("utf-8")
    assert text.count('\nHOME = ""\n') == 1
    said: dict[str, Any] = {}
    monkeypatch.setattr("setuptools.setup", lambda **given: said.update(given))
    program = text.replace('\nHOME = ""\n', '\nHOME = "https://forge.example/us/gstalk"\n')
    exec(compile(program, "setup.py", "exec"), {"__file__": str(ROOT / "setup.py"), "__name__": "setup"})
    start = f"https://forge.example/us/gstalk/(blob|raw)/v{gstalk.__version__}/"
    links = [*LINK.findall(said["long_description"]), *said["project_urls"].values()]
    ours = [re.sub(start, "", link) for link in links if re.match(start, link)]
    assert len(ours) > 20
    assert [path for path in ours if not (ROOT / path).exists()] == []
    assert [link for link in links if not link.startswith("https:")] == []
    assert set(said["project_urls"]) == {"Source", "Documentation", "Changelog", "Issues"}


def test_readme_starts_a_server_before_its_first_program():
    before = (ROOT / "README.md").read_text("utf-8").partition("```python")[0]
    for way in ("pip install 'gstalk[cli]'", "apt-get install beanstalkd", "docker run", "gstalk serve"):
        assert way in before


def test_sdist_has_all_that_the_repository_has(release, figures):
    """So that a distribution's packagers can run the tests from it."""
    figures["sdist"] = release.sdist.stat().st_size
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("no repository to compare with")
    with tarfile.open(release.sdist) as sdist:
        inside = {name.partition("/")[2] for name in sdist.getnames()}
    tracked = {each for each in run("git", "ls-files", cwd=ROOT).splitlines() if (ROOT / each).exists()}
    assert tracked - inside == {".gitignore"}


@pytest.mark.skipif(not SOAK, reason="builds and installs from the package index: `make soak` does")
@pytest.mark.soak
@pytest.mark.limit(400)
def test_clean_install_pulls_gevent_and_nothing_else(tmp_path, figures):
    """The release procedure of CONTRIBUTING, and what a user types then."""
    shutil.copytree(ROOT, tmp_path / "tree", ignore=shutil.ignore_patterns(*MADE))
    run(sys.executable, "-m", "venv", tmp_path / "builder")
    builder, python = (tmp_path / name / "bin" / "python" for name in ("builder", "user"))
    run(builder, "-m", "pip", "install", "--quiet", "build", "check-wheel-contents", "pyroma", "twine")
    run(builder, "-m", "build", "--outdir", tmp_path, tmp_path / "tree")
    run(sys.executable, "-m", "venv", tmp_path / "user")
    before = set(run(python, "-m", "pip", "list", "--format=freeze").split())
    (wheel,) = tmp_path.glob("*.whl")
    (sdist,) = tmp_path.glob("*.tar.gz")
    run(builder.with_name("twine"), "check", "--strict", wheel, sdist)
    run(builder.with_name("check-wheel-contents"), wheel)
    run(builder.with_name("pyroma"), "--min=8", tmp_path / "tree")  # the others: see CONTRIBUTING
    run(python, "-m", "pip", "install", "--quiet", wheel)
    after = set(run(python, "-m", "pip", "list", "--format=freeze").split())
    assert {each.partition("=")[0] for each in after - before} == {
        "gstalk", "gevent", "greenlet", "zope.event", "zope.interface",
    }  # fmt: skip
    with Beanstalkd() as server:
        run(python, "-W", "error", "-c", SMOKE, server.uri, cwd=tmp_path)
    (packages,) = (tmp_path / "user").glob("lib/python3*/site-packages")
    for name in ("gstalk", "gevent"):
        size = sum(path.stat().st_size for path in (packages / name).rglob("*") if path.is_file())
        figures[f"{name} installed"] = size


@pytest.mark.skipif(not SOAK, reason="runs tests in tests: `make soak` does")
@pytest.mark.soak
@pytest.mark.limit(300)
def test_sdist_tests_itself_elsewhere(release, tmp_path):
    run("tar", "-xzf", release.sdist, "-C", tmp_path)
    (tree,) = tmp_path.iterdir()
    chosen = [
        "tests/unit/test_uri.py",
        "tests/test_layers.py",
        "tests/test_repository.py",
        "tests/docs/test_pictures.py",
    ]
    said = run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen, cwd=tree)
    assert " passed" in said
    assert "failed" not in said


# -- what it does ------------------------------------------------------------------------------------------------


def test_import_warns_of_nothing(python, tmp_path):
    assert run(python, "-W", "error", "-c", "import gstalk, gstalk.cli, gstalk.testing", cwd=tmp_path) == ""


def test_installed_package_works(python, tmp_path):
    with Beanstalkd() as server:
        where, version = run(python, "-W", "error", "-c", SMOKE, server.uri, cwd=tmp_path).split()
    assert Path(where).is_relative_to(python.parents[1])
    assert version == gstalk.__version__


def test_installed_command_and_fixtures_work(python, tmp_path):
    assert "from _gstalk_script import main" in python.with_name("gstalk").read_text()  # see its first line
    with Beanstalkd() as server:
        for command in ([python.with_name("gstalk")], [python, "-m", "gstalk"]):
            run(*command, "--uri", server.uri, "demo", "--jobs", 100, cwd=tmp_path)
    (tmp_path / "test_it.py").write_text("def test_it(gstalk_conn):\n    assert gstalk_conn.put('t', b'') == 1\n")
    assert "1 passed" in run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_it.py", cwd=tmp_path)


# -- its types ---------------------------------------------------------------------------------------------------


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A program that uses every public name, away from our settings."""
    return Path(shutil.copy(ROOT / "tests" / "typing" / "api.py", tmp_path))


def test_types_from_outside_satisfy_mypy(python, program):
    settings = ["--strict", "--config-file=", f"--python-executable={python}", f"--cache-dir={os.devnull}"]
    said = run(sys.executable, "-m", "mypy", *settings, program, cwd=program.parent)
    assert "Success: no issues found in 1 source file" in said


def test_types_from_outside_satisfy_pyright(python, program):
    pytest.importorskip("pyright")
    if shutil.which("node") is None:
        pytest.skip("no node on this machine")
    (program.parent / "pyrightconfig.json").write_text(
        '{"typeCheckingMode": "strict", "reportUnnecessaryTypeIgnoreComment": "error"}'
    )
    said = run(sys.executable, "-m", "pyright", "--pythonpath", python, program.name, cwd=program.parent)
    assert "0 errors, 0 warnings" in said


MISSPELT = """
import gstalk
config = gstalk.Config()
gstalk.dial("q1", config, conn_timeuot=5)
gstalk.Producer("q1", num_greenlet=3)
gstalk.Consumer("q1", "t", auto_deleet=True)
gstalk.Consumer("q1", "t", num_greenlets="3")
config.replace(retries=3)
"""


def test_options_misspelt_are_refused_by_mypy_in_words(python, tmp_path):
    (tmp_path / "program.py").write_text(MISSPELT)
    settings = ["--strict", "--config-file=", f"--python-executable={python}", f"--cache-dir={os.devnull}"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *settings, "program.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
    )
    said = [line.partition(": error: ")[2] for line in done.stdout.splitlines() if ": error: " in line]
    assert len(said) == 5
    assert said[0].startswith('Unexpected keyword argument "conn_timeuot" for "dial"; did you mean "conn_timeout"')
    assert said[1].startswith('Unexpected keyword argument "num_greenlet" for "Producer"; did you mean "num_greenlets"')
    assert said[2].startswith('Unexpected keyword argument "auto_deleet" for "Consumer"; did you mean "auto_delete"')
    assert said[3].startswith('Argument "num_greenlets" to "Consumer" has incompatible type "str"; expected "int"')
    assert said[4].startswith('Unexpected keyword argument "retries" for "replace" of "Config"')


def test_options_misspelt_are_refused_by_pyright_in_words(python, tmp_path):
    pytest.importorskip("pyright")
    if shutil.which("node") is None:
        pytest.skip("no node on this machine")
    (tmp_path / "program.py").write_text(MISSPELT)
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--pythonpath", python, "program.py"],
        cwd=tmp_path, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    said = [line.partition(" - error: ")[2] for line in done.stdout.splitlines() if " - error: " in line]
    assert [each.partition(" (")[0] for each in said] == [
        'No parameter named "conn_timeuot"',
        'No parameter named "num_greenlet"',
        'No parameter named "auto_deleet"',
        'Argument of type "Literal[\'3\']" cannot be assigned to parameter "num_greenlets" of type "int" in function '
        '"__init__"',
        'No parameter named "retries"',
    ]
