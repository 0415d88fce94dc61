"""A disk that is full, for tests, without filling one."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from meloformer.training.board import Board


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """A disk that takes no more than so many bytes of a file."""
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


def meet_the_full_disk(board: Board) -> None:
    """Let TensorBoard's own thread write and fail, as it does by itself at one time or another."""
    if board._writer is not None:
        with pytest.raises(OSError, match="File too large"):
            board._writer.flush()
