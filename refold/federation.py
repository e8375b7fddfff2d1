"""`Federation`: one federation on one bus, the way in for everyone."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from refold.bus import open_bus, parse_url
from refold.bus.clock import SystemClock
from refold.bus.contract import Bus, Place
from refold.bus.copy_place import require_whole
from refold.bus.copying import Copied, copy_federation
from refold.bus.ledger import LedgerReader, read_all
from refold.bus.payloads import PayloadReader
from refold.bus.security import KafkaSecurity, other_security
from refold.bus.topics import Topics, federations_in
from refold.consumers.attached import GENESIS, LEDGERS, Context, Handler, Subscription
from refold.consumers.audit.findings import Progress
from refold.consumers.audit.run import Audit, Report, silent
from refold.consumers.commands import send_command
from refold.consumers.detectors import Ensemble
from refold.consumers.features import Features
from refold.consumers.proving import checkpoints_of, covering, prove_inclusion
from refold.consumers.roster import Roster
from refold.consumers.server import GROUPS, Server, read_genesis
from refold.evidence import Evidence
from refold.keyring import Keyring, key_folder
from refold.producers.client import Client
from refold.producers.enrolment import read_token, request_key, token_text
from refold.producers.history import History
from refold.producers.outbox import Outbox, outbox_beside
from refold.producers.privacy import Privacy
from refold.producers.publisher import send_waiting
from refold.schemas.canonical import Scalar
from refold.schemas.checks import AdmitToken, BanClient, EndFederation, EnrolClient, ReleaseClient, RevokeKeys
from refold.schemas.erasure import ChangePruning, EraseClient, KeyClient
from refold.schemas.errors import NotFoundError, UsageError
from refold.schemas.events import Genesis, UpdateAccepted, UpdateRejected
from refold.schemas.identity import EnrolmentToken
from refold.schemas.kept import Kept
from refold.schemas.keys import SigningKey
from refold.schemas.proofs import InclusionProof
from refold.state.model_state import ModelState


class Federation:
    """A federation that exists; made by `create` or found by `connect`. Use as a context manager, or `close` it."""

    def __init__(self, bus: Bus, name: str, keys: Path) -> None:
        self.bus = bus
        self.topics = Topics(name)
        self.keyring = Keyring(keys)
        self._handlers: list[tuple[str, str, str, Handler]] = []
        self._genesis: Genesis | None = None

    @property
    def name(self) -> str:
        """The federation's name."""
        return self.topics.federation

    @property
    def url(self) -> str:
        """The bus URL."""
        return self.bus.url

    @property
    def genesis(self) -> Genesis:
        """The first event of the log: schema, policies, first plan."""
        if self._genesis is None:
            self._genesis = read_genesis(self.bus, self.topics)
        return self._genesis

    def serve(
        self,
        groups: Sequence[str] = GROUPS,
        *,
        member: str = "",
        ensemble: Ensemble | None = None,
        even_incomplete: bool = False,
    ) -> Server:
        """Return a server of these groups: start it, or use it as a context manager.

        Parameters
        ----------
        even_incomplete
            Serve a copy that was cut off, because its source is lost: what its log lacks is judged anew or gone.

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
        return Server(self.bus, self.topics, secret, groups=groups, member=member, ensemble=ensemble, keys=self.keyring.sealing)

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

    def enroll(self, name: str, public_key: bytes) -> bytes:
        """Let a public key (32 bytes) speak for a client from now on; return the command's id. Needs the operator's key."""
        return self.command(EnrolClient(name, public_key))

    def token(self, name: str, *, rounds: int | None = None) -> str:
        """Return a one-time token by which a client of this name enrols one key by itself. Needs the operator's key.

        Parameters
        ----------
        rounds
            How many rounds from now on it is taken; None for any.
        """
        token, public = new_token(self, name, rounds)
        self.command(AdmitToken(name, public, token.last_round))
        return token_text(token)

    def redeem(self, token: str, key: str | Path | SigningKey, *, timeout_s: float = 60.0) -> SigningKey:
        """Enrol a client's key by a token; return once it is enrolled. Called at the client; calling it again does no harm.

        Parameters
        ----------
        key
            The new key, or the PEM file that holds it, which is made if it is not there.

        Raises
        ------
        UsageError
            The token is none, or another federation's.
        RefoldError
            It was refused: the token is used, cancelled or out of date.
        TryAgainError
            No server answered in time.
        """
        read = read_token(token)
        if read.federation != self.name:
            raise UsageError(f"the token is for the federation {read.federation!r}", hint=f"this one is {self.name!r}")
        new = key if isinstance(key, SigningKey) else SigningKey.load_or_create(key)
        authority = SigningKey.from_seed(read.seed)
        request_key(self.bus, self.topics, read.client, authority, new, clock=SystemClock(), timeout_s=timeout_s)
        return new

    def rotate(self, name: str, key: str | Path, new_key: str | Path, *, timeout_s: float = 60.0) -> SigningKey:
        """Replace a client's key by a new one; return once that is enrolled. Called at the client, while it does not run.

        Durable steps: 1. what the outbox beside the old key holds is sent, so that it lies before the request and stays valid;
        2. the new key is made; 3. it is asked for, and enrolled; 4. the outbox is put beside the new key. After a crash, call
        it again.

        Parameters
        ----------
        key, new_key
            The PEM files; the new one is made if it is not there.

        Raises
        ------
        RefoldError
            It was refused: the old key counts no more, or the client is kept out.
        TryAgainError
            No server answered in time.
        """
        old, folder = SigningKey.load(key), outbox_beside(key)
        # 1. The outbox.
        if folder.exists():
            send_waiting(self.bus, self.topics, name, old, Outbox(folder), SystemClock())
        # 2. The key.
        new = SigningKey.load_or_create(new_key)
        # 3. The request.
        request_key(self.bus, self.topics, name, old, new, clock=SystemClock(), timeout_s=timeout_s)
        # 4. The outbox's place.
        if folder.exists() and not outbox_beside(new_key).exists():
            folder.rename(outbox_beside(new_key))
        return new

    def revoke(self, name: str, *key_ids: bytes, reason: str = "") -> bytes:
        """Revoke keys and tokens of a client (8 bytes each; all that it has if none is named); return the command's id.

        What they signed and has no verdict yet is refused, too. Needs the operator's key.
        """
        return self.command(RevokeKeys(name, key_ids, reason))

    def release(self, name: str, reason: str = "") -> bytes:
        """Let a client that was frozen or banned take part again; return the command's id. Needs the operator's key."""
        return self.command(ReleaseClient(name, reason))

    def ban(self, name: str, reason: str = "") -> bytes:
        """Take nothing of a client from now on; return the command's id. Needs the operator's key."""
        return self.command(BanClient(name, reason))

    def seal(self, name: str) -> bytes:
        """Let a client seal its updates from now on to a key of its own; return the command's id. Needs the operator's key.

        The private half is made in the key folder; every machine that serves needs a copy of it.
        """
        operator = self.keyring.operator()
        key = self.keyring.sealing.create(name)
        return send_command(self.bus, self.topics, KeyClient(name, key.public), operator, SystemClock())

    def erase(self, name: str, reason: str = "erased by the operator") -> bytes:
        """Void a client's sealing keys; return the command's id. Needs the operator's key.

        Servers destroy the keys once every round that needs them is made. The log, its rounds and rebuilds stay as they are.
        """
        return self.command(EraseClient(name, reason))

    def prune(self, *, keep_rounds: int | None = None, before_round: int | None = None) -> bytes:
        """Let payloads of old rounds go; return the command's id. Needs the operator's key.

        Parameters
        ----------
        keep_rounds
            Of how many rounds, the newest, payloads are kept from now on; 0 keeps those of all. None leaves that as it is.
        before_round
            Those of rounds below this one go at once. None leaves that as it is.
        """
        return self.command(ChangePruning(keep_rounds, before_round))

    def end(self, reason: str = "ended by the operator") -> bytes:
        """End the federation. Needs the operator's key."""
        return self.command(EndFederation(reason))

    def command(self, body: object) -> bytes:
        """Sign a command with the operator's key and write it."""
        return send_command(self.bus, self.topics, body, self.keyring.operator(), SystemClock())

    def roster(self) -> Roster:
        """Return what `accepted` says of clients and the open round, as detection sees it."""
        roster = Roster.of(self.genesis)
        for entry in read_all(self.bus, self.topics.accepted):
            roster.fold(entry)
        return roster

    def history(self) -> History:
        """Return all rounds and snapshots as they stand; close it after use."""
        history = History(self.bus, self.topics, genesis=self.genesis)
        history.refresh()
        return history

    @property
    def head(self) -> int:
        """The newest round."""
        history = self.history()
        try:
            return history.lineage.head
        finally:
            history.close()

    @property
    def ended(self) -> bool:
        """Whether the federation has ended: nothing is accepted any more."""
        history = self.history()
        try:
            return history.lineage.ended is not None
        finally:
            history.close()

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

    def verify(
        self, *, quick: bool = False, against: Iterable[str | Path | Kept] = (), progress: Progress | None = None
    ) -> Report:
        """Audit the whole federation; see `refold.consumers.audit`. Never raises for what it finds.

        Parameters
        ----------
        quick
            Read the logs alone: no replay, no steps derived again.
        against
            What was kept outside: files or folders of checkpoints (a client's outbox is one), other copies of the log.
        """
        with Evidence(self.name, against) as kept:
            signed = [one.signed for one in kept.kept]
            audit = Audit(self.bus, self.topics, quick=quick, against=signed, copies=kept.copies, keys=self.keyring.sealing)
            return audit.report(progress or silent)

    def checkpoints(self) -> list[Kept]:
        """Return every signed checkpoint of the log, the newest last: worth keeping anywhere else."""
        return checkpoints_of(self.bus, self.topics, self.genesis)

    def prove(self, index: int, *, kept: Kept | None = None, progress: Progress | None = None) -> InclusionProof:
        """Prove to anyone that an event of `accepted` is in the log that was signed.

        Parameters
        ----------
        kept
            The checkpoint to rest it on; the newest if None.
        """
        chosen = kept or covering(index, self.checkpoints())
        return prove_inclusion(self.bus, self.topics, index, chosen, progress or silent)

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

    def close(self) -> None:
        """Let go of the bus. Idempotent."""
        self.bus.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def new_token(federation: Federation, name: str, rounds: int | None) -> tuple[EnrolmentToken, bytes]:
    """Return a new token for a client, and its public key, which an operator must admit before it is taken."""
    if rounds is not None and rounds < 1:
        raise UsageError(f"a token that is taken for {rounds} rounds is of no use", hint="give 1 or more, or none")
    seed = os.urandom(32)
    last_round = 0 if rounds is None else federation.head + rounds
    return EnrolmentToken(federation.name, name, seed, last_round), SigningKey.from_seed(seed).public


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
        there = ", ".join(found) or "none"
        hint = "make one with `refold init`" if not found else "name one in the URL: sqlite:FILE?federation=NAME"
        raise NotFoundError(f"no federation{f' {wanted!r}' if wanted else ' chosen'} on this bus; there: {there}", hint=hint)
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
