"""The writers' queue: waiting, time-outs, holders that were stopped or killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest

from refold.bus._process import Process, this_process
from refold.bus._sqlite_lock import WriteLock
from refold.schemas.errors import TryAgainError

SPAWN = multiprocessing.get_context("spawn")


def _hold(path: str, lease_s: float, held, let_go) -> None:
    with WriteLock(Path(path), lease_s=lease_s).hold():
        held.set()
        let_go.wait(60)


class Holder:
    """A process that holds the lock until told otherwise."""

    def __init__(self, path: Path, lease_s: float) -> None:
        self._held, self.let_go = SPAWN.Event(), SPAWN.Event()
        self.process = SPAWN.Process(target=_hold, args=(str(path), lease_s, self._held, self.let_go))
        self.process.start()
        assert self._held.wait(30)

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def stop(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)
        deadline = time.monotonic() + 10
        while psutil.Process(self.pid).status() != psutil.STATUS_STOPPED and time.monotonic() < deadline:
            pass

    def end(self) -> None:
        # In this order: setting an event waits for those who wait on it.
        os.kill(self.pid, signal.SIGCONT)
        self.let_go.set()
        self.process.join()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "bus.db-lock"


def test_a_running_holder_is_waited_for_and_named_when_time_is_up(path):
    holder = Holder(path, lease_s=0.01)
    lock = WriteLock(path)
    with pytest.raises(TryAgainError, match=f"pid {holder.pid}, command .*python"), lock.hold(0.3):
        pass
    assert holder.process.is_alive()
    threading.Timer(0.05, holder.let_go.set).start()
    with lock.hold(30):
        pass
    holder.end()


def test_a_wait_that_was_given_up_does_not_keep_the_lock(path):
    holder = Holder(path, lease_s=60)
    impatient, patient = WriteLock(path), WriteLock(path)
    with pytest.raises(TryAgainError), impatient.hold(0.05):
        pass
    holder.end()
    for lock in (patient, impatient, patient):
        with lock.hold(30):
            pass


def test_a_holder_stopped_past_its_lease_is_ended(path, caplog):
    holder = Holder(path, lease_s=0.05)
    holder.stop()
    with WriteLock(path).hold(30):
        pass
    holder.process.join()
    assert holder.process.exitcode == -signal.SIGKILL
    assert f"process {holder.pid}" in caplog.text


def test_a_holder_stopped_within_its_lease_is_left_alone(path):
    holder = Holder(path, lease_s=60)
    holder.stop()
    with pytest.raises(TryAgainError), WriteLock(path).hold(0.6):
        pass
    assert psutil.Process(holder.pid).status() == psutil.STATUS_STOPPED
    holder.end()
    assert holder.process.exitcode == 0


def test_a_stopped_holder_of_another_user_is_named_only(path, monkeypatch):
    monkeypatch.setattr(Process, "is_ours", lambda self: False)
    holder = Holder(path, lease_s=0.05)
    holder.stop()
    with pytest.raises(TryAgainError, match=rf"pid {holder.pid}.*kill -CONT {holder.pid}"), WriteLock(path).hold(30):
        pass
    holder.end()
    assert holder.process.exitcode == 0


def test_the_lock_of_a_killed_holder_is_free_at_once(path):
    holder = Holder(path, lease_s=60)
    holder.process.kill()
    holder.process.join()
    with WriteLock(path).hold(5):
        pass


def test_stale_words_in_the_file_harm_nobody(path):
    bystander = this_process()
    path.write_text(f"{bystander}\n0.0\n".ljust(256))
    with WriteLock(path).hold(5):
        assert path.read_text().startswith(str(bystander))
    assert path.read_text().strip() == ""


def test_threads_of_one_lock_take_turns(path):
    lock = WriteLock(path)
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(50):
            with lock.hold():
                inside += 1
                most = max(most, inside)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_locks_of_one_process_exclude_each_other(path):
    first, second = WriteLock(path), WriteLock(path)
    with first.hold():
        with pytest.raises(TryAgainError), second.hold(0.05):
            pass
        with pytest.raises(TryAgainError, match="thread"), first.hold(0.05):
            pass
    with second.hold(5):
        pass


def test_a_process_is_known_by_its_start_and_not_by_its_number_alone():
    me = this_process()
    assert Process.parse(str(me)) == me
    assert not me.is_gone()
    assert me.is_ours()
    assert not me.is_stopped()
    another = Process(me.host, me.pid, "0")
    assert another.is_gone()
    assert not another.is_ours()
    another.end()
    assert Process("another-boot/1", me.pid, me.started).is_gone()
    of_another_container = Process(f"{me.boot}/0", 1, "1")
    assert not of_another_container.is_gone()
    assert not of_another_container.is_ours()
