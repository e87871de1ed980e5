"""Reading a TOML file into a checked record, and saying in one message what is wrong with it."""

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

# Steps of a pydantic location that are no keys of the file stand in angle brackets.
RANGE_TAG, LIST_TAG, NUMBER_TAG = "<log2 range>", "<list>", "<number>"

_Section = TypeVar("_Section", bound=BaseModel)

# pydantic's error type -> what the value must be, and what to do
_EXPECTED: Mapping[str, tuple[str, str]] = {
    "int_type": ("a whole number", "Write it without quotes and without a fraction."),
    "int_from_float": ("a whole number", "Write it without a fraction."),
    "float_type": ("a number", "Write it without quotes."),
    "finite_number": ("a finite number", "Write an ordinary number."),
    "bool_type": ("true or false", "Write it without quotes."),
    "string_type": ("a text", "Write it in double quotes."),
    "tuple_type": ("a list", "Write it in square brackets, like [1, 2, 3]."),
    "dict_type": ("a table", "Write it as a [section] or as { key = value }."),
    "model_type": ("a table", "Write it as a [section] or as { key = value }."),
    "none_required": ('a number or "none"', 'Write a number, or "none" in quotes.'),
    "greater_than": ("above {gt}", "Raise it."),
    "greater_than_equal": ("at least {ge}", "Raise it."),
    "less_than": ("below {lt}", "Lower it."),
    "less_than_equal": ("at most {le}", "Lower it."),
    "string_pattern_mismatch": (
        "letters, digits, '.', '_' and '-', at most 100, starting with a letter or digit",
        "It names a folder: change it.",
    ),
    "literal_error": ("one of {expected}", "Choose one of these."),
}


class SpecError(ValueError):
    """A spec or target file that cannot be used. It says where, what came, what is allowed and what to do."""


def refuse_unknown_keys(values: object, known: Iterable[str]) -> object:
    """Return `values` unchanged; as a pydantic before-validator it names the nearest known key.

    Raises:
        PydanticCustomError: a key that is not in `known`.
    """
    names = sorted(known)
    if not isinstance(values, dict):
        return values
    for key in values:
        if key not in names:
            near = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
            hint = f"Did you mean '{near[0]}'?" if near else "Rename or remove it."
            raise PydanticCustomError(
                "unknown_key",
                "unknown key, got the value {value}; allowed here: {names}. {hint}",
                {"key": key, "value": shown(values[key]), "names": ", ".join(names), "hint": hint},
            )
    return values


def shown(value: object) -> str:
    """A value as an error message shows it: Python's spelling, cut to 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def read_text(file: Path) -> str:
    """A text file's content.

    Raises:
        SpecError: no such file, a folder, not readable, or not UTF-8.
    """
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SpecError(f"{file}: no such file. Give the path of a TOML file.") from None
    except IsADirectoryError:
        raise SpecError(f"{file}: is a folder. Give the path of a TOML file in it.") from None
    except UnicodeDecodeError as error:
        raise SpecError(f"{file}: is not UTF-8 text (byte {error.start}). Save it as UTF-8.") from None
    except OSError as error:
        raise SpecError(f"{file}: cannot be read: {error.strerror}. Check path and permissions.") from None


def parse(text: str, section: type[_Section], *, file: Path) -> _Section:
    """Parse TOML into `section`.

    Raises:
        SpecError: broken TOML (with its line), or the first value that `section` refuses.
    """
    try:
        return section.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"{file}: is not valid TOML: {error}. Correct that line.") from None
    except ValidationError as error:
        # One message: an unknown key first, because it is often the reason for a missing one.
        first = min(error.errors(), key=lambda detail: detail["type"] != "unknown_key")
        raise SpecError(f"{file}: {_describe(first)}") from None


def _describe(error: ErrorDetails) -> str:
    context = error.get("ctx", {})
    if error["type"] == "unknown_key":
        return f"{_dotted((*error['loc'], *filter(None, [context['key']])))}: {error['msg']}"
    key = _dotted(error["loc"])
    if error["type"] == "missing":
        return f"{key}: is missing. Add this key."
    if error["type"] == "value_error":
        return f"{key}: {context['error']}"
    expected, action = _EXPECTED.get(error["type"], ("different", "Correct it."))
    if error["type"] == "literal_error":
        near = difflib.get_close_matches(str(error["input"]), re.findall("'([^']*)'", context["expected"]), n=1)
        action = f"Did you mean '{near[0]}'?" if near else action
    return f"{key}: must be {expected.format(**context)}, got {shown(error['input'])}. {action}"


def _dotted(location: Iterable[int | str]) -> str:
    """('run', 'widths', 1) -> 'run.widths[1]'."""
    steps = [step for step in location if not str(step).startswith("<")]
    dotted = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)
    return dotted.removeprefix(".") or "the file"


def config_error(file: Path, key: str, error: Exception) -> SpecError:
    """A record's refusal (`ConfigError`), with the file and the key that it came from."""
    return SpecError(f"{file}: {key}: {error}. Change this value, or the one it is compared with.")


def require(holds: bool, file: Path, key: str, message: str) -> None:
    """Raise SpecError(file: key: message) unless `holds`."""
    if not holds:
        raise SpecError(f"{file}: {key}: {message}")


def as_table(value: Any) -> Any:
    """For pydantic unions: which of RANGE_TAG and LIST_TAG a value of an axis is."""
    return RANGE_TAG if isinstance(value, dict) else LIST_TAG
