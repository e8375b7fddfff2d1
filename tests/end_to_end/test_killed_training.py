"""A client killed in its local epoch goes on from its last batch, and the round has the bits of one without a kill."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np

import refold
from refold.testing import SteppedServer

PROGRAM = """
import os, signal, sys
import numpy as np
import refold

url, key, die_at = sys.argv[1], sys.argv[2], int(sys.argv[3])
batches = 0
with refold.connect(url).client("ward", key=key) as client:
    for task in client.tasks():
        np.random.seed(task.round)
        model, momentum = task.numpy(), {"w": np.zeros(300, "f4")}
        checkpoint = task.checkpoint(model=model, momentum=momentum)
        for rows in checkpoint.batches(np.arange(6), epochs=2):
            momentum["w"] = np.float32(0.9) * momentum["w"] + np.random.normal(rows, 1, 300).astype("f4")
            model["w"] -= np.float32(0.01) * momentum["w"]
            batches += 1
            if batches == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
        task.submit(model, num_examples=6)
        print(task.round, batches)
        break
"""


def made(folder: Path) -> refold.Federation:
    """Return a federation of one client, whose bytes do not depend on chance."""
    plan = refold.Plan(minimum=1, heartbeat_s=0.1, seed=bytes(16))
    federation = refold.create(f"sqlite:{folder}/ward.db", {"w": np.zeros(300, "f4")}, plan=plan)
    federation.enroll("ward", refold.SigningKey.load_or_create(folder / "ward.pem").public)
    return federation


def life(federation: refold.Federation, folder: Path, die_at: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM, federation.url, str(folder / "ward.pem"), str(die_at)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_a_client_killed_in_its_local_epoch_goes_on_from_its_last_batch(tmp_path: Path) -> None:
    digests = []
    for name, deaths in (("whole", ()), ("killed", (8,))):
        folder = tmp_path / name
        folder.mkdir()
        with made(folder) as federation, SteppedServer(federation) as server:
            server.settle()
            for die_at in deaths:
                assert life(federation, folder, die_at).returncode == -signal.SIGKILL
            last = life(federation, folder)
            # 12 batches; each death lost the one that was being worked on, and no other.
            assert last.stdout.split() == ["1", str(12 - sum(death - 1 for death in deaths))], last.stderr
            assert not list((folder / "ward.outbox").glob("*.checkpoint*"))
            server.settle()
            server.clock.advance(1.0)
            server.settle()
            digests.append(federation.rebuild(1).digest)
    assert digests[0] == digests[1]
