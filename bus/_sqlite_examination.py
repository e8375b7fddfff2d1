"""What may be wrong with a bus file and the disk under it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil

from refold.bus._sqlite_file import PAGE_BYTES, connect, translated
from refold.bus.contract import TopicSpec
from refold.bus.symptoms import Severity, Symptom

LOW_ROOM_BYTES = 1 << 30
NETWORK_FILE_SYSTEMS = frozenset({"nfs", "nfs4", "cifs", "smbfs", "smb3", "9p", "fuse.sshfs", "afs", "ceph", "glusterfs"})


def examine_file(path: Path, *, thorough: bool) -> Iterator[Symptom]:
    """Look at the disk, the file system and, if `thorough`, the file's own structure: a scan of all its pages."""
    yield _room(path)
    yield _file_system(path)
    if thorough:
        yield _structure(path)


def remedy(spec: TopicSpec, setting: str) -> str:
    """A bus file's topics have no settings that anyone may change: it is another file, or was edited."""
    return f"{spec.name}: restore the bus file from a copy, or `refold import` one into a new file"


def _room(path: Path) -> Symptom:
    free = shutil.disk_usage(path.parent).free
    what = f"{free / 1e9:.1f} GB free beside the bus file"
    if free < LOW_ROOM_BYTES:
        return Symptom(
            "disk", Severity.WARNING, what, f"make room on the disk of {path.parent}; a full one stops the federation"
        )
    return Symptom("disk", Severity.OK, what)


def _file_system(path: Path) -> Symptom:
    mounts = [part for part in psutil.disk_partitions(all=True) if path.is_relative_to(part.mountpoint)]
    kind = max(mounts, key=lambda part: len(part.mountpoint)).fstype if mounts else "unknown"
    if kind in NETWORK_FILE_SYSTEMS:
        fix = "move the file to a local disk, or use kafka://: processes on two machines would break it"
        return Symptom(
            "file system", Severity.FAILURE, f"the bus file lies on {kind}, which neither locks nor shares memory", fix
        )
    return Symptom("file system", Severity.OK, kind)


def _structure(path: Path) -> Symptom:
    with translated(path, "examine"):
        connection = connect(path)
        try:
            page_bytes = connection.execute("PRAGMA page_size").fetchone()[0]
            journal = connection.execute("PRAGMA journal_mode").fetchone()[0]
            broken = [row[0] for row in connection.execute("PRAGMA quick_check(3)") if row[0] != "ok"]
        finally:
            connection.close()
    if broken:
        return Symptom(
            "bus file", Severity.FAILURE, "; ".join(broken), "restore it from a copy; `refold verify` says what is lost"
        )
    if page_bytes != PAGE_BYTES or journal != "wal":
        fix = "use `refold export` into a new file: this one was not made by Refold, and is slow or not durable"
        return Symptom("bus file", Severity.WARNING, f"pages of {page_bytes} bytes, journal {journal}", fix)
    return Symptom("bus file", Severity.OK, f"sound, pages of {page_bytes // 1024} KiB, write-ahead log")
