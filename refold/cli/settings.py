"""Where settings come from: defaults, then ``refold.toml``, then ``REFOLD_*``, then flags.

``refold.toml`` is looked for here and in the folders above. It may hold ``bus``, ``keys`` and ``json``, which every verb takes,
and a table for each verb with that verb's own options, dashes or underscores alike::

    bus = "sqlite:hospital.db"

    [serve]
    until-end = true

Relative paths in it count from its own folder. Whatever it says that nobody would read is an error.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from refold.schemas.errors import ConfigurationError

FILE = "refold.toml"
EVERYWHERE = ("bus", "keys", "json")


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
    unknown = sorted(key for key in said if key not in EVERYWHERE and key not in verbs)
    if unknown:
        raise _unknown(path, unknown, [*EVERYWHERE, *(f"[{verb}]" for verb in sorted(verbs))])
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


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
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
