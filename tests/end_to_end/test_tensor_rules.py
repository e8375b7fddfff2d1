"""Frozen, private, tied and 16-bit tensors through whole federations: who changes what, and what every round is."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import refold
from refold.consumers.audit import Audit
from refold.federation import Federation
from refold.producers.task import Task
from refold.schemas.errors import UsageError
from refold.testing import SteppedServer, eventually

NAMES = ("ann", "bob")
INITIAL: dict[str, Any] = {
    "base.w": np.linspace(-1, 1, 300, dtype="f4").reshape(30, 10) * np.float32(1e-9),
    "adapter.w": np.zeros((30, 4), "f4"),
    "adapter.h": np.full(64, 0.5, "f2"),
    "norm.mean": np.full(10, 0.25, "f4"),
    "norm.count": np.array(0),
    "steps": np.array(0),
}
RULES = {"base.*": "frozen", "norm.*": "private", "steps": "sum"}


def founded(folder: Path, initial: dict[str, Any], rules: dict[str, str], **plan: Any) -> Federation:
    made = refold.create(
        f"sqlite:{folder}/it.db",
        initial,
        rules=rules,
        plan=refold.Plan(**{"minimum": len(NAMES), "heartbeat_s": 0.05, **plan}),
        snapshots=refold.SnapshotPolicy(2, 2),
    )
    for name in NAMES:
        made.enroll(name, refold.SigningKey.load_or_create(folder / f"{name}.pem").public)
    return made


def run(federation: Federation, folder: Path, work: Callable[[str, Task], None]) -> None:
    """Let both clients answer all tasks, each by `work`."""
    failures: list[BaseException] = []

    def take_part(name: str) -> None:
        try:
            with refold.connect(federation.url).client(name, key=folder / f"{name}.pem") as client:
                for task in client.tasks():
                    work(name, task)
        except BaseException as error:
            failures.append(error)

    crowd = [threading.Thread(target=take_part, args=(name,), daemon=True) for name in NAMES]
    with federation.serve() as server:
        for thread in crowd:
            thread.start()
        eventually(lambda: bool(failures) or not any(t.is_alive() for t in crowd), what="the clients' end", timeout_s=40)
        assert not failures, failures
        server.wait(0.0)


def assert_sound(federation: Federation) -> None:
    broken = [str(found) for found in Audit(federation.bus, federation.topics).report().findings if found.is_broken]
    assert not broken, broken


@pytest.mark.parametrize("codec", ["grid", "exact", "float32", "topk"])
def test_frozen_tensors_stay_private_ones_are_each_clients_own(tmp_path: Path, codec: str) -> None:
    seen: dict[tuple[str, int], dict[str, Any]] = {}

    def work(name: str, task: Task) -> None:
        state = task.numpy()
        seen[name, task.round] = {key: array.copy() for key, array in state.items()}
        rng = np.random.default_rng(task.round * 7 + len(name))
        state["adapter.w"] += rng.normal(0.01, 0.001, (30, 4)).astype("f4")
        state["adapter.h"] = (state["adapter.h"] + rng.normal(0.02, 0.001, 64)).astype("f2")
        state["norm.mean"] += np.float32(1 if name == "ann" else -1)
        state["norm.count"] += 10
        state["steps"] += 3
        task.submit(state, num_examples=5)

    density = {"density": 0.2} if codec == "topk" else {}
    with founded(tmp_path, INITIAL, RULES, rounds=3, codec=codec, **density) as federation:
        run(federation, tmp_path, work)
        final = federation.rebuild(3).numpy()
        assert_sound(federation)
    for name in ("base.w", "norm.mean", "norm.count"):
        assert final[name].tobytes() == INITIAL[name].tobytes()
    assert final["adapter.h"].dtype == np.float16
    assert final["adapter.w"].mean() > 0.001
    assert int(final["steps"]) == 3 * 2 * 3
    assert seen["ann", 3]["norm.mean"].tolist() == [2.25] * 10
    assert seen["bob", 3]["norm.mean"].tolist() == [-1.75] * 10
    assert int(seen["bob", 3]["norm.count"]) == 20
    assert seen["ann", 3]["adapter.w"].tobytes() == seen["bob", 3]["adapter.w"].tobytes()


def test_a_clients_own_tensors_outlive_it(tmp_path: Path) -> None:
    with founded(tmp_path, INITIAL, RULES, minimum=1) as federation, SteppedServer(federation) as server:
        server.settle()
        for life in range(2):
            with federation.client("ann", key=tmp_path / "ann.pem") as client:
                task = next(iter(client.tasks()))
                state = task.numpy()
                assert state["norm.mean"][0] == 0.25 + life
                state["norm.mean"] += 1
                state["adapter.w"] += np.float32(0.01)
                task.submit(state, num_examples=1)
            server.settle()
            server.clock.advance(1.0)
            server.settle()
        with federation.client("bob", key=tmp_path / "bob.pem") as client:
            assert next(iter(client.tasks())).numpy()["norm.mean"][0] == 0.25


def test_training_that_changed_a_frozen_tensor_is_refused_by_name(tmp_path: Path) -> None:
    with founded(tmp_path, INITIAL, RULES, minimum=1) as federation, SteppedServer(federation) as server:
        server.settle()
        with federation.client("ann", key=tmp_path / "ann.pem") as client:
            task = next(iter(client.tasks()))
            state = task.numpy()
            state["base.w"][3, 3] += np.float32(1e-12)
            with pytest.raises(UsageError, match=r"'base.w' is frozen, and was changed"):
                task.submit(state, num_examples=1)


@pytest.mark.torch
def test_a_torch_model_with_all_kinds_of_tensors_trains(tmp_path: Path) -> None:
    import torch

    class Model(torch.nn.Module):
        """A frozen base of 16 bits, an embedding tied to the head, a norm of each client's own, an adapter that is learned."""

        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Embedding(6, 4)
            self.base = torch.nn.Linear(4, 4).to(torch.bfloat16).requires_grad_(False)
            self.norm = torch.nn.BatchNorm1d(4)
            self.adapter = torch.nn.Linear(4, 4).to(torch.bfloat16)
            self.head = torch.nn.Linear(4, 6, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, words: Any) -> Any:
            inner = self.embed(words).to(torch.bfloat16)
            return self.head(self.norm((self.base(inner) + self.adapter(inner)).float()))

    torch.manual_seed(0)
    initial = Model().state_dict()
    models = {name: Model() for name in NAMES}
    losses: dict[str, list[float]] = {name: [] for name in NAMES}

    def work(name: str, task: Task) -> None:
        model, own = models[name], list(models[name].state_dict())
        model.load_state_dict(task.state_dict())
        assert model.head.weight is model.embed.weight
        assert (model.adapter.weight.dtype, model.norm.num_batches_tracked.dtype) == (torch.bfloat16, torch.int64)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.3)
        words = torch.arange(6) if name == "ann" else torch.arange(5)
        for _ in range(5):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(words), words)
            loss.backward()
            optimizer.step()
        losses[name].append(loss.item())
        assert list(model.state_dict()) == own
        task.submit(model.state_dict(), num_examples=6)

    with founded(tmp_path, dict(initial), {"base.*": "frozen", "norm.*": "private"}, rounds=4) as federation:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            run(federation, tmp_path, work)
        finally:
            torch.set_num_threads(threads)
        final = federation.rebuild(4).torch()
        assert_sound(federation)
    for name in NAMES:
        assert losses[name][-1] < losses[name][0] - 0.1
        assert int(models[name].norm.num_batches_tracked) == 20
    assert not torch.equal(models["ann"].norm.running_mean, models["bob"].norm.running_mean)
    assert torch.equal(final["base.weight"], initial["base.weight"])
    assert torch.equal(final["norm.weight"], initial["norm.weight"])
    assert final["head.weight"] is final["embed.weight"]
    assert not torch.equal(final["adapter.weight"], initial["adapter.weight"])
