"""``refold doctor``: what may be wrong with bus, topics, logs, keys and clocks, each with its remedy."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

import click

from refold.bus.contract import Bus, Place, Record
from refold.bus.ranges import records_in
from refold.bus.symptoms import Severity, Symptom
from refold.bus.topics import Topics
from refold.cli.acls import tell_acls
from refold.cli.options import Common, common
from refold.cli.output import facts, note, number_of, say, say_json
from refold.consumers.sealing import SealingLog
from refold.consumers.startup import examine_federation, lost_input
from refold.consumers.view import LogView
from refold.federation import Federation
from refold.schemas.errors import ConfigurationError, IntegrityError, NotFoundError, UsageError
from refold.schemas.identity import INSECURE, ClientEnrolled

CLOCK_WINDOW = 200
"""How many of the newest records of a partition tell of clocks."""

CLOCK_TOLERANCE_S = 2.0

MOST_SUBJECT = 200
"""Characters of a writer's name that are told; a header may be as long as a record."""

PRINCIPAL_HELP = "With --acls: whom to give a role, such as client=ward-7; may be repeated."
MARKS = {Severity.OK: "ok     ", Severity.WARNING: "WARNING", Severity.FAILURE: "FAILURE"}


@click.command(short_help="Examine bus, topics, logs, keys and clocks.")
@common
@click.option("--acls", is_flag=True, help="Print the commands that give each role its rights on a Kafka cluster, and stop.")
@click.option(
    "--principal",
    "principals",
    metavar="ROLE=NAME",
    multiple=True,
    help="With --acls: whom to give a role, such as client=ward-7.",
)
def doctor(common: Common, acls: bool, principals: tuple[str, ...]) -> int:
    """Examine the bus, the topics and their settings, both logs, this machine's keys and everybody's clocks; changes nothing.

    Each failure comes with its remedy. Exit code 1 if there is one.
    """
    if acls:
        tell_acls(common, principals)
        return 0
    if principals:
        raise UsageError("--principal goes with --acls")
    with common.federation() as federation:
        found = list(symptoms(federation))
    if common.json:
        for symptom in found:
            say_json({"subject": symptom.subject, "severity": symptom.severity, "what": symptom.what, "fix": symptom.fix})
    else:
        _tell(found)
    return int(any(symptom.severity is Severity.FAILURE for symptom in found))


def symptoms(federation: Federation) -> Iterator[Symptom]:
    """Yield everything that was looked at, in the order in which one thing stands on another."""
    bus, topics = federation.bus, federation.topics
    yield from examine_federation(bus, topics, thorough=True)
    yield from _logs(bus, topics)
    yield _keys(federation)
    yield from _sealing(federation)
    yield _signed(federation)
    yield _identity(federation)
    yield from _clocks(bus, topics)


def _logs(bus: Bus, topics: Topics) -> Iterator[Symptom]:
    view = LogView(bus, topics)
    try:
        view.read_to_end()
        commits, skipped = view.accepted.chain.commits, view.accepted.chain.skipped
        yield Symptom(
            "logs", Severity.OK, f"{number_of(commits, 'commit')} in one chain, {number_of(skipped, 'record')} passed over"
        )
    except (IntegrityError, NotFoundError) as error:
        lost = lost_input(bus, topics, view.accepted.chain.position)
        yield from lost or [Symptom("logs", Severity.FAILURE, error.message, error.hint or "`refold verify` says where")]
    finally:
        view.close()


def _keys(federation: Federation) -> Symptom:
    keyring = federation.keyring
    try:
        keyring.secret(federation.genesis.secret_digest)
        ours = keyring.operator().public in federation.genesis.operator_keys
    except (NotFoundError, ConfigurationError) as error:
        return Symptom("keys", Severity.WARNING, f"this machine cannot serve: {error.message}", error.hint)
    if not ours:
        fix = "say where the operator's key is with --keys or REFOLD_KEYS"
        return Symptom("keys", Severity.WARNING, "the operator's key here is not this federation's", fix)
    return Symptom("keys", Severity.OK, "the server's secret and the operator's key are here")


def _sealing(federation: Federation) -> Iterator[Symptom]:
    """Compare the sealing keys that are here with those that the log knows."""
    said, keys = SealingLog(), federation.keyring.sealing
    try:
        for event, _ in federation.log():
            said.fold(event)
    except IntegrityError:
        return  # Told of with the logs.
    lacking = [client for client in said.keys if set(said.good(client)) - set(keys.held(client))]
    left = [client for client in said.keys if set(keys.held(client)) - set(said.good(client))]
    if lacking:
        what = f"this machine cannot serve: it lacks sealing keys of {len(lacking)} clients, {lacking[0]!r} first"
        fix = f"copy {keys.folder} from the machine that `refold seal` ran on"
        yield Symptom("sealing", Severity.WARNING, what, fix)
    if left:
        what = f"{len(left)} clients that were erased, {left[0]!r} first, have keys here that are void"
        yield Symptom("sealing", Severity.WARNING, what, f"`refold erase {left[0]}` destroys them here")
    if said.keys and not lacking and not left:
        yield Symptom("sealing", Severity.OK, f"the sealing keys of {len(said.keys)} clients are as the log has them")


def _signed(federation: Federation) -> Symptom:
    """Say how far the log is signed: what anyone can hold it against later."""
    if not federation.genesis.log_keys:
        fix = "it was made before there were log keys; keep copies of the log elsewhere: `refold export`"
        return Symptom("checkpoints", Severity.WARNING, "nobody signs this log", fix)
    try:
        found = federation.checkpoints()
    except (IntegrityError, NotFoundError) as error:
        return Symptom("checkpoints", Severity.FAILURE, error.message, error.hint or "`refold verify` says where")
    if not found:
        return Symptom("checkpoints", Severity.OK, "none yet; the server writes the first one when it starts")
    what = f"{len(found)}, the newest of {found[-1].events} events; keep one elsewhere: `refold checkpoint -o FILE`"
    return Symptom("checkpoints", Severity.OK, what)


def _identity(federation: Federation) -> Symptom:
    """Say whether clients are identified."""
    try:
        if federation.genesis.identity.required:
            if not any(isinstance(event, ClientEnrolled) for event, _ in federation.log()):
                what = "nobody is enrolled yet, so nobody can take part; `refold enroll NAME --new-key FILE` lets a client in"
                return Symptom("identity", Severity.OK, what)
            return Symptom("identity", Severity.OK, "clients are enrolled, and what they send is signed")
    except (IntegrityError, NotFoundError) as error:
        return Symptom("identity", Severity.WARNING, f"the log does not say how clients are known: {error.message}", error.hint)
    return Symptom("identity", Severity.WARNING, INSECURE, "make a federation without --insecure for anything that matters")


def _clocks(bus: Bus, topics: Topics) -> Iterator[Symptom]:
    """Compare what writers say the time is with when the bus says that it took their record."""
    off: dict[str, float] = {}
    for topic in (topics.health, topics.alerts):
        for partition in range(bus.topics()[topic].partitions):
            for record in _newest(bus, Place(topic, partition)):
                subject, ahead_s = _ahead(record)
                if subject:
                    # The least: what was sent late, or waited on the way, looks like a clock that is behind.
                    off[subject] = min(off.get(subject, ahead_s), ahead_s, key=abs)
    for subject, ahead_s in sorted(off.items()):
        if abs(ahead_s) > CLOCK_TOLERANCE_S:
            what = f"{subject}'s clock is {abs(ahead_s):.1f} s {'ahead' if ahead_s > 0 else 'behind'}"
            yield Symptom("clock", Severity.WARNING, what, f"set up time synchronisation (chrony, ntpd) on {subject}'s machine")
    if all(abs(ahead_s) <= CLOCK_TOLERANCE_S for ahead_s in off.values()):
        who = (
            f"{number_of(len(off), 'writer')} at most {CLOCK_TOLERANCE_S:g} s off the bus's"
            if off
            else "nobody wrote yet who tells the time"
        )
        yield Symptom("clock", Severity.OK, who)


def _newest(bus: Bus, place: Place) -> Iterator[Record]:
    end = bus.end_offset(place)
    first = max(bus.begin_offset(place), end - CLOCK_WINDOW)
    if first < end:
        yield from records_in(bus, place, first, end - 1)


def _ahead(record: Record) -> tuple[str, float]:
    """Return who wrote a record and by how many seconds their clock was ahead of the bus's; no name if it does not say."""
    try:
        said = datetime.fromisoformat((record.header("ce_time") or b"").decode())
        subject = (record.header("ce_subject") or b"").decode()[:MOST_SUBJECT]
        return subject, said.timestamp() - record.timestamp_ms / 1000
    except (ValueError, OverflowError, OSError):
        return "", 0.0


def _tell(found: list[Symptom]) -> None:
    for line, symptom in zip(facts([(_name(s), s.what) for s in found]), found, strict=True):
        say(line)
        if symptom.fix:
            say(f"         fix: {symptom.fix}")
    failures = sum(symptom.severity is Severity.FAILURE for symptom in found)
    warnings = sum(symptom.severity is Severity.WARNING for symptom in found)
    note(f"{number_of(len(found), 'thing')} examined: {number_of(failures, 'failure')}, {number_of(warnings, 'warning')}")


def _name(symptom: Symptom) -> str:
    return f"{MARKS[symptom.severity]}  {symptom.subject}"
