"""``refold top``: rounds, groups, nodes and alerts on one screen, as they change."""

from __future__ import annotations

import select
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from shutil import get_terminal_size

import click

from refold.cli.options import Common, common
from refold.cli.output import say
from refold.cli.overview import Overview
from refold.cli.screen import screen

ENTER, LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
HOME, TO_END_OF_LINE, TO_END = "\x1b[H", "\x1b[K", "\x1b[J"


@click.command(short_help="Show rounds, groups, nodes and alerts, live.")
@common
@click.option("--every", type=click.FloatRange(min=0.2), default=1.0, metavar="SECONDS", help="Look so often.  [1]")
@click.option("--once", is_flag=True, help="Print one screen and stop; so too where the output is no terminal.")
def top(common: Common, every: float, once: bool) -> None:
    """Show the whole federation on one screen until `q` or Ctrl-C. Reads beside everyone else and changes nothing."""
    with common.federation() as federation:
        overview = Overview(federation)
        try:
            if once or not sys.stdout.isatty():
                overview.refresh()
                for line in screen(overview, *get_terminal_size((80, 24)), time.time_ns() // 1_000_000):
                    say(line)
                return
            with _whole_screen() as keys, suppress(KeyboardInterrupt):
                while True:
                    overview.refresh()
                    _draw(overview)
                    if keys(every) in ("q", "Q"):
                        return
        finally:
            overview.close()


def _draw(overview: Overview) -> None:
    width, height = get_terminal_size((80, 24))
    lines = screen(overview, width, height, time.time_ns() // 1_000_000)
    sys.stdout.write(HOME + "\r\n".join(line + TO_END_OF_LINE for line in lines) + TO_END)
    sys.stdout.flush()


class _Keys:
    """Keys as they are pressed, where there is a keyboard."""

    def __call__(self, timeout_s: float) -> str:
        """Return the next key, or "" after so long."""
        if not sys.stdin.isatty():
            time.sleep(timeout_s)
            return ""
        ready, _, _ = select.select([sys.stdin], [], [], timeout_s)
        return sys.stdin.read(1) if ready else ""


@contextmanager
def _whole_screen() -> Iterator[_Keys]:
    """Take the terminal's other screen, and keys without their lines; give both back, whatever happens."""
    import termios
    import tty

    before = termios.tcgetattr(sys.stdin) if sys.stdin.isatty() else None
    try:
        if before is not None:
            tty.setcbreak(sys.stdin)
        sys.stdout.write(ENTER)
        yield _Keys()
    finally:
        sys.stdout.write(LEAVE)
        sys.stdout.flush()
        if before is not None:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
