"""Writing what a verb made: to a file, whole or not at all, or to the terminal."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from refold.schemas.errors import UsageError


def write_text(output: str | None, text: str) -> None:
    """Write text to a file, or to stdout if none is named.

    Raises
    ------
    UsageError
        The file's folder is not there.
    """
    if output is None:
        sys.stdout.write(text)
        return
    path = Path(output)
    if not path.absolute().parent.is_dir():
        raise UsageError("the folder is not there", path=path.absolute().parent)
    scratch = path.with_name(f"{path.name}.tmp")
    # 1. Beside the target.
    with scratch.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    # 2. Its name.
    scratch.replace(path)
