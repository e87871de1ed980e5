"""What every record checks at birth, and how it refuses."""

from dataclasses import fields
from functools import cache
from typing import Any, get_type_hints


class ConfigError(ValueError):
    """A value that no run can have. The message names the field, the value and what is allowed."""


def require(holds: bool, message: str) -> None:
    """Raise ConfigError(message) unless `holds`."""
    if not holds:
        raise ConfigError(message)


def ints_to_floats(record: Any) -> None:
    """Store 1 as 1.0 in float fields, so that a record and its hash do not depend on how a number was typed."""
    for name in _float_fields(type(record)):
        value = getattr(record, name)
        if type(value) is int:
            object.__setattr__(record, name, float(value))


@cache  # a sweep makes thousands of records, and resolving annotations was most of what one took
def _float_fields(kind: type) -> tuple[str, ...]:
    """Fields that hold a float, or None."""
    hints = get_type_hints(kind)
    return tuple(field.name for field in fields(kind) if hints[field.name] in (float, float | None))
