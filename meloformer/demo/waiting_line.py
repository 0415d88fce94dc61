"""One at a time, in the order of coming; whoever goes away frees the place."""

import threading
from collections import deque
from collections.abc import Callable
from http import HTTPStatus
from types import TracebackType

from meloformer.demo.border import PageError

# Between two looks at whether the visitor is still there.
_LOOK_SECONDS = 0.25


class VisitorGoneError(Exception):
    """Nobody waits for the answer any more."""


class WaitingLine:
    """A line before something that serves one visitor at a time.

    Args:
        most_waiting: visitors behind the one that is served; more are refused.
    """

    def __init__(self, most_waiting: int) -> None:
        self._most = 1 + most_waiting
        self._places: deque[Place] = deque()
        self._moved = threading.Condition()

    def __len__(self) -> int:
        with self._moved:
            return len(self._places)

    def join(self) -> "Place":
        """Take the last place; leave it by its context.

        Raises:
            PageError: the line is full.
        """
        with self._moved:
            if len(self._places) >= self._most:
                raise PageError(
                    "queue_full",
                    f"the queue: found {len(self._places)} before you; allowed: up to "
                    f"{self._most - 1}; try again in a minute",
                    HTTPStatus.SERVICE_UNAVAILABLE,
                    found=len(self._places),
                )
            place = Place(self)
            self._places.append(place)
            return place

    def _number(self, place: "Place") -> int:
        return self._places.index(place)


class Place:
    """A visitor's place in a line.

    Args:
        line: in which.
    """

    def __init__(self, line: WaitingLine) -> None:
        self._line = line

    def __enter__(self) -> "Place":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._line._moved:
            self._line._places.remove(self)
            self._line._moved.notify_all()

    def wait(self, on_move: Callable[[int], None], is_gone: Callable[[], bool]) -> None:
        """Wait until it is one's turn.

        Args:
            on_move: called with the number of those before, whenever it is another one.
            is_gone: asked now and then whether nobody waits any more.

        Raises:
            VisitorGoneError: so it is.
        """
        said = 0
        while True:
            with self._line._moved:
                before = self._line._number(self)
                if before == said and before > 0:
                    self._line._moved.wait(_LOOK_SECONDS)
                    before = self._line._number(self)
            if before == 0:
                return
            if before != said:
                on_move(before)
                said = before
            if is_gone():
                raise VisitorGoneError
