"""``/metrics`` for Prometheus, ``/livez`` and ``/readyz`` for whoever starts and stops servers.

Labels take values of short, fixed lists only: states, causes, reasons, groups, kinds. No client's name is ever one, so that
nobody who sends can make series without end; which node it is, `refold health` and the alerts say.
"""

from __future__ import annotations

import logging
import socketserver
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.exposition import make_wsgi_app
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from refold.bus.clock import Clock, SystemClock
from refold.cli.overview import OTHER, Overview
from refold.consumers.monitoring.kinds import ALERT_KINDS
from refold.consumers.monitoring.servers import is_server
from refold.consumers.server import Server
from refold.federation import Federation
from refold.schemas.errors import ConfigurationError, RefoldError, UsageError
from refold.schemas.health import CAUSES, STATES

log = logging.getLogger("refold.metrics")

REFRESH_S = 2.0
SEVERITIES = ("info", "warning", "error")
DURATIONS_S = (0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 14_400)
STALE = "stale"


class Metrics(Collector):
    """Everything that is measured of a federation and of this server, as Prometheus reads it.

    Parameters
    ----------
    server
        The one in this process, or None.
    """

    def __init__(self, overview: Overview, server: Server | None, clock: Clock | None = None) -> None:
        self._overview = overview
        self._server = server
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self.registry = CollectorRegistry()
        self._durations = Histogram(
            "refold_round_duration_seconds",
            "Time from one round's commit to the next.",
            buckets=DURATIONS_S,
            registry=self.registry,
        )
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.registry.register(self)

    def refresh(self) -> None:
        """Read what is new; scrapes only show what was read."""
        with self._lock:
            self._overview.refresh()
            durations, self._overview.durations_s = self._overview.durations_s, []
        for seconds in durations:
            self._durations.observe(seconds)

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics as they are now."""
        with self._lock:
            found = [*self._progress(), *self._nodes(), *self._alerts(), *self._groups(), *self._members()]
        yield from found

    def _progress(self) -> Iterator[Metric]:
        overview, now_ms = self._overview, self._clock.wall_ms()
        yield _gauge("refold_round", "The newest round.", [((), overview.head)])
        age_s = max(0.0, (now_ms - overview.round_time_ms) / 1000) if overview.round_time_ms else 0.0
        yield _gauge("refold_round_age_seconds", "Time since a round was committed.", [((), age_s)])
        yield _gauge("refold_ended", "1 once the federation has ended.", [((), overview.has_ended)])
        rounds = [((outcome,), count) for outcome, count in overview.outcomes.items()]
        yield _counter("refold_rounds", "Rounds committed since the log began.", rounds, ("outcome",))
        accepted, verdicts = overview.verdicts.accepted, overview.verdicts
        rejected = [((reason,), count) for reason, count in verdicts.rejected.items()]
        yield _counter("refold_updates_accepted", "Training updates accepted since the log began.", [((), accepted)])
        yield _counter("refold_updates_rejected", "Updates rejected since the log began.", rejected, ("reason",))
        unattributed = [((), verdicts.unattributed)]
        yield _counter("refold_records_unattributed", "Records of `updates` that nobody can be held to.", unattributed)

    def _nodes(self) -> Iterator[Metric]:
        reports, now_ms = self._overview.reports, self._clock.wall_ms()
        newest, nodes = reports.newest, [node for node in reports.nodes() if not is_server(node)]
        is_stale = reports.is_stale(now_ms)
        states = Counter(STALE if is_stale else node.state for node in nodes)
        told = [((state,), states[state]) for state in (*STATES, STALE)]
        yield _gauge("refold_nodes", "Nodes by state; all are stale while no health group works.", told, ("state",))
        causes = Counter(node.cause for node in nodes if not is_stale)
        told = [((cause,), causes[cause]) for cause in CAUSES]
        yield _gauge("refold_nodes_unwell", "Nodes that are not well, by cause.", told, ("cause",))
        longest_s = max((node.silence_ms / 1000 for node in nodes if node.state not in ("dead", "left")), default=0.0)
        yield _gauge(
            "refold_node_silence_seconds", "Longest silence of a node that is neither dead nor has left.", [((), longest_s)]
        )
        age_s = max(0.0, (now_ms - newest.time_ms) / 1000) if newest else float("inf")
        yield _gauge("refold_health_report_age_seconds", "Age of the health group's newest report.", [((), age_s)])

    def _alerts(self) -> Iterator[Metric]:
        counts: Counter[tuple[str, str]] = Counter()
        for (severity, kind), count in self._overview.alert_counts.items():
            counts[severity if severity in SEVERITIES else OTHER, kind if kind in ALERT_KINDS else OTHER] += count
        about = "Alerts since this server began."
        yield _counter("refold_alerts", about, list(counts.items()), ("severity", "kind"))

    def _groups(self) -> Iterator[Metric]:
        groups, now_ms = self._overview.groups, self._clock.wall_ms()
        lag = [((status.group,), status.to_do) for status in groups]
        yield _gauge("refold_group_backlog", "What a group has not dealt with yet.", lag, ("group",))
        idle = [((s.group,), idle_s) for s in groups if (idle_s := s.idle_s(now_ms)) is not None]
        yield _gauge("refold_group_idle_seconds", "Time since a group's last progress.", idle, ("group",))

    def _members(self) -> Iterator[Metric]:
        members = self._server.members() if self._server else []
        ages: dict[str, float] = {}
        for one in members:
            ages[one.group] = max(ages.get(one.group, 0.0), one.step_age_s)
        told = [((group,), age_s) for group, age_s in ages.items()]
        about = "Time since the last step of this server's slowest member of a group ended."
        yield _gauge("refold_member_step_age_seconds", about, told, ("group",))
        failures = Counter({one.group: 0 for one in members})
        for one in members:
            failures[one.group] += one.failures
        told = [((group,), count) for group, count in failures.items()]
        yield _counter("refold_member_restarts", "How often members began again from the log.", told, ("group",))


def _gauge(name: str, about: str, values: Iterable[tuple[tuple[str, ...], float]], labels: tuple[str, ...] = ()) -> Metric:
    family = GaugeMetricFamily(name, about, labels=labels)
    for of, value in values:
        family.add_metric(of, float(value))
    return family


def _counter(name: str, about: str, values: Iterable[tuple[tuple[str, ...], float]], labels: tuple[str, ...] = ()) -> Metric:
    family = CounterMetricFamily(name, about, labels=labels)
    for of, value in values:
        family.add_metric(of, float(value))
    return family


class MetricsServer:
    """Serves metrics, liveness and readiness over HTTP from threads of its own. Use as a context manager."""

    def __init__(self, federation: Federation, server: Server, host: str, port: int) -> None:
        self._overview = Overview(federation, past_alerts=False)
        self.metrics = Metrics(self._overview, server)
        self._app = application(self.metrics.registry, server)
        try:
            self._http = make_server(host, port, self._app, _Threads, _Quiet)
        except OSError as error:
            self._overview.close()
            hint = "another program listens there, or the address is not this machine's"
            raise ConfigurationError(f"no metrics at {host}:{port}: {error}", hint=hint) from error
        self.port = int(self._http.server_port)
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._http.serve_forever, name="refold-metrics-http", daemon=True),
            threading.Thread(target=self._refresh, name="refold-metrics", daemon=True),
        ]

    def _refresh(self) -> None:
        while True:
            try:
                self.metrics.refresh()
            except RefoldError as error:
                log.warning("metrics are not renewed: %s", error)
            if self._stop.wait(REFRESH_S):
                return

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._http.shutdown()
        self._http.server_close()
        for thread in self._threads:
            thread.join()
        self._overview.close()


def application(registry: CollectorRegistry, server: Server) -> Callable[..., Any]:
    """Return a WSGI application of three pages; everything else is not found."""
    metrics = make_wsgi_app(registry, disable_compression=True)

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ.get("REQUEST_METHOD") not in ("GET", "HEAD"):
            return _text(start_response, "405 Method Not Allowed", "GET and HEAD are there")
        match environ.get("PATH_INFO"):
            case "/metrics":
                return metrics(environ, start_response)  # type: ignore[no-any-return]
            case "/livez":
                wrong = server.dead()
                return _text(start_response, "503 Service Unavailable" if wrong else "200 OK", wrong or "alive")
            case "/readyz":
                wrong = server.not_ready()
                return _text(start_response, "503 Service Unavailable" if wrong else "200 OK", wrong or "ready")
        return _text(start_response, "404 Not Found", "there are /metrics, /livez and /readyz")

    return app


def _text(start_response: Callable[..., Any], status: str, text: str) -> list[bytes]:
    start_response(status, [("Content-Type", "text/plain; charset=utf-8"), ("X-Content-Type-Options", "nosniff")])
    return [text.encode() + b"\n"]


class _Threads(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    """Says nothing of requests, and waits for none for long."""

    timeout = 10

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is the base class's
        """Write no line for each scrape."""


def address(text: str) -> tuple[str, int]:
    """Return host and port of ``[HOST:]PORT``; this machine alone where no host is named.

    Raises
    ------
    UsageError
        It is none.
    """
    host, _, port = text.rpartition(":")
    if not port.isascii() or not port.isdecimal() or int(port) > 65_535:
        raise UsageError(f"{text!r} is no [HOST:]PORT", hint="for example 9464, or 0.0.0.0:9464 for other machines too")
    return host.strip("[]") or "127.0.0.1", int(port)
