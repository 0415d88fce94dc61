"""Where the ranks of a run stood when nothing moved any more, and which one the others wait for."""

import os
import sys
import threading
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from meloformer.batches.data_workers import process_state

_FRAMES_SAID = 5
# Where a rank waits for others.
_COLLECTIVES = ("torch/distributed/distributed_c10d.py", "meloformer/training/ranks.py")


@dataclass(frozen=True, kw_only=True)
class Post:
    """What a rank says of itself.

    Args:
        beat: how often it has said so.
        moves: moments that it has come to.
        place: steps begun, and moments in the last one; the same on ranks that stand together.
        moment: the last one.
        is_slow: whether that may take long.
        host: where it runs.
        pid: of its process there.
        stack: of its main thread, innermost first, in words; "" until somebody stalls.
        is_collective: whether that waits for other ranks.
    """

    beat: int
    moves: int
    place: tuple[int, int]
    moment: str
    is_slow: bool
    host: str
    pid: int
    stack: str = ""
    is_collective: bool = False


def find_stalled(posts: Mapping[int, Post], mute: set[int], host: str) -> str:
    """Say which ranks the others wait for, and how that shows.

    Args:
        posts: the last ones, by rank.
        mute: ranks that do not answer any more, or never have.
        host: whose processes can be looked at.
    """
    if mute:
        return "; ".join(_silence(rank, posts.get(rank), host) for rank in sorted(mute))
    if len(posts) == 1:
        (post,) = posts.values()
        return f"the run stalls at {post.moment}, in {post.stack}"
    # Asked first: before the steps, the first rank comes to moments of its own.
    free = [rank for rank, post in posts.items() if not post.is_collective]
    if 0 < len(free) < len(posts):
        return "; ".join(
            f"rank {rank} stalls at {posts[rank].moment}, in {posts[rank].stack}, while others "
            "wait for it"
            for rank in free
        )
    least, most = (choose(tuple(post.place) for post in posts.values()) for choose in (min, max))
    behind = [rank for rank, post in posts.items() if tuple(post.place) == least]
    if least < most:
        others = next(post.moment for post in posts.values() if tuple(post.place) == most)
        return "; ".join(
            f"rank {rank} stalls at {posts[rank].moment}, in {posts[rank].stack}, while others "
            f"have come to {others}"
            for rank in behind
        )
    return (
        f"no rank stands out, all are at {posts[behind[0]].moment}: look at the network and the "
        "devices"
    )


def _silence(rank: int, post: Post | None, host: str) -> str:
    if post is None:
        return f"rank {rank} stalls: it has never been heard of"
    where = f"process {post.pid} on {post.host}"
    state = f" {process_state(post.pid)}" if post.host == host else ""
    return (
        f"rank {rank} stalls: it does not answer any more ({where}{state}), last heard of at "
        f"{post.moment}"
    )


def describe_lost_store(first: Post | None, host: str) -> str:
    """Say who is to blame where the ranks cannot ask each other.

    Args:
        first: an early post of the first rank, if one was read.
        host: whose processes can be looked at.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return "the store of the ranks does not answer, which the launcher on the first host holds"
    post = first and replace(first, moment="the start")
    return f"{_silence(0, post, host)}, and with it the store of the ranks"


def main_stack() -> list[tuple[str, int, str]]:
    """File, line and function of each frame of the main thread, innermost first."""
    frame: FrameType | None = sys._current_frames().get(threading.main_thread().ident or 0)
    found = []
    while frame is not None:
        found.append((frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name))
        frame = frame.f_back
    return found


def describe_stack(stack: list[tuple[str, int, str]]) -> tuple[str, bool]:
    """The innermost frame and those of no library in words, and whether they wait for other ranks.

    >>> describe_stack([("/x/ranks.py", 7, "sum"), ("/x/step.py", 9, "count_step")])
    ('sum (ranks.py:7) < count_step (step.py:9)', False)
    """
    own = [at for at in stack[1:] if "/meloformer/" in at[0] or "site-packages" not in at[0]]
    frames = [*stack[:1], *own][:_FRAMES_SAID]
    words = [f"{name} ({Path(file).name}:{line})" for file, line, name in frames]
    is_collective = any(file.endswith(_COLLECTIVES) for file, *_ in stack)
    return " < ".join(words) or "no Python code", is_collective


def all_stacks() -> str:
    """Stacks of all threads of this process, outermost first.

    Without the lines of the sources: they would be read from a disk that may be what hangs.
    """
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    lines = []
    for thread, frame in sys._current_frames().items():
        lines.append(f"thread {names.get(thread, thread)}")
        lines += [
            f'  File "{at.f_code.co_filename}", line {line}, in {at.f_code.co_name}'
            for at, line in reversed(list(traceback.walk_stack(frame)))
        ]
    return "".join(f"{line}\n" for line in lines)


def account_of(post: Post, is_mute: bool) -> str:
    where = f"{post.moment} (process {post.pid} on {post.host})"
    return f"does not answer any more, was at {where}" if is_mute else f"{where}: {post.stack}"
