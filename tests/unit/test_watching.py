"""What people see: `refold health`, `refold top`, metrics, probes, dashboards; and where alerts are delivered to."""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from clikit import Shell
from rich.cells import cell_len

from refold.bus.clock import SystemClock
from refold.cli.metrics import Metrics, MetricsServer, address
from refold.cli.overview import Overview
from refold.cli.screen import screen
from refold.consumers.alerts import Alerts
from refold.consumers.delivery import Command, Courier, Webhook
from refold.consumers.monitoring.kinds import ALERT_KINDS
from refold.consumers.monitoring.policy import HealthPolicy
from refold.federation import Federation
from refold.schemas.canonical import encode
from refold.schemas.checks import Alert
from refold.schemas.errors import ConfigurationError, UsageError
from refold.schemas.health import PAGE_NODES, STATES, HealthReport, NodeHealth
from refold.schemas.keys import HEALTH_TAG, log_key
from refold.testing import eventually

ROOT = Path(__file__).resolve().parents[2]
WIDE = "界" * 60 + "x" * 100
HOSTILE = "\x1b[2J\x1b[31mward\r\n\x07" + "界" * 60 + "\u202e" + "x" * 100
NOW_MS = 1_800_000_000_000


def report(federation: Federation, nodes: tuple[NodeHealth, ...], time_ms: int) -> None:
    secret = federation.keyring.secret(federation.genesis.secret_digest)
    key = log_key(secret)
    made = HealthReport(federation.name, "server-1", 0, 1, 5000, time_ms, nodes, key.key_id)
    made = replace(made, signature=key.sign(HEALTH_TAG, made.digest))
    with federation.bus.producer() as producer:
        headers = (("ce_type", b"refold.HealthReport"),)
        producer.send(federation.topics.health, encode(made), partition=0, headers=headers)


def node(client: str, state: str = "healthy", cause: str = "", kind: str = "", note: str = "") -> NodeHealth:
    return NodeHealth(client, state, cause, kind, NOW_MS, 400, 0.3, 0.1, 3, "training", note)


@pytest.fixture
def shell(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    monkeypatch.chdir(folder)
    made = Shell(capsys, monkeypatch)
    (folder / "refold.toml").write_text('bus = "sqlite:fed.db"\n')
    return made


def test_health_lists_the_worst_first_and_says_by_its_exit_code_that_not_all_are_well(
    shell: Shell, federation: Federation
) -> None:
    ill = node("c2", "degraded", "network", "late", "is late")
    report(federation, (node("c0"), node("c1", "dead", "node", "silent", "is silent"), ill), SystemClock().wall_ms())
    said = shell("health")
    assert said.code == 1
    assert [line.split()[:3] for line in said.out.splitlines()[1:3]] == [["c1", "dead", "node"], ["c2", "degraded", "network"]]
    assert said.out.splitlines()[-1] == "3 nodes: 1 healthy, 1 degraded, 1 dead"
    assert [line["state"] for line in shell("health", "--json").objects] == ["dead", "degraded", "healthy"]


def test_f09_an_old_report_is_shown_as_stale_and_never_as_healthy(
    shell: Shell, federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    report(federation, (node("c0"),), SystemClock().wall_ms())
    later_ns = time.time_ns() + 60_000_000_000
    monkeypatch.setattr(time, "time_ns", lambda: later_ns)
    said = shell("health")
    assert said.code == 1
    assert said.out.startswith("STALE: server-1 reported last")
    assert [(line["state"], line["last_state"]) for line in shell("health", "--json").objects] == [("stale", "healthy")]


def test_health_of_one_node_shows_measures_advice_and_alerts(shell: Shell, federation: Federation) -> None:
    report(federation, (node("c1", "degraded", "network", "late", "is late"),), SystemClock().wall_ms())
    alerts = Alerts(federation.bus, federation.topics, SystemClock())
    alerts.write([Alert("c1", "warning", HOSTILE, "", 1, NOW_MS, "late", "network", "degraded")])
    alerts.close()
    said = shell("health", "c1")
    assert "look at the network" in said.out
    assert "degraded  " in said.out
    assert "\x1b" not in said.out
    assert shell("health", "c1", "--json").object["alerts"][-1]["what"].startswith("·[2J")
    assert shell("health", "nobody").code == 4


@pytest.mark.parametrize(("width", "height"), [(80, 24), (40, 12), (200, 60), (10, 5)])
def test_f40_top_fits_its_screen_whatever_strangers_call_themselves(federation: Federation, width: int, height: int) -> None:
    alerts = Alerts(federation.bus, federation.topics, SystemClock())
    alerts.write([Alert(HOSTILE, "error", HOSTILE, HOSTILE, 1, NOW_MS, "late") for _ in range(30)])
    alerts.close()
    nodes = tuple(node(f"{WIDE}{number}", "dead", "node", "silent", WIDE) for number in range(300))
    report(federation, nodes, NOW_MS)
    overview = Overview(federation)
    overview.refresh()
    lines = screen(overview, width, height, NOW_MS)
    overview.close()
    assert len(lines) == max(height, 12)
    assert all(line.isprintable() and cell_len(line) <= width for line in lines)


def test_top_shows_rounds_verdicts_lag_nodes_and_alerts_in_eighty_columns(federation: Federation, shell: Shell) -> None:
    report(federation, (node("c0"), node("c1", "dead", "node", "silent", "is silent")), SystemClock().wall_ms())
    said = shell("top", "--once")
    assert said.code == 0
    assert "round 3  members 3" in said.out
    assert re.search(r"updates  accepted \d+  rejected", said.out)
    for word in ("consistency", "detection", "aggregation", "snapshots", "health", "c1", "dead", "q ends"):
        assert word in said.out


def samples(metrics: Metrics) -> dict[tuple[str, tuple[str, ...]], float]:
    found = {}
    for family in metrics.registry.collect():
        for sample in family.samples:
            found[sample.name, tuple(sample.labels.values())] = sample.value
    return found


@pytest.fixture
def metrics(federation: Federation) -> Iterator[Metrics]:
    report(federation, (node("c0"), node("c1", "dead", "node", "silent")), SystemClock().wall_ms())
    overview = Overview(federation)
    with federation.serve(("snapshots",)) as server:
        eventually(lambda: not server.not_ready())
        made = Metrics(overview, server)
        made.refresh()
        yield made
    overview.close()


def test_metrics_say_what_the_log_says(metrics: Metrics) -> None:
    found = samples(metrics)
    assert found["refold_round", ()] == 3
    assert found["refold_rounds_total", ("applied",)] == 3
    assert found["refold_nodes", ("dead",)] == 1
    assert found["refold_nodes", ("stale",)] == 0
    assert found["refold_updates_rejected_total", ("declined",)] == 1
    assert found["refold_round_duration_seconds_count", ()] == 3
    assert found["refold_group_backlog", ("detection",)] == 0


def test_f40_names_of_strangers_make_no_series(metrics: Metrics, federation: Federation) -> None:
    before = set(samples(metrics))
    alerts = Alerts(federation.bus, federation.topics, SystemClock())
    alerts.write([Alert(f"n{n}", f"sev{n}", "x", "", 1, NOW_MS, f"kind{n}", f"c{n}", f"s{n}") for n in range(200)])
    alerts.close()
    nodes = tuple(replace(node(f"n{n}"), state=f"s{n}"[:16], cause=f"c{n}") for n in range(PAGE_NODES))
    report(federation, nodes, SystemClock().wall_ms() + 1)
    metrics.refresh()
    assert set(samples(metrics)) - before == {("refold_alerts_total", ("other", "other"))}


def test_livez_readyz_and_metrics_answer_over_http(federation: Federation) -> None:
    server = federation.serve(("health", "snapshots"))
    with MetricsServer(federation, server, "127.0.0.1", 0) as serving:
        url = f"http://127.0.0.1:{serving.port}"
        assert _status(f"{url}/readyz") == (503, "not at work") or not server.members()
        with server:
            eventually(lambda: _status(f"{url}/readyz")[0] == 200)
            assert _status(f"{url}/livez")[0] == 200
            eventually(lambda: "refold_round 3.0" in _get(f"{url}/metrics"))
            assert _status(f"{url}/etc/passwd")[0] == 404
        assert _status(f"{url}/livez")[0] == 503
        with pytest.raises(ConfigurationError):
            MetricsServer(federation, server, "127.0.0.1", serving.port)


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(answer.read().decode())


def _status(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return int(answer.status), ""
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()[:11]


def test_an_address_is_this_machines_unless_said_otherwise() -> None:
    assert address("9464") == ("127.0.0.1", 9464)
    assert address("0.0.0.0:9464") == ("0.0.0.0", 9464)
    assert address("[::1]:9464") == ("::1", 9464)
    for wrong in ("x", "1:2:x", "70000", ""):
        with pytest.raises(UsageError):
            address(wrong)


def test_dashboard_and_rules_ask_only_for_metrics_that_are_there(metrics: Metrics) -> None:
    there = {name for name, _ in samples(metrics)} | {f"{family.name}_bucket" for family in metrics.registry.collect()}
    there |= {f"{family.name}_total" for family in metrics.registry.collect() if family.type == "counter"}
    there.add("up")
    dashboard = json.loads((ROOT / "docker" / "grafana" / "refold.json").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    rules = yaml.safe_load((ROOT / "docker" / "prometheus" / "rules.yml").read_text())
    asked += [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    assert len(asked) > 15
    for expression in asked:
        names = set(re.findall(r"\b(?:refold|process)_[a-z_]+|\bup\b", expression))
        assert names, expression
        assert names <= there, expression
        for label, value in re.findall(r"(\w+)=\"([^\"]+)\"", expression):
            known = {"state": {*STATES, "stale"}, "kind": ALERT_KINDS, "severity": {"info", "warning", "error"}}
            assert value in known.get(label, {value}), expression


def test_every_alert_rule_says_what_to_do() -> None:
    rules = yaml.safe_load((ROOT / "docker" / "prometheus" / "rules.yml").read_text())
    page = (ROOT / "docs" / "OPERATIONS.md").read_text()
    for rule in (rule for group in rules["groups"] for rule in group["rules"]):
        assert {"summary", "description"} <= rule["annotations"].keys()
        assert rule["alert"] in page


class Desk:
    """A webhook that answers as told and keeps what it was sent."""

    def __init__(self) -> None:
        self.got: list[dict[str, Any]] = []
        self.answers: list[int] = []
        desk = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status = desk.answers.pop(0) if desk.answers else 204
                if status == 204:
                    desk.got.append(body)
                self.send_response(status)
                self.send_header("Location", "http://127.0.0.1:1/elsewhere")
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        self.http = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/secret-token"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def desk() -> Iterator[Desk]:
    made = Desk()
    yield made
    made.http.shutdown()
    made.http.server_close()


def alert(federation: Federation, *names: str) -> None:
    alerts = Alerts(federation.bus, federation.topics, SystemClock())
    made = Alert("", "error", "is silent", "start it", 3, NOW_MS, "silent", "node", "dead", (("phi", 12.5),))
    alerts.write([replace(made, subject=name) for name in names])
    alerts.close()


def test_a_webhook_gets_every_alert_though_it_fails_at_times(federation: Federation, desk: Desk) -> None:
    waited: list[float] = []
    courier = Courier(federation.bus, federation.topics, [Webhook(desk.url)], pause=waited.append)
    courier.step(0.1)
    alert(federation, "c0", "c1")
    desk.answers = [500, 302, 204, 204]
    eventually(lambda: courier.step(0.05) or len(desk.got) == 2)
    assert [(got["subject"], got["cause"], got["evidence"]) for got in desk.got] == [
        ("c0", "node", {"phi": 12.5}),
        ("c1", "node", {"phi": 12.5}),
    ]
    assert len(waited) == 2
    courier.close()
    again = Courier(federation.bus, federation.topics, [Webhook(desk.url)])
    alert(federation, "c2")
    eventually(lambda: again.step(0.05) or len(desk.got) == 3)
    assert [got["subject"] for got in desk.got] == ["c0", "c1", "c2"], "a successor goes on after the last one delivered"
    again.close()


def test_what_cannot_be_delivered_is_given_up_and_its_address_is_not_logged(
    federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    sinks = [Webhook("http://127.0.0.1:1/secret-token", timeout_s=1), Command((sys.executable, "-c", "raise SystemExit(3)"))]
    courier = Courier(federation.bus, federation.topics, sinks, pause=lambda _: None)
    courier.step(0.1)
    alert(federation, "c0")
    eventually(lambda: courier.step(0.05) or courier.given_up == 2)
    courier.close()
    assert "secret-token" not in caplog.text


def test_a_command_reads_the_alert_and_no_shell_sees_it(federation: Federation, tmp_path: Path) -> None:
    out = tmp_path / "out"
    program = f"import sys; open({str(out)!r}, 'w').write(sys.stdin.read())"
    command = Command.of(f'{sys.executable} -c "{program}"')
    courier = Courier(federation.bus, federation.topics, [command])
    courier.step(0.1)
    alert(federation, "$(reboot); `ls`")
    eventually(lambda: courier.step(0.05) or courier.delivered == 1)
    courier.close()
    assert json.loads(out.read_text())["subject"] == "$(reboot); `ls`"


def test_a_webhook_that_hangs_ends_in_its_time(federation: Federation) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as deaf:
        hook = Webhook(f"http://127.0.0.1:{deaf.getsockname()[1]}/", timeout_s=0.1)
        began_s = time.monotonic()
        with pytest.raises(OSError, match="timed out"):
            hook.deliver({})
        assert time.monotonic() - began_s < 5


def test_only_http_addresses_are_webhooks() -> None:
    for wrong in ("file:///etc/passwd", "ftp://host/x", "nonsense", "http://"):
        with pytest.raises(UsageError):
            Webhook(wrong)


def test_every_kind_of_alert_is_described_and_every_setting_listed_with_its_default() -> None:
    page = (ROOT / "docs" / "OPERATIONS.md").read_text()
    assert set(re.findall(r"^### `(.+)`$", page, re.MULTILINE)) == ALERT_KINDS
    listed = dict(re.findall(r"^\| `([a-z-]+)` \| (\S+) \|$", page, re.MULTILINE))
    for name, value in dataclasses.asdict(HealthPolicy()).items():
        assert listed[name.replace("_", "-")] == str(value or "none"), name


def test_every_alert_that_is_raised_has_a_kind_that_is_described() -> None:
    kinds = set()
    for path in (ROOT / "consumers").rglob("*.py"):
        for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
            if isinstance(call.func, ast.Attribute) and call.func.attr == "raise_":
                said = [word.value for word in call.keywords if word.arg == "kind"]
                assert said, f"{path.name}:{call.lineno}: an alert without a kind"
                kinds |= {word.value for word in said if isinstance(word, ast.Constant)}
    assert kinds <= ALERT_KINDS


def test_the_compose_file_of_the_watchers_mounts_what_is_there_and_scrapes_where_the_server_listens() -> None:
    services = yaml.safe_load((ROOT / "docker" / "compose.watch.yaml").read_text())["services"]
    for mount in (mount for service in services.values() for mount in service.get("volumes", ())):
        if mount.startswith("./"):
            assert (ROOT / "docker" / mount.split(":")[0]).exists(), mount
    scraped = yaml.safe_load((ROOT / "docker" / "prometheus" / "prometheus.yml").read_text())["scrape_configs"][0]
    port = address(services["server"]["command"][-1])[1]
    assert scraped["static_configs"][0]["targets"] == [f"server:{port}"]
    assert scraped["job_name"] == "refold"


@pytest.mark.parametrize("way", ["q", "ctrl-c"])
def test_top_on_a_terminal_takes_the_whole_screen_and_gives_it_back(federation: Federation, way: str) -> None:
    ours, theirs = pty.openpty()
    words = [sys.executable, "-m", "refold", "top", "--bus", federation.url, "--every", "0.2"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
    with subprocess.Popen(
        words,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment,
        # Tests that a shell runs in the background ignore Ctrl-C, and so would what they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as running:
        os.close(theirs)
        said = b""
        with os.fdopen(ours, "r+b", buffering=0) as terminal:
            while b"q ends" not in said:
                said += terminal.read(65_536)
            terminal.write(b"q") if way == "q" else running.send_signal(signal.SIGINT)
            with suppress(OSError):  # The end of a terminal whose program is gone.
                while piece := terminal.read(65_536):
                    said += piece
        assert running.wait(30) == 0
    assert said.startswith(b"\x1b[?1049h")
    assert said.rstrip().endswith(b"\x1b[?1049l")
