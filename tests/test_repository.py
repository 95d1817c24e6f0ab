"""What a forge and a committer's machine are told: it parses, and names commands and files that there are."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted(path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config")
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")


def loaded(path: Path) -> Any:
    return yaml.safe_load(path.read_text("utf-8"))


def commands(workflow: Any) -> list[str]:
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    return [line for step in steps for line in step.get("run", "").splitlines()]


def planned(*arguments: str, cwd: Path) -> list[str]:
    """What make would do, told by itself."""
    said = subprocess.run(["make", "--dry-run", *arguments], cwd=cwd, capture_output=True, text=True, check=True).stdout
    return said.splitlines()


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_runs_what_there_is(path):
    workflow = loaded(path)
    assert True in workflow  # `on`, which YAML takes for a truth
    assert all(job["runs-on"] and job["timeout-minutes"] for job in workflow["jobs"].values())
    for command in commands(workflow):
        if command.startswith("make "):
            target = command.split()[-1]
            assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), command
        elif "tox -e" in command:
            assert f"testenv:{command.split()[-1]}]" in (ROOT / "tox.ini").read_text("utf-8")
        else:
            assert command == "python -m pip install tox"


def test_workflows_test_every_python_the_oldest_gevent_wheels_docs_and_soak():
    run = [command for path in WORKFLOWS for command in commands(loaded(path))]
    made = ["make demo", *(f"make PYTHON=python {target}" for target in ("test", "docs", "dist", "soak"))]
    for needed in [*made, "python -m tox -e oldest"]:
        assert needed in run
    tested = loaded(ROOT / ".github" / "workflows" / "tests.yml")["jobs"]["test"]["strategy"]["matrix"]["python"]
    claimed = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', (ROOT / "setup.py").read_text("utf-8"))
    assert set(claimed) <= set(tested)
    assert {f"py{version.replace('.', '')}" for version in tested} <= set(
        re.split(r"[ ,=]+", (ROOT / "tox.ini").read_text("utf-8").partition("env_list")[2].partition("\n")[0])
    )


def test_pre_commit_runs_the_linters_of_make_lint():
    entries = [
        hook["entry"]
        for repository in loaded(ROOT / ".pre-commit-config.yaml")["repos"]
        for hook in repository["hooks"]
    ]
    rule = re.search(r"^lint:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    assert rule is not None
    assert entries == [line.strip().replace("$(BIN)", ".venv/bin") for line in rule[1].splitlines()]


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_form_asks_in_words(path):
    form = loaded(path)
    assert form["name"]
    assert form["description"]
    ids = [field["id"] for field in form["body"] if field["type"] != "markdown"]
    assert len(set(ids)) == len(ids)
    assert all(field["attributes"]["label"] for field in form["body"] if field["type"] != "markdown")


def test_form_for_bugs_asks_for_versions_statistics_and_a_program():
    form = loaded(ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml")
    needed = [field["id"] for field in form["body"] if field.get("validations", {}).get("required")]
    assert needed == ["what", "program", "versions", "stats"]
    for name in re.findall(r"`(docs/[a-z]+\.md|[A-Z]+\.md)`", str(form)):
        assert (ROOT / name).exists()


def test_owners_are_left_to_the_owners():
    text = (ROOT / ".github" / "CODEOWNERS").read_text("utf-8")
    assert [line for line in text.splitlines() if line and not line.startswith("#")] == []


@pytest.mark.skipif(shutil.which("make") is None, reason="no make on this machine")
def test_make_demo_installs_less_than_make_test_and_each_leaves_the_other_its_own(tmp_path):
    for name in ("Makefile", "setup.py"):
        shutil.copy(ROOT / name, tmp_path)

    def installs(target: str) -> list[str]:
        return [line for line in planned(target, cwd=tmp_path) if "pip install" in line]

    assert [line.rsplit(maxsplit=1)[1] for line in installs("demo")] == ["'.[cli]'"]
    assert [line.rsplit(maxsplit=1)[1] for line in installs("lint")] == ["'.[cli,docs,test]'"]
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").touch()
    (tmp_path / ".venv" / ".demo-ready").touch()
    assert installs("demo") == []
    assert len(installs("lint")) == 1
    (tmp_path / ".venv" / ".ready").touch()
    assert installs("lint") == []
