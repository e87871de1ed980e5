"""A fit that may fail where others go on."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from analysis.interval import FitError

P = ParamSpec("P")
T = TypeVar("T")


def attempt(fit: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | FitError:
    """The fit, or why there is none."""
    try:
        return fit(*args, **kwargs)
    except FitError as error:
        return error
