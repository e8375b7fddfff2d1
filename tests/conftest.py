"""What all tests share: one seed, hypothesis profiles, real brokers, and a last line that says what was left out.

Brokers are started on first use and serve the whole run; each testing process has its own. ``REFOLD_TEST_KAFKA=HOST:PORT``
names one that runs already.
"""

import gc
import importlib.util
import os
import random
import zlib
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from refold.schemas.errors import ConfigurationError
from refold.testing.kafka import Cluster, find_runtime

TORCH_IS_INSTALLED = importlib.util.find_spec("torch") is not None
LEFT_OUT_IS_A_FAILURE = {"torch": "REFOLD_WITH_TORCH", "kafka": "REFOLD_REQUIRE_KAFKA"}

# No deadline: a test that is slow once, on a busy machine, has found nothing.
settings.register_profile("default", deadline=None, max_examples=40, print_blob=True)
settings.register_profile(
    "ci",
    deadline=None,
    max_examples=200,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "default")
settings.load_profile(PROFILE)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, help="seed of every random choice in the tests (default: a new one; 0 in profile ci)")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if config.option.seed is None:
        config.option.seed = 0 if PROFILE == "ci" else random.SystemRandom().randrange(2**32)
    # Hypothesis' plugin reads its own option after this, so that one number repeats a whole run.
    if config.option.hypothesis_seed is None:
        config.option.hypothesis_seed = str(config.option.seed)


def pytest_report_header(config: pytest.Config) -> str:
    seed = config.option.seed
    return f"seed: {seed} (repeat with --seed {seed}), hypothesis profile: {PROFILE}"


@pytest.fixture(scope="session")
def seed(pytestconfig: pytest.Config) -> int:
    """Return the run's seed, as printed in the header."""
    return int(pytestconfig.option.seed)


@pytest.fixture
def rng(seed: int, request: pytest.FixtureRequest) -> np.random.Generator:
    """Return random numbers of this test's own: the same whatever other tests run before it."""
    return np.random.default_rng([seed, zlib.crc32(request.node.nodeid.encode())])


@dataclass(frozen=True)
class Bootstrap:
    """Where a cluster is that somebody else runs."""

    bootstrap: str

    @property
    def url(self) -> str:
        """A bus URL without the federation's name."""
        return f"kafka://{self.bootstrap}"


@pytest.fixture(scope="session")
def kafka_is_available() -> None:
    """Skip where no broker can be started, with the reason and its cure."""
    try:
        find_runtime()
    except ConfigurationError as error:
        pytest.skip(" ".join(str(error).split()))


@pytest.fixture(scope="session")
def kafka(request: pytest.FixtureRequest) -> Iterator[Cluster | Bootstrap]:
    """Yield one broker that all tests of the run share: their topics need names of their own."""
    if named := os.environ.get("REFOLD_TEST_KAFKA"):
        yield Bootstrap(named)
        return
    request.getfixturevalue("kafka_is_available")
    with Cluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def kafka_cluster(kafka_is_available: None) -> Iterator[Cluster]:
    """Yield three brokers that all tests of the run share; what a test kills or freezes is well again for the next."""
    # A broker that was killed is let in again once its session is over: by default that takes 9 s.
    with Cluster(3, settings={"broker.session.timeout.ms": "3000", "broker.heartbeat.interval.ms": "500"}) as cluster:
        yield cluster


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Bear with kafka-python, which leaves sockets unclosed that it could not connect: in tests of a broker only."""
    for item in items:
        if item.get_closest_marker("kafka"):
            item.add_marker(pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    # Collected now, such a socket is this test's; later it would be blamed on another.
    if item.get_closest_marker("kafka"):
        gc.collect()
        gc.unfreeze()
    # However a test ended, the next one finds three brokers.
    if isinstance(item, pytest.Function) and isinstance(cluster := item.funcargs.get("kafka_cluster"), Cluster):
        cluster.restore()
    yield
    if nextitem is None and item.get_closest_marker("kafka"):
        # Whoever still held a connection to a cluster that is closed by now has tried in vain to connect.
        gc.collect()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("kafka"):
        # What is there already need not be looked through when the test is over: late in a run that takes a second and more.
        gc.freeze()
    if item.get_closest_marker("torch") and not TORCH_IS_INSTALLED:
        pytest.skip("torch is not installed (REFOLD_WITH_TORCH=1 make test)")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skip into a failure where the environment says that nothing of the kind may be left out."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail"):
        for marker, variable in LEFT_OUT_IS_A_FAILURE.items():
            if item.get_closest_marker(marker) and os.environ.get(variable) == "1":
                report.outcome = "failed"
                report.longrepr = f"{variable}=1, and yet this was left out: {reason_of(report)}"
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Iterator[None]:
    """Say what was left out after all else, next to pytest's own last line."""
    yield
    line = left_out(reason_of(report) for report in terminalreporter.stats.get("skipped", []))
    if line:
        terminalreporter.write_line(line, yellow=True, bold=True)


def reason_of(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Return why a test was skipped, without pytest's own prefix."""
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return reason.removeprefix("Skipped: ")


def left_out(reasons: Iterable[str]) -> str:
    """Return one line that counts the skips by reason, the commonest first; empty if there were none."""
    counts = Counter(reasons)
    if not counts:
        return ""
    return f"LEFT OUT: {counts.total()}: " + "; ".join(f"{reason} ({count})" for reason, count in counts.most_common())
