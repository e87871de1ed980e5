"""Files that are whole or absent, also after a kill -9 or a power cut."""

import os
import secrets
import time
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


def replace_unsynced(file: Path, content: bytes) -> None:
    """Write or overwrite a file in one step, but leave to the system when it reaches the disk."""
    temporary = _temporary(file)
    try:
        temporary.write_bytes(content)
        os.replace(temporary, file)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def set_aside(file: Path, folder: Path) -> Path | None:
    """Move a file to the folder's set_aside/ and return its new place; None if another process was faster."""
    target = folder / "set_aside" / f"{file.stem}-{time.time_ns()}{file.suffix}"
    target.parent.mkdir(exist_ok=True)
    try:
        return file.rename(target)
    except FileNotFoundError:
        return None


def _write_temporary(file: Path, content: bytes) -> Path:
    temporary = _temporary(file)
    try:
        with temporary.open("xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError:  # a full disk: leave no half file behind
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _temporary(file: Path) -> Path:
    """A name of this writer's own, in the folder of the file, which is made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    return file.parent / f"{TEMPORARY_PREFIX}{file.stem}-{os.getpid()}-{secrets.token_hex(4)}"


def _fsync_folder(folder: Path) -> None:
    """Make a new name in the folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
