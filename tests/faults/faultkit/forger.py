"""A liar with all of the server's power: logs written anew in the bus's file, every hash right, signed if it has the key."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from refold.schemas.canonical import decode, encode
from refold.schemas.checkpoints import sign_checkpoint
from refold.schemas.commits import Commit, commit_hash, root_hash
from refold.schemas.events import Checkpointed
from refold.schemas.keys import SigningKey
from refold.schemas.merkle import leaf_hash, root_of

Change = Callable[[int, Any], Any]

_IDS = """SELECT records.id, records.value FROM records JOIN partitions ON records.id >> 40 = place_id
          JOIN topics USING (topic_id) WHERE topics.name = ? ORDER BY records.id"""


@dataclass
class Forger:
    """Rewrites a federation in a SQLite file that nobody has open.

    Parameters
    ----------
    key
        The log key, if it has it: then its checkpoints are signed as the server's own are.
    """

    file: Path
    federation: str
    key: SigningKey | None = None

    def rewrite(self, change: Change) -> None:
        """Pass every event of `accepted` through `change` (index, event), and make both logs whole again."""
        with self._rows("accepted") as (rows, write):
            commits = [decode(value, Commit) for _, value in rows]
            events = [tuple(_changed(change, commit, at) for at in range(commit.count)) for commit in commits]
            made = _chained(f"{self.federation}.accepted", commits, events)
            write([encode(commit) for commit in made])
        heads = {commit.next_index: commit_hash(encode(commit)) for commit in made}
        self._rewrite_rounds([event for each in events for event in each], heads)

    def _rewrite_rounds(self, events: list[bytes], heads: dict[int, bytes]) -> None:
        with self._rows("rounds") as (rows, write):
            written: list[bytes] = []
            head = root_hash(f"{self.federation}.rounds")
            for _, value in rows:
                commit = decode(value, Commit)
                position = replace(commit.position, accepted_hash=heads[commit.position.accepted_index])
                commit = replace(commit, previous=head, position=position)
                written.append(encode(self._signed(commit, events)))
                head = commit_hash(written[-1])
            write(written)

    def _signed(self, commit: Commit, events: list[bytes]) -> Commit:
        """Return a commit of `rounds` with its checkpoint made anew, as far as the key is there."""
        *others, last = commit.events
        made = decode(last)
        if self.key is None or not isinstance(made, Checkpointed):
            return commit
        said = replace(
            made.signed.checkpoint,
            root=root_of(map(leaf_hash, events[: made.signed.checkpoint.events])),
            head=commit.position.accepted_hash,
            rounds_head=commit.previous,
        )
        path = _consistency(events, made.previous_events, said.events)
        anew = Checkpointed(sign_checkpoint(said, self.key), made.previous_events, path)
        return replace(commit, events=(*others, encode(anew)))

    def cut(self, commits_of_rounds: int) -> int:
        """Cut so many commits off `rounds`, and off `accepted` what they cover; return how many events it has left."""
        with self._rows("rounds") as (rows, _):
            covered = decode(rows[-1 - commits_of_rounds][1], Commit).position.accepted_index
            first = rows[len(rows) - commits_of_rounds][0]
        self._drop(first)
        with self._rows("accepted") as (rows, _):
            first = next(row for row, value in rows if decode(value, Commit).first_index >= covered)
        self._drop(first)
        return covered

    def _drop(self, first_row: int) -> None:
        with closing(sqlite3.connect(self.file)) as connection, connection:
            place = first_row >> 40
            connection.execute("DELETE FROM records WHERE id >= ? AND id >> 40 = ?", (first_row, place))
            offset = first_row & ((1 << 40) - 1)
            connection.execute("UPDATE partitions SET next_offset = ? WHERE place_id = ?", (offset, place))

    @contextmanager
    def _rows(self, topic: str) -> Iterator[tuple[list[tuple[int, bytes]], Callable[[list[bytes]], None]]]:
        with closing(sqlite3.connect(self.file)) as connection, connection:
            rows = connection.execute(_IDS, (f"{self.federation}.{topic}",)).fetchall()

            def write(values: list[bytes]) -> None:
                pairs = [(value, row) for (row, _), value in zip(rows, values, strict=True)]
                connection.executemany("UPDATE records SET value = ? WHERE id = ?", pairs)

            yield rows, write


def _changed(change: Change, commit: Commit, at: int) -> bytes:
    """Return an event's bytes: its own, where it stays as it is."""
    event = decode(commit.events[at])
    other = change(commit.first_index + at, event)
    return commit.events[at] if other == event else encode(other)


def _chained(topic: str, commits: list[Commit], events: list[tuple[bytes, ...]]) -> list[Commit]:
    made, head = [], root_hash(topic)
    for commit, each in zip(commits, events, strict=True):
        made.append(replace(commit, previous=head, events=each))
        head = commit_hash(encode(made[-1]))
    return made


def _consistency(events: list[bytes], old: int, new: int) -> tuple[bytes, ...]:
    """Return a proof by the definition: the recursion of RFC 6962, section 2.1.2."""
    leaves = [leaf_hash(data) for data in events[:new]]

    def proof(below: int, part: list[bytes], *, whole: bool) -> list[bytes]:
        if below == len(part):
            return [] if whole else [root_of(part)]
        left = 1 << (len(part) - 1).bit_length() - 1
        if below <= left:
            return [*proof(below, part[:left], whole=whole), root_of(part[left:])]
        return [*proof(below - left, part[left:], whole=False), root_of(part[:left])]

    return tuple(proof(old, leaves, whole=True)) if old else ()
