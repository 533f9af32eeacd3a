"""The alert rules and the dashboard in monitoring/, and the page of metrics: each metric that they name exists, with
the labels that they name, and every expression can be read."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import promql_parser
import pytest
import yaml

from sagastream.metrics import catalogue

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "metrics.md").read_text()
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((ROOT / "monitoring" / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
DASHBOARD: dict[str, Any] = json.loads((ROOT / "monitoring" / "grafana.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
SERIES: Final = {name: metric for metric in catalogue.ALL.values() for name in metric.series}
#: Labels that Prometheus adds, and that of buckets.
GIVEN: Final = {"job", "instance", "le"}


def expressions() -> Iterator[Any]:
    for rule in RULES:
        yield pytest.param(rule["expr"], id=rule["alert"])
    for panel in PANELS:
        for target in panel["targets"]:
            yield pytest.param(target["expr"], id=f"{panel['title']} {target['refId']}")


def visited(text: str) -> list[Any]:
    """All nodes of an expression. Grafana fills in its variables before Prometheus reads it."""
    nodes: list[Any] = []
    parsed = promql_parser.parse(text.replace("$__rate_interval", "5m").replace("$service", ".*"))
    promql_parser.walk(parsed, nodes.append)
    return nodes


def labels_of(text: str) -> set[str]:
    """The labels by which an expression selects or groups."""
    matched = set(re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"', text))
    grouped = {name for names in re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", text) for name in re.split(r"\s*,\s*", names)}
    return matched | grouped


@pytest.mark.parametrize("text", list(expressions()))
def test_an_expression_can_be_read_and_names_what_there_is(text: str) -> None:
    selectors = [node for node in visited(text) if isinstance(node, promql_parser.VectorSelector)]
    assert selectors
    names = {str(one.name) for one in selectors}
    assert {name for name in names if not name.startswith("process_")} - {"up"} <= SERIES.keys()
    known = {label for name in names & SERIES.keys() for label in SERIES[name].labels}
    assert labels_of(text) <= known | GIVEN


def test_what_a_service_rejects_is_no_failure() -> None:
    (rule,) = [one for one in RULES if one["alert"] == "SagastreamStepsFail"]
    assert set(re.findall(r'outcome\W+"(\w+)"', rule["expr"])) == {"unknown"}


def test_what_is_gone_is_noticed() -> None:
    """A rule about figures that nobody tells is silent."""
    texts = [rule["expr"] for rule in RULES]
    assert "absent(sagastream_store_up)" in texts
    (job,) = re.findall(r"job_name: (\w+)", PAGE)
    assert f'up{{job="{job}"}} == 0' in texts


def test_what_cannot_be_read_would_be_found() -> None:
    with pytest.raises(ValueError, match=r"unexpected|unclosed|invalid"):
        visited("sum by (service (sagastream_store_up)")
    assert labels_of('sum by (a, b) (x{c="1", d!~"2"}) and on (e) y') == set("abcde")


def test_every_alert_says_what_it_is_and_where_to_read_on() -> None:
    names = [rule["alert"] for rule in RULES]
    assert len(set(names)) == len(names) >= 15
    titles = re.findall(r"^### (\w+)$", PAGE, re.MULTILINE)
    assert sorted(titles) == sorted(names)
    for rule in RULES:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert rule["annotations"]["runbook"] == f"docs/metrics.md#{rule['alert'].lower()}"
        # What a text fills in is a label that the expression leaves.
        used = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
        names_of_rule = set(re.findall(r"\bsagastream_\w+", rule["expr"]))
        assert used <= {label for name in names_of_rule for label in SERIES[name].labels} | GIVEN, rule["alert"]


def test_the_page_lists_every_metric_with_its_labels() -> None:
    listed = dict(re.findall(r"^\| `(sagastream_\w+)` \| (.*?) \|", PAGE, re.MULTILINE))
    labels = {name: re.findall(r"`(\w+)`", text) for name, text in listed.items()}
    assert labels == {name: list(metric.labels) for name, metric in catalogue.ALL.items()}


def test_the_panels_of_the_dashboard_have_places_of_their_own() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_the_variables_of_the_dashboard_ask_for_what_there_is() -> None:
    (service,) = [one for one in DASHBOARD["templating"]["list"] if one["name"] == "service"]
    found = re.fullmatch(r"label_values\((\w+), (\w+)\)", service["query"])
    assert found is not None
    assert found[2] in SERIES[found[1]].labels
    for panel in PANELS:
        assert panel["datasource"]["uid"] == "${source}"
