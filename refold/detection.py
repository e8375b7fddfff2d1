"""`Detection`: anomaly detection without a bus, on whole deltas; the same features and detectors as the group of that name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from refold.consumers.detectors import Cohort as FeatureCohort
from refold.consumers.detectors import Ensemble, Recent, Said
from refold.consumers.detectors.choice import DEFAULT, chosen, require_rate
from refold.consumers.detectors.pattern import RATE
from refold.consumers.feature_batch import features_of_all
from refold.consumers.features import FeatureExtractor, Features
from refold.schemas.errors import UsageError
from refold.schemas.layout import Block, Layout
from refold.schemas.model import ModelSchema, TensorSchema
from refold.state.tensors import schema_of, to_numpy

RUNS, LEAST_RUN = 8, 16
"""Deltas without tensors are cut into so many runs of equal length, none shorter, which are looked at as tensors are."""

Tensors = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class DetectionConfig:
    """How `Detection` judges.

    Parameters
    ----------
    max_staleness
        How many rounds an update's base may lie behind, where a cohort says.
    detectors
        Names of those that may reject: Refold's own, and what installed packages offer as ``refold.detectors``.
    false_alarm_rate
        The share of honest updates that may be refused where nobody attacks, from 0.0001 to 0.05; how well it is kept is in
        docs/DETECTION.md. `pattern` follows it, and what the others find without its support must be blatant.
    secret
        32 bytes that draw the sketch's signs and coordinates. Set your own where attackers may know the default.
    """

    max_staleness: int = 0
    detectors: tuple[str, ...] = DEFAULT
    secret: bytes = bytes(32)
    false_alarm_rate: float = RATE

    def __post_init__(self) -> None:
        if self.max_staleness < 0 or len(self.secret) != 32:
            raise UsageError("max_staleness is below 0, or secret is not 32 bytes")
        require_rate(self.false_alarm_rate)


@dataclass(frozen=True, slots=True)
class Cohort:
    """One round's updates, one a client, all in one order.

    Parameters
    ----------
    round
        The round that they make, from 1.
    deltas
        What training changed: float32 of shape (clients, parameters), or for each client a mapping of arrays.
    num_examples
        What each was trained on, as the clients say.
    base_rounds
        The round of the model that each was trained from; ``round − 1`` where nobody lags.
    digests
        Digest of the model that each was trained from, in any form that compares.
    metrics
        What each client reports, such as ``{"loss": 0.3}``.
    root
        What training on data of the server's own changed, for the detector ``root``; like one of `deltas`.
    """

    round: int
    client_ids: Sequence[str]
    deltas: npt.NDArray[np.float32] | Sequence[Tensors]
    num_examples: Sequence[int]
    base_rounds: Sequence[int] | None = None
    digests: Sequence[object] | None = None
    metrics: Sequence[Mapping[str, float]] | None = None
    root: Any = None

    def __post_init__(self) -> None:
        count = len(self.client_ids)
        if len(set(self.client_ids)) != count:
            raise UsageError("a client is in the cohort twice", hint="give one update a client")
        for name in ("deltas", "num_examples", "base_rounds", "digests", "metrics"):
            given = getattr(self, name)
            if given is not None and len(given) != count:
                raise UsageError(f"{name} has {len(given)} entries for {count} clients")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to become of an update.

    Parameters
    ----------
    score
        From 0 to 1, higher is worse; above 0.5 some detector found it anomalous.
    reasons
        Reason codes, none where it is accepted.
    """

    accepted: bool
    score: float
    reasons: tuple[str, ...]


@dataclass(slots=True)
class Detection:
    """Judges one federation's cohorts, round after round, and remembers what it found.

    Not told how many clients are bad, and given no data of its own. The same cohorts in the same order get the same verdicts.

    Parameters
    ----------
    config
        The default, if None.
    """

    config: DetectionConfig | None = None
    _ensemble: Ensemble = field(init=False)
    _extractor: _Extractor | None = field(default=None, init=False)
    _said: Said = field(default_factory=Said, init=False)
    _recent: Recent = field(default_factory=Recent, init=False)

    def __post_init__(self) -> None:
        config = self.config or DetectionConfig()
        self._ensemble = Ensemble(chosen(config.detectors, false_alarm_rate=config.false_alarm_rate))

    @property
    def faults(self) -> Mapping[str, str]:
        """What each detector that was ever left out of a judgement did the last time; empty where all do their work."""
        return dict(self._ensemble.last_fault)

    def judge(self, cohort: Cohort) -> list[Verdict]:
        """Return a verdict of each update, in the cohort's order.

        Raises
        ------
        UsageError
            Deltas of other names, shapes or dtypes than the first cohort's.
        """
        config = self.config or DetectionConfig()
        if self._extractor is None and len(cohort.client_ids):
            self._extractor = _Extractor.of(cohort.deltas[0], config.secret)
        features = self._extractor.all(cohort.deltas) if self._extractor else []
        verdicts = [_refusal(cohort, index, found, config) for index, found in enumerate(features)]
        candidates = [index for index, verdict in enumerate(verdicts) if verdict is None]
        opinions = self._ensemble.judge(self._features_of(cohort, candidates, features))
        for index, opinion in zip(candidates, opinions, strict=True):
            client, found = cohort.client_ids[index], features[index]
            self._said.take(client, opinion.scores)
            if isinstance(found, Features):
                self._recent.take(cohort.round, client, found, accepted=not opinion.reasons)
            verdicts[index] = Verdict(not opinion.reasons, opinion.score, opinion.reasons)
        return [verdict for verdict in verdicts if verdict is not None]

    def _features_of(self, cohort: Cohort, candidates: Sequence[int], features: Sequence[Features | str]) -> FeatureCohort:
        root = self._extractor.features(cohort.root) if cohort.root is not None and self._extractor else None
        clients = tuple(cohort.client_ids[index] for index in candidates)
        return FeatureCohort(
            cohort.round,
            clients,
            tuple(found for index in candidates if isinstance(found := features[index], Features)),
            self._said.of(clients),
            metrics=tuple(cohort.metrics[index] for index in candidates) if cohort.metrics is not None else (),
            recent=self._recent.view(cohort.round),
            root=root if isinstance(root, Features) else None,
            tensors=tuple(tensor.name for tensor in self._extractor.schema.tensors) if self._extractor else (),
        )


@dataclass(frozen=True, slots=True)
class _Extractor:
    """From a delta to its features, or to the reason code that says why it has none."""

    schema: ModelSchema
    blocks: tuple[Block, ...]
    extractor: FeatureExtractor

    @classmethod
    def of(cls, delta: Any, secret: bytes) -> _Extractor:
        """Return the extractor for deltas like this one, whose values do not matter."""
        if isinstance(delta, Mapping):
            schema = schema_of({name: np.zeros_like(array) for name, array in to_numpy(delta).items()})
        else:
            ends = np.linspace(0, len(delta), min(RUNS, max(1, len(delta) // LEAST_RUN)) + 1).astype(int)
            runs = [TensorSchema(f"run-{first}", "float32", (int(end - first),), 0, "mean") for first, end in pairwise(ends)]
            schema = ModelSchema(tuple(runs))
        blocks = tuple(block for block in Layout.of(schema) if schema.tensors[block.tensor].is_float)
        return cls(schema, blocks, FeatureExtractor(schema, secret))

    def all(self, deltas: Iterable[Any]) -> list[Features] | list[Features | str]:
        """Return the same as `features` of each."""
        given = list(deltas)
        arrays = [self._arrays(delta) for delta in given]

        def values_of(block: Block) -> npt.NDArray[np.float64]:
            return np.array([mine[block.tensor].ravel()[block.elements] for mine in arrays], np.float64)

        with np.errstate(invalid="ignore"):
            found = features_of_all(self.extractor, len(self.schema.tensors), self.blocks, values_of)
        return [self.features(delta) for delta in given] if found is None else found

    def features(self, delta: Any) -> Features | str:
        """Return what the detectors see of a delta."""
        arrays = self._arrays(delta)
        found = self.extractor.start()
        with np.errstate(invalid="ignore"):  # What is not finite is told of below.
            for block in self.blocks:
                found.add(block, arrays[block.tensor].ravel()[block.elements].astype(np.float64), 1.0)
        if not found.is_finite:
            return "not-finite"
        return "zero-update" if found.is_zero else found.finish()

    def _arrays(self, delta: Any) -> list[npt.NDArray[Any]]:
        if isinstance(delta, Mapping):
            plain = [delta.get(tensor.name) for tensor in self.schema.tensors]
            if len(delta) == len(plain) and all(map(_is_as, plain, self.schema.tensors)):
                return plain  # type: ignore[return-value]
            return list(to_numpy(delta, self.schema).values())
        array = np.asarray(delta, dtype=np.float32)
        if array.shape != (self.schema.size,):
            raise UsageError(f"a delta of shape {array.shape}, the first had {self.schema.size:,} parameters")
        return np.split(array, np.cumsum([tensor.size for tensor in self.schema.tensors])[:-1])


def _is_as(array: Any, tensor: TensorSchema) -> bool:
    """Whether this is what the schema says, and nothing has to be looked at twice."""
    return type(array) is np.ndarray and array.dtype == np.float32 and tensor.dtype == "float32" and array.shape == tensor.shape


def _refusal(cohort: Cohort, index: int, features: Features | str, config: DetectionConfig) -> Verdict | None:
    """Return the verdict that needs no cohort, or None."""
    reason = features if isinstance(features, str) else _wrong_base(cohort, index, config)
    return Verdict(False, 1.0, (reason,)) if reason else None


def _wrong_base(cohort: Cohort, index: int, config: DetectionConfig) -> str:
    base = cohort.base_rounds[index] if cohort.base_rounds is not None else cohort.round - 1
    if base >= cohort.round:
        return "future-base"
    if base < cohort.round - 1 - config.max_staleness:
        return "stale"
    if cohort.digests is None:
        return ""
    bases = cohort.base_rounds if cohort.base_rounds is not None else [base] * len(cohort.client_ids)
    same = [digest for digest, other in zip(cohort.digests, bases, strict=True) if other == base]
    digest, count = Counter(same).most_common(1)[0]
    # Without a majority nobody can say whose model is the right one.
    return "wrong-base" if 2 * count > len(same) and cohort.digests[index] != digest else ""
