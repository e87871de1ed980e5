"""Reading, splitting, batching and fingerprinting tokens; what is refused."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy_models.data import DataError, DataSource, batch, load_data, validation_windows
from tests.proxy_helpers import cyclic_data


def _load(kind: str, path: Path, *, vocab_size: int = 256, seq_len: int = 8, **source: object):  # type: ignore[no-untyped-def]
    return load_data(
        DataSource(kind=kind, path=str(path), **source),  # type: ignore[arg-type]
        vocab_size=vocab_size,
        seq_len=seq_len,
    )


def test_standard_library_is_split_by_file() -> None:
    data = load_data(DataSource(), vocab_size=256, seq_len=128)
    assert len(data.train) > 5_000_000
    assert 0.01 < len(data.validation) / len(data.train) < 0.3
    assert b"import" in data.train[:100_000].tobytes()
    # No held-out stretch stands in the training text: the parts are different files.
    train = data.train.tobytes()
    rng = np.random.default_rng(0)
    stretches = [data.validation[i : i + 400].tobytes() for i in rng.integers(len(data.validation) - 400, size=50)]
    assert sum(stretch in train for stretch in stretches) <= 2  # a few texts repeat


def test_folder_split_does_not_move_when_a_file_is_added(tmp_path: Path) -> None:
    for i in range(40):
        (tmp_path / f"{i}.txt").write_bytes(bytes([i]) * 50)
    before = _load("text", tmp_path, validation_frac=0.25)
    (tmp_path / "new.txt").write_bytes(b"\xff" * 50)
    after = _load("text", tmp_path, validation_frac=0.25)
    ignore = {10, 255}
    assert set(np.unique(before.validation)) - ignore == set(np.unique(after.validation)) - ignore
    assert before.fingerprint != after.fingerprint
    assert set(np.unique(before.train)) & set(np.unique(before.validation)) - ignore == set()


def test_single_file_keeps_its_end_for_validation(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(bytes(range(200)))
    data = _load("text", path, validation_frac=0.25, seq_len=4)
    assert data.train.tolist() == list(range(150))
    assert data.validation.tolist() == list(range(150, 200))


def test_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_bytes(bytes(range(200)))
    (tmp_path / "c.txt").write_bytes(bytes(range(199)) + b"x")
    a, b, c = (_load("text", tmp_path / name, validation_frac=0.2).fingerprint for name in ("a.txt", "b.txt", "c.txt"))
    assert a == b != c


@pytest.mark.parametrize("suffix", [".npy", ".bin"])
def test_token_files(tmp_path: Path, suffix: str) -> None:
    tokens = np.arange(300, dtype=np.uint16)
    path = tmp_path / f"t{suffix}"
    np.save(path, tokens) if suffix == ".npy" else tokens.tofile(path)
    data = _load("tokens", path, vocab_size=300, dtype="uint16" if suffix == ".bin" else None, validation_frac=0.1)
    assert data.train.tolist() == list(range(270))
    assert data.validation.tolist() == list(range(270, 300))
    with pytest.raises(DataError, match=r"holds token 269, outside the vocabulary of 256; set vocab_size to at least"):
        _load("tokens", path, vocab_size=256, dtype="uint16", validation_frac=0.1)


def test_refusals_name_the_file_and_the_way_out(tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_bytes(b"abc" * 6)
    with pytest.raises(DataError, match=r"short.txt: the validation part has 0 tokens, fewer than the 17"):
        _load("text", short)
    with pytest.raises(DataError, match=r"no text found in .*nowhere"):
        _load("text", tmp_path / "nowhere")
    with pytest.raises(DataError, match="which is not a file"):
        _load("tokens", tmp_path / "nowhere.bin")
    odd = tmp_path / "odd.bin"
    odd.write_bytes(b"abc")
    with pytest.raises(DataError, match=r"say their type with data\.dtype"):
        _load("tokens", odd)
    with pytest.raises(DataError, match="3 bytes, not a positive multiple of the 2"):
        _load("tokens", odd, dtype="uint16")
    with pytest.raises(DataError, match="'uint17' is not a number type"):
        _load("tokens", odd, dtype="uint17")
    with pytest.raises(DataError, match="must be an integer type"):
        _load("tokens", odd, dtype="float32")
    fake = tmp_path / "fake.npy"
    fake.write_bytes(b"not numpy")
    with pytest.raises(DataError, match=r"fake.npy is not a readable .npy array"):
        _load("tokens", fake)
    np.save(tmp_path / "float.npy", np.ones(100))
    with pytest.raises(DataError, match="one dimension of integers, got shape"):
        _load("tokens", tmp_path / "float.npy")
    np.save(tmp_path / "negative.npy", np.arange(-5, 200))
    with pytest.raises(DataError, match="holds token -5: token ids must be at least 0"):
        _load("tokens", tmp_path / "negative.npy")
    with pytest.raises(DataError, match="'text' and 'tokens' need one"):
        DataSource(kind="text")
    with pytest.raises(DataError, match="validation_frac must be between 0 and 1"):
        DataSource(validation_frac=1.0)


@given(seed=st.integers(0, 2**31), step=st.integers(0, 10**6), sequences=st.integers(1, 9))
def test_batches_are_windows_and_a_pure_function(seed: int, step: int, sequences: int) -> None:
    data = cyclic_data()
    windows = batch(data, seed=seed, step=step, batch_tokens=16 * sequences, seq_len=16)
    assert np.array_equal(windows, batch(data, seed=seed, step=step, batch_tokens=16 * sequences, seq_len=16))
    assert windows.shape == (sequences, 17)
    text = data.train.astype(np.int64).tobytes()
    assert all(window.tobytes() in text for window in windows)


@given(tokens=st.integers(32, 2000))
def test_validation_windows_do_not_overlap(tokens: int) -> None:
    data = cyclic_data()
    data = type(data)(train=data.train, validation=np.arange(500, dtype=np.uint16), fingerprint="", description="")
    windows = validation_windows(data, validation_tokens=tokens, seq_len=16)
    inputs = windows[:, :-1].ravel()
    assert len(np.unique(inputs)) == len(inputs)
    assert len(windows) == min(tokens // 16, 31)
    assert np.array_equal(windows[:, 1:], windows[:, :-1] + 1)
