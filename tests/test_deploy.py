"""What `deploy/` says about the server is true of it: metric names and labels, settings, probes, grace periods."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from app.contract.frames import EngineStats, RequestTimings, StepRecord
from app.contract.request import FinishReason
from app.keys import KeyScope, digest, parse_keys
from app.settings import ENV_PREFIX, Settings, load
from app.telemetry.metrics import Metrics
from app.telemetry.per_request import RequestFigures
from tests.fakes import fake_ready

REPOSITORY = Path(__file__).resolve().parent.parent
DEPLOY = REPOSITORY / "deploy"
LAST_EVENTS = 5.0
"""Seconds after the drain's time-out in which cut streams get their error event."""

# Of a query, what is no metric: keywords, and what stands in the place of a label (names the scraper adds included).
KEYWORDS = {"and", "or", "unless", "bool", "offset", "inf", "nan"}
SCRAPER_LABELS = {"job", "instance"}
SCRAPER_METRICS = {"up": SCRAPER_LABELS}
GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
SELECTOR = re.compile(r"([A-Za-z_:][\w:]*)\s*\{([^}]*)\}")
MATCHER = re.compile(r"([A-Za-z_]\w*)\s*(?:=~|!~|!=|=)\s*\"[^\"]*\"")
NAME = re.compile(r"(?<![\w:.$])([A-Za-z_:][\w:]*)(?!\s*\(|[\w:])")


READY = fake_ready()


def _documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def _dashboard() -> dict[str, Any]:
    dashboard: dict[str, Any] = json.loads((DEPLOY / "grafana/dashboards/tuili.json").read_text())
    return dashboard


def _compose() -> dict[str, Any]:
    (document,) = _documents(REPOSITORY / "docker-compose.yml")
    return document


def _kubernetes(kind: str) -> dict[str, Any]:
    (found,) = (d for d in _documents(DEPLOY / "kubernetes/tuili.yaml") if d["kind"] == kind)
    return found


def _container() -> dict[str, Any]:
    container: dict[str, Any]
    (container,) = _kubernetes("Deployment")["spec"]["template"]["spec"]["containers"]
    return container


def _alerts() -> list[dict[str, Any]]:
    (document,) = _documents(DEPLOY / "prometheus/alerts.yml")
    return [rule for group in document["groups"] for rule in group["rules"]]


def _panel_queries() -> list[tuple[str, str, str]]:
    panels = _dashboard()["panels"]
    return [(p["title"], t["expr"], t["legendFormat"]) for p in panels for t in p.get("targets", [])]


@pytest.fixture(scope="module")
def page() -> dict[str, set[str]]:
    """Sample names of the metrics page -> their labels, after one of everything has been observed."""
    metrics = Metrics("m", version="0")
    metrics.observe_ready(READY, 1.0)
    metrics.observe_state("ready")
    step = StepRecord(tokens=1, seconds=0.1, kernel_seconds=0.1, decode=True, replayed=True)
    metrics.observe_step(EngineStats(steps_total=1), [step])
    metrics.observe_delivery(0.1)
    metrics.observe_http(route="/v1/completions", method="POST", status=200, seconds=0.1)
    metrics.observe_refusal("completions", "overloaded")
    metrics.observe_tokens(generated=1, delivered=1)
    metrics.observe_request(
        RequestFigures(
            endpoint="completions",
            outcome="ok",
            finish_reasons=[FinishReason.STOP],
            prompt_tokens=1,
            cached_tokens=0,
            seconds=0.1,
            timings=RequestTimings(arrival=0.0, first_scheduled=0.1, first_token=0.2, finished=0.3),
            token_intervals=[0.1],
        )
    )
    labels: dict[str, set[str]] = {name: set(names) for name, names in SCRAPER_METRICS.items()}
    for family in text_string_to_metric_families(metrics.render()[0].decode()):
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels, SCRAPER_LABELS)
    return labels


def _problems(query: str, page: dict[str, set[str]], used_labels: frozenset[str] = frozenset()) -> list[str]:
    """Names in a PromQL query that the page does not have."""
    grouped = set(used_labels)
    for names in GROUPING.findall(query):
        grouped |= {name.strip() for name in names.split(",") if name.strip()}
    bare = GROUPING.sub(" ", query)
    problems = []
    for metric, matchers in SELECTOR.findall(bare):
        unknown = set(MATCHER.findall(matchers)) - page.get(metric, set())
        problems += [f"{metric} has no label {label}" for label in sorted(unknown) if metric in page]
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\"[^\"]*\"", " ", bare)
    metrics = set(NAME.findall(bare)) - KEYWORDS
    problems += [f"no metric {metric}" for metric in sorted(metrics - page.keys())]
    known = set().union(*(page.get(metric, set()) for metric in metrics))
    return problems + [f"no label {label}" for label in sorted(grouped - known)]


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("sum(rate(tuili_token_total[5m]))", "no metric tuili_token_total"),
        ('tuili_engine_state{phase="ready"}', "tuili_engine_state has no label phase"),
        ("sum by (route) (tuili_requests_total)", "no label route"),
        ("tuili_requests_running > 0 and on (shard) up == 0", "no label shard"),
    ],
)
def test_a_wrong_name_is_noticed(query: str, problem: str, page: dict[str, set[str]]) -> None:
    assert _problems(query, page) == [problem]


@pytest.mark.parametrize(("title", "query", "legend"), _panel_queries())
def test_dashboard_asks_for_what_is_exported(title: str, query: str, legend: str, page: dict[str, set[str]]) -> None:
    assert _problems(query, page, frozenset(re.findall(r"\{\{(\w+)\}\}", legend))) == []


def test_dashboard_offers_labels_that_are_exported(page: dict[str, set[str]]) -> None:
    for variable in _dashboard()["templating"]["list"]:
        found = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["definition"])
        assert found, variable["definition"]
        assert found[2] in page[found[1]]


@pytest.mark.parametrize("rule", _alerts(), ids=lambda rule: rule["alert"])
def test_alerts_ask_for_what_is_exported(rule: dict[str, Any], page: dict[str, set[str]]) -> None:
    shown = frozenset(re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"])))
    assert _problems(rule["expr"], page, shown) == []


def test_every_alert_has_a_test() -> None:
    (document,) = _documents(DEPLOY / "prometheus/alerts_test.yml")
    cases = [case for test in document["tests"] for case in test["alert_rule_test"]]
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == {rule["alert"] for rule in _alerts()}


def test_dashboard_is_wired_to_its_data_source() -> None:
    (provisioned,) = _documents(DEPLOY / "grafana/provisioning/datasources/prometheus.yml")
    uids = {source["uid"] for source in provisioned["datasources"]}
    panels = [panel for panel in _dashboard()["panels"] if panel["type"] != "row"]
    assert {panel["datasource"]["uid"] for panel in panels} == uids
    assert len({panel["id"] for panel in panels}) == len(panels)
    (providers,) = _documents(DEPLOY / "grafana/provisioning/dashboards/tuili.yml")
    mounted = {volume.split(":")[1] for volume in _compose()["services"]["grafana"]["volumes"]}
    assert {provider["options"]["path"] for provider in providers["providers"]} <= mounted


def test_compose_publishes_on_loopback_and_pins_images() -> None:
    for name, service in _compose()["services"].items():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]), name
        assert re.search(r":(v?\d+\.\d+\.\d+|local)$", service["image"]), name


def test_prometheus_scrapes_the_compose_service() -> None:
    (config,) = _documents(DEPLOY / "prometheus/prometheus.yml")
    (job,) = config["scrape_configs"]
    (target,) = (target for group in job["static_configs"] for target in group["targets"])
    assert target.split(":")[0] in _compose()["services"]
    assert config["rule_files"] == ["alerts.yml"]


def _compose_environment() -> dict[str, str]:
    environment = _compose()["services"]["tuili"]["environment"]
    given = {name: re.sub(r"\$\{(\w+):\?[^}]*\}", r"the-value-of-\1", value) for name, value in environment.items()}
    return {name: re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value) for name, value in given.items()}


def _image_environment() -> dict[str, str]:
    return dict(re.findall(r"^\s*(?:ENV )?(TUILI_\w+)=(\S+)", (REPOSITORY / "Dockerfile").read_text(), re.MULTILINE))


def _pod_environment() -> dict[str, str]:
    return {variable["name"]: variable["value"] for variable in _container()["env"]}


@pytest.mark.parametrize("environment", [_image_environment(), _compose_environment(), _pod_environment()])
def test_environments_hold_valid_settings(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    _, sources = load({})
    for name in environment:
        assert sources[name.removeprefix(ENV_PREFIX).lower()] == f"environment {name}"


def test_compose_gives_prometheus_a_key_for_metrics_alone() -> None:
    compose, (prometheus,) = _compose(), _documents(DEPLOY / "prometheus/prometheus.yml")
    keys = parse_keys(_compose_environment()["TUILI_API_KEYS"].split(","))
    assert {key.name: set(key.scopes) for key in keys} == {
        "client": {KeyScope.INFER},
        "prometheus": {KeyScope.METRICS},
    }
    (secret,) = compose["services"]["prometheus"]["secrets"]
    (job,) = prometheus["scrape_configs"]
    assert job["authorization"]["credentials_file"] == f"/run/secrets/{secret}"
    variable = compose["secrets"][secret]["environment"]
    (metrics,) = (key for key in keys if key.name == "prometheus")
    assert metrics.digest == digest(f"the-value-of-{variable}".encode())


def test_pods_mount_the_file_of_their_keys() -> None:
    file = Path(_pod_environment()["TUILI_API_KEY_FILE"])
    (mount,) = (each for each in _container()["volumeMounts"] if each["mountPath"] == str(file.parent))
    volumes = _kubernetes("Deployment")["spec"]["template"]["spec"]["volumes"]
    (volume,) = (each for each in volumes if each["name"] == mount["name"])
    assert (
        f"create secret generic {volume['secret']['secretName']} --from-file={file.name}\n"
        in (DEPLOY / "kubernetes/tuili.yaml").read_text()
    )


def _drain(environment: dict[str, str]) -> float:
    values = {
        name: float(environment.get(f"{ENV_PREFIX}{name.upper()}", Settings.model_fields[name].default))
        for name in ("drain_delay", "drain_timeout")
    }
    return sum(values.values()) + LAST_EVENTS


def test_compose_waits_for_the_drain() -> None:
    grace = _compose()["services"]["tuili"]["stop_grace_period"]
    assert float(grace.removesuffix("s")) > _drain(_compose_environment())


def test_kubernetes_waits_for_the_drain() -> None:
    pod = _kubernetes("Deployment")["spec"]["template"]["spec"]
    assert "lifecycle" not in _container()  # a preStop hook would count as well
    assert pod["terminationGracePeriodSeconds"] > _drain(_pod_environment())


def test_pods_probe_what_the_server_answers() -> None:
    container = _container()
    paths = {name: container[name]["httpGet"]["path"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert paths == {"startupProbe": "/startupz", "readinessProbe": "/readyz", "livenessProbe": "/livez"}
    (port,) = container["ports"]
    assert port["containerPort"] == int(_image_environment()["TUILI_PORT"])


def test_service_links_do_not_become_settings() -> None:
    name = _kubernetes("Service")["metadata"]["name"]
    assert name.upper() + "_" == ENV_PREFIX  # as long as this is so, links must stay off
    assert _kubernetes("Deployment")["spec"]["template"]["spec"]["enableServiceLinks"] is False


def test_pods_may_write_to_the_home_of_their_models() -> None:
    home = Path(_pod_environment()["TUILI_HOME"])
    mounts = {mount["mountPath"] for mount in _container()["volumeMounts"]}
    assert str(home.parent) in mounts
    assert str(home) not in mounts  # the root of a mount belongs to the group, too


def test_autoscaler_reads_a_metric_that_is_exported(page: dict[str, set[str]]) -> None:
    autoscaler = _kubernetes("HorizontalPodAutoscaler")["spec"]
    assert autoscaler["scaleTargetRef"]["name"] == _kubernetes("Deployment")["metadata"]["name"]
    (metric,) = autoscaler["metrics"]
    assert metric["pods"]["metric"]["name"] in page
