"""A file is followed line by line, through what happens to log files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from refold.bus.clock import ManualClock
from refold.producers.logs import follower
from refold.producers.logs.follower import MAX_LINE_BYTES, LogFollower
from refold.producers.logs.watch import LogWatch
from refold.schemas.errors import ConfigurationError


class Lines(LogWatch):
    """A watch that keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.got: list[str] = []
        self.passed = 0

    def take_all(self, lines: list[str]) -> None:
        self.got += lines

    def pass_over(self, lines: int) -> None:
        self.passed += lines


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "train.log"


def append(path: Path, data: str | bytes) -> None:
    with path.open("ab") as file:
        file.write(data.encode() if isinstance(data, str) else data)


def read(following: LogFollower) -> None:
    while following.poll():
        pass


def test_what_is_appended_is_read_and_what_was_there_is_not(path: Path) -> None:
    append(path, "old\n")
    lines = Lines()
    following = LogFollower(path, lines)
    append(path, "one\r\ntwo\nthr")
    read(following)
    assert lines.got == ["one", "two"]
    append(path, "ee\n")
    read(following)
    assert lines.got == ["one", "two", "three"]


def test_a_file_that_is_not_there_yet_is_waited_for_and_read_from_its_start(path: Path) -> None:
    lines = Lines()
    following = LogFollower(path, lines)
    read(following)
    append(path, "one\n")
    read(following)
    assert lines.got == ["one"]


def test_a_rotated_file_is_read_to_its_end_before_the_new_one(path: Path) -> None:
    lines = Lines()
    following = LogFollower(path, lines)
    append(path, "one\n")
    read(following)
    append(path, "two\nlast without an end")
    path.rename(path.with_suffix(".1"))
    read(following)
    append(path, "new\n")
    read(following)
    assert lines.got == ["one", "two", "last without an end", "new"]
    assert following.rotations == 1


def test_a_truncated_file_is_read_from_its_start(path: Path) -> None:
    lines = Lines()
    following = LogFollower(path, lines)
    append(path, "one\ntwo\n")
    read(following)
    path.write_text("new\n")
    read(following)
    assert lines.got == ["one", "two", "new"]
    assert following.truncations == 1


def test_f40_binary_garbage_is_lines_like_others(path: Path) -> None:
    lines = Lines()
    following = LogFollower(path, lines)
    append(path, b"\x00\xff\xfe\x1b[2J\n" + os.urandom(100_000) + b"\nafter\n")
    read(following)
    assert lines.got[-1] == "after"


def test_f40_an_endless_line_is_cut_and_its_rest_is_not_held(path: Path) -> None:
    lines = Lines()
    following = LogFollower(path, lines, from_start=True)
    append(path, b"x" * 3_000_000)
    read(following)
    assert len(following._rest) <= MAX_LINE_BYTES
    append(path, b"x" * 3_000_000 + b"\nafter\n")
    read(following)
    assert [len(line) for line in lines.got] == [MAX_LINE_BYTES, 5]


def test_a_line_whose_end_does_not_come_is_taken_after_a_while_and_once(path: Path) -> None:
    clock, lines = ManualClock(), Lines()
    following = LogFollower(path, lines, clock=clock)
    append(path, "Killed")
    read(following)
    assert lines.got == []
    clock.advance(2.0)
    read(following)
    append(path, " by nobody\nnext\n")
    read(following)
    assert lines.got == ["Killed", "next"]


def test_f40_who_is_far_behind_counts_and_skips(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follower, "BEHIND_BYTES", 1 << 20)
    lines = Lines()
    following = LogFollower(path, lines)
    read(following)
    append(path, b"flood of lines\n" * 200_000)
    append(path, "the end\n")
    read(following)
    assert lines.got[-1] == "the end"
    assert len(lines.got) + lines.passed == 200_000, "all but the one in which the skip ended"
    assert lines.passed > 150_000


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(ConfigurationError, match="no regular file"):
            LogFollower(path, Lines())


def test_closing_takes_what_has_no_end_and_again_is_no_harm(path: Path) -> None:
    lines = Lines()
    following = LogFollower(path, lines, from_start=True)
    append(path, "last words")
    read(following)
    following.close()
    following.close()
    assert lines.got == ["last words"]
