"""Groups and their positions in the bus's file. A group's membership is one row of JSON, changed as a whole."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from refold.bus._groups import Group, Member
from refold.bus._sqlite_records import DAMAGED
from refold.bus.contract import Committed, Place
from refold.schemas.errors import IntegrityError


def load_generation(connection: sqlite3.Connection, name: str) -> int:
    """Return the group's generation, 0 if there is no such group."""
    rows = connection.execute("SELECT generation FROM groups WHERE name = ?", (name,)).fetchall()
    return int(rows[0][0]) if rows else 0


def load_group(connection: sqlite3.Connection, name: str) -> Group:
    """Return the group, an empty one if there is none."""
    rows = connection.execute("SELECT generation, membership FROM groups WHERE name = ?", (name,)).fetchall()
    if not rows:
        return Group()
    try:
        return _group(rows[0][0], json.loads(rows[0][1]))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise IntegrityError("the bus file holds a group that cannot be read", group=name, hint=DAMAGED) from error


def _group(generation: int, kept: Any) -> Group:
    members = [Member(**{**member, "topics": tuple(member["topics"])}) for member in kept["members"]]
    for topic, partition, holder in (*kept["assigned"], *kept["held"]):
        if not isinstance(topic, str) or type(partition) is not int or not isinstance(holder, str):
            raise TypeError("a place that is none")
    return Group(
        generation=generation,
        members={member.name: member for member in members},
        assigned={Place(topic, partition): holder for topic, partition, holder in kept["assigned"]},
        held={Place(topic, partition): holder for topic, partition, holder in kept["held"]},
    )


def save_group(connection: sqlite3.Connection, name: str, group: Group) -> None:
    """Store the group."""
    membership = {
        "members": [asdict(member) for member in group.members.values()],
        "assigned": [[*place, holder] for place, holder in sorted(group.assigned.items())],
        "held": [[*place, holder] for place, holder in sorted(group.held.items())],
    }
    text = json.dumps(membership, separators=(",", ":"))
    connection.execute("INSERT OR REPLACE INTO groups VALUES (?, ?, ?)", (name, group.generation, text))


def load_offset(connection: sqlite3.Connection, group: str, place_id: int) -> Committed | None:
    """Return the group's stored position at a place."""
    sql = "SELECT next_offset, metadata FROM group_offsets WHERE group_name = ? AND place_id = ?"
    rows = connection.execute(sql, (group, place_id)).fetchall()
    return Committed(*rows[0]) if rows else None


def save_offsets(connection: sqlite3.Connection, group: str, offsets: Mapping[int, Committed]) -> None:
    """Store positions by place id."""
    rows = [(group, place_id, at.next_offset, at.metadata) for place_id, at in offsets.items()]
    connection.executemany("INSERT OR REPLACE INTO group_offsets VALUES (?, ?, ?, ?)", rows)


def load_lag(connection: sqlite3.Connection, group: str) -> dict[Place, int]:
    """Return end offset − stored next offset, for each place where the group stored a position."""
    sql = """
        SELECT name, partition, partitions.next_offset - group_offsets.next_offset
        FROM group_offsets JOIN partitions USING (place_id) JOIN topics USING (topic_id)
        WHERE group_name = ? ORDER BY name, partition
    """
    return {Place(name, partition): lag for name, partition, lag in connection.execute(sql, (group,)).fetchall()}
