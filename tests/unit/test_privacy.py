"""Privacy at the client: what leaves is clipped and noised, and what it costs is added up rightly and never too low."""

import builtins
import json
import math
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import dp_accounting
import numpy as np
import numpy.typing as npt
import pytest
from clikit import Shell
from dp_accounting.pld import PLDAccountant
from scipy.optimize import brentq
from scipy.stats import kstest, norm

import refold
from refold.producers import privacy
from refold.producers.noise import NormalStream
from refold.producers.privacy import Privacy, PrivateUpdates, epsilon_of
from refold.producers.spending import SpendingFile, Spent
from refold.schemas.errors import ConfigurationError, InvalidRecord, UsageError
from refold.schemas.keys import SigningKey
from refold.state.clipping import clipped_and_noised, length_of
from refold.state.model_state import ModelState, initial_state

SIZE = 70_000  # more than one block


def base() -> ModelState:
    rng = np.random.default_rng(3)
    return initial_state(
        {"w": rng.normal(0, 0.1, SIZE).astype("f4"), "b": np.zeros((2, 2), "f4"), "n": np.array(4)}, rules={"n": "sum"}
    )


def trained(state: ModelState, size: float) -> dict[str, npt.NDArray[Any]]:
    local = state.numpy()
    change = np.random.default_rng(4).normal(0, size, SIZE).astype("f4")
    return {"w": local["w"] + change, "b": local["b"] + np.float32(size), "n": local["n"] + 1}


def silence(count: int) -> npt.NDArray[np.float64]:
    return np.zeros(count)


def closed_form(multiplier: float, count: int, delta: float) -> float:
    """Return ε of the composed Gaussian mechanism. Source: Balle and Wang, the analytic Gaussian mechanism, 2018, theorem 8."""
    mu = math.sqrt(count) / multiplier
    return float(brentq(lambda e: norm.cdf(mu / 2 - e / mu) - math.exp(e) * norm.cdf(-mu / 2 - e / mu) - delta, 0, 500))


def updates(folder: Path, setting: Privacy, client: str = "ann", **changes: Any) -> PrivateUpdates:
    return PrivateUpdates(setting, SpendingFile(folder, "toy", client), **changes)


# What leaves.


@pytest.mark.parametrize("size", [1e-4, 1.0])
def test_a_change_is_never_longer_than_the_clip_and_a_shorter_one_keeps_its_values(size: float) -> None:
    state, local = base(), trained(base(), size)
    clipped = clipped_and_noised(state, local, clip_norm=0.5, sigma=1.0, normal=silence)
    assert length_of(state, clipped) == pytest.approx(min(length_of(state, local), 0.5), rel=1e-4)
    if size < 1e-3:
        np.testing.assert_array_equal(clipped["w"], local["w"])
    else:
        aligned = np.dot(clipped["w"] - state.numpy()["w"], local["w"] - state.numpy()["w"])
        assert aligned == pytest.approx(0.5 * length_of(state, local), rel=1e-3)


def test_every_float_parameter_gets_noise_of_the_deviation_asked_for_and_integers_none() -> None:
    state = base()
    noised = clipped_and_noised(state, trained(state, 1e-6), clip_norm=0.01, sigma=0.3, normal=NormalStream(bytes(32)))
    noise = (noised["w"] - state.numpy()["w"]) / 0.3
    assert kstest(noise, "norm").pvalue > 1e-3
    assert (noised["b"] != state.numpy()["b"]).all()
    assert noised["n"] == 5


def test_a_change_that_is_not_finite_costs_nothing_and_is_refused(tmp_path: Path) -> None:
    private, local = updates(tmp_path, Privacy(1.0, 1.0)), trained(base(), 1.0)
    local["w"][-1] = np.nan
    with pytest.raises(InvalidRecord, match="not finite"):
        private.noised(base(), local)
    assert private.spent.count == 0


def test_noise_that_the_lattice_would_round_away_is_refused_and_costs_nothing(tmp_path: Path) -> None:
    private = updates(tmp_path, Privacy(1e-7, 1.0))
    with pytest.raises(UsageError, match="lattice steps of tensor 'w'"):
        private.noised(base(), trained(base(), 1.0))
    assert private.spent.count == 0


def test_the_noise_is_normal_and_never_the_same_twice() -> None:
    stream = NormalStream(bytes(32))
    first, second = stream(50_001), stream(50_001)
    assert len(first) == 50_001
    assert kstest(np.concatenate((first, second)), "norm").pvalue > 1e-3
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.02
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.02
    np.testing.assert_array_equal(NormalStream(bytes(32))(50_001), first)
    assert not np.array_equal(NormalStream()(10), NormalStream()(10))


# What it costs.


@pytest.mark.parametrize(
    ("multiplier", "count", "delta"), [(2.0, 1, 1e-5), (4.0, 20, 1e-5), (10.0, 200, 1e-6), (50.0, 1, 1e-8)]
)
def test_the_cost_is_that_of_the_closed_form(multiplier: float, count: int, delta: float) -> None:
    # Two clipped changes are at most two clips apart, so the mechanism has half the multiplier.
    assert epsilon_of([(multiplier, count)], delta) == pytest.approx(closed_form(multiplier / 2, count, delta), rel=1e-6)


def test_the_cost_agrees_with_the_librarys_other_way_of_adding_up() -> None:
    accountant = PLDAccountant()
    accountant.compose(dp_accounting.GaussianDpEvent(2.0), 10)
    accountant.compose(dp_accounting.GaussianDpEvent(4.0), 5)
    assert epsilon_of([(4.0, 10), (8.0, 5)], 1e-5) == pytest.approx(accountant.get_epsilon(1e-5), rel=1e-4)


def test_hardly_any_noise_costs_very_much_and_takes_no_memory() -> None:
    assert epsilon_of([(1e-4, 1000)], 1e-5) > 1e11


def test_one_release_at_multiplier_two_costs_what_the_literature_says_of_the_gaussian_mechanism_at_one() -> None:
    assert epsilon_of([(2.0, 1)], 1e-5) == pytest.approx(4.377, abs=1e-3)


def test_releases_with_unlike_noise_add_up() -> None:
    together = math.sqrt(10 / 4.0**2 + 5 / 8.0**2)
    assert epsilon_of([(4.0, 10), (8.0, 5)], 1e-5) == pytest.approx(closed_form(1 / (2 * together), 1, 1e-5), rel=1e-3)
    assert epsilon_of([], 1e-5) == 0.0


def test_without_the_library_a_private_client_does_not_start_and_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("dp_accounting"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    privacy._epsilon.cache_clear()
    with pytest.raises(ConfigurationError, match=r"pip install 'refold\[privacy\]'"):
        updates(tmp_path, Privacy(1.0, 1.0))


# What is spent is written down first.


def test_what_is_spent_outlives_the_process_and_is_shared_by_those_of_one_client(tmp_path: Path) -> None:
    one, other = (updates(tmp_path, Privacy(1.0, 4.0)) for _ in range(2))
    for each in (one, other, one):
        each.noised(base(), trained(base(), 1.0))
    again = updates(tmp_path, Privacy(1.0, 8.0))
    again.noised(base(), trained(base(), 1.0))
    assert again.spent.released == ((4.0, 3), (8.0, 1))
    assert updates(tmp_path, Privacy(1.0, 4.0), "bob").spent.count == 0


def test_an_update_beyond_the_budget_is_not_made(tmp_path: Path) -> None:
    two = epsilon_of([(4.0, 2)], 1e-5)
    private = updates(tmp_path, Privacy(1.0, 4.0, epsilon=two + 0.01))
    for _ in range(2):
        assert private.has_room()
        private.noised(base(), trained(base(), 1.0))
    assert not private.has_room()
    with pytest.raises(UsageError, match="is spent"):
        private.noised(base(), trained(base(), 1.0))
    assert private.spent.count == 2
    assert private.epsilon() == pytest.approx(two)


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {here!r})
import test_privacy as toy
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
if {point!r} == "replace":
    private = toy.updates(Path({folder!r}), toy.Privacy(1.0, 4.0))
    Path.replace = die
else:
    private = toy.updates(Path({folder!r}), toy.Privacy(1.0, 4.0), normal=die)
private.noised(toy.base(), toy.trained(toy.base(), 1.0))
"""


@pytest.mark.parametrize(("point", "counted"), [("noise", 1), ("replace", 0)])
def test_a_kill_before_the_noise_is_drawn_may_count_too_much_and_never_too_little(
    tmp_path: Path, point: str, counted: int
) -> None:
    program = KILLED.format(here=str(Path(__file__).parent), point=point, folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert SpendingFile(tmp_path, "toy", "ann").read().count == counted


def test_a_damaged_file_is_refused_and_never_taken_for_an_empty_one(tmp_path: Path) -> None:
    updates(tmp_path, Privacy(1.0, 4.0)).noised(base(), trained(base(), 1.0))
    (path,) = tmp_path.glob("*.privacy")
    whole = path.read_bytes()
    for damage in (b"", whole[:-20], whole.replace(b"4.0", b"9.0"), b"\xff" + whole):
        path.write_bytes(damage)
        with pytest.raises(ConfigurationError, match="cannot be read"):
            updates(tmp_path, Privacy(1.0, 4.0))


@pytest.mark.parametrize(
    "wrong",
    [{"clip_norm": 0.0}, {"noise_multiplier": math.inf}, {"noise_multiplier": -1.0}, {"delta": 1.0}, {"epsilon": 0.0}],
)
def test_a_setting_outside_its_range_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        replace(Privacy(1.0, 1.0), **wrong)


# The command line.


@pytest.fixture
def refold_(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    return Shell(capsys, monkeypatch)


def test_status_says_what_each_client_of_an_outbox_has_spent(tmp_path: Path, refold_: Shell) -> None:
    outbox = tmp_path / "ann.outbox"
    outbox.mkdir()
    assert refold_("privacy", "status", "--key", f"{tmp_path}/ann.pem").code == 4
    updates(outbox, Privacy(1.0, 4.0, epsilon=9.0)).noised(base(), trained(base(), 1.0))
    said = refold_("privacy", "status", "--key", f"{tmp_path}/ann.pem", "--json").object
    assert (said["client"], said["updates"], said["budget"]) == ("ann", 1, 9.0)
    assert said["epsilon"] == pytest.approx(closed_form(2.0, 1, 1e-5), rel=1e-3)
    other = refold_("privacy", "status", "--outbox", str(outbox), "--delta", "1e-3", "--json").object
    assert other["epsilon"] < said["epsilon"]
    assert "ann" in refold_("privacy", "status", "--outbox", str(outbox)).out
    assert refold_("privacy", "status").code == 2


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    file = SpendingFile(tmp_path, "toy", "ann")
    said = Spent("toy", "ann", ((0.1, 3), (7.25, 1)), 9, 1e-7, 3.5)
    file.change(lambda _: said)
    assert file.read() == said
    (path,) = tmp_path.glob("*.privacy")
    assert json.loads(path.read_text())["said"]["released"] == [[0.1, 3], [7.25, 1]]


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--clip-norm", "1"], "go together"),
        (["--clip-norm", "1", "--noise-multiplier", "-1"], "noise_multiplier"),
        (["--clip-norm", "1", "--noise-multiplier", "1", "--privacy-delta", "1"], "delta"),
    ],
)
def test_a_clients_privacy_on_the_command_line_is_refused_where_it_has_no_sense(
    tmp_path: Path, refold_: Shell, monkeypatch: pytest.MonkeyPatch, words: list[str], what: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with refold.create(f"sqlite:{tmp_path}/fed.db", {"w": np.zeros(3, "f4")}):
        pass
    (tmp_path / "toy_train.py").write_text("def train(task): pass\n")
    SigningKey.generate().save(tmp_path / "ann.pem")
    line = ["client", "ann", "--bus", f"sqlite:{tmp_path}/fed.db", "--key", "ann.pem", "--train", "toy_train:train"]
    said = refold_(*line, *words)
    assert (said.code, what in said.err) == (2, True), said.err
