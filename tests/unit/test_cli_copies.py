"""`refold export`, `import`, `diff` and `serve --status` as their users meet them."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clikit import Shell

import refold
from refold.bus import open_bus
from refold.bus._consumer import LogConsumer
from refold.bus.clock import SystemClock
from refold.bus.copy_place import UNDER_WAY, CopyPlace
from refold.bus.ledger import LedgerReader, LedgerWriter
from refold.federation import Federation
from refold.schemas.commits import Position
from refold.schemas.events import FederationEnded
from refold.schemas.keys import SigningKey
from refold.testing import craft_update, send_update


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path) -> Shell:
    shell = Shell(capsys, monkeypatch)
    monkeypatch.setenv("REFOLD_BUS", "sqlite:fed.db")
    monkeypatch.chdir(folder)
    return shell


# export and import.


def test_export_writes_a_file_that_everything_reads(cli: Shell) -> None:
    told = cli("export", "copy.db", "--verify", "--json").object
    assert told["complete"]
    assert told["compared"] == told["records"] > 0
    for words in (["log"], ["log", "--topic", "rounds"], ["show", "r2"], ["rebuild", "r3"], ["snapshots"], ["verify"]):
        here, there = cli(*words), cli(*words, "--bus", "sqlite:copy.db")
        assert (there.code, there.out) == (here.code, here.out), words
    assert cli("quarantine", "list", "--bus", "sqlite:copy.db").code == 0


def test_export_again_says_that_nothing_was_new(cli: Shell) -> None:
    cli("export", "copy.db")
    said = cli("export", "copy.db")
    assert said.code == 0
    assert "records     0" in said.out
    assert "as in the source" in said.out


def test_import_brings_a_file_back(cli: Shell) -> None:
    assert cli("export", "copy.db").code == 0
    assert cli("import", "copy.db", "--bus", "sqlite:new.db", "--json").object["complete"]
    assert cli("diff", "--with", "new.db").code == 0


def test_a_copy_cannot_have_another_name(cli: Shell) -> None:
    said = cli("export", "sqlite:copy.db?federation=other")
    assert said.code == 2
    assert "cannot be called 'other'" in said.err


def test_another_federation_of_the_same_name_is_an_integrity_error(cli: Shell, folder: Path) -> None:
    refold.create(f"sqlite:{folder}/other.db?federation=fed", {"w": np.zeros(2, np.float32)}, keys=folder / "k").close()
    said = cli("export", "other.db")
    assert said.code == 3
    assert "another log of a federation named 'fed'" in said.err
    assert said.err.count("\n") == 1


def test_export_to_itself_is_a_usage_error(cli: Shell) -> None:
    assert cli("export", "fed.db").code == 2


def test_a_copy_under_way_is_not_served(cli: Shell, folder: Path) -> None:
    cli("export", "copy.db")
    with open_bus(f"sqlite:{folder}/copy.db") as bus, CopyPlace(bus, "fed") as place:
        place.mark(UNDER_WAY)
    said = cli("serve", "--bus", "sqlite:copy.db", "--keys", "fed.keys")
    assert said.code == 75
    assert "--even-incomplete" in said.err
    assert cli("rebuild", "--bus", "sqlite:copy.db").code == 0


# diff.


def test_diff_of_two_rounds_counts_what_changed(cli: Shell, federation: Federation) -> None:
    said = cli("diff", "r1", "r2", "--json")
    assert said.code == 1
    found = {one["name"]: one for one in said.object["tensors"]}
    left, right = (federation.rebuild(round_).numpy() for round_ in (1, 2))
    apart = np.abs(left["w"].astype("f8") - right["w"])
    assert found["w"]["changed"] == np.count_nonzero(apart)
    assert found["w"]["max_abs"] == pytest.approx(apart.max())
    assert set(found) == {"w", "n", "m/w", "root_v/w"}


def test_diff_of_a_round_with_itself_is_equal(cli: Shell) -> None:
    said = cli("diff", "r3", "HEAD")
    assert (said.code, said.out.splitlines()[-1]) == (0, "equal: 4 tensors")
    assert cli("diff", "r2").code == 1
    assert "w " in cli("diff", "HEAD", "--all").out


def test_diff_compares_with_a_file_that_rebuild_wrote(cli: Shell) -> None:
    for name in ("m.safetensors", "m.npz"):
        cli("rebuild", "r2", "-o", name)
        assert cli("diff", "r2", name).code == 0
        assert cli("diff", "r1", name).code == 1
    Path("broken.safetensors").write_bytes(b"\xff" * 100)
    assert cli("diff", "r1", "broken.safetensors").code == 3
    assert cli("diff", "r1", "absent.npz").code == 4
    assert cli("diff").code == 2


def test_diff_of_a_round_on_two_buses(cli: Shell) -> None:
    cli("export", "copy.db")
    assert cli("diff", "r2", "--with", "copy.db").code == 0
    assert cli("diff", "r2", "r3", "--with", "copy.db").code == 1


def test_diff_names_the_first_commit_in_which_two_logs_part(cli: Shell, folder: Path) -> None:
    shutil.copy("fed.db", "other.db")
    for name, reasons in (("fed.db", ["same"]), ("other.db", ["same", "one more"])):
        _append(folder / name, reasons)
    events = cli("diff", "--with", "other.db", "--json").object
    assert events["rounds"]["equal"]
    assert events["accepted"]["forked"]
    assert events["accepted"]["left"]["writer"] == "fed.db"
    index = events["accepted"]["events_in_common"]
    said = cli("diff", "--with", "other.db")
    assert said.code == 1
    assert f"accepted: parts at event {index}" in said.out
    assert "writer, time or position differ" in said.out


def test_diff_says_where_one_log_only_goes_on(cli: Shell, folder: Path) -> None:
    shutil.copy("fed.db", "other.db")
    _append(folder / "other.db", ["over"])
    said = cli("diff", "--with", "other.db")
    assert said.code == 1
    assert "accepted: the right one goes on after" in said.out


def _append(path: Path, reasons: list[str]) -> None:
    """Append commits to `accepted` that end the federation."""
    with refold.connect(f"sqlite:{path}") as federation:
        reader = LedgerReader(federation.bus, federation.topics.accepted)
        list(reader.read_to_end())
        writer = LedgerWriter(federation.bus, reader, writer=path.name, clock=SystemClock())
        for reason in reasons:
            writer.append((FederationEnded(3, reason),), Position())
        writer.close()
        reader.close()


# serve --status.


def test_status_says_who_holds_each_place_and_when_it_moved(cli: Shell) -> None:
    groups = {line["group"]: line for line in cli("serve", "--status", "--json").objects}
    assert list(groups) == ["consistency", "detection", "aggregation", "snapshots", "health"]
    assert all(group["to_do"] == 0 for group in groups.values())
    for name in ("consistency", "detection", "aggregation"):
        [member] = groups[name]["members"]
        assert name in member
    assert all(0 <= group["idle_s"] < 600 for group in groups.values())
    said = cli("serve", "--status")
    assert "last at work" in said.out
    assert " ago" in said.out


def test_status_counts_what_waits_by_partition(cli: Shell, federation: Federation, folder: Path) -> None:
    send_update(federation, craft_update(federation, "c0", SigningKey.load(folder / "c0.pem")), "c0")
    [group] = cli("serve", "consistency", "--status", "--json").objects
    waiting = [place for place in group["places"] if place["to_do"]]
    assert group["to_do"] == sum(place["to_do"] for place in waiting) > 0
    assert len(waiting) == 1
    assert f"updates/{waiting[0]['partition']}" in cli("serve", "consistency", "--status").out


def test_status_of_a_copy_comes_from_the_log(cli: Shell) -> None:
    cli("export", "copy.db")
    groups = cli("serve", "--status", "--json", "--bus", "sqlite:copy.db").objects
    assert [group["to_do"] for group in groups] == [0] * 5


# tail.


def test_tail_until_end_waits_for_a_bus_that_is_slow_to_answer(cli: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    poll, silent = LogConsumer.poll, iter(range(4))

    def slow(self: LogConsumer, timeout_s: float = 0.0, **more: Any) -> Any:
        return [] if next(silent, None) is not None else poll(self, timeout_s, **more)

    whole = cli("tail", "--from-start", "--until-end").out.splitlines()
    assert len(whole) > 20
    monkeypatch.setattr(LogConsumer, "poll", slow)
    assert sorted(cli("tail", "--from-start", "--until-end").out.splitlines()) == sorted(whole)
