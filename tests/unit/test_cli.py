"""The command line as its users meet it: what it prints, where, and with which exit code."""

import errno
import io
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from clikit import Shell
from safetensors.numpy import load_file

import refold
from refold.bus import open_bus
from refold.bus.contract import Place
from refold.bus.ledger import read_all
from refold.cli import snapshots
from refold.cli.client import _tell_outcome
from refold.cli.health import counted
from refold.cli.verbs import VERBS, cli
from refold.consumers.monitoring.servers import SERVING
from refold.federation import Federation
from refold.schemas.events import UpdateAccepted, UpdateRejected
from refold.schemas.health import NodeHealth
from refold.schemas.keys import SigningKey, load_public
from refold.testing import eventually


@pytest.fixture
def refold_(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Shell:
    monkeypatch.chdir(tmp_path)
    return Shell(capsys, monkeypatch)


@pytest.fixture
def in_folder(folder: Path, refold_: Shell, monkeypatch: pytest.MonkeyPatch) -> Shell:
    """Return a shell in the trained federation's folder, whose refold.toml names the bus."""
    (folder / "refold.toml").write_text('bus = "sqlite:fed.db"\n')
    monkeypatch.chdir(folder)
    return refold_


# Help, and what is wrong before anything is done.


def test_help_lists_every_verb_on_stdout(refold_: Shell) -> None:
    said = refold_("--help")
    assert said.code == 0
    assert all(f"\n  {verb} " in said.out for verb in VERBS)


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in ("demo", "privacy", "quarantine")])
def test_every_verb_takes_bus_keys_and_json(refold_: Shell, verb: str) -> None:
    said = refold_(verb, "--help")
    assert said.code == 0
    assert all(option in said.out for option in ("--bus", "--keys", "--json"))


def _commands_named(text: str) -> list[str]:
    """Return the command lines that a text names in backticks or after a prompt, without the program's name."""
    in_words = re.findall(r"(?<!`)`refold ([^`]+)`", text)
    given = re.findall(r"^\w*\$ +refold (.*(?:\\\n.*)*)$", text, re.MULTILINE)
    return [*in_words, *(line.split("  #")[0] for line in given)]


def test_every_command_that_a_document_or_a_message_names_can_be_given() -> None:
    root = Path(__file__).parents[2]
    folders = ("docs", "docker", "examples", "schemas", "state", "bus", "producers", "consumers", "refold")
    paths = [*root.glob("*.md"), *(path for name in folders for path in (root / name).rglob("*"))]
    texts = [path.read_text() for path in paths if path.suffix in (".md", ".py", ".yml", ".yaml")]
    named = {line for text in texts for line in _commands_named(text)} - {"VERB --help", "--help"}
    assert len(named) > 100
    for line in named:
        words = re.sub(r"[\[\]\\]", " ", line).split()
        command: click.Command | None = cli
        while isinstance(command, click.Group):
            command = command.get_command(click.Context(command), words.pop(0)) if words else None
        assert command is not None, f"`refold {line}` is no command"
        options = {option for param in command.params for option in (*param.opts, *param.secondary_opts)} | {"--help"}
        for word in words:
            assert not re.match("--?[a-z]", word) or word.split("=")[0] in options, f"`refold {line}` has no {word}"


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from refold.cli import run; run(['--help']);"
        "print([m for m in ('numpy', 'sklearn', 'matplotlib', 'torch', 'rich.progress') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_no_verb_prints_help_and_is_a_usage_error(refold_: Shell) -> None:
    said = refold_()
    assert said.code == 2
    assert "Verbs:" in said.err
    assert not said.out


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["frob"], 2, "no such command 'frob'"),
        (["log", "--bogus"], 2, "no such option"),
        (["--bus", "sqlite:x", "log"], 2, "options come after the verb"),
        (["log"], 78, "no bus is named"),
        (["log", "--bus", "nonsense"], 78, "no bus URL"),
        (["log", "--bus", "sqlite:absent.db"], 4, "no such bus file"),
        (["verify", "--bus", "sqlite:absent.db"], 4, "absent.db"),
        (["rebuild", "--bus", "sqlite:absent.db", "-o", "x.txt"], 2, ".safetensors or .npz"),
        (["enroll", "c9", "--bus", "sqlite:absent.db"], 2, "--key, --new-key and --token"),
        (["init", "--bus", "sqlite:x.db"], 2, "--from"),
        (["init", "--bus", "sqlite:x.db", "--from", "absent.npz"], 4, "no such file"),
        (["client", "c", "--key", "k", "--train", "nothing", "--bus", "sqlite:x"], 2, "MODULE:FUNCTION"),
        (["client", "c", "--key", "k", "--train", "no_such_module:f", "--bus", "sqlite:x"], 2, "no module"),
        (["tail", "nowhere"], 2, "nowhere"),
    ],
)
def test_errors_say_what_is_wrong_in_one_line(refold_: Shell, words: list[str], code: int, told: str) -> None:
    said = refold_(*words)
    assert said.code == code
    assert told in said.err
    assert said.err.startswith("refold: ")
    assert said.err.count("\n") == 1
    assert not said.out


def test_a_file_that_is_no_bus_is_a_configuration_error(refold_: Shell, tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("not a database, and long enough to be looked at" * 100)
    said = refold_("log", "--bus", "sqlite:text.db")
    assert said.code == 78
    assert "Traceback" not in said.err


def test_a_bus_without_a_federation_is_not_found(refold_: Shell) -> None:
    open_bus("sqlite:empty.db").close()
    said = refold_("verify", "--bus", "sqlite:empty.db")
    assert said.code == 4
    assert said.err == "refold: there is no federation on this bus: make one with `refold init`\n"
    said = refold_("verify", "--bus", "sqlite:empty.db?federation=x")
    assert "no federation 'x', nor any other, on this bus" in said.err


def test_one_thing_is_told_of_in_the_singular(refold_: Shell, tmp_path: Path) -> None:
    _parameters(tmp_path / "w.npz")
    refold_("init", "--bus", "sqlite:new.db", "--from", "w.npz")
    said = refold_("verify", "--bus", "sqlite:new.db").out
    assert "1 event in 1 commit," in said
    assert "1 commit in one chain" in refold_("doctor", "--bus", "sqlite:new.db").out
    server = NodeHealth("server a", "healthy", "", "", 0, 0, 0, 0, 0, SERVING, "")
    assert counted([server], is_stale=False) == "0 nodes: none; 1 server: 1 healthy"
    assert "over 1 step; took" in snapshots._told(snapshots.Prediction(1, 0, 1, 9, 0.1, 0.1))


def test_errors_are_json_where_json_was_asked_for(refold_: Shell) -> None:
    said = refold_("log", "--bus", "sqlite:absent.db", "--json")
    assert said.code == 4
    error = json.loads(said.err)["error"]
    assert error["type"] == "NotFoundError"
    assert error["exit_code"] == 4
    assert error["where"]["path"].endswith("absent.db")
    assert error["hint"]


# Settings.


def test_refold_toml_is_found_in_folders_above(in_folder: Shell, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    below = folder / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert in_folder("log").code == 0


@pytest.mark.parametrize("text", ['buss = "sqlite:fed.db"', "[logg]\nfollow = true", "[log]\nfolow = true"])
def test_an_unknown_key_in_refold_toml_is_an_error(in_folder: Shell, folder: Path, text: str) -> None:
    (folder / "refold.toml").write_text(text + "\n")
    said = in_folder("log", "--bus", "sqlite:fed.db")
    assert said.code == 78
    assert "unknown key" in said.err
    assert "refold.toml" in said.err


def test_broken_toml_is_an_error_with_its_line(in_folder: Shell, folder: Path) -> None:
    (folder / "refold.toml").write_text("bus = \n")
    said = in_folder("log")
    assert said.code == 78
    assert "line 1" in said.err


def test_flags_come_before_the_environment_and_that_before_the_file(
    in_folder: Shell, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "refold.toml").write_text('bus = "sqlite:from-file.db"\n')
    assert "from-file.db" in in_folder("log").err
    monkeypatch.setenv("REFOLD_BUS", "sqlite:from-environment.db")
    assert "from-environment.db" in in_folder("log").err
    assert "from-flag.db" in in_folder("log", "--bus", "sqlite:from-flag.db").err


def test_a_verbs_own_options_can_stand_in_the_file(in_folder: Shell, folder: Path) -> None:
    (folder / "refold.toml").write_text('bus = "sqlite:fed.db"\njson = true\n[log]\ntopic = "rounds"\n')
    assert {line["log"] for line in in_folder("log").objects} == {"rounds"}
    (folder / "refold.toml").write_text('bus = "sqlite:fed.db"\n[quarantine]\njson = true\n')
    assert in_folder("quarantine", "list").code == 0


# init, enroll, serve.


def _parameters(path: Path) -> None:
    np.savez(path, w=np.zeros((3, 2), np.float32), n=np.array(0))


def test_init_makes_a_federation_and_refuses_to_make_it_again(refold_: Shell, tmp_path: Path) -> None:
    _parameters(tmp_path / "w.npz")
    words = ("init", "--bus", "sqlite:new.db", "--from", "w.npz")
    said = refold_(
        *words, "--optimizer", "fedadam", "--lr", "0.5", "--set", "beta1=0.8", "--config", "epochs=2", "--rounds", "7", "--json"
    )
    assert said.code == 0, said.err
    assert (said.object["federation"], said.object["parameters"]) == ("new", 7)
    with refold.connect("sqlite:new.db") as federation:
        genesis = federation.genesis
    assert dict(genesis.optimizer_settings)["beta1"] == 0.8
    assert dict(genesis.first_plan.config) == {"epochs": 2}
    assert genesis.policy.rounds == 7
    again = refold_(*words)
    assert again.code == 5
    assert "there is a federation" in again.err


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--share", "2"], 2),
        (["--set", "beta1"], 2),
        (["--set", "nonsense=1"], 2),
        (["--lr", "-1"], 2),
        (["--snapshot-keep", "0"], 2),
        (["--rule", "w=max"], 2),
    ],
)
def test_init_refuses_what_cannot_be(refold_: Shell, tmp_path: Path, words: list[str], code: int) -> None:
    _parameters(tmp_path / "w.npz")
    said = refold_("init", "--bus", "sqlite:new.db", "--from", "w.npz", *words)
    assert said.code == code
    assert said.err.startswith("refold: ")


def test_init_refuses_a_file_that_is_not_what_its_name_says(refold_: Shell, tmp_path: Path) -> None:
    for name in ("w.npz", "w.safetensors"):
        (tmp_path / name).write_bytes(b"neither")
        assert refold_("init", "--bus", "sqlite:new.db", "--from", name).code == 78
    np.save(tmp_path / "w.npy", np.zeros(3))
    assert refold_("init", "--bus", "sqlite:new.db", "--from", "w.npy").code == 2


def test_init_says_of_a_folder_that_it_is_one(refold_: Shell) -> None:
    said = refold_("init", "--bus", "sqlite:new.db", "--from", ".")
    assert said.code == 2
    assert "this is a folder" in said.err


def test_init_unpickles_nothing(refold_: Shell, tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", w=np.array([{"a": 1}], dtype=object))
    said = refold_("init", "--bus", "sqlite:new.db", "--from", "w.npz")
    assert said.code == 78
    assert "allow_pickle" in said.err or "pickle" in said.err


def test_enroll_says_that_no_server_runs(in_folder: Shell, folder: Path) -> None:
    said = in_folder("enroll", "c9", "--new-key", "c9.pem", "--timeout", "0")
    assert said.code == 75
    assert "refold serve" in said.err
    assert (folder / "c9.pem").stat().st_mode & 0o777 == 0o600
    assert SigningKey.load(folder / "c9.pem")


def test_an_interrupted_enroll_says_that_its_command_will_be_taken(
    in_folder: Shell, federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_args: object, **_kwargs: object) -> None:
        raise KeyboardInterrupt

    commands = Place(federation.topics.commands, 0)
    before = federation.bus.end_offset(commands)
    monkeypatch.setattr("refold.cli.ordering._wait", interrupted)
    said = in_folder("enroll", "c9", "--new-key", "c9.pem")
    assert (said.code, said.out) == (130, "")
    assert "the command is written, and a server will take it" in said.err
    assert federation.bus.end_offset(commands) == before + 1
    monkeypatch.setattr("refold.federation.Federation.command", interrupted)
    said = in_folder("enroll", "c8", "--new-key", "c8.pem")
    assert (said.code, "written" in said.err) == (130, False)


@pytest.mark.parametrize(
    ("words", "waits", "sends", "then"),
    [
        (["seal", "c0"], "refold.cli.seal._wait", "seal", ""),
        (["erase", "c0", "--yes"], "refold.cli.seal._wait", "erase", "give the same command again"),
        (["prune", "--keep-rounds", "2"], "refold.cli.prune._wait", "prune", ""),
    ],
)
def test_who_interrupts_a_command_is_told_whether_it_was_sent_and_how_to_look(
    in_folder: Shell,
    federation: Federation,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    waits: str,
    sends: str,
    then: str,
) -> None:
    def interrupted(*_args: object, **_kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("refold.cli.seal._keys", lambda *_: ((bytes(8),), ()))
    monkeypatch.setattr(waits, interrupted)
    commands = Place(federation.topics.commands, 0)
    before = federation.bus.end_offset(commands)
    said = in_folder(*words)
    assert (said.code, said.out, federation.bus.end_offset(commands)) == (130, "", before + 1)
    assert "the command is written, and a server will take it; `refold log` shows when" in said.err
    assert then in said.err
    monkeypatch.setattr(f"refold.federation.Federation.{sends}", interrupted)
    said = in_folder(*words)
    assert (said.code, "a server may get the command or not" in said.err) == (130, True)


def test_who_interrupts_a_command_before_it_is_sent_is_told_that_nothing_was(
    in_folder: Shell, federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_args: object, **_kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("refold.cli.seal._keys", lambda *_: ((bytes(8),), ()))
    commands = Place(federation.topics.commands, 0)
    before = federation.bus.end_offset(commands)
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    said = in_folder("erase", "c0")
    assert (said.code, said.err.endswith("nothing was sent\n")) == (130, True)
    monkeypatch.setattr("refold.cli.prune._round", interrupted)
    said = in_folder("prune", "--before", "r2")
    assert (said.code, said.out, said.err.strip()) == (130, "", "nothing was sent")
    assert federation.bus.end_offset(commands) == before


def test_who_interrupts_a_request_for_a_key_is_told_to_give_the_command_again(
    in_folder: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_args: object, **_kwargs: object) -> None:
        raise KeyboardInterrupt

    token = in_folder("enroll", "c9", "--token", "--no-wait").out.strip()
    monkeypatch.setattr("refold.producers.enrolment._await_notice", interrupted)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    for words in (
        ["enroll", "--redeem", token, "--new-key", "c9.pem"],
        ["rotate", "c0", "--key", "c0.pem", "--new-key", "new.pem"],
        ["client", "c9", "--token", token, "--key", "c9.pem", "--train", "math:sqrt"],
    ):
        said = in_folder(*words)
        assert (said.code, said.out) == (130, "")
        assert "the new key may be enrolled all the same; the same command, given again, says so" in said.err


def test_a_client_with_another_key_than_its_own_is_told_so_and_ends(
    in_folder: Shell, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("signal.signal", lambda *_: None)
    key = SigningKey.load_or_create(folder / "wrong.pem").key_id.hex()
    said = in_folder("client", "c0", "--key", "wrong.pem", "--train", "math:sqrt", "--open-timeout", "0.1")
    assert (said.code, said.out) == (75, "")
    assert f"this client's key is not enrolled (client c0, key_id {key}): give the key that is" in said.err


@pytest.mark.parametrize(
    ("outcome", "told"),
    [
        ("accepted", "accepted\n"),
        ("anomaly", f"refused (anomaly); at the server `refold show {'01' * 6}` says why\n"),
        (
            "unheard",
            "refused (unheard); at the server `refold log --type Unattributed`, or `refold show` of this client, says why\n",
        ),
    ],
)
def test_a_client_names_the_command_that_says_why_an_update_was_refused(
    capsys: pytest.CaptureFixture[str], outcome: str, told: str
) -> None:
    waiting = {bytes([1]) * 32: 3}
    for _ in range(2):
        _tell_outcome(waiting, bytes([1]) * 32, outcome)
    assert capsys.readouterr().err == f"round 3: {told}"


def test_enroll_never_overwrites_a_key(in_folder: Shell, folder: Path) -> None:
    before = (folder / "c0.pem").read_bytes()
    assert in_folder("enroll", "c0", "--new-key", "c0.pem", "--no-wait").code == 2
    assert (folder / "c0.pem").read_bytes() == before


@pytest.mark.parametrize("name", ["", "two\nlines", "n" * 201])
def test_enroll_makes_no_key_for_a_name_that_cannot_be(in_folder: Shell, folder: Path, name: str) -> None:
    for how in (["--new-key", "c9.pem"], ["--token"]):
        said = in_folder("enroll", name, *how, "--no-wait")
        assert said.code == 2
        assert said.err.startswith("refold: client: ")
        assert not said.out
    assert not (folder / "c9.pem").exists()


def test_a_setting_that_no_record_can_hold_is_a_usage_error(in_folder: Shell) -> None:
    said = in_folder("policy", "snapshots", f"every_rounds={1 << 80}")
    assert said.code == 2
    said = in_folder("policy", "snapshots", "every_rounds=-1")
    assert said.code == 2
    assert "whole number from 0" in said.err


def test_enroll_takes_hexadecimal_digits_and_files(in_folder: Shell, folder: Path) -> None:
    public = load_public(folder / "c0.pem")
    for key in (public.hex(), "c0.pem"):
        said = in_folder("enroll", "c9", "--key", key, "--no-wait", "--json")
        assert said.code == 0
        assert said.object["public_key"] == public.hex()
    assert in_folder("enroll", "c9", "--key", "absent.pem", "--no-wait").code == 4


def test_enroll_needs_the_operators_key(in_folder: Shell) -> None:
    said = in_folder("enroll", "c9", "--new-key", "c9.pem", "--no-wait", "--keys", "elsewhere")
    assert said.code == 4
    assert "operator" in said.err
    assert not Path("c9.pem").exists()


def test_serve_takes_enrolments_and_stops_on_sigterm(in_folder: Shell, folder: Path) -> None:
    server = subprocess.Popen([sys.executable, "-m", "refold", "serve"], cwd=folder, stderr=subprocess.PIPE, text=True)
    try:
        said = in_folder("enroll", "late", "--new-key", "late.pem", "--timeout", "30")
        assert said.code == 0, said.err
        assert "enrolled by event" in said.out
    finally:
        server.send_signal(signal.SIGTERM)
        _, told = server.communicate(timeout=30)
    assert server.returncode == 0
    assert told.startswith("serving fed")
    assert told.endswith("stopped\n")


def test_serve_refuses_another_federations_keys(in_folder: Shell, tmp_path: Path) -> None:
    _parameters(tmp_path / "w.npz")
    assert in_folder("init", "--bus", f"sqlite:{tmp_path}/other.db", "--from", str(tmp_path / "w.npz")).code == 0
    said = in_folder("serve", "--keys", str(tmp_path / "other.keys"))
    assert said.code == 78
    assert "secret" in said.err


def test_serve_refuses_to_evaluate_with_no_command(in_folder: Shell) -> None:
    said = in_folder("serve", "--bus", "sqlite:absent.db", "--evaluate", "")
    assert said.code == 2
    assert "names no command" in said.err


def test_serve_status_names_every_group(in_folder: Shell) -> None:
    said = in_folder("serve", "--status", "--json")
    assert [(line["group"], line["to_do"]) for line in said.objects] == [
        ("consistency", 0),
        ("detection", 0),
        ("aggregation", 0),
        ("snapshots", 0),
        ("health", 0),
    ]


# log, show, rebuild.


def test_log_prints_every_event_once(in_folder: Shell, federation: Federation) -> None:
    events = sum(entry.commit.count for entry in read_all(federation.bus, federation.topics.accepted))
    assert len(in_folder("log").out.splitlines()) == events
    lines = in_folder("log", "--json").objects
    assert [line["index"] for line in lines] == list(range(events))
    accepted = next(line for line in lines if line["type"] == "UpdateAccepted")
    assert len(accepted["origin"]["digest"]) == 64
    assert accepted["scores"]
    assert lines[0]["log"] == "accepted"


def test_log_filters_by_round_client_and_type(in_folder: Shell) -> None:
    said = in_folder("log", "--round", "2", "--client", "c0", "--type", "UpdateAccepted", "--json")
    assert [(line["origin"]["client"], line["origin"]["base_round"]) for line in said.objects] == [("c0", 1)]
    assert {line["type"] for line in in_folder("log", "--topic", "rounds", "--client", "c0", "--json").objects} == {
        "ClientNotices",
        "Receipts",
        "RoundCommitted",
    }


@pytest.mark.parametrize("words", [["--round", "99"], ["--client", "nobody"], ["--round", "99", "--json"]])
def test_log_says_that_nothing_matches_beside_its_output(in_folder: Shell, words: list[str]) -> None:
    assert in_folder("log", *words) == (0, "", "no event of accepted matches\n")
    assert not in_folder("log", "--round", "1").err


def test_log_guesses_what_a_mistyped_type_meant(in_folder: Shell) -> None:
    said = in_folder("log", "--type", "UpdatAccepted")
    assert said.code == 2
    assert "did you mean UpdateAccepted?" in said.err


@pytest.mark.parametrize("ref", ["3", "r3", "HEAD", "@", "HEAD~0", "round:3"])
def test_show_explains_a_round_by_any_of_its_names(in_folder: Shell, ref: str) -> None:
    said = in_folder("show", ref)
    assert said.code == 0
    assert said.out.startswith("round       3\nparent      2\noutcome     applied\n")
    assert all(client in said.out for client in ("c0", "c1", "c2"))


def test_show_explains_the_initial_round_and_a_round_with_a_refusal(in_folder: Shell) -> None:
    assert "initial model" in in_folder("show", "HEAD~3").out
    said = in_folder("show", "2")
    assert "declined" in said.out


def test_show_explains_an_update_by_its_digest(in_folder: Shell, federation: Federation) -> None:
    event = next(
        e
        for entry in read_all(federation.bus, federation.topics.accepted)
        for e in entry.events
        if isinstance(e, UpdateAccepted)
    )
    digits = event.origin.digest.hex()
    said = in_folder("show", f"digest:{digits[:16]}")
    assert said.code == 0
    assert digits in said.out
    assert all(score.detector in said.out for score in event.scores)
    assert "in round 1: weight" in said.out
    assert in_folder("show", digits, "--json").object["verdicts"][0]["origin"]["client"] == event.origin.client


def test_show_explains_a_state_by_its_digest_and_a_client_by_its_name(in_folder: Shell, federation: Federation) -> None:
    state = federation.rebuild(2).digest.hex()
    assert in_folder("show", f"digest:{state[:16]}").out.startswith("round       2\n")
    said = in_folder("show", "c2")
    assert re.search(r"accepted +2\n", said.out)
    assert "1 declined" in said.out


@pytest.mark.parametrize(
    ("ref", "code", "told"),
    [
        ("99", 4, "the newest is 3"),
        ("HEAD~9", 4, "before round 0"),
        ("nobody", 4, "is no round, client or digest"),
        ("client:nobody", 4, "no such client"),
        ("digest:" + "0" * 20, 4, "is called"),
        ("digest:xyz", 2, "names nothing"),
        ("tag:v1", 2, "names nothing"),
    ],
)
def test_refs_that_name_nothing_say_so(in_folder: Shell, ref: str, code: int, told: str) -> None:
    said = in_folder("show", ref)
    assert said.code == code
    assert told in said.err


def test_a_repair_that_cannot_be_bans_nobody_and_no_dry_run_promises_it(in_folder: Shell, federation: Federation) -> None:
    with federation.serve():
        federation.end()
        eventually(lambda: federation.ended, timeout_s=30.0, what="the end")
    commands = Place(federation.topics.commands, 0)
    before = federation.bus.end_offset(commands)
    for words in (["repair", "c0"], ["rollback", "1"]):
        for dry in (["--dry-run"], []):
            said = in_folder(*words, *dry)
            assert (said.code, said.out) == (2, "")
            assert "the federation has ended" in said.err
    assert federation.bus.end_offset(commands) == before


def test_a_repair_that_has_no_use_for_its_settings_says_so_and_what_would_have(in_folder: Shell) -> None:
    words = ("repair", "c0", "--dry-run", "--set", "batch=2")
    said = in_folder(*words, "--work", "0.01")
    assert (said.code, "calibration   none" in said.out) == (0, True)
    least = re.search(r"--set is not used: 0\.01 of 5 lost updates .*; --work ([0-9.]+) comes to one", said.err)
    assert least
    said = in_folder(*words, "--work", least.group(1))
    assert "1 round" in said.out
    assert "not used" not in said.err
    assert "whatever the --work" in in_folder(*words, "--work", "1", "--per-round", "9").err


def test_rebuild_writes_what_the_library_rebuilds(in_folder: Shell, federation: Federation, folder: Path) -> None:
    state = federation.rebuild(2)
    for name in ("two.safetensors", "two.npz"):
        said = in_folder("rebuild", "HEAD~1", "-o", name, "--json")
        assert said.code == 0
        assert said.object == {
            "round": 2,
            "state": state.digest.hex(),
            "parameters": state.parameters_digest.hex(),
            "verified": True,
        }
    with np.load(folder / "two.npz", allow_pickle=False) as archive:
        written = dict(archive)
    for found in (load_file(folder / "two.safetensors"), written):
        assert all(found[name].tobytes() == array.tobytes() for name, array in state.numpy().items())


def test_rebuild_gives_the_same_from_every_snapshot_and_thread_count(in_folder: Shell, federation: Federation) -> None:
    found = {
        in_folder("rebuild", "1", *start, "--threads", threads, "--json").object["state"]
        for start in ((), ("--from-round", "0"), ("--from-round", "2"))
        for threads in ("1", "3")
    }
    assert len(found) == 1


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["99"], 4, "no such round"),
        (["1", "--from-round", "3"], 4, "there are rounds 0, 2"),
        (["1", "-o", "no/such/folder/x.npz"], 2, "folder is not there"),
        (["c0"], 4, "'c0' is no round: give r12"),
    ],
)
def test_rebuild_says_what_it_cannot(in_folder: Shell, words: list[str], code: int, told: str) -> None:
    said = in_folder("rebuild", *words)
    assert said.code == code
    assert told in said.err


@pytest.mark.parametrize("target", [".", "no/such/folder/x.npz", "folder.npz"])
@pytest.mark.parametrize("verb", ["rebuild", "replica", "checkpoint"])
def test_where_no_file_can_be_written_is_said_before_anything_is(
    in_folder: Shell, folder: Path, verb: str, target: str
) -> None:
    target = target.replace("npz", "safetensors") if verb == "replica" else target
    for name in ("folder.npz", "folder.safetensors"):
        (folder / name).mkdir()
    before = {path.name for path in folder.iterdir()}
    said = in_folder(verb, "-o", target)
    assert said.code == 2
    assert said.err.startswith("refold: ")
    assert said.err.count("\n") == 1
    assert ".tmp" not in said.err
    assert {path.name for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("words", "opener"),
    [
        (["rebuild", "-o", "x.npz"], "pathlib.Path.open"),
        (["rebuild", "-o", "x.safetensors"], "pathlib.Path.open"),
        (["checkpoint", "-o", "x"], "pathlib.Path.open"),
        (["enroll", "c9", "--new-key", "c9.pem"], "os.link"),
    ],
)
@pytest.mark.parametrize(
    ("number", "code", "told"),
    [(errno.EROFS, 78, "name another place"), (errno.EACCES, 78, "the right to it"), (errno.ENOSPC, 75, "make room")],
)
def test_what_the_system_refuses_is_no_negative_answer_and_has_a_remedy(
    in_folder: Shell, monkeypatch: pytest.MonkeyPatch, words: list[str], opener: str, number: int, code: int, told: str
) -> None:
    whole = Path.open

    def refuse(path: Path, *args: Any, **kwargs: Any) -> Any:
        if opener == "pathlib.Path.open" and "w" not in "".join(args[:1]):
            return whole(path, *args, **kwargs)
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(opener, refuse)
    said = in_folder(*words)
    assert (said.code, said.out) == (code, "")
    assert told in said.err
    assert said.err.count("\n") == 1
    assert f"(path {words[-1]})" in said.err  # What was asked for, not the scratch file beside it.


# verify, snapshots, quarantine, tail.


def test_verify_of_a_sound_federation(in_folder: Shell) -> None:
    said = in_folder("verify")
    assert said.code == 0
    assert said.out.endswith("sound\n")
    assert not said.err  # no bar where nobody looks
    assert "declined" in said.out
    assert in_folder("verify", "--json").object["sound"] is True
    assert "logs alone" in in_folder("verify", "--quick").out


def test_a_federation_on_a_read_only_medium_is_read_by_every_verb_that_only_reads(
    in_folder: Shell, folder: Path, tmp_path: Path
) -> None:
    medium = tmp_path / "medium"
    medium.mkdir()
    if subprocess.run(["mount", "--bind", folder, medium], capture_output=True).returncode:
        pytest.skip("mounting a folder read-only needs root")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", medium], check=True)
        bus = f"sqlite:{medium}/fed.db"
        for words in (
            ["verify"],
            ["rebuild", "HEAD~1", "-o", "x.npz"],
            ["log"],
            ["show", "c0"],
            ["diff", "r1", "r2"],
            ["snapshots"],
            ["quarantine", "list"],
            ["tail", "accepted", "--from-start", "--until-end"],
            ["health"],
            ["doctor"],
            ["export", "copy.db"],
            ["serve", "--status"],
            ["checkpoint"],
        ):
            said = in_folder(*words, "--bus", bus)
            assert said.code == in_folder(*words).code, (words, said)
            assert "refold: " not in said.err
        for words in (["enroll", "c9", "--token"], ["serve"]):
            said = in_folder(*words, "--bus", bus)
            assert (said.code, said.out) == (78, ""), (words, said)
            assert "can only be read here" in said.err
    finally:
        subprocess.run(["umount", "-l", medium], check=True)


def _tamper(folder: Path, topic: str) -> None:
    """Flip one bit in the last record of a topic."""
    with sqlite3.connect(folder / "fed.db") as connection:
        query = """SELECT records.id, value FROM records JOIN partitions ON records.id >> 40 = place_id
                   JOIN topics USING (topic_id) WHERE topics.name = ? AND value IS NOT NULL ORDER BY records.id DESC LIMIT 1"""
        record, value = connection.execute(query, (f"fed.{topic}",)).fetchone()
        middle = len(value) // 2
        spoiled = value[:middle] + bytes([value[middle] ^ 1]) + value[middle + 1 :]
        connection.execute("UPDATE records SET value = ? WHERE id = ?", (spoiled, record))
    connection.close()


@pytest.mark.parametrize("topic", ["accepted", "deltas", "steps", "snapshot-chunks"])
def test_verify_of_a_tampered_file_names_the_place(in_folder: Shell, folder: Path, topic: str) -> None:
    _tamper(folder, topic)
    said = in_folder("verify")
    assert said.code == 3
    assert "BROKEN" in said.out
    expected = {"snapshot-chunks": "snapshots"}.get(topic, topic)
    assert f"topic fed.{expected}" in said.out
    findings = in_folder("verify", "--json").object["findings"]
    assert any(finding["topic"] == f"fed.{expected}" for finding in findings)


def test_rebuild_from_a_tampered_step_is_an_integrity_failure(in_folder: Shell, folder: Path) -> None:
    with sqlite3.connect(folder / "fed.db") as connection:
        query = """SELECT records.id FROM records JOIN partitions ON records.id >> 40 = place_id
                   JOIN topics USING (topic_id) WHERE topics.name = 'fed.steps'"""
        for (record,) in connection.execute(query).fetchall():
            connection.execute("UPDATE records SET value = zeroblob(length(value)) WHERE id = ?", (record,))
    connection.close()
    said = in_folder("rebuild", "1")
    assert said.code == 3
    assert said.err.startswith("refold: ")


def test_snapshots_lists_what_is_kept(in_folder: Shell, federation: Federation) -> None:
    assert [line["round"] for line in in_folder("snapshots", "--json").objects] == [0, 2]
    assert federation.rebuild(2).digest.hex()[:12] in in_folder("snapshots").out


def test_quarantine_lists_and_shows_the_original_bytes(in_folder: Shell, folder: Path) -> None:
    (kept,) = in_folder("quarantine", "list", "--json").objects
    assert kept["reasons"] == ["form"]
    update = f"{kept['partition']}/{kept['offset']}"
    assert update in in_folder("quarantine", "list").out
    said = in_folder("quarantine", "show", update, "-o", "original")
    assert said.code == 0
    assert (folder / "original").read_bytes() == b"no update at all"
    assert in_folder("quarantine", "show", "9/9").code == 4
    assert in_folder("quarantine", "show", "nonsense").code == 2
    assert in_folder("quarantine", "list", "--reason", "norm", "--json").out == ""


def test_tail_follows_any_topic(in_folder: Shell) -> None:
    said = in_folder("tail", "accepted", "quarantine", "snapshots", "health", "--from-start", "--until-end", "--json")
    assert {line["log"] for line in said.objects} == {"accepted", "quarantine", "snapshots", "health"}
    assert in_folder("tail", "--until-end").out == ""


def test_what_a_client_says_cannot_move_the_cursor(in_folder: Shell, federation: Federation) -> None:
    rejected = next(
        e
        for entry in read_all(federation.bus, federation.topics.accepted)
        for e in entry.events
        if isinstance(e, UpdateRejected)
    )
    assert rejected.detail == "nothing new"
    assert all(ord(c) >= 32 or c == "\n" for c in in_folder("log").out)


def test_a_closed_pipe_ends_quietly(in_folder: Shell, folder: Path) -> None:
    done = subprocess.run(
        f"{sys.executable} -m refold log --json | head -1", shell=True, cwd=folder, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1


@pytest.mark.parametrize("words", [["log", "--json"], ["verify", "--json"], ["show", "1"]])
def test_an_answer_that_nobody_heard_is_neither_good_nor_bad(in_folder: Shell, folder: Path, words: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "refold", *words], cwd=folder, stdout=writing, stderr=subprocess.PIPE, text=True
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")
