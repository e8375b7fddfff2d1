"""A training program that is killed goes on from its last batch and ends with the bits of one that was not."""

import logging
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refold import ClientCheckpoint
from refold.producers.checkpoint_file import decode_checkpoint, previous, write_checkpoint
from refold.producers.trees import pack, unpack
from refold.schemas.errors import InvalidRecord, UsageError

BATCHES, EPOCHS = 7, 2


def train(path: Path, *, stop_after: int | None = None, every: int = 1) -> dict[str, np.ndarray]:
    """Train on batches shuffled and drawn by every generator that NumPy's programs use; perhaps walk away in the middle."""
    np.random.seed(1)  # noqa: NPY002 -- the process-wide generator is among what is tested
    random.seed(2)
    rng = np.random.default_rng(3)
    model = {"w": np.zeros(4, "f4"), "momentum": np.zeros(4, "f4")}
    totals = {"loss": 0.0}
    checkpoint = ClientCheckpoint(path, model=model, totals=totals, rng=rng)
    for done, rows in enumerate(checkpoint.batches(_Shuffled(), epochs=EPOCHS, every=every), start=1):
        noise = rng.normal(0, 1, 4) + np.random.normal(0, 1, 4) + random.gauss(0, 1)  # noqa: NPY002
        model["momentum"] *= np.float32(0.9)
        model["momentum"] += (rows + noise).astype("f4")
        model["w"] -= np.float32(0.1) * model["momentum"]
        totals["loss"] += float(rows.sum())
        if done == stop_after:
            return {}
    return {**model, "loss": np.array(totals["loss"])}


class _Shuffled:
    """A loader that draws its order from the process-wide generator when it is iterated."""

    def __iter__(self) -> Any:
        order = np.random.permutation(BATCHES)  # noqa: NPY002
        return (np.full(4, float(place)) for place in order)


@pytest.mark.parametrize("every", [1, 3])
def test_a_program_that_stopped_anywhere_ends_with_the_same_bits(tmp_path: Path, every: int) -> None:
    whole = train(tmp_path / "whole", every=every)
    for stop_after in (1, 4, BATCHES, BATCHES + 2, BATCHES * EPOCHS):
        path = tmp_path / str(stop_after)
        assert train(path, stop_after=stop_after, every=every) == {}
        again = train(path, every=every)
        assert {name: array.tobytes() for name, array in again.items()} == {n: a.tobytes() for n, a in whole.items()}


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    train(tmp_path / "it", stop_after=5)
    checkpoint = ClientCheckpoint(tmp_path / "it", **parts())
    assert checkpoint.restored
    assert checkpoint.step == 4  # The fifth was handed out and never came back.


def parts() -> dict[str, Any]:
    return {
        "model": {"w": np.zeros(4, "f4"), "momentum": np.zeros(4, "f4")},
        "totals": {"loss": 0.0},
        "rng": np.random.default_rng(3),
    }


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "it"
    whole = train(tmp_path / "whole")
    rng = np.random.default_rng(5)
    train(path, stop_after=6)
    newest, before = path.read_bytes(), previous(path).read_bytes()
    for place in rng.integers(0, len(newest), 25):
        damaged = bytearray(newest)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        previous(path).write_bytes(before)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert ClientCheckpoint(path, **parts()).step == 4
        assert "damaged and passed over" in caplog.text
    assert train(path)["w"].tobytes() == whole["w"].tobytes()


def test_a_damaged_checkpoint_never_takes_the_place_of_a_whole_one(tmp_path: Path) -> None:
    path = tmp_path / "it"
    train(path, stop_after=6)
    path.write_bytes(path.read_bytes()[:-1])
    checkpoint = ClientCheckpoint(path, **parts())
    checkpoint.save()
    path.unlink()  # As a crash between the two names of the next one would leave it.
    assert ClientCheckpoint(path, **parts()).step == 4
    checkpoint.clear()
    assert list(tmp_path.iterdir()) == []


def test_where_both_are_damaged_the_work_begins_anew(tmp_path: Path) -> None:
    train(tmp_path / "it", stop_after=6)
    (tmp_path / "it").write_bytes(b"refold")
    previous(tmp_path / "it").write_bytes(b"")
    assert not ClientCheckpoint(tmp_path / "it", **parts()).restored


def test_a_crash_between_the_two_names_leaves_the_one_before(tmp_path: Path) -> None:
    train(tmp_path / "it", stop_after=6)
    (tmp_path / "it").rename(tmp_path / "it.new")
    assert ClientCheckpoint(tmp_path / "it", **parts()).step == 4


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"model": {"w": np.zeros(5, "f4"), "momentum": np.zeros(4, "f4")}},
            r"w float32 \(4,\) in the file, w float32 \(5,\) here",
        ),
        ({"model": {"w": np.zeros(4, "f8"), "momentum": np.zeros(4, "f4")}}, "float64"),
        ({"model": {"w": np.zeros(4, "f4")}}, "momentum .* is only in the file"),
        ({"rng": random.Random(1)}, "Generator in the file, random.Random here"),
        ({"more": {}}, "another program: it holds model, totals, rng; the program has model, totals, rng, more"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    train(tmp_path / "it", stop_after=3)
    with pytest.raises(UsageError, match=said):
        ClientCheckpoint(tmp_path / "it", **{**parts(), **changed})


def test_what_cannot_be_kept_is_named(tmp_path: Path) -> None:
    checkpoint = ClientCheckpoint(tmp_path / "it", model={"w": np.zeros(1), "loss": {"how": print}})
    with pytest.raises(UsageError, match=r"checkpoint.parts.model.loss.how is a builtin_function"):
        checkpoint.save()
    with pytest.raises(UsageError, match="model is a list"):
        ClientCheckpoint(tmp_path / "it", model=[])
    with pytest.raises(UsageError, match="nothing"):
        ClientCheckpoint(tmp_path / "it")


def test_a_loader_that_has_become_shorter_is_refused(tmp_path: Path) -> None:
    kept = {"n": 0}
    batches = ClientCheckpoint(tmp_path / "it", kept=kept).batches(range(5))
    for _ in range(4):
        next(batches)
    with pytest.raises(UsageError, match="has 2 batches, an earlier life saw 3"):
        list(ClientCheckpoint(tmp_path / "it", kept=kept).batches(range(2)))


def test_trees_come_back_as_they_were() -> None:
    tree = {
        "text": "ä",
        3: [1, -(2**63), 2**64, 0.5, float("inf"), None, True, b"\x00"],
        "nested": ({"deep": [()]}, Counter({5: 2})),
        "arrays": [np.arange(6, dtype="i2").reshape(2, 3)[:, ::2], np.zeros((0, 3), "f8"), np.array(7), np.float32(1.5)],
        "big endian": np.array([1.5, 2.5], ">f4"),
    }
    packed = pack(tree, "it")
    again = unpack(packed.form, packed.tensor_bytes())
    assert again["text"] == "ä"
    assert again[3] == tree[3]
    assert again["nested"] == tree["nested"]
    assert isinstance(again["nested"][1], Counter)
    for one, other in zip(again["arrays"], tree["arrays"], strict=True):
        np.testing.assert_array_equal(one, other)
    assert again["big endian"].tolist() == [1.5, 2.5]


def test_bytes_that_are_no_tree_are_refused(tmp_path: Path) -> None:
    packed = pack([1], "it")
    for form in (["x", []], ["A", "0", "float32"], ["i", "9" * 5000], ["m", ["a"]], 1 << 70, ["m", [["l"], 1]]):
        packed.form = form
        if form == 1 << 70:
            continue
        write_checkpoint(tmp_path / "it", packed)
        with pytest.raises(InvalidRecord):
            decode_checkpoint((tmp_path / "it").read_bytes())


TORCH_PROGRAM = """
import os, pathlib, random, signal, sys
import numpy as np
import torch
from refold import ClientCheckpoint

def train(path, die_at=None):
    torch.manual_seed(1); random.seed(2); np.random.seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.4), torch.nn.Linear(8, 1))
    model.to(torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 5])
    order = torch.Generator().manual_seed(4)
    data = torch.utils.data.TensorDataset(torch.randn(40, 6), torch.randn(40, 1))
    loader = torch.utils.data.DataLoader(data, batch_size=8, shuffle=True, generator=order)
    checkpoint = ClientCheckpoint(path, gradients=True, model=model, optimizer=optimizer, scheduler=scheduler, order=order)
    for number, (rows, wanted) in enumerate(checkpoint.batches(loader, epochs=3), start=checkpoint.step):
        noise = float(np.random.normal()) + random.random()
        torch.nn.functional.mse_loss(model(rows), wanted + noise).backward()
        if number % 2:  # Gradients are summed over two batches.
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
        if number == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
    return model.state_dict(), optimizer.state_dict()["state"]

folder = pathlib.Path(sys.argv[1])
for life in (2, 6, 13):
    child = os.fork()
    if not child:
        train(folder / "killed", die_at=life)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
(killed, killed_slots), (whole, whole_slots) = train(folder / "killed"), train(folder / "whole")
assert all(torch.equal(killed[name], whole[name]) for name in whole)
assert all(torch.equal(killed_slots[p][s], whole_slots[p][s]) for p in whole_slots for s in whole_slots[p])
assert whole["1.num_batches_tracked"] == 15
print("equal")
"""


@pytest.mark.torch
def test_a_torch_program_killed_three_times_ends_with_the_same_bits(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TORCH_PROGRAM, str(tmp_path)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}  # Small sums: two threads would only wait for each other.
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, env=env)
    assert (run.stdout, run.returncode) == ("equal\n", 0), run.stderr


@pytest.mark.torch
def test_torch_parts_of_every_dtype_come_back(tmp_path: Path) -> None:
    import torch

    kept = {
        "half": torch.tensor([1.5, float("nan")], dtype=torch.bfloat16),
        "small": torch.ones(2, 2, dtype=torch.float16).t(),
        "flags": torch.tensor(True),
        "none": torch.zeros(0, 3, dtype=torch.int64),
    }
    ClientCheckpoint(tmp_path / "it", kept=dict(kept)).save()
    again = {name: torch.zeros_like(value) for name, value in kept.items()}
    ClientCheckpoint(tmp_path / "it", kept=again)
    for name, value in kept.items():
        assert again[name].dtype == value.dtype
        assert torch.equal(again[name].nan_to_num(7), value.nan_to_num(7))


@pytest.mark.torch
def test_another_torch_module_or_optimizer_is_refused(tmp_path: Path) -> None:
    import torch

    model = torch.nn.Linear(3, 2)
    ClientCheckpoint(tmp_path / "it", model=model, optimizer=torch.optim.SGD(model.parameters())).save()
    other = torch.nn.Linear(3, 4)
    with pytest.raises(UsageError, match=r"another model: model: weight float32 \(2, 3\) in the file, weight float32 \(4, 3\)"):
        ClientCheckpoint(tmp_path / "it", model=other, optimizer=torch.optim.SGD(other.parameters()))
    with pytest.raises(UsageError, match=r"torch.optim.sgd.SGD in the file, torch.optim.adam.Adam here"):
        ClientCheckpoint(tmp_path / "it", model=model, optimizer=torch.optim.Adam(model.parameters()))


PROGRAM_KILLED_WHILE_WRITING = """
import os, pathlib, signal, sys
import numpy as np
from refold import ClientCheckpoint

real, names = os.fsync, pathlib.Path.replace

def train(path, passings):
    left = [passings]
    def passing():
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    def fsync(descriptor):
        passing(); real(descriptor); passing()
    def replace(path, target):
        passing(); found = names(path, target); passing()
        return found
    os.fsync, pathlib.Path.replace = fsync, replace
    model = {"w": np.zeros(3)}
    for number in ClientCheckpoint(path, model=model).batches(range(4)):
        model["w"] += (number + 1) * np.array([1, 10, 100.0])
    return model["w"]

for passings in map(int, sys.argv[2:]):
    path = pathlib.Path(sys.argv[1], str(passings))
    child = os.fork()
    if not child:
        train(path, passings)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    checkpoint = ClientCheckpoint(path, model={"w": np.zeros(3)})
    print(checkpoint.step, *train(path, -1))
"""


def test_a_kill_at_any_step_of_the_writing_loses_a_batch_at_most(tmp_path: Path) -> None:
    passings = range(1, 29)
    command = [sys.executable, "-c", PROGRAM_KILLED_WHILE_WRITING, str(tmp_path), *map(str, passings)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    for passing, line in zip(passings, run.stdout.splitlines(), strict=True):
        step, *weights = line.split()
        saves = (passing + 1) // 8  # Each passes eight times, the first, which has nothing to rename, six.
        assert saves <= int(step) <= saves + 1
        assert weights == ["10.0", "100.0", "1000.0"]
