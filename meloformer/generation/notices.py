"""What a user should know of music that is changed, though nothing has failed."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum


class NoticeCode(Enum):
    """What a notice is about, for programs that have words of their own for it."""

    NO_FILL = "no_fill"
    """The model never learned to read what stands behind the bars that it writes."""
    IN_PARTS = "in_parts"
    """The bars are more than are written at once."""
    NEAREST = "nearest"
    """The piece is more than the model reads; it goes by the nearest bars."""


@dataclass(frozen=True, kw_only=True)
class Notice:
    """One line for a user.

    Args:
        code: what it is about.
        line: the same in words, with the flags of the command line.
    """

    code: NoticeCode
    line: str

    def __str__(self) -> str:
        return self.line


Say = Callable[[Notice], None]
