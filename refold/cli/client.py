"""``refold client``: a client that trains with a function of yours."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import click

from refold.cli.init import pairs
from refold.cli.options import Common, common
from refold.cli.ordering import asking_for_a_key
from refold.cli.output import log_to_stderr, note, short
from refold.federation import Federation
from refold.producers.answers import DIVERGED, UNHEARD
from refold.producers.client import Client
from refold.producers.enrolment import read_token
from refold.producers.privacy import Privacy
from refold.producers.task import Receipt, Task
from refold.schemas.errors import UsageError

Function = Callable[[Task], Any]
RETURNS = "submit on the task, or return (state, num_examples) or (state, num_examples, metrics)"


@click.command(short_help="Run a client that trains with your function.")
@common
@click.argument("name")
@click.option("--key", metavar="FILE", help="The client's private key.  [none, where clients are not identified]")
@click.option(
    "--train", "train", required=True, metavar="MODULE:FUNCTION", help="What trains; the module may lie in this folder."
)
@click.option("--property", "properties", metavar="NAME=VALUE", multiple=True, help="Told with every heartbeat.")
@click.option("--token", metavar="TOKEN", help="Enrol the key by this token first; the key is made where it is not there.")
@click.option("--outbox", metavar="DIR", help="What is not acknowledged yet.  [beside the key]")
@click.option("--clip-norm", type=float, help="Clip every change to this length, and add noise. Needs --noise-multiplier.")
@click.option("--noise-multiplier", type=float, help="Deviation of the noise on every parameter, in clips.")
@click.option("--privacy-delta", type=float, default=1e-5, show_default=True, help="δ of the privacy guarantee.")
@click.option("--privacy-epsilon", type=float, help="ε that may be spent; beyond it rounds are declined.  [no limit]")
@click.option("--sealed", is_flag=True, help="Train only with a sealing key: never send an update in the clear.")
@click.option("--watch-log", metavar="FILE", multiple=True, help="Tell what this log comes to; - is Python's own logging.")
@click.option("--open-timeout", type=float, default=60.0, show_default=True, help="Seconds to wait for the federation to open.")
def client(common: Common, name: str, key: str | None, train: str, properties: tuple[str, ...], **chosen: Any) -> None:
    """Run the client NAME until the federation ends.

    The function is called with each task. It either submits on the task itself, or returns (state, num_examples, metrics); of
    an evaluation (`task.evaluate`) it returns the metrics, "loss" among them.
    """
    function = _function(train)
    log_to_stderr()
    signal.signal(signal.SIGTERM, _interrupt)
    with common.federation() as federation:
        if chosen["token"] is not None:
            if key is None:
                raise UsageError("--token needs --key: the file for the client's key")
            _redeem(federation, name, chosen["token"], key, chosen["open_timeout"])
        opened = federation.client(
            name,
            key=key,
            properties=pairs(properties),
            outbox=chosen["outbox"] or (None if key is not None else f"{name}.outbox"),
            open_timeout_s=chosen["open_timeout"],
            privacy=_privacy(chosen),
            sealed=chosen["sealed"],
        )
        with opened as member:
            for file in chosen["watch_log"]:
                member.watch_log(None if file == "-" else file)
            _work(member, function)
            if member.privacy is not None:
                note(f"privacy: ε {member.privacy.epsilon():.3g} spent at δ {member.privacy.setting.delta:g}")


def _privacy(chosen: dict[str, Any]) -> Privacy | None:
    clip_norm, noise_multiplier = chosen["clip_norm"], chosen["noise_multiplier"]
    if (clip_norm is None) != (noise_multiplier is None):
        raise UsageError("--clip-norm and --noise-multiplier go together")
    if clip_norm is None:
        return None
    return Privacy(clip_norm, noise_multiplier, chosen["privacy_delta"], chosen["privacy_epsilon"])


def _redeem(federation: Federation, name: str, token: str, key: str, timeout_s: float) -> None:
    """Enrol the client's key; at once where that was done by an earlier start."""
    if read_token(token).client != name:
        raise UsageError(f"the token is for the client {read_token(token).client!r}")
    with asking_for_a_key():
        federation.redeem(token, key, timeout_s=timeout_s)


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _function(words: str) -> Function:
    """Load MODULE:FUNCTION, looking in the current folder first.

    Raises
    ------
    UsageError
        There is no such module or function. Errors inside the module are raised as they are.
    """
    module_name, colon, name = words.partition(":")
    if not colon or not module_name or not name:
        raise UsageError(f"--train {words!r} is not MODULE:FUNCTION")
    sys.path.insert(0, os.getcwd())
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name != module_name.split(".")[0] and error.name != module_name:
            raise
        raise UsageError(f"no module {module_name!r}", hint=f"is {module_name}.py in {os.getcwd()}?") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise UsageError(f"{module_name} has no function {name!r}")
    found: Function = function
    return found


def _work(member: Client, function: Function) -> None:
    waiting: dict[bytes, int] = {}
    # Heard while the client waits, too: after a refusal there may be no next task.
    member.on_outcome = lambda digest, outcome: _tell_outcome(waiting, digest, outcome)
    for task in member.tasks():
        receipt = _answer(task, function(task))
        if task.is_declined:
            note(f"round {task.round}: declined")
        elif receipt.outcome != DIVERGED:
            note(f"round {task.round}: {'evaluated' if task.evaluate else 'trained'}, update {short(receipt.digest)} sent")
            waiting[receipt.digest] = task.round
            if receipt.outcome is not None:  # The function waited for it.
                _tell_outcome(waiting, receipt.digest, receipt.outcome)
    note("the federation has ended")


def _tell_outcome(waiting: dict[bytes, int], digest: bytes, outcome: str) -> None:
    """Say what became of an update that was sent by this process, once."""
    round_ = waiting.pop(digest, None)
    if round_ is None:
        return
    # What nobody is held to is counted, not kept by its digest: `refold show` would not find it.
    look = "`refold log --type Unattributed`, or `refold show` of this client," if outcome == UNHEARD else None
    why = f"refused ({outcome}); at the server {look or f'`refold show {short(digest)}`'} says why"
    note(f"round {round_}: {outcome if outcome == 'accepted' else why}")


def _answer(task: Task, returned: Any) -> Receipt:
    """Send what the function returned, unless it answered the task itself."""
    if task.receipt is not None:
        return task.receipt
    if task.evaluate and isinstance(returned, Mapping) and "loss" in returned:
        metrics = {name: float(value) for name, value in returned.items() if name != "loss"}
        return task.evaluated(loss=float(returned["loss"]), metrics=metrics)
    if task.evaluate:
        return task.decline("does not evaluate")
    if isinstance(returned, tuple) and len(returned) in (2, 3) and isinstance(returned[0], Mapping):
        metrics = dict(returned[2]) if len(returned) == 3 else {}
        return task.submit(returned[0], num_examples=int(returned[1]), metrics=metrics)
    raise UsageError(f"the function returned {type(returned).__name__} and did not submit", round=task.round, hint=RETURNS)
