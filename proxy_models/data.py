"""Tokens and batches. A batch is a pure function of (seed, step), so every learning rate sees the same data.

Sources: the Python standard library's own source text at byte level (on every machine), any text file or
folder at byte level, and token files (.npy, or raw integers with a dtype as nanoGPT writes them).
"""

import hashlib
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.unsignedinteger]
# Not part of every installation, or no program text: character tables and one 0.7 MB file of help topics.
_SKIPPED_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test", "encodings", "pydoc_data"}
)


class DataError(ValueError):
    """Data that cannot be trained on. The message names the file, what is wrong and what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSource:
    """Where tokens come from. Not part of a trial's identity: the content's fingerprint is."""

    kind: Literal["stdlib", "text", "tokens"] = "stdlib"
    path: str | None = None
    dtype: str | None = None  # of a raw .bin file
    validation_frac: float = 0.05  # of the files, or of a single file's end

    def __post_init__(self) -> None:
        if (self.path is None) != (self.kind == "stdlib"):
            raise DataError(f"a data source of kind {self.kind!r} got path={self.path!r}: 'text' and 'tokens' need one")
        if not 0 < self.validation_frac < 1:
            raise DataError(f"validation_frac must be between 0 and 1, got {self.validation_frac}")


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenData:
    """Training and validation tokens, one dimension each."""

    train: Tokens
    validation: Tokens
    fingerprint: str  # SHA-256 of both, 16 hex digits
    description: str


def load_data(source: DataSource, *, vocab_size: int, seq_len: int) -> TokenData:
    """Read a source, split it, and check that every token is in the vocabulary.

    Raises:
        DataError: nothing to read, too few tokens for one sequence, or a token outside the vocabulary.
    """
    if source.kind == "tokens":
        train, validation, description = _read_token_file(source)
    else:
        train, validation, description = _read_text(source)
    for part, tokens in (("training", train), ("validation", validation)):
        _check(tokens, part, description, vocab_size=vocab_size, seq_len=seq_len)
    digest = hashlib.sha256()
    for tokens in (train, validation):
        digest.update(f"{tokens.dtype.str}:{len(tokens)};".encode())
        digest.update(np.ascontiguousarray(tokens).view(np.uint8))  # a memory map is not copied
    return TokenData(train=train, validation=validation, fingerprint=digest.hexdigest()[:16], description=description)


@lru_cache(maxsize=1)
def load_data_once(source: DataSource, *, vocab_size: int, seq_len: int) -> TokenData:
    """`load_data`, and the next time what it gave: for a process that works on one source. Raises as it does."""
    return load_data(source, vocab_size=vocab_size, seq_len=seq_len)


def batch(data: TokenData, *, seed: int, step: int, batch_tokens: int, seq_len: int) -> npt.NDArray[np.int64]:
    """Training windows (batch_tokens / seq_len, seq_len + 1): inputs and, shifted by one, their targets."""
    rng = np.random.default_rng((seed, step))
    starts = rng.integers(len(data.train) - seq_len, size=batch_tokens // seq_len)
    return data.train[starts[:, None] + np.arange(seq_len + 1)].astype(np.int64)


def validation_windows(data: TokenData, *, validation_tokens: int, seq_len: int) -> npt.NDArray[np.int64]:
    """The fixed held-out windows (n, seq_len + 1), spread evenly over the validation text, none overlapping.

    n is validation_tokens / seq_len, or as many as the text has.
    """
    available = (len(data.validation) - 1) // seq_len
    n = min(validation_tokens // seq_len, available)
    starts = np.arange(n) * available // n * seq_len
    return data.validation[starts[:, None] + np.arange(seq_len + 1)].astype(np.int64)


def _check(tokens: Tokens, part: str, description: str, *, vocab_size: int, seq_len: int) -> None:
    needed = 2 * seq_len + 1
    if len(tokens) < needed:
        raise DataError(
            f"{description}: the {part} part has {len(tokens)} tokens, fewer than the {needed} that two sequences "
            f"of seq_len={seq_len} take; give more text or a shorter seq_len"
        )
    largest = int(tokens.max())
    if largest >= vocab_size:
        raise DataError(
            f"{description}: the {part} part holds token {largest}, outside the vocabulary of {vocab_size}; "
            f"set vocab_size to at least {largest + 1} or check the file's dtype"
        )


def _read_text(source: DataSource) -> tuple[Tokens, Tokens, str]:
    if source.kind == "stdlib":
        root = Path(sysconfig.get_path("stdlib"))
        files, name = sorted(root.rglob("*.py")), "the Python standard library's sources"
        files = [file for file in files if not _SKIPPED_FOLDERS.intersection(file.relative_to(root).parts)]
    else:
        assert source.path is not None
        root = Path(source.path)
        files, name = ([root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file())), f"{root}"
    if not files:
        raise DataError(f"no text found in {root}: data.path must be a text file or a folder with files")
    if len(files) == 1:
        tokens = np.frombuffer(files[0].read_bytes(), dtype=np.uint8)
        return *_split_end(tokens, source.validation_frac), name
    held_out = {file for file in files if _is_held_out(file.relative_to(root), source.validation_frac)}
    train = _concatenate(file for file in files if file not in held_out)
    validation = _concatenate(file for file in files if file in held_out)
    return train, validation, f"{name} ({len(files) - len(held_out)} files, {len(held_out)} held out)"


def _is_held_out(relative: Path, frac: float) -> bool:
    """By a hash of the file's name, so that adding a file moves no other between the parts."""
    return int.from_bytes(hashlib.sha256(relative.as_posix().encode()).digest()[:4], "big") < frac * 2**32


def _concatenate(files: Iterable[Path]) -> Tokens:
    return np.frombuffer(b"\n".join(file.read_bytes() for file in files), dtype=np.uint8)


def _read_token_file(source: DataSource) -> tuple[Tokens, Tokens, str]:
    assert source.path is not None
    path = Path(source.path)
    if not path.is_file():
        raise DataError(f"data.path is {path}, which is not a file: give a .npy or .bin file of token ids")
    if path.suffix == ".npy":
        try:
            tokens = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise DataError(f"{path} is not a readable .npy array: {error}") from error
    else:
        if source.dtype is None:
            raise DataError(f"{path} is raw tokens: say their type with data.dtype, for example dtype = 'uint16'")
        dtype = _integer_dtype(source.dtype, path)
        if path.stat().st_size % dtype.itemsize or path.stat().st_size == 0:
            raise DataError(
                f"{path} has {path.stat().st_size} bytes, not a positive multiple of the {dtype.itemsize} of {dtype}"
            )
        tokens = np.memmap(path, dtype=dtype, mode="r")
    if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
        raise DataError(
            f"{path} must hold one dimension of integers, got shape {tokens.shape} and dtype {tokens.dtype}"
        )
    if np.issubdtype(tokens.dtype, np.signedinteger) and len(tokens) and int(tokens.min()) < 0:
        raise DataError(f"{path} holds token {int(tokens.min())}: token ids must be at least 0")
    return *_split_end(tokens, source.validation_frac), str(path)


def _integer_dtype(name: str, path: Path) -> np.dtype[np.integer]:
    try:
        dtype = np.dtype(name)
    except TypeError as error:
        raise DataError(f"{path}: data.dtype={name!r} is not a number type; use 'uint16' or 'uint32'") from error
    if not np.issubdtype(dtype, np.integer):
        raise DataError(f"{path}: data.dtype={name!r} must be an integer type; use 'uint16' or 'uint32'")
    return dtype


def _split_end(tokens: Tokens, validation_frac: float) -> tuple[Tokens, Tokens]:
    cut = len(tokens) - int(len(tokens) * validation_frac)
    return tokens[:cut], tokens[cut:]
