"""Files that are whole or absent, also after a kill -9 or a power cut."""

import os
import secrets
from pathlib import Path

# A reader never looks at names with this prefix: what a killed writer left behind.
TEMPORARY_PREFIX = ".tmp-"


def create_if_absent(file: Path, content: bytes) -> bool:
    """Write a file that must not exist yet; False, and nothing changed, if it does.

    Of several writers racing for one name exactly one gets True, and no reader sees a part of the content.
    """
    temporary = _write_temporary(file, content)
    try:
        os.link(temporary, file)
    except FileExistsError:
        return False
    finally:
        temporary.unlink()
    _fsync_folder(file.parent)
    return True


def replace_file(file: Path, content: bytes) -> None:
    """Write or overwrite a file in one step."""
    os.replace(_write_temporary(file, content), file)
    _fsync_folder(file.parent)


def _write_temporary(file: Path, content: bytes) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.parent / f"{TEMPORARY_PREFIX}{file.stem}-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        with temporary.open("xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError:  # a full disk: leave no half file behind
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _fsync_folder(folder: Path) -> None:
    """Make a new name in the folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
