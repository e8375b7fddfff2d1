"""A client's answers while the bus is away."""

from __future__ import annotations

from pathlib import Path

from refold.bus.clock import ManualClock
from refold.producers.answers import RESEND_AFTER_S, Answers
from refold.producers.outbox import Outbox, Parcel
from refold.producers.publisher import Publisher
from refold.producers.residual import Residual
from refold.schemas.errors import BusError


class Away(Publisher):
    """Sends nothing: no bus is there."""

    def __init__(self) -> None:
        self.tried: list[bytes] = []

    def send(self, parcel: Parcel) -> int:
        self.tried.append(parcel.digest)
        raise BusError("no bus")


def test_an_answer_that_broke_in_the_outbox_is_waited_for_no_more(tmp_path: Path) -> None:
    outbox, publisher, clock = Outbox(tmp_path), Away(), ManualClock()
    answers = Answers("ann", bytes(8), outbox, Residual(tmp_path, "toy", "ann"), publisher, clock)
    broken, sound = (Parcel(bytes([number]) * 32, b"manifest", (b"chunk",)) for number in (1, 2))
    for parcel in (broken, sound):
        outbox.put(parcel)
        answers.send(parcel)
    (tmp_path / f"{broken.digest.hex()}.update").write_bytes(b"not a parcel")
    clock.advance(RESEND_AFTER_S)
    answers.resend()
    assert publisher.tried == [broken.digest, sound.digest, sound.digest]
    outbox.drop(sound.digest)
    assert answers.is_waiting
    clock.advance(RESEND_AFTER_S)
    answers.resend()
    assert not answers.is_waiting
