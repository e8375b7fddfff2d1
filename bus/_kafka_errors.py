"""What Kafka's errors mean to Refold: asked again it may go, nobody knows, or it is refused."""

from __future__ import annotations

import warnings

from refold.schemas.errors import BusError, ConfigurationError, RefoldError

with warnings.catch_warnings():
    # kafka-python 3.0 reads its own files in a way that Python 3.11 calls out of date.
    warnings.simplefilter("ignore", DeprecationWarning)
    import kafka.errors


class Unanswered(Exception):
    """A broker did not answer within the time it was given: whether it did what was asked is not known."""


class Again(Exception):
    """The cluster is not ready for this now; asked again it may be."""


class NoAnswer(BusError):
    """A question found no answer in its time, however often it was asked."""


def check(error_code: int) -> None:
    """Raise the error of a response, `Again` for one that goes by itself."""
    if error_code == 0:
        return
    error = kafka.errors.for_code(error_code)()
    if isinstance(error, kafka.errors.RetriableError):
        raise Again(type(error).__name__) from error
    raise error


def address(brokers: tuple[str, ...]) -> str:
    """Return the brokers as in a URL."""
    return ",".join(brokers)


def unreachable(brokers: tuple[str, ...], timeout_s: float) -> BusError:
    """Return the error for a cluster that cannot be reached."""
    hint = "start the broker, or correct the address (the bus URL is kafka://HOST:PORT[,...]/FEDERATION)"
    return BusError(f"no Kafka broker answered within {timeout_s:.3g} s", address=address(brokers), hint=hint)


def no_answer(what: str, timeout_s: float, brokers: tuple[str, ...], error: BaseException, **where: object) -> NoAnswer:
    """Return the error for a question that found no answer in time."""
    hint = "see whether the brokers run and reach each other; Refold goes on where it was once they do"
    message = f"{what} found no answer within {timeout_s:.3g} s ({error})"
    return NoAnswer(message, address=address(brokers), hint=hint, **where)


RIGHTS = {
    "sending": "Write",
    "reading": "Read",
    "deleting records": "Delete",
    "creating topics": "Create",
    "reading the topics' settings": "DescribeConfigs",
    "storing a group's positions": "Read",
    "keeping the place in the group": "Read",
    "joining the group": "Read",
}
"""What is done → the operation that Kafka's ACLs call it; all else is Describe, which each of these brings along."""


def refused(what: str, error: BaseException, *, account: str | None = None, **where: object) -> RefoldError:
    """Return the error for what a broker refused: with the right that lacks, where it is that."""
    name = type(error).__name__
    if not isinstance(error, kafka.errors.AuthorizationError):
        return BusError(f"{what}: the broker refused ({name})", hint="see the broker's log for why", **where)
    # No restart mends this, and asking again and again would only fill the broker's log.
    who = account or "User:ANONYMOUS"
    right = RIGHTS.get(what, "Describe")
    hint = f"have {right} granted, if it is to have it: `refold doctor --acls` prints the commands for each role"
    where |= {"operation": right, "account": who}
    return ConfigurationError(f"{what}: the broker's ACLs do not let this account ({name})", hint=hint, **where)
