"""Save, fail, restore: as textbooks show it, and with `refold.ClientCheckpoint`, after a real kill.

The textbook trains a linear model (10 inputs, 1 output) with SGD (0.01) on random batches of 32 for ten epochs, and saves
epoch, model and optimizer to a file after every fifth. Then its "failure" is a printed line. Here the same program is killed
with SIGKILL in the middle of the eighth epoch, started again from its file, and compared with a run that nobody killed:
parameters and the optimizer's momentum, bit by bit.

Usage: python examples/snapshot_restore.py     (needs torch)
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

import refold

try:
    import torch
except ImportError:
    sys.exit("this example needs torch: pip install 'refold[torch]'")

EPOCHS, BATCHES, SAVE_EVERY = 10, 20, 5
DIE_AT = (7, 12)
"""Epoch and batch, from 0, after which the program is killed."""

Life = Callable[[Path, bool], tuple[int, int]]


def made() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """Return the model and its optimizer in their first state."""
    torch.manual_seed(7)
    model = torch.nn.Linear(10, 1)
    return model, torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Take one step on a random batch."""
    inputs, wanted = torch.randn(32, 10), torch.randn(32, 1)
    optimizer.zero_grad()
    torch.nn.functional.mse_loss(model(inputs), wanted).backward()
    optimizer.step()


def perhaps_die(epoch: int, batch: int, is_doomed: bool) -> None:
    """Be killed, where this life is to end here."""
    if is_doomed and (epoch, batch) == DIE_AT:
        os.kill(os.getpid(), signal.SIGKILL)


def textbook(folder: Path, is_doomed: bool) -> tuple[int, int]:
    """Train, saving every fifth epoch; return epoch and batch from which this life went on."""
    model, optimizer = made()
    file, first = folder / "checkpoint.pth", 0
    if file.exists():
        saved = torch.load(file, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["epoch"] + 1
    for epoch in range(first, EPOCHS):
        for batch in range(BATCHES):
            train(model, optimizer)
            perhaps_die(epoch, batch, is_doomed)
        if (epoch + 1) % SAVE_EVERY == 0:
            torch.save({"epoch": epoch, "model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    write_result(folder, model, optimizer)
    return first, 0


def ours(folder: Path, is_doomed: bool) -> tuple[int, int]:
    """Train with a checkpoint after every batch; return epoch and batch from which this life went on."""
    model, optimizer = made()
    checkpoint = refold.ClientCheckpoint(folder / "ward.checkpoint", model=model, optimizer=optimizer)
    first = divmod(checkpoint.step, BATCHES)
    for batch in checkpoint.batches(range(BATCHES), epochs=EPOCHS):
        train(model, optimizer)
        perhaps_die(checkpoint.step // BATCHES, batch, is_doomed)
    write_result(folder, model, optimizer)
    return first


def write_result(folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write down what training came to."""
    momentum = [optimizer.state[parameter]["momentum_buffer"].numpy() for parameter in model.parameters()]
    parameters = [parameter.detach().numpy() for parameter in model.parameters()]
    np.savez(
        folder / "result.npz",
        parameters=np.hstack([p.ravel() for p in parameters]),
        momentum=np.hstack([m.ravel() for m in momentum]),
    )


def live(life: Life, folder: Path, *, is_doomed: bool) -> tuple[int, int] | None:
    """Run one life in a process of its own; return from where it went on, or None if it was killed."""
    folder.mkdir(exist_ok=True)
    child = os.fork()
    if not child:
        epoch, batch = life(folder, is_doomed)
        (folder / "began").write_text(f"{epoch} {batch}")
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return None
    epoch, batch = (folder / "began").read_text().split()
    return int(epoch), int(batch)


def compare(name: str, life: Life, folder: Path) -> None:
    """Kill a program, start it again, and say what that came to beside a run that was not killed."""
    live(life, folder / "whole", is_doomed=False)
    assert live(life, folder / "killed", is_doomed=True) is None
    epoch, batch = live(life, folder / "killed", is_doomed=False) or (0, 0)
    whole, killed = (np.load(folder / which / "result.npz") for which in ("whole", "killed"))
    same = {part: whole[part].tobytes() == killed[part].tobytes() for part in ("parameters", "momentum")}
    lost = DIE_AT[0] * BATCHES + DIE_AT[1] + 1 - (epoch * BATCHES + batch)
    print(f"{name}")
    print(f"  went on at epoch {epoch + 1}, batch {batch + 1}: {lost} batch{'es' if lost != 1 else ''} lost")
    print(f"  parameters as if nothing had happened: {'yes' if same['parameters'] else 'no'}")
    print(f"  optimizer's momentum as if nothing had happened: {'yes' if same['momentum'] else 'no'}")


def main() -> None:
    """Do it both ways."""
    torch.set_num_threads(1)
    made()  # What torch loads with the first optimizer, it loads once for all lives.
    print(f"killed with SIGKILL in epoch {DIE_AT[0] + 1} of {EPOCHS}, after batch {DIE_AT[1] + 1} of {BATCHES}\n")
    with tempfile.TemporaryDirectory() as name:
        for title, life in (("a file every fifth epoch", textbook), ("refold.ClientCheckpoint", ours)):
            folder = Path(name, life.__name__)
            folder.mkdir()
            compare(title, life, folder)


if __name__ == "__main__":
    main()
