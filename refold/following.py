"""Reading a federation's topics: once, or on and on as they grow."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from refold.bus.contract import Bus
from refold.bus.ledger import LedgerReader
from refold.bus.payloads import PayloadReader
from refold.consumers.attached import GENESIS, LEDGERS, Context, Handler, Subscription
from refold.consumers.features import Features
from refold.opened import Opened
from refold.schemas.errors import UsageError
from refold.schemas.events import UpdateAccepted, UpdateRejected


class Following(Opened):
    """What readers do: events of a log or topic, and consumers that are called with them."""

    def __init__(self, bus: Bus, name: str, keys: Path) -> None:
        super().__init__(bus, name, keys)
        self._handlers: list[tuple[str, str, str, Handler]] = []

    def log(self, topic: str = "accepted") -> Iterator[tuple[Any, Context]]:
        """Yield every event of ``accepted`` or ``rounds`` as it stands, with where it lies."""
        if topic not in LEDGERS:
            raise UsageError(f"{topic!r} is no log", hint=f"there are {' and '.join(LEDGERS)}")
        reader = LedgerReader(self.bus, f"{self.name}.{topic}")
        try:
            for entry in reader.read_to_end():
                for index, event in entry.indexed():
                    yield event, Context(reader.topic, 0, entry.offset, index, entry.commit.time_ms)
        finally:
            reader.close()

    def subscribe(
        self, name: str, topic: str = "accepted", *, start: str = GENESIS, follow: bool = True
    ) -> Iterator[tuple[Any, Context]]:
        """Yield a topic's events with their context, from where the reader of this name stopped.

        An event counts as done when the next one is asked for; those of a batch that was not finished come again.

        Parameters
        ----------
        follow
            Wait for more at the end; otherwise stop there.
        """
        subscription = Subscription(self.bus, self.topics, name, topic=topic, start=start)
        try:
            while True:
                batch = subscription.poll()
                yield from batch
                subscription.acknowledge()
                if not follow and not batch and subscription.at_end():
                    return
        finally:
            subscription.close()

    def consumer(self, name: str, *, topic: str = "accepted", start: str = GENESIS) -> Callable[[Handler], Handler]:
        """Register the decorated function to be called with each event and its context, once `run` is called."""

        def register(handler: Handler) -> Handler:
            self._handlers.append((name, topic, start, handler))
            return handler

        return register

    def run(self, *, stop: threading.Event | None = None, follow: bool = True) -> None:
        """Call the registered consumers until `stop` is set, or, without `follow`, until each saw all there is.

        A handler that raises ends the run with its error; its event is delivered again by the next run.
        """
        stop = stop or threading.Event()
        open_ = [
            (Subscription(self.bus, self.topics, name, topic=topic, start=start), handler)
            for name, topic, start, handler in self._handlers
        ]
        try:
            while not stop.is_set():
                done = True
                for subscription, handler in open_:
                    batch = subscription.poll(0.1)
                    for event, context in batch:
                        handler(event, context)
                    subscription.acknowledge()
                    done = done and not batch and subscription.at_end()
                if done and not follow:
                    return
        finally:
            for subscription, _ in open_:
                subscription.close()

    def features(self, event: UpdateAccepted | UpdateRejected) -> Features | None:
        """Return what detection saw of a judged delta: norms, quantiles, sketch. None where it was refused before that."""
        if event.features is None:
            return None
        reader = PayloadReader(self.bus, self.topics.features)
        try:
            return Features.unpack(reader.read_bytes(event.features))
        finally:
            reader.close()
