"""Topics held against how they are to be: what all drivers' `Bus.examine` share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from refold.bus.contract import TopicSpec
from refold.bus.symptoms import Severity, Symptom

Remedy = Callable[[TopicSpec, str], str]
"""Given a topic as it is to be and the setting that differs, returns what to do about it."""


def examine_specs(wanted: Iterable[TopicSpec], present: Mapping[str, TopicSpec], remedy: Remedy) -> list[Symptom]:
    """Hold topics as they are against how they are to be; what differs without harm is a warning."""
    return [symptom for spec in wanted for symptom in _examine_spec(spec, present.get(spec.name), remedy)]


def _examine_spec(wanted: TopicSpec, have: TopicSpec | None, remedy: Remedy) -> list[Symptom]:
    if have is None:
        return [_failure(wanted, "is not there", "missing", remedy)]
    found = []
    if have.compacted != wanted.compacted:
        what = "is not compacted and grows for ever" if wanted.compacted else "is compacted: older records of a key are lost"
        found.append(_failure(wanted, what, "compacted", remedy))
    if have.partitions != wanted.partitions:
        what = f"has {have.partitions} partitions, was made with {wanted.partitions}: keys have moved to others"
        found.append(_failure(wanted, what, "partitions", remedy))
    if have.retention_s != wanted.retention_s:
        found.append(_retention(wanted, have, remedy))
    return found or [Symptom(wanted.name, Severity.OK, _kept(have))]


def _retention(wanted: TopicSpec, have: TopicSpec, remedy: Remedy) -> Symptom:
    if have.retention_s is not None and wanted.retention_s is None:
        what = f"deletes what is older than {have.retention_s:g} s; the log must be kept"
        return _failure(wanted, what, "retention", remedy)
    what = f"keeps {_age(have.retention_s)}, was made to keep {_age(wanted.retention_s)}"
    return Symptom(wanted.name, Severity.WARNING, what, remedy(wanted, "retention"))


def _failure(wanted: TopicSpec, what: str, setting: str, remedy: Remedy) -> Symptom:
    return Symptom(wanted.name, Severity.FAILURE, what, remedy(wanted, setting))


def _kept(spec: TopicSpec) -> str:
    kept = "compacted" if spec.compacted else f"keeps {_age(spec.retention_s)}"
    return f"{spec.partitions} partition{'s' if spec.partitions > 1 else ''}, {kept}"


def _age(retention_s: float | None) -> str:
    return "everything" if retention_s is None else f"{retention_s / 3600:g} h"
