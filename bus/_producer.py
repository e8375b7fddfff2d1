"""The producer of the embedded drivers: a bounded queue that one transaction empties."""

from __future__ import annotations

import threading
from typing import Protocol, Self

from refold.bus._store import Draft, OutcomeUnknown, Store, make_draft
from refold.bus.contract import Headers
from refold.schemas.errors import BusError, StorageFullError, TryAgainError, UsageError


class Flushes(Protocol):
    """A producer, to the deliveries that wait for it."""

    def flush(self, timeout_s: float = 30.0) -> None: ...


class QueueDelivery:
    """One record's acknowledgement. Waiting for it flushes its producer."""

    __slots__ = ("_error", "_offset", "_producer")

    def __init__(self, producer: Flushes) -> None:
        self._producer = producer
        self._offset: int | None = None
        self._error: BusError | None = None

    def result(self, timeout_s: float | None = None) -> int:
        """Return the record's offset, flushing first where that is still to be done."""
        if self._offset is None and self._error is None:
            self._producer.flush(30.0 if timeout_s is None else timeout_s)
        if self._error is not None:
            raise self._error
        assert self._offset is not None, "flush settles every delivery or raises"
        return self._offset

    def settle(self, offset: int | None, error: BusError | None = None) -> None:
        """Say how it ended."""
        self._offset, self._error = offset, error


class QueueProducer:
    """Sends records in batches; a batch is written when it is full, at `flush`, at `close`, or when someone awaits a delivery.

    Where the disk is full or a lock is not free, nothing of the batch was written: it stays queued and its deliveries stay
    open, so that a later flush tries again. After any other failure the batch is given up, because writing it again could
    double it, and each of its deliveries raises.
    """

    def __init__(self, store: Store, max_in_flight_bytes: int) -> None:
        if max_in_flight_bytes < 1:
            raise UsageError("bytes in flight must be above 0", max_in_flight_bytes=max_in_flight_bytes)
        self._store = store
        self._max_bytes = max_in_flight_bytes
        self._drafts: list[Draft] = []
        self._deliveries: list[QueueDelivery] = []
        self._bytes = 0
        self._closed = False
        # A delivery may be awaited in another thread than the one that sends.
        self._lock = threading.RLock()

    @property
    def in_flight_bytes(self) -> int:
        """Bytes sent and not yet acknowledged."""
        return self._bytes

    def send(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        partition: int | None = None,
        headers: Headers = (),
    ) -> QueueDelivery:
        """Queue a record, flushing first where it would not fit the bytes in flight. If that raises, it was not queued."""
        with self._lock:
            self._check_open()
            draft = make_draft(self._store.spec(topic), key, value, partition, headers, self._store.now_ms())
            if self._drafts and self._bytes + draft.size_bytes > self._max_bytes:
                self.flush()
            delivery = QueueDelivery(self)
            self._drafts.append(draft)
            self._deliveries.append(delivery)
            self._bytes += draft.size_bytes
            return delivery

    def flush(self, timeout_s: float = 30.0) -> None:
        """Write everything queued in one transaction.

        1. Take the batch from the queue, so that whatever happens it is never written twice.
        2. Append it.
        3. Acknowledge it; or, if it surely was not written, put it back.
        """
        with self._lock:
            self._check_open()
            if not self._drafts:
                return
            # 1.
            batch = self._take()
            try:
                # 2.
                offsets = self._store.append(batch[0], timeout_s)
            except (StorageFullError, TryAgainError):
                # 3.
                self._drafts, self._deliveries, self._bytes = batch
                raise
            except BaseException as error:
                cause = error if isinstance(error, BusError) else OutcomeUnknown("Writing was cut off", cause=repr(error))
                _fail(batch[1], cause)
                raise
            for delivery, offset in zip(batch[1], offsets, strict=True):
                delivery.settle(offset)

    def _take(self) -> tuple[list[Draft], list[QueueDelivery], int]:
        batch = self._drafts, self._deliveries, self._bytes
        self._drafts, self._deliveries, self._bytes = [], [], 0
        return batch

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("the producer is closed")

    def close(self) -> None:
        """Flush and let go. What cannot be flushed is given up: its deliveries and this call raise. Idempotent."""
        with self._lock:
            if self._closed:
                return
            try:
                self.flush()
            except BaseException as error:
                _fail(self._take()[1], BusError(f"the producer was closed before this was written ({error})"))
                raise
            finally:
                self._closed = True
                self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _fail(deliveries: list[QueueDelivery], error: BusError) -> None:
    for delivery in deliveries:
        delivery.settle(None, error)
