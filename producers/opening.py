"""What a client waits for before it begins: a federation that is open, a log that is whole, a key to seal with."""

from __future__ import annotations

import logging
from collections.abc import Callable

from refold.bus.clock import Clock
from refold.producers.history import History
from refold.producers.lineage import Lineage
from refold.producers.own_key import OwnKey
from refold.producers.sealer import Sealer
from refold.producers.witness import Witness
from refold.schemas.errors import ConfigurationError, TryAgainError
from refold.schemas.identity import INSECURE

log = logging.getLogger("refold.client")


def wait_until_open(
    history: History, witness: Witness, sealer: Sealer, *, client: str, clock: Clock, timeout_s: float, poll_s: float
) -> None:
    """Read `rounds` to its end, and on until there is all that a client begins with.

    Raises
    ------
    TryAgainError
        The federation did not open in time, or a client that must seal has no key.
    IntegrityError
        The log is not the one that an earlier life saw.
    """
    wait_for = _waiting(history, clock, timeout_s, poll_s)
    history.refresh()
    if not wait_for(lambda: history.lineage.opened is not None):
        raise TryAgainError("the federation did not open", hint="is its server running? start it with `refold serve`")
    # A bus whose leaders have just changed may show less for a moment.
    wait_for(lambda: not witness.is_behind)
    witness.require_whole()
    if not wait_for(lambda: sealer.has_key or not sealer.required):
        raise TryAgainError("this client has no sealing key", client=client, hint="make one with `refold seal CLIENT`")


def wait_until_enrolled(history: History, own_key: OwnKey, *, clock: Clock, timeout_s: float, poll_s: float) -> None:
    """Return once the log does not speak against a client's key, or has ended: whoever trains with another trains in vain.

    Raises
    ------
    ConfigurationError
        The key was revoked.
    TryAgainError
        It was not enrolled in time.
    """
    own_key.require()
    if own_key.is_strange:
        log.warning("waiting for that: %s", own_key.not_enrolled())
        wait_for = _waiting(history, clock, timeout_s, poll_s)
        if not wait_for(lambda: not own_key.is_strange or history.lineage.ended is not None):
            raise own_key.not_enrolled()


def _waiting(history: History, clock: Clock, timeout_s: float, poll_s: float) -> Callable[[Callable[[], bool]], bool]:
    """Return what reads `rounds` until something is there, and says whether it is; all waits together have so long."""
    deadline_s = clock.monotonic_s() + timeout_s

    def wait_for(is_there: Callable[[], bool]) -> bool:
        while not is_there():
            if clock.monotonic_s() > deadline_s:
                return False
            history.rounds.poll(poll_s)
        return True

    return wait_for


def say_how_clients_are_known(lineage: Lineage, federation: str, *, has_key: bool) -> None:
    """Say so where nobody asks who clients are; ConfigurationError where somebody does, of a client without a key."""
    if lineage.opened is not None and not lineage.opened.identity.required:
        log.warning("%s is %s", federation, INSECURE)
    elif not has_key:
        raise ConfigurationError("this federation asks who its clients are", hint="give the client a key that is enrolled")
