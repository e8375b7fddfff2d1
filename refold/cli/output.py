"""What people and programs read: lines that align and can be searched, JSON, and bars on a terminal."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from refold.consumers.audit.findings import Progress
from refold.jsonable import json_text, safe_text


def say(text: str) -> None:
    """Write a line of data."""
    print(safe_text(text))


def note(text: str) -> None:
    """Write a line that is no data, to stderr."""
    print(safe_text(text), file=sys.stderr, flush=True)


def say_json(value: Any, *, indent: int | None = None) -> None:
    """Write a value as JSON; without `indent` on one line."""
    print(json_text(value, indent=indent), flush=True)


class SafeFormatter(logging.Formatter):
    """Writes a line of a log so that nothing in it, whoever it came from, begins another line or moves a cursor."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """Return the line itself."""
        return safe_text(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802
        """Return a traceback, indented, so that none of its lines passes for one of the log's."""
        return "\n".join(f"    {safe_text(line)}" for line in super().formatException(ei).split("\n"))


def log_to_stderr() -> None:
    """Let warnings and worse be told on stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(SafeFormatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    """Yield aligned lines, numbers to the right."""
    cells = [[safe_text(_cell(value)) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    right = [bool(rows) and all(isinstance(row[i], int | float) for row in rows) for i in range(len(header))]
    for line in ([*header], *cells):
        aligned = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True))
        yield "  ".join(aligned).rstrip()


def facts(pairs: Sequence[tuple[str, object]]) -> Iterator[str]:
    """Yield a line for each named value, the values under one another."""
    width = max((len(name) for name, _ in pairs), default=0)
    for name, value in pairs:
        yield f"{name.ljust(width)}  {safe_text(_cell(value))}"


def time_text(time_ms: int) -> str:
    """Return a wall clock's time in UTC, to the second."""
    try:
        return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (OverflowError, ValueError, OSError):
        return f"{time_ms} ms"


def size_text(size_bytes: int) -> str:
    """Return a size in the unit that leaves one to three digits before the point."""
    size = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def number_of(number: int, what: str) -> str:
    """Return so many of something, in the plural where they are not one."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def short(digest: bytes) -> str:
    """Return a digest's first 12 digits, which `refold show` takes."""
    return digest.hex()[:12]


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Show progress on stderr if it is a terminal; yields the function to call."""
    if not sys.stderr.isatty():
        yield lambda what, done, total: None
        return
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, Any] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield show


def _cell(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
