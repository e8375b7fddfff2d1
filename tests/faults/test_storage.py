"""Faults 24 and 25: full disks, size limits, failing writes and syncs. Nothing half written, and on it goes."""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
from faultkit import program
from faultkit.disks import fill, small_disk
from faultkit.processes import Child, moved, wait_until
from faultkit.world import GROUPS, Clients, World

import refold
from refold.schemas import files
from refold.schemas.errors import StorageFullError

MODEL = {"w": np.zeros((350, 350), "f4")}
FULL = "disk behind the bus is full"


def test_f24_a_full_disk_stops_the_bus_until_there_is_room(world: World, tmp_path: Path):
    with small_disk(tmp_path / "disk", 64 << 20) as disk:
        world.tell(disk=disk)
        world.found(clients=3, model=MODEL, deadline_s=3.0)
        for group in GROUPS:
            world.serve(group)
        with Clients(world, world.clients):
            world.wait_for_round(2)
            ballast = fill(disk)
            wait_until(lambda: FULL in world.logs(), "the error", tend=world.tend)
            head = head_of(world)
            ballast.unlink()
            print(f"{world.wait_for_round(head + 3):.2f} s from room to the third round")
            world.fed.end("the test is over")
        finish(world)


def test_f24_a_bus_at_its_size_limit_goes_on_under_a_higher_one(world: World):
    world.found(clients=3, model=MODEL, deadline_s=3.0)
    world.tell(max_size_bytes=6 << 20)
    limited = [world.serve(group) for group in GROUPS]
    world.tell(max_size_bytes=None)
    with Clients(world, world.clients):
        wait_until(lambda: FULL in world.logs(), "the error", tend=world.tend)
        head = head_of(world)
        for server in limited:
            assert server.stop() == 0
            world.children.remove(server)
        for group in GROUPS:
            world.serve(group)
        world.wait_for_round(head + 3)
        world.fed.end("the test is over")
    finish(world)


def test_f24_a_file_size_limit_fails_the_bus_and_goes_on_once_it_is_lifted(world: World, chance: random.Random):
    world.found(clients=3, model=MODEL, deadline_s=3.0)
    servers = [world.serve(group) for group in GROUPS]
    with Clients(world, world.clients):
        world.wait_for_round(2)
        for server in servers:
            limit_files(server, world.place.file.stat().st_size + chance.randrange(200_000))
        wait_until(lambda: "starts again from the log" in world.logs(), "the error", tend=world.tend)
        head = head_of(world)
        for server in servers:
            limit_files(server, resource.RLIM_INFINITY)
        world.wait_for_round(head + 3)
        world.fed.end("the test is over")
    finish(world)


def limit_files(server: Child, size_bytes: int) -> None:
    """Let a process write files up to this size only (as `prlimit --fsize` does)."""
    psutil.Process(server.pid).rlimit(psutil.RLIMIT_FSIZE, (size_bytes, resource.RLIM_INFINITY))


@pytest.mark.parametrize("how", ["a full disk", "a failing sync"])
def test_f24_a_client_without_room_says_so_and_goes_on_when_there_is(
    world: World, tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
):
    world.found(clients=1, model=MODEL, rounds=3, deadline_s=0.5)
    world.serve(*GROUPS)
    refused: list[str] = []
    held: set[Path] = set()
    left: list[Path] = []
    with Room(tmp_path / "disk", how, monkeypatch) as (folder, take_room, give_room):
        federation = refold.connect(world.place.url, bus=world.place.open())
        with federation.client("c0", key=world.place.key("c0"), outbox=folder) as client:
            for task in client.tasks():
                if task.round == 2 and not refused:
                    take_room()
                    held = set(folder.iterdir())  # The round before may not have its receipt yet.
                try:
                    task.submit(moved(task.numpy(), np.random.default_rng(task.round)), num_examples=1)
                except StorageFullError as error:
                    refused.append(str(error))
                    left += set(folder.iterdir()) - held
                    if len(refused) == 3:
                        give_room()
    finish(world)
    federation.close()
    assert len(refused) == 3
    assert all("could not be kept" in error for error in refused)
    assert not left, "something was left half written"


class Room:
    """A folder for an outbox, whose room can be taken and given back."""

    def __init__(self, folder: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        self._disk = small_disk(folder, 1 << 20) if how == "a full disk" else None
        self._monkeypatch = monkeypatch
        self._ballast: Path | None = None

    def __enter__(self):
        if self._disk is not None:
            self._disk.__enter__()
        else:
            self._folder.mkdir()
        return self._folder / "outbox", self._take, self._give

    def _take(self) -> None:
        if self._disk is not None:
            self._ballast = fill(self._folder)
        else:
            self._monkeypatch.setattr(files, "os", NoRoom())

    def _give(self) -> None:
        if self._ballast is not None:
            self._ballast.unlink()
        self._monkeypatch.undo()

    def __exit__(self, *exc: object) -> None:
        if self._disk is not None:
            self._disk.__exit__(*exc)


class NoRoom:
    """`os`, on a disk that takes bytes and then cannot keep them."""

    def __getattr__(self, name: str):
        return getattr(os, name)

    def fsync(self, descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["fdatasync", "pwrite64"])
def test_f25_a_disk_whose_nth_write_or_sync_fails_leaves_a_whole_file(world: World, call: str, long_run: bool, seed: int):
    world.found(clients=3, deadline_s=2.0)
    failed = 0
    with Clients(world, world.clients):
        for nth in [1, 2, 3, 5, 8, 13, 21, 34] if long_run else [1, 3, 8]:
            failed += serve_with_failing(world, call, nth)
            assert_file_is_whole(world)
        for group in GROUPS:
            world.serve(group)
        world.wait_for_round(head_of(world) + 3)
        world.fed.end("the test is over")
    finish(world)
    print(f"{call}: failed {failed} times")
    assert failed


def serve_with_failing(world: World, call: str, nth: int) -> int:
    """Run a server whose every thread has its n-th call fail with EIO, for a while; return how many failed."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    trace = world.place.folder / f"{call}-{nth}.trace"
    inject = ["strace", "-f", "-qq", "-o", str(trace), "-e", f"trace={call}", "-e", f"inject={call}:error=EIO:when={nth}"]
    serve = [sys.executable, program.__file__, str(world.place.folder), *GROUPS]
    with (world.place.folder / "server.log").open("ab") as log:
        process = subprocess.Popen([*inject, *serve], stderr=log, stdout=log, start_new_session=True)
    try:
        wait_until(
            lambda: process.poll() is not None or count_injected(trace) >= 2 or head_of(world) >= 30 * nth,
            f"failures of {call}",
            tend=world.tend,
        )
    finally:
        # strace's own death would leave the server running: its whole session is ended.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    failures = count_injected(trace)
    assert failures or "ptrace" not in trace.read_text(errors="replace"), "tracing is not permitted here"
    return failures


def count_injected(trace: Path) -> int:
    """Return how many calls were made to fail."""
    return trace.read_text(errors="replace").count("(INJECTED)") if trace.exists() else 0


def head_of(world: World) -> int:
    """Return the newest round."""
    with world.following() as lineage:
        return int(lineage().head)


def finish(world: World) -> None:
    """Assert that everything came to its end and that the file is whole."""
    world.wait_until_settled()
    world.stop()
    world.assert_sound()
    assert_file_is_whole(world)


def assert_file_is_whole(world: World) -> None:
    with closing(sqlite3.connect(world.place.file)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
