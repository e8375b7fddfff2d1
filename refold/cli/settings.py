"""Where settings come from: defaults, then ``refold.toml``, then ``REFOLD_*``, then flags.

``refold.toml`` is looked for here and in the folders above. It may hold ``bus``, ``keys`` and ``json``, which every verb takes,
a table for each verb with that verb's own options, dashes or underscores alike, and how a Kafka cluster is spoken to, with the
names of `refold.bus.security`; ``[other-kafka]`` is for the second bus of the verbs that have two::

    bus = "kafka://broker:9093/hospital"

    [kafka]
    ca = "ca.pem"
    user = "ward-7"
    password-file = "ward-7.password"

    [serve]
    until-end = true

Relative paths in it count from its own folder. Whatever it says that nobody would read is an error.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from refold.bus.security import FILES, OTHER_PREFIX, PREFIX, SECRETS, KafkaSecurity, environment_layer, refuse_unknown
from refold.schemas.errors import ConfigurationError, UsageError
from refold.schemas.files import read_small

FILE = "refold.toml"
EVERYWHERE = ("bus", "keys", "json")
KAFKA, OTHER_KAFKA = "kafka", "other-kafka"
_PREFIXES = {KAFKA: PREFIX, OTHER_KAFKA: OTHER_PREFIX}


def find_file(start: Path) -> Path | None:
    """Return the nearest ``refold.toml``, in this folder or above."""
    return next((folder / FILE for folder in (start, *start.parents) if (folder / FILE).is_file()), None)


def load(path: Path | None, verbs: Collection[str]) -> dict[str, dict[str, Any]]:
    """Return each verb's settings from a file, those for every verb mixed in.

    Raises
    ------
    ConfigurationError
        It is no TOML, or holds a key that nobody reads.
    """
    if path is None:
        return {}
    said = _read(path)
    unknown = sorted(key for key in said if key not in EVERYWHERE and key not in verbs and key not in _PREFIXES)
    if unknown:
        raise _unknown(path, unknown, [*EVERYWHERE, *(f"[{table}]" for table in (*_PREFIXES, *sorted(verbs)))])
    everywhere = {key: _rooted(key, said[key], path.parent) for key in EVERYWHERE if key in said}
    found = {}
    for verb in verbs:
        table = said.get(verb, {})
        if not isinstance(table, dict):
            raise ConfigurationError(f"{verb} is no table", path=path, hint=f"write its options under [{verb}]")
        own = {key.replace("-", "_"): value for key, value in table.items()}
        found[verb] = everywhere | {key: _rooted(key, value, path.parent) for key, value in own.items()}
    return found


def check(path: Path | None, verb: str, settings: dict[str, Any], options: Collection[str]) -> None:
    """Refuse settings of a verb that it does not have."""
    unknown = sorted(set(settings) - set(options) - set(EVERYWHERE))
    if unknown and path is not None:
        raise _unknown(path, [f"{verb}.{key}" for key in unknown], sorted(set(options) - set(EVERYWHERE)))


def kafka_security(path: Path | None, table: str, flags: Collection[str]) -> KafkaSecurity:
    """Return how a Kafka cluster is spoken to, of all that says so.

    Parameters
    ----------
    table
        `KAFKA`, or `OTHER_KAFKA` for the second bus of a verb that has two: nothing of the first one's is shown to it.
    flags
        ``NAME=VALUE`` as on the command line.

    Raises
    ------
    ConfigurationError, UsageError
        A setting is not known, is no value, or does not go with the others.
    """
    return KafkaSecurity.layered(_from_file(path, table), environment_layer(_PREFIXES[table]), _from_flags(table, flags))


def _from_file(path: Path | None, table: str) -> dict[str, Any]:
    said = _read(path).get(table, {}) if path is not None else {}
    if not isinstance(said, dict):
        raise ConfigurationError(f"{table} is no table", path=path, hint=f"write its settings under [{table}]")
    layer = {key.replace("_", "-"): value for key, value in said.items()}
    refuse_unknown(layer, path=path, table=f"[{table}]")
    _refuse_secrets(layer, path=path)
    folder = path.parent if path is not None else Path()
    return {key: str(folder / value) if key in FILES and isinstance(value, str) else value for key, value in layer.items()}


def _from_flags(table: str, flags: Collection[str]) -> dict[str, Any]:
    layer: dict[str, Any] = {}
    for word in flags:
        name, is_there, value = word.partition("=")
        if not is_there:
            # Not the word itself: whoever forgot the name may have written a password.
            raise UsageError(f"what follows --{table} is not NAME=VALUE")
        layer[name.replace("_", "-")] = value
    refuse_unknown(layer, option=f"--{table}")
    _refuse_secrets(layer, option=f"--{table}")
    return layer


def _refuse_secrets(layer: dict[str, Any], **where: object) -> None:
    """Refuse passwords where others can read them: in a file that is shown around, and among a process's arguments."""
    for name in SECRETS.keys() & layer.keys():
        hint = f"name a file that holds it with {SECRETS[name]}, or set {PREFIX}{name.upper().replace('-', '_')}"
        raise ConfigurationError(f"{name} does not belong here", setting=name, hint=hint, **where)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(read_small(path).decode("utf-8"))
    except (ValueError, RecursionError) as error:  # Of numbers with thousands of digits and of deep nesting, too.
        raise ConfigurationError(f"cannot be read as TOML: {error}", path=path) from error


def _unknown(path: Path, keys: list[str], known: list[str]) -> ConfigurationError:
    plural = "s" if len(keys) > 1 else ""
    return ConfigurationError(f"unknown key{plural} {', '.join(keys)}", path=path, hint=f"there are {', '.join(known)}")


def _rooted(key: str, value: Any, folder: Path) -> Any:
    """Let a relative path in the file count from the file's folder."""
    if key == "keys" and isinstance(value, str):
        return str(folder / value)
    if key == "bus" and isinstance(value, str) and value.startswith("sqlite:") and not value.startswith("sqlite:/"):
        return f"sqlite:{folder}/{value.removeprefix('sqlite:')}"
    return value
