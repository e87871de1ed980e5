"""What every TOML file of a user's is read into: a record that knows its keys, its file and its text."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, PrivateAttr, model_validator

from sweeps.spec_errors import parse, read_text, refuse_unknown_keys
from sweeps.spec_types import SECTION


class Section(BaseModel):
    """A table of such a file; a key that it does not have is refused with the nearest that it has."""

    model_config = SECTION

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, values: Any) -> Any:
        return refuse_unknown_keys(values, cls.model_fields)


class FileSection(Section):
    """A whole file, as `read_section` returns it."""

    _file: Path = PrivateAttr(default=Path("spec.toml"))
    _text: str = PrivateAttr(default="")

    @property
    def file(self) -> Path:
        """Where it was read from."""
        return self._file

    @property
    def text(self) -> str:
        """The TOML as it was written."""
        return self._text


_File = TypeVar("_File", bound=FileSection)


def read_section(path: str | Path, section: type[_File]) -> _File:
    """Read a TOML file.

    Raises:
        SpecError: the file or a key is not usable.
    """
    file = Path(path)
    text = read_text(file)
    read = parse(text, section, file=file)
    read._file, read._text = file, text
    return read
