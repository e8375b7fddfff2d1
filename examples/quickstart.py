"""Three wards train one model together, on one machine, in one program; then a round is rebuilt from the log."""

import sys
import threading

import numpy as np
from sklearn.datasets import load_breast_cancer

import refold

URL = sys.argv[1] if sys.argv[1:] else "sqlite:wards.db"
rows, labels = load_breast_cancer(return_X_y=True)
rows = ((rows - rows.mean(0)) / rows.std(0)).astype("f4")


def ward(name: str, mine: slice) -> None:
    """Train whenever the federation asks."""
    with refold.connect(URL).client(name, key=f"{name}.pem") as client:
        for task in client.tasks():
            weights = task.numpy()
            for _ in range(10):  # Logistic regression by gradient descent.
                wrong = 1 / (1 + np.exp(-(rows[mine] @ weights["w"] + weights["b"]))) - labels[mine]
                weights["w"] -= np.float32(0.1) * (rows[mine].T @ wrong / len(wrong)).astype("f4")
                weights["b"] -= np.float32(0.1 * wrong.mean())
            task.submit(weights, num_examples=len(wrong))


federation = refold.create(
    URL, {"w": np.zeros(30, "f4"), "b": np.zeros(1, "f4")}, plan=refold.Plan(minimum=3, rounds=8, heartbeat_s=0.2)
)
for number in range(3):
    federation.enroll(f"ward-{number}", refold.SigningKey.load_or_create(f"ward-{number}.pem").public)
with federation.serve():
    wards = [threading.Thread(target=ward, args=(f"ward-{n}", slice(n, None, 3))) for n in range(3)]
    for thread in wards:
        thread.start()
    for thread in wards:
        thread.join()
for round_ in (0, 4, 8):
    state = federation.rebuild(round_)
    weights = state.numpy()
    right = ((rows @ weights["w"] + weights["b"] > 0) == labels).mean()
    print(f"round {round_}: accuracy {right:.3f}, digest {state.digest.hex()[:16]}")
