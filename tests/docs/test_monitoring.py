"""The alerts, the dashboard and the table for Prometheus name metrics that there are, and labels that they have."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("prometheus_client")

from gstalk.cli._exposition import SERVER, STATES, TUBE, names

ROOT = Path(__file__).parent.parent.parent
PLACE = ROOT / "examples" / "monitoring"
OPERATIONS = (ROOT / "docs" / "operations.md").read_text("utf-8")
DASHBOARD: dict[str, Any] = json.loads((PLACE / "grafana-dashboard.json").read_text("utf-8"))
PROMTOOL = shutil.which("promtool")


def expressions() -> dict[str, str]:
    """Every query, by where it stands."""
    found = {f"panel {p['title']}, {t['refId']}": t["expr"] for p in DASHBOARD["panels"] for t in p["targets"]}
    found |= {
        f"variable {v['name']}": v["query"]["query"] for v in DASHBOARD["templating"]["list"] if v["type"] == "query"
    }
    rules = re.split(r"- alert: ", (PLACE / "alerts.yml").read_text("utf-8"))[1:]
    found |= {f"alert {rule.split()[0]}": re.findall(r"expr: (.*?)\n {8}\w", rule, re.DOTALL)[0] for rule in rules}
    found |= {f"KEDA {number}": query for number, query in enumerate(re.findall(r"query: (.+)", OPERATIONS))}
    return found


def test_there_are_expressions_of_every_kind():
    kinds = [name.split()[0] for name in expressions()]
    assert {kind: kinds.count(kind) > 1 for kind in set(kinds)} == {
        "panel": True, "variable": True, "alert": True, "KEDA": False
    }  # fmt: skip


@pytest.mark.parametrize("where", expressions())
def test_expression_names_metrics_and_labels_that_there_are(where):
    text = expressions()[where]
    used = set(re.findall(r"\bbeanstalkd_\w+", text))
    assert used or 'up{job="beanstalkd"}' in text
    assert used - names() == set()
    labels = set(re.findall(r"(\w+)\s*=~?\s*\"", text)) - {"job"}
    assert labels <= {"uri", "tube", "state", "command", "mode"}
    for state in re.findall(r'state=~?"(.+?)"', text):
        assert set(state.split("|")) <= STATES.keys()


@pytest.mark.parametrize("figure", [*SERVER, *TUBE], ids=lambda figure: figure.name)
def test_table_has_every_metric_and_its_type(figure):
    (row,) = [line for line in OPERATIONS.splitlines() if line.startswith("|") and f"`{figure.name}`" in line]
    assert row.split(" | ")[1] == ("counter" if figure.name.endswith("_total") else "gauge")
    assert figure.label is None or f"`{figure.label}`" in row


def test_table_has_no_other_metrics():
    assert set(re.findall(r"`(beanstalkd_\w+)`", OPERATIONS)) == names()


def test_dashboard_panels_lie_beside_each_other():
    taken = [
        (x, y)
        for place in (panel["gridPos"] for panel in DASHBOARD["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(taken) == len(set(taken))
    assert max(x for x, _ in taken) < 24
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


@pytest.mark.parametrize(
    "arguments", ["check rules alerts.yml", "test rules alerts_test.yml", "check config prometheus.yml"]
)
def test_promtool_is_content(arguments):
    if PROMTOOL is None:
        pytest.skip("no promtool on this machine")
    done = subprocess.run([PROMTOOL, *arguments.split()], cwd=PLACE, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stdout + done.stderr
