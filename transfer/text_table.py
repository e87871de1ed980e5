"""A table of text, for HTML, Markdown and the terminal alike."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class TextTable:
    """Cells as text. Columns in `words` hold prose and are set flush left."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: frozenset[int] = frozenset({0})
