"""The detectors that need torch: what they are without it, that they are the same every time, and that nobody else needs it."""

import subprocess
import sys

import numpy as np
import numpy.typing as npt
import pytest

import refold
from refold.schemas.errors import ConfigurationError

Floats = npt.NDArray[np.float32]
DEEP = ("autoencoder", "gan")


def rounds_of(seed: int = 5, *, rounds: int = 8, clients: int = 16, bad_from: int = 99) -> list[Floats]:
    """Return rounds of deltas around a common direction; from `bad_from` on two send what lies beside all others."""
    rng = np.random.default_rng(seed)
    common, kept = rng.normal(size=900) + 1.0, rng.normal(size=(clients, 900))
    found = []
    for round_ in range(1, rounds + 1):
        deltas = 0.01 * (common + 0.7 * kept + 0.5 * rng.normal(size=(clients, 900)))
        if round_ >= bad_from:
            deltas[[3, 4]] = deltas.mean(axis=0) - 2 * deltas.std(axis=0)
        found.append(deltas.astype(np.float32))
    return found


def judged(detectors: tuple[str, ...], rounds: list[Floats]) -> list[list[refold.Verdict]]:
    detection = refold.Detection(refold.DetectionConfig(detectors=detectors))
    names = [f"c{index:02d}" for index in range(len(rounds[0]))]
    return [detection.judge(refold.Cohort(at, names, deltas, [9] * len(names))) for at, deltas in enumerate(rounds, 1)]


@pytest.mark.parametrize("name", DEEP)
def test_a_deep_detector_without_torch_says_what_to_install(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ConfigurationError, match="needs torch") as told:
        refold.Detection(refold.DetectionConfig(detectors=(name,)))
    assert "refold[torch]" in told.value.hint


def test_the_default_ensemble_judges_alike_with_torch_and_without() -> None:
    """One process cannot import torch at all; the other has it loaded, if there is one. Both judge the same rounds."""
    program = (
        "import sys, importlib.util\n"
        "{first}\n"
        "import numpy as np, refold\n"
        "rng = np.random.default_rng(3); detection = refold.Detection(); common = rng.normal(size=600) + 1\n"
        "for round_ in range(1, 7):\n"
        "    deltas = (common + rng.normal(size=(12, 600))).astype('f4'); deltas[2] *= -1; deltas[5] *= 30\n"
        "    cohort = refold.Cohort(round_, [str(i) for i in range(12)], deltas, [1] * 12)\n"
        "    print([(v.accepted, v.score.hex(), v.reasons) for v in detection.judge(cohort)])\n"
    )
    barred = "sys.modules['torch'] = None"
    loaded = "importlib.util.find_spec('torch') and __import__('torch')"
    said = [
        subprocess.run([sys.executable, "-c", program.format(first=first)], check=True, capture_output=True, text=True).stdout
        for first in (barred, loaded)
    ]
    assert said[0] == said[1]
    assert "False" in said[0], "a judgement that refuses nobody compares nothing"


@pytest.mark.torch
@pytest.mark.parametrize("name", DEEP)
def test_a_deep_detector_finds_what_lies_beside_all_others_and_nobody_else(name: str) -> None:
    verdicts = judged((name,), rounds_of(bad_from=8))
    assert [index for index, verdict in enumerate(verdicts[-1]) if not verdict.accepted] == [3, 4]
    assert all(verdict.accepted for round_ in verdicts[:-1] for verdict in round_)


@pytest.mark.torch
@pytest.mark.parametrize("name", DEEP)
def test_a_deep_detector_is_the_same_every_time_and_changes_nothing_global(name: str) -> None:
    import torch

    torch.manual_seed(1)
    threads, expected = torch.get_num_threads(), torch.get_rng_state()
    first = [verdict.score for verdict in judged((name,), rounds_of(rounds=6))[-1]]
    assert torch.equal(torch.get_rng_state(), expected)
    torch.manual_seed(2)
    torch.set_num_threads(1)
    second = [verdict.score for verdict in judged((name,), rounds_of(rounds=6))[-1]]
    torch.set_num_threads(threads)
    assert first == second
    assert len(set(first)) > 8, "one that is silent is always the same"
