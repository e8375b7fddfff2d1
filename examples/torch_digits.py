"""A convolutional network learns handwritten digits at four clients, each of which has seen few kinds of digits.

Each client trains with its own Adam and a checkpoint of every few batches: killed in its local epoch, it would go on there. Its
batch normalisation is its own (the rule ``private``): the digits of each client look different on average, and no round mixes
that up.

Usage: python examples/torch_digits.py [URL]     (needs torch; about ten seconds)
"""

from __future__ import annotations

import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

import refold
from refold.producers.task import Task

try:
    import torch
    from torch.nn import functional
    from torch.utils.data import DataLoader, TensorDataset
except ImportError:
    sys.exit("this example needs torch: pip install 'refold[torch]'")

CLIENTS, ROUNDS = 4, 6


class Network(torch.nn.Module):
    """Two convolutions and a linear layer: 8 × 8 pixels in, ten digits out."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(1, 16, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(16)
        self.second = torch.nn.Conv2d(16, 32, 3, padding=1)
        self.out = torch.nn.Linear(32 * 4, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        seen = functional.max_pool2d(functional.relu(self.norm(self.first(images))), 2)
        seen = functional.max_pool2d(functional.relu(self.second(seen)), 2)
        return self.out(seen.flatten(1))


def divided() -> tuple[list[TensorDataset], TensorDataset]:
    """Return each client's digits, mostly of its own kinds, and some that nobody trains on."""
    images, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(labels))
    images, labels = (images[order] / 16).astype("f4").reshape(-1, 1, 8, 8), labels[order]
    train, test = np.arange(len(labels)) < 1400, np.arange(len(labels)) >= 1400
    owners = np.where(rng.random(len(labels)) < 0.7, labels * CLIENTS // 10, rng.integers(0, CLIENTS, len(labels)))
    parts = [train & (owners == owner) for owner in range(CLIENTS)] + [test]
    data = [TensorDataset(torch.from_numpy(images[part]), torch.from_numpy(labels[part])) for part in parts]
    return data[:-1], data[-1]


def train(task: Task, model: Network, data: TensorDataset) -> None:
    """Do one round's work at one client."""
    model.load_state_dict(task.state_dict())
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    checkpoint = task.checkpoint(model=model, optimizer=optimizer)
    for images, labels in checkpoint.batches(DataLoader(data, batch_size=32, shuffle=True), epochs=2, every=4):
        optimizer.zero_grad()
        functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    task.submit(model.state_dict(), num_examples=len(data))


def client(url: str, key: Path, name: str, data: TensorDataset, model: Network) -> None:
    """Take part until the federation ends."""
    with refold.connect(url).client(name, key=key, properties={"rows": len(data)}) as taking_part:
        for task in taking_part.tasks():
            train(task, model, data)


def accuracy(model: Network, state: dict[str, torch.Tensor], test: TensorDataset) -> float:
    """Return how many of the digits that nobody trained on are recognised, with the client's own normalisation."""
    own = {name: value for name, value in model.state_dict().items() if name.startswith("norm.")}
    tried = Network()
    tried.load_state_dict({**state, **own})
    tried.eval()
    images, labels = test.tensors
    with torch.no_grad():
        return float((tried(images).argmax(1) == labels).float().mean())


def main() -> None:
    """Train, and show how each round did."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    parts, test = divided()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        url = sys.argv[1] if sys.argv[1:] else f"sqlite:{folder}/digits.db"
        plan = refold.Plan(minimum=CLIENTS, rounds=ROUNDS, heartbeat_s=0.2)
        federation = refold.create(url, Network().state_dict(), plan=plan, rules={"norm.*": "private"})
        keys = [folder / f"client-{number}.pem" for number in range(CLIENTS)]
        for number, key in enumerate(keys):
            federation.enroll(f"client-{number}", refold.SigningKey.load_or_create(key).public)
        models = [Network() for _ in parts]
        with federation, federation.serve():
            crowd = [
                threading.Thread(target=client, args=(url, keys[number], f"client-{number}", part, models[number]))
                for number, part in enumerate(parts)
            ]
            for thread in crowd:
                thread.start()
            for thread in crowd:
                thread.join()
            for round_ in range(ROUNDS + 1):
                state = federation.rebuild(round_)
                found = [accuracy(model, state.torch(), test) for model in models]
                print(f"round {round_}: accuracy {np.mean(found):.3f}, digest {state.digest.hex()[:16]}")


if __name__ == "__main__":
    main()
