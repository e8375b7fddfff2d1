"""Writing what a verb made: to a file, whole or not at all, or to the terminal."""

from __future__ import annotations

import sys
from pathlib import Path

from refold.schemas.errors import UsageError
from refold.schemas.files import replacing


def require_target(path: Path) -> None:
    """Refuse what no file can be written to, before work is done for it.

    Raises
    ------
    UsageError
        It is a folder, or lies in one that is not there.
    """
    if path.is_dir():
        raise UsageError("there is a folder of this name", path=path, hint="name a file")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise UsageError("the folder is not there", path=folder, hint="make it first, or name another")


def write_text(output: str | None, text: str) -> None:
    """Write text to a file, or to stdout if none is named.

    Raises
    ------
    UsageError
        The file is a folder, or its folder is not there.
    """
    if output is None:
        sys.stdout.write(text)
        return
    path = Path(output)
    require_target(path)
    with replacing(path) as file:
        file.write(text.encode())
