"""The compose file's commands, run without containers: each service's own words, in processes of this machine.

What this cannot show is Docker's part: networks, volumes, health checks. Those were not run where there was no engine.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import refold
from refold.testing.kafka import JavaRuntime, find_runtime
from refold.testing.kafka.settings import shared_settings

Services = dict[str, Any]
Program = Callable[[str, str], Path]

ENTRYPOINT = ["refold"]
WARDS = ("ward-1", "ward-2", "ward-3")
FORMATTED = "meta.properties"
LOGGING = "Configuration: {Loggers: {Root: {level: info}, Logger: []}}\n"


class Played:
    """The file's services as processes, with its volumes in one folder and another bus in the place of its brokers.

    Parameters
    ----------
    url
        The bus, in the place of the one that the file names.
    """

    def __init__(self, services: Services, folder: Path, programs: Path, url: str) -> None:
        self.keys = folder / "keys"
        self._services = services
        self._path = f"{programs}{os.pathsep}{os.environ['PATH']}"
        self._url = url
        for service in services.values():
            for volume in service["volumes"]:
                where = volume.split(":")[1]
                if where.startswith("/keys/"):
                    Path(self._here(where)).mkdir(parents=True, exist_ok=True)

    def start(self, name: str, *more: str) -> subprocess.Popen[bytes]:
        """Start a service, with further words at the end of its command."""
        service = self._services[name]
        words = [*service.get("entrypoint", ENTRYPOINT), *service["command"], *more]
        environment = {"PATH": self._path, "HOME": os.environ["HOME"], **self._environment(service["environment"])}
        return subprocess.Popen([self._here(word) for word in words], env=environment, cwd=self.keys)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a verb as somebody in the server's container does."""
        environment = {
            "PATH": self._path,
            "HOME": os.environ["HOME"],
            **self._environment(self._services["server"]["environment"]),
        }
        return subprocess.run([*ENTRYPOINT, *words], env=environment, capture_output=True, text=True, check=False)

    def _environment(self, said: Mapping[str, object]) -> dict[str, str]:
        found = {name: self._here(str(value)) for name, value in said.items()}
        return found | {"REFOLD_BUS": self._url}

    def _here(self, word: str) -> str:
        # Compose makes one dollar of two, and so leaves variables to the shell.
        return word.replace("$$", "$").replace("/keys", str(self.keys))


@pytest.fixture
def programs(program: Program) -> Path:
    """Return a folder with what the image has on its PATH; nothing is owned by another user here."""
    program("chown", "exit 0")
    program("python", f'exec {sys.executable} "$@"')
    return program("refold", f'exec {sys.executable} -m refold "$@"').parent


def finished(*processes: subprocess.Popen[bytes], timeout_s: float = 240.0) -> Sequence[int]:
    try:
        return [process.wait(timeout_s) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def events(played: Played) -> list[str]:
    done = played.run("log")
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_init_run_again_changes_nothing(services: Services, programs: Path, tmp_path: Path) -> None:
    url = f"sqlite:{tmp_path / 'bus.db'}?federation=digits"
    played = Played(services, tmp_path, programs, url)
    assert finished(played.start("init")) == [0]
    keys = {path: path.read_bytes() for path in played.keys.rglob("*") if path.is_file()}
    assert {path.name for path in keys} == {"initial.npz", "operator.pem", "server.secret", "key.pem"}
    log = events(played)
    assert finished(played.start("init")) == [0]
    assert {path: path.read_bytes() for path in played.keys.rglob("*") if path.is_file()} == keys
    assert events(played) == log


def test_init_that_was_cut_off_is_finished_by_the_next(services: Services, programs: Path, tmp_path: Path) -> None:
    played = Played(services, tmp_path, programs, f"sqlite:{tmp_path / 'bus.db'}?federation=digits")
    half_made = played.keys / "ward-1" / "new.pem"
    half_made.write_text("the key of a life that ended here")
    assert finished(played.start("init")) == [0]
    assert (played.keys / "ward-1" / "key.pem").exists()
    assert not half_made.exists()


@pytest.mark.kafka
@pytest.mark.slow
def test_broker_server_and_clients_make_a_model(
    services: Services, programs: Path, tmp_path: Path, kafka: Any, request: pytest.FixtureRequest
) -> None:
    url = f"{kafka.url}/digits-{os.getpid()}-{os.urandom(3).hex()}"
    played = Played(services, tmp_path, programs, url)
    assert finished(played.start("init")) == [0]
    server = played.start("server", "--until-end")
    wards = [played.start(name) for name in WARDS]
    assert finished(server, *wards) == [0, 0, 0, 0]
    verified = played.run("verify")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    with refold.connect(url, keys=played.keys / "server") as federation:
        assert federation.ended
        assert federation.rebuild(20).round == 20


@pytest.mark.kafka
def test_the_images_own_entry_point_takes_the_brokers_environment(
    services: Services, tmp_path: Path, kafka_is_available: None
) -> None:
    """Kafka's jars hold the program that the image begins with: it writes the settings, then formats the folder for data."""
    runtime = find_runtime()
    if not isinstance(runtime, JavaRuntime):
        pytest.skip("the image's entry point is in Kafka's jars, which need Java and Maven")
    for name, nodes in (("kafka", 1), ("kafka-2", 3)):
        folder = tmp_path / name
        for part in ("default", "mounted", "final", "data"):
            (folder / part).mkdir(parents=True)
        (folder / "default" / "server.properties").write_text("node.id=9\n")
        for file in ("log4j2.yaml", "tools-log4j2.yaml"):
            (folder / "default" / file).write_text(LOGGING)
        environment = {key: str(value) for key, value in services[name]["environment"].items()}
        folders = [f"--{part}-configs-dir={folder / part}" for part in ("default", "mounted", "final")]
        done = subprocess.run(
            [runtime.java.path, "-cp", f"{runtime.jars}/*", "kafka.docker.KafkaDockerWrapper", "setup", *folders],
            env=os.environ | environment | {"KAFKA_LOG_DIRS": str(folder / "data")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        lines = (folder / "final" / "server.properties").read_text().split()
        assert dict(line.split("=", 1) for line in lines).items() >= shared_settings(nodes).items()
        assert f"cluster.id={environment['CLUSTER_ID']}" in (folder / "data" / FORMATTED).read_text().split()
