"""What was kept outside the log, as people name it: files of checkpoints, a client's outbox, another copy of the log."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from refold.bus import open_bus
from refold.bus.contract import Bus
from refold.bus.topics import Topics
from refold.schemas.errors import NotFoundError, UsageError
from refold.schemas.kept import Kept, read_kept

SCHEMES = ("sqlite", "kafka", "memory")
SUFFIXES = (".witness", ".forked", ".json", ".jsonl", ".checkpoint")
"""Files of a folder that are looked into."""

_SQLITE = b"SQLite format 3\0"


@dataclass(slots=True)
class Evidence:
    """Checkpoints, and copies of the log. Use as a context manager: it opens the copies.

    Parameters
    ----------
    words
        Each a file or folder of checkpoints, or a SQLite file or bus URL with a copy of the log.
    """

    federation: str
    words: Iterable[str | Path | Kept]
    kept: list[Kept] = field(default_factory=list)
    copies: list[Bus] = field(default_factory=list)
    _open: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Self:
        with ExitStack() as opening:
            opening.callback(self._open.close)
            for word in self.words:
                self._take(word)
            opening.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._open.close()

    def _take(self, word: str | Path | Kept) -> None:
        if isinstance(word, Kept):
            self._keep([word], "a checkpoint")
        elif is_log(word):
            self._copy(str(word))
        else:
            files = list(_files(Path(word)))
            for path in files:
                self._keep(read_kept(path), path)

    def _keep(self, found: list[Kept], where: object) -> None:
        others = {kept.checkpoint.federation for kept in found} - {self.federation}
        if others:
            raise UsageError(f"that is of federation {others.pop()!r}, not of {self.federation!r}", path=where)
        if not found:
            raise NotFoundError("no checkpoints in it", path=where)
        self.kept += found

    def _copy(self, word: str) -> None:
        bus = open_bus(word if word.partition(":")[0] in SCHEMES else f"sqlite:{word}", create=False)
        self._open.callback(bus.close)
        if Topics(self.federation).accepted not in bus.topics():
            raise NotFoundError(f"no federation {self.federation!r} there", path=word)
        self.copies.append(bus)


def is_log(word: str | Path) -> bool:
    """Whether a word names a bus: by its scheme, or as a SQLite file."""
    if str(word).partition(":")[0] in SCHEMES:
        return True
    path = Path(word)
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_SQLITE)) == _SQLITE


def _files(path: Path) -> Iterator[Path]:
    """Yield the file itself, or the files of a folder that may hold checkpoints."""
    if not path.is_dir():
        yield path
        return
    found = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
    if not found:
        raise NotFoundError("no checkpoints in this folder", path=path, hint=f"they lie in files with {', '.join(SUFFIXES)}")
    yield from found
