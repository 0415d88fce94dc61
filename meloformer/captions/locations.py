"""Finds what was written of a file under a name that may be longer or shorter than the shards'."""

from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Generic, TypeVar

Value = TypeVar("Value")


class ByLocation(Generic[Value]):
    """Values by path; two paths are one file where one of them is the end of the other.

    Args:
        entries: (path, value), each path relative to some folder; values of one path are joined.

    >>> by = ByLocation([("lmd/1/a.mid", "x"), ("b.mid", "y"), ("lmd/2/a.mid", "z")])
    >>> by.find("1/a.mid"), by.find("set/b.mid"), by.find("a.mid"), by.find("c.mid")
    (['x'], ['y'], [], [])
    """

    def __init__(self, entries: Iterable[tuple[str, Value]]) -> None:
        # By file name first: few files share one.
        self._of_name: dict[str, dict[tuple[str, ...], list[Value]]] = {}
        self.num_entries = 0
        for path, value in entries:
            parts = _parts(path)
            self._of_name.setdefault(parts[-1], {}).setdefault(parts, []).append(value)
            self.num_entries += 1

    def find(self, source: str) -> list[Value]:
        """All values of a file; none where two files could be meant."""
        wanted = _parts(source)
        candidates = self._of_name.get(wanted[-1], {})
        if wanted in candidates:
            return candidates[wanted]
        found = []
        for parts, values in candidates.items():
            shared = min(len(parts), len(wanted))
            if parts[-shared:] == wanted[-shared:]:
                found.append(values)
        return found[0] if len(found) == 1 else []

    def example(self) -> str:
        """One of the paths, for messages."""
        parts = next(iter(next(iter(self._of_name.values()))))
        return "/".join(parts)


def _parts(path: str) -> tuple[str, ...]:
    parts = PurePosixPath(path.replace("\\", "/")).parts
    return tuple(part for part in parts if part not in ("/", ".")) or ("",)
