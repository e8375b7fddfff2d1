"""Reading a run of offsets once, outside any group."""

from __future__ import annotations

from collections.abc import Iterator

from refold.bus.contract import Bus, Place, Record


def records_in(bus: Bus, place: Place, first: int, last: int) -> Iterator[Record]:
    """Yield the records of a range of offsets, both ends included, as far as they exist."""
    first, end = max(first, bus.begin_offset(place)), min(bus.end_offset(place), last + 1)
    with bus.consumer() as consumer:
        consumer.assign([place])
        if first >= end:
            return
        consumer.seek(place, first)
        while consumer.position(place) < end:
            for record in consumer.poll(1.0):
                if record.offset >= end:
                    return
                yield record
