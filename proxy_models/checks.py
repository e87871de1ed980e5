"""What every record checks at birth, and how it refuses."""

from dataclasses import fields
from typing import Any, get_type_hints


class ConfigError(ValueError):
    """A value that no run can have. The message names the field, the value and what is allowed."""


def require(holds: bool, message: str) -> None:
    """Raise ConfigError(message) unless `holds`."""
    if not holds:
        raise ConfigError(message)


def ints_to_floats(record: Any) -> None:
    """Store 1 as 1.0 in float fields, so that a record and its hash do not depend on how a number was typed."""
    hints = get_type_hints(type(record))
    for field in fields(record):
        value = getattr(record, field.name)
        if hints[field.name] in (float, float | None) and type(value) is int:
            object.__setattr__(record, field.name, float(value))
