"""`Federation`: one federation on one bus, the way in for everyone."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Self

from refold.auditing import Auditing
from refold.bus import open_bus, parse_url
from refold.bus.contract import Bus, Place
from refold.bus.copy_place import require_whole
from refold.bus.copying import Copied, copy_federation
from refold.bus.security import KafkaSecurity, other_security
from refold.bus.topics import Topics, federations_in
from refold.consumers.audit.findings import Progress
from refold.consumers.detectors import Ensemble
from refold.consumers.health import HealthSettings
from refold.consumers.modelcheck import Evaluation
from refold.consumers.server import GROUPS, Server
from refold.enrolling import Enrolling
from refold.following import Following
from refold.forgetting import Forgetting
from refold.keyring import key_folder
from refold.producers.client import Client
from refold.producers.outbox import Outbox, outbox_beside
from refold.producers.privacy import Privacy
from refold.recovering import Recovering
from refold.schemas.canonical import Scalar
from refold.schemas.checks import EndFederation
from refold.schemas.errors import NotFoundError, UsageError
from refold.schemas.keys import SigningKey
from refold.state.model_state import ModelState


class Federation(Enrolling, Forgetting, Recovering, Auditing, Following):
    """A federation that exists; made by `create` or found by `connect`. Use as a context manager, or `close` it."""

    def serve(
        self,
        groups: Sequence[str] = GROUPS,
        *,
        member: str = "",
        ensemble: Ensemble | None = None,
        even_incomplete: bool = False,
        health: HealthSettings | None = None,
        evaluate: str = "",
    ) -> Server:
        """Return a server of these groups: start it, or use it as a context manager.

        Parameters
        ----------
        even_incomplete
            Serve a copy that was cut off, because its source is lost: what its log lacks is judged anew or gone.
        health
            How nodes are watched; by the defaults if None.
        evaluate
            A program that says what the newest model is worth, such as ``python evaluate.py {model}``: it is given a
            safetensors file, and prints a number or an object of metrics as JSON on its last line. Its word is watched as
            clients' are.

        Raises
        ------
        NotFoundError, ConfigurationError
            The server's secret is not in the key folder, or not this federation's.
        TryAgainError, UsageError
            This is a copy, and not a complete one.
        """
        if not even_incomplete:
            require_whole(self.bus, self.name)
        secret = self.keyring.secret(self.genesis.secret_digest)
        return Server(
            self.bus,
            self.topics,
            secret,
            groups=groups,
            member=member,
            ensemble=ensemble,
            keys=self.keyring.sealing,
            health=health,
            evaluation=Evaluation.of(evaluate) if evaluate else None,
        )

    def client(
        self,
        name: str,
        *,
        key: str | Path | SigningKey | None = None,
        properties: Mapping[str, Scalar] | None = None,
        outbox: str | Path | None = None,
        open_timeout_s: float = 60.0,
        privacy: Privacy | None = None,
        sealed: bool = False,
    ) -> Client:
        """Return a client; use it as a context manager.

        Parameters
        ----------
        key
            Its private key, or the PEM file that holds it. None, with an outbox, where clients are not identified.
        outbox
            Folder for what is not acknowledged yet; beside the key file if not given.
        privacy
            Clip what is sent and add noise to it; what is spent is kept in the outbox's folder.
        sealed
            Train only with a sealing key, and wait for one at the start. Without this, updates are sealed once there is one.
        """
        signing = SigningKey.load(key) if isinstance(key, str | Path) else key
        if outbox is None:
            if not isinstance(key, str | Path):
                raise UsageError("a client whose key is no file needs an outbox folder", hint="client(…, outbox=FOLDER)")
            outbox = outbox_beside(key)
        return Client(
            self.bus,
            self.topics,
            name,
            signing,
            Outbox(outbox),
            properties=properties,
            open_timeout_s=open_timeout_s,
            privacy=privacy,
            sealed=sealed,
        )

    def end(self, reason: str = "ended by the operator") -> bytes:
        """End the federation. Needs the operator's key."""
        return self.command(EndFederation(reason))

    def rebuild(
        self, round_: int | None = None, *, start: int | None = None, verify: bool = True, threads: int = 1
    ) -> ModelState:
        """Return the state of a round (the newest if None), replayed from the log and checked against its digest.

        Parameters
        ----------
        start
            Replay from the snapshot of this round; the nearest one if None.

        Raises
        ------
        NotFoundError
            No such round.
        IntegrityError
            The log, its steps and snapshots do not give the recorded state.
        """
        history = self.history()
        try:
            wanted = history.lineage.head if round_ is None else round_
            return history.rebuild(wanted, start=start, verify=verify, threads=threads)
        finally:
            history.close()

    def export(
        self,
        target: str | Bus,
        *,
        topics: Collection[str] = (),
        verify: bool = False,
        security: KafkaSecurity | None = None,
        progress: Progress | None = None,
    ) -> Copied:
        """Copy the federation to another bus, or go on with a copy; every record keeps its offset. See `refold.bus.copying`.

        Parameters
        ----------
        target
            A bus or its URL; a SQLite file is made if it is not there.
        topics
            Short names of those to copy, for readers; all if empty.
        verify
            Compare every record afterwards.
        security
            How the target is spoken to, where that is a Kafka cluster by its URL. If None, as ``REFOLD_OTHER_KAFKA_*`` says:
            this bus's own account is not shown to another.
        """
        bus = target if not isinstance(target, str) else open_bus(target, security=security or other_security())
        try:
            return copy_federation(self.bus, bus, self.name, topics=topics, verify=verify, progress=progress)
        finally:
            if isinstance(target, str):
                bus.close()

    def close(self) -> None:
        """Let go of the bus. Idempotent."""
        self.bus.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def connect(
    url: str,
    *,
    keys: str | Path | None = None,
    security: KafkaSecurity | None = None,
    bus: Bus | None = None,
) -> Federation:
    """Find the federation that a URL names.

    Parameters
    ----------
    keys
        The server's and operator's key folder; see `refold.keyring.key_folder`. Clients and readers need none.
    security
        How a Kafka cluster is spoken to: TLS, certificates, account. If None, as ``REFOLD_KAFKA_*`` says in the environment.

    Raises
    ------
    NotFoundError
        There is none, or several and the URL names none of them.
    """
    bus = bus or open_bus(url, create=False, security=security)
    found = federations_in(bus.topics())
    wanted = parse_url(url).federation
    if wanted is None and len(found) == 1:
        wanted = found[0]
    if wanted is None or wanted not in found:
        _let_see(bus, wanted)
        if not found:
            named = f" {wanted!r}, nor any other," if wanted else ""
            raise NotFoundError(f"there is no federation{named} on this bus", hint="make one with `refold init`")
        hint = "name one in the URL: sqlite:FILE?federation=NAME"
        said = f"no federation {wanted!r} on this bus" if wanted else "several federations are on this bus"
        raise NotFoundError(f"{said}; there: {', '.join(found)}", hint=hint)
    return Federation(bus, wanted, key_folder(url, keys))


def _let_see(bus: Bus, federation: str | None) -> None:
    """Close a bus on which a federation is not seen; ConfigurationError if that is for lack of a right, which hides topics."""
    try:
        if federation is not None:
            bus.end_offset(Place(Topics(federation).rounds, 0))
    except (NotFoundError, UsageError):
        pass  # There is none, or none can be called so.
    finally:
        bus.close()
