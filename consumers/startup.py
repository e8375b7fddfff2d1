"""What must hold before a server starts: topics that keep what they are given, and inputs that reach as far as the log says."""

from __future__ import annotations

from refold.bus.contract import Bus, Place
from refold.bus.symptoms import Severity, Symptom
from refold.bus.topics import Topics
from refold.schemas.commits import Position
from refold.schemas.errors import ConfigurationError, IntegrityError, NotFoundError


def examine_federation(bus: Bus, topics: Topics, *, thorough: bool = False) -> list[Symptom]:
    """Look at the bus and at every topic of a federation, with as many partitions as `updates` has."""
    updates = bus.topics().get(topics.updates)
    return bus.examine(topics.specs(updates.partitions if updates else 1), thorough=thorough)


def refuse_what_loses_data(bus: Bus, topics: Topics) -> None:
    """Raise if the bus or a topic's settings would lose data.

    Raises
    ------
    ConfigurationError
        With the first failure's remedy; `refold doctor` tells of all.
    """
    failures = [symptom for symptom in examine_federation(bus, topics) if symptom.severity is Severity.FAILURE]
    if failures:
        first = failures[0]
        more = f" (and {len(failures) - 1} more: see `refold doctor`)" if len(failures) > 1 else ""
        raise ConfigurationError(f"{first.subject} {first.what}{more}", hint=first.fix)


def lost_input(bus: Bus, topics: Topics, position: Position) -> list[Symptom]:
    """Hold the topics' ends against the position that the log names.

    A topic that was deleted and made anew ends before it: going on there would take new updates for judged ones.
    """
    partitions = bus.topics()[topics.updates].partitions
    found = []
    if position.updates and len(position.updates) != partitions:
        what = f"has {partitions} partitions, and the log judged {len(position.updates)}: keys have moved between them"
        fix = "`refold export` the federation, and `refold import` it into topics of their own"
        found.append(Symptom(topics.updates, Severity.FAILURE, what, fix))
    reached = [(Place(topics.updates, part.partition), part.next_offset) for part in position.updates]
    reached += [(Place(topics.checked, 0), position.checked), (Place(topics.commands, 0), position.commands)]
    for place, next_offset in reached:
        if place.topic == topics.updates and place.partition >= partitions:
            continue
        end = bus.end_offset(place)
        if end < next_offset:
            what = f"partition {place.partition} ends at {end}, and the log covers it up to {next_offset}"
            fix = "the topic was made anew or lost its tail: restore it from a copy (`refold import`)"
            found.append(Symptom(place.topic, Severity.FAILURE, what, fix))
    return found


def refuse_lost_input(bus: Bus, topics: Topics, position: Position) -> None:
    """Raise IntegrityError if an input topic does not reach as far as the log's position."""
    found = lost_input(bus, topics, position)
    if found:
        raise IntegrityError(f"{found[0].subject} {found[0].what}", topic=found[0].subject, hint=found[0].fix)


def refuse_lost_log(bus: Bus, topics: Topics) -> None:
    """Raise IntegrityError where `accepted` is gone or empty and `rounds` is not: a federation made now would begin anew."""
    if _end(bus, topics.rounds) and not _end(bus, topics.accepted):
        raise IntegrityError(
            f"{topics.federation}'s log is gone, and its rounds are there: its topic was deleted, or made anew",
            topic=topics.accepted,
            hint="restore it from a copy (`refold import` into a new bus or file); make no new federation of this name",
        )


def _end(bus: Bus, topic: str) -> int:
    """Return where a topic of one partition ends, 0 if there is none. A topic that may not be seen raises."""
    try:
        return bus.end_offset(Place(topic, 0))
    except NotFoundError:
        return 0
