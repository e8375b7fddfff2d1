"""Who may speak for a client: keys enrolled, replaced and revoked, clients kept out and let in again."""

from __future__ import annotations

import os
from pathlib import Path

from refold.bus.clock import SystemClock
from refold.opened import Opened
from refold.producers.enrolment import read_token, request_key, token_text
from refold.producers.outbox import Outbox, outbox_beside
from refold.producers.publisher import send_waiting
from refold.schemas.checks import AdmitToken, BanClient, EnrolClient, ReleaseClient, RevokeKeys
from refold.schemas.errors import UsageError
from refold.schemas.identity import EnrolmentToken
from refold.schemas.keys import SigningKey


class Enrolling(Opened):
    """What operators and clients do about clients' keys."""

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


def new_token(federation: Opened, name: str, rounds: int | None) -> tuple[EnrolmentToken, bytes]:
    """Return a new token for a client, and its public key, which an operator must admit before it is taken."""
    if rounds is not None and rounds < 1:
        raise UsageError(f"a token that is taken for {rounds} rounds is of no use", hint="give 1 or more, or none")
    seed = os.urandom(32)
    last_round = 0 if rounds is None else federation.head + rounds
    return EnrolmentToken(federation.name, name, seed, last_round), SigningKey.from_seed(seed).public
