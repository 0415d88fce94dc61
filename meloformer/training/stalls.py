"""A run that stands still ends, and says who is to blame: the rank, the moment, all stacks.

One rank that hangs leaves the others waiting in a collective, which ends after half an hour and
names nobody. So every rank notes where it stands, which costs it two attributes, and a thread of
its own posts that to the store in which the ranks met. Where nothing has moved on any rank for too
long, every rank writes down its stacks and ends, and the first that can still speak says which one
came less far, waits for nobody while the others wait, or does not answer any more.

The same thread carries warnings of the other ranks to the first one, which writes train.log.

Two threads per rank, since the store may lie in the very process that hangs: one talks to it and
may be held up; the other one counts the seconds, decides, and never waits for anything.
"""

import faulthandler
import itertools
import json
import logging
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

import torch.distributed as dist

from meloformer.batches.data_workers import DATA_TIMEOUT, MAX_LOSSES
from meloformer.errors import ConfigError
from meloformer.training.leaving import end_at_once
from meloformer.training.metrics import LOG_NAME
from meloformer.training.ranks import COLLECTIVE_TIMEOUT, Ranks
from meloformer.training.stall_report import (
    Post,
    account_of,
    all_stacks,
    describe_lost_store,
    describe_stack,
    find_stalled,
    main_stack,
)

logger = logging.getLogger("meloformer")

FOLDER_NAME = "stalls"
REASON_NAME = "reason.txt"
# What sysexits.h calls a failure that may be gone at the next try.
EXIT_STALLED = os.EX_TEMPFAIL
# Before the first step, while kernels compile, and in saves: below the time that a collective
# waits, so that nobody ends without a name.
SLOW_SECONDS = COLLECTIVE_TIMEOUT.total_seconds() - 300
# For the others to write down what they know, and for the last words.
GRACE_SECONDS = 15.0
MUTE_SECONDS = 5.0
# Should even the last words hang, on a dead disk, say: a thread below Python ends the process.
END_SECONDS = 90
_INTERVAL_SECONDS = 1.0
_STALLED = 1 << 40  # added to the count of moves: more than any run makes
_numbers = itertools.count()


@dataclass(frozen=True, kw_only=True)
class StallConfig:
    """What a run does when nothing moves.

    Args:
        stall_timeout: seconds without progress on any rank after which all of them end, the one
            that stalls is named, and the stacks of all lie in the run folder; 0 waits for ever.
            Before the first step, while code compiles, and in saves and samples up to 25 minutes
            are borne in any case.
        data_timeout: seconds that a batch is waited for before the data workers of that rank are
            started anew, 0 waits for ever; a quarter of --stall_timeout if not given.
    """

    stall_timeout: float = 900.0
    data_timeout: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.stall_timeout <= SLOW_SECONDS:
            raise ConfigError(
                f"--stall_timeout {self.stall_timeout:g}: allowed: 0 for none, or up to "
                f"{SLOW_SECONDS:g}, since collectives end a little later"
            )
        if self.data_timeout is not None and self.data_timeout < 0:
            raise ConfigError(f"--data_timeout {self.data_timeout:g}: allowed: 0 or more")
        if self.stall_timeout and self.data_seconds * MAX_LOSSES >= self.stall_timeout:
            raise ConfigError(
                f"--data_timeout {self.data_seconds:g} with --stall_timeout "
                f"{self.stall_timeout:g}: data workers are started anew up to {MAX_LOSSES - 1} "
                f"times before the run counts as stalled; allowed: less than 1/{MAX_LOSSES} of it"
            )

    @property
    def data_seconds(self) -> float:
        """How long a batch is waited for."""
        if self.data_timeout is not None:
            return self.data_timeout
        return self.stall_timeout / (MAX_LOSSES + 1) if self.stall_timeout else DATA_TIMEOUT


class StallWatch:
    """Watches over one rank, together with those of the other ranks.

    Args:
        ranks: the started processes.
        timeout_seconds: see `StallConfig.stall_timeout`.
        run: the run folder; nothing is written there unless somebody stalls.
        start: number of this start of the run.
        store: through which the ranks speak; the one in which they met if not given.
    """

    def __init__(
        self,
        ranks: Ranks,
        timeout_seconds: float,
        run: Path,
        start: int,
        store: dist.Store | None = None,
    ) -> None:
        self._store = store
        self._ranks, self._timeout, self._run = ranks, timeout_seconds, run
        self._folder = run / FOLDER_NAME / f"start-{start}"
        self._moment, self._is_slow, self._moves = "the start", True, 0
        self._num_begun = self._moves_before = 0
        self._interval = min(_INTERVAL_SECONDS, timeout_seconds / 20)
        self._host = socket.gethostname()
        # Written by the thread that talks to the store, read by the one that decides.
        self._exchanges = self._total = 0
        self._posts: dict[int, Post] = {}
        self._first: Post | None = None
        self._wants_posts = False
        self._account: tuple[str, bool] | None = None
        self._is_over = threading.Event()
        self._threads: list[threading.Thread] = []
        # Warnings of this rank that the first one has to write down.
        self._unsaid: deque[str] = deque()
        self._handler: logging.Handler | None = None

    def start(self) -> None:
        """Begin to watch; every rank does, in the same order where there are several runs."""
        if not self._timeout:
            return
        if self._ranks.world_size > 1:
            if self._store is None:
                # A connection of its own: the other one may be held by a call that waits for a
                # rank.
                met = dist.distributed_c10d._get_default_store()
                self._store = met.clone()  # type: ignore[attr-defined]  # absent from torch's stubs
            # A second run in the same process, as in a notebook, is another one.
            store = dist.PrefixStore(f"meloformer/stalls/{next(_numbers)}", self._store)
            self._threads.append(threading.Thread(target=self._talk, args=(store,), daemon=True))
            if not self._ranks.is_first:
                self._handler = _Forwarding(self._unsaid, self._ranks.rank)
                logger.addHandler(self._handler)
        self._threads.append(threading.Thread(target=self._watch, daemon=True))
        for thread in self._threads:
            thread.start()

    def at(self, moment: str, *, is_slow: bool | None = None) -> None:
        """Note where this rank stands.

        Args:
            moment: for messages; every rank comes to the same ones in the same order.
            is_slow: whether what begins may take long; as before if not given. False begins a
                step, from which on the places of ranks are compared.
        """
        self._moment = moment
        if is_slow is not None:
            self._is_slow = is_slow
        if is_slow is False:
            self._num_begun += 1
            self._moves_before = self._moves
        self._moves += 1

    @property
    def moment(self) -> str:
        """Where this rank stands."""
        return self._moment

    def close(self) -> None:
        """Stop to watch."""
        self._is_over.set()
        if self._handler:
            logger.removeHandler(self._handler)
        for thread in self._threads:
            # One that comes back from the store while Python shuts down would abort the process.
            thread.join(_INTERVAL_SECONDS)
        if self._threads:
            faulthandler.cancel_dump_traceback_later()

    def _post(self, beat: int) -> Post:
        stack, is_collective = self._account or ("", False)
        return Post(
            beat=beat,
            moves=self._moves,
            place=(self._num_begun, self._moves - self._moves_before),
            moment=self._moment,
            is_slow=self._is_slow,
            host=self._host,
            pid=os.getpid(),
            stack=stack,
            is_collective=is_collective,
        )

    def _talk(self, store: dist.Store) -> None:
        """Post and read, again and again; may be held up by the store for ever."""
        told, num_heard, has_stalled = 0, 0, False
        for beat in itertools.count():
            if self._is_over.wait(self._interval):
                return
            with suppress(RuntimeError):  # the store has gone; whoever held it is to blame
                post = self._post(beat)
                store.set(str(self._ranks.rank), json.dumps(asdict(post)))
                stalls = bool(post.stack) and not has_stalled
                has_stalled |= stalls
                total = store.add("moves", post.moves - told + stalls * _STALLED)
                told = post.moves
                while self._unsaid:
                    store.set(f"words/{store.add('words', 1)}", self._unsaid.popleft())
                while self._ranks.is_first and num_heard < store.add("words", 0):
                    if not store.check([f"words/{num_heard + 1}"]):
                        break  # it comes in a moment
                    num_heard += 1
                    logger.warning(store.get(f"words/{num_heard}").decode())
                if self._first is None and store.check(["0"]):
                    self._first = Post(**json.loads(store.get("0")))
                if self._wants_posts:
                    for rank in range(self._ranks.world_size):
                        if store.check([str(rank)]):
                            self._posts[rank] = Post(**json.loads(store.get(str(rank))))
                self._total, self._exchanges = total, self._exchanges + 1

    def _watch(self) -> None:
        """Count how long nothing has moved, and end the process when it is too long.

        Intervals are counted and no clock is read: a run that was suspended has not stalled.
        """
        is_alone = self._ranks.world_size == 1
        all_still, own_still, unheard = _Stillness(), _Stillness(), _Stillness()
        silent: dict[int, _Stillness] = {}
        while not self._is_over.wait(self._interval):
            own_seconds = own_still.count(self._moves, self._interval)
            moves = self._moves if is_alone else self._total
            seconds = all_still.count(moves, self._interval)
            unheard_seconds = 0.0 if is_alone else unheard.count(self._exchanges, self._interval)
            # Below Python, for a call that never gives the interpreter back: words on stderr.
            faulthandler.dump_traceback_later(2 * self._limit(()) + END_SECONDS, file=2)
            if moves >= _STALLED:
                self._end(is_heard=True, mute=set())
            if unheard_seconds >= self._timeout / 2:
                # Nobody can be asked. Whoever moves on its own is not concerned yet.
                if own_seconds >= self._limit(()):
                    self._end(is_heard=False, mute=set())
                continue
            self._wants_posts = not is_alone and seconds >= self._timeout / 2
            if not self._wants_posts:
                silent.clear()
                self._posts.clear()
            for rank, post in list(self._posts.items()):
                silent.setdefault(rank, _Stillness()).count(post.beat, self._interval)
            mute = {rank for rank, it in silent.items() if it.seconds >= self._timeout / 4}
            answering = [post for rank, post in self._posts.items() if rank not in mute]
            is_dead = any(it.seconds >= self._timeout for it in silent.values())
            if seconds >= self._limit(answering) or is_dead:
                self._end(is_heard=True, mute=mute)

    def _limit(self, answering: Iterable[Post]) -> float:
        is_slow = self._is_slow or any(post.is_slow for post in answering)
        return max(self._timeout, SLOW_SECONDS) if is_slow else self._timeout

    def _end(self, *, is_heard: bool, mute: set[int]) -> NoReturn:
        """Write down the stacks, let one rank speak, and end the process.

        Args:
            is_heard: whether the store can be reached.
            mute: ranks that are not worth waiting for.
        """
        faulthandler.dump_traceback_later(END_SECONDS, exit=True, file=2)
        own, everybody = self._ranks.rank, set(range(self._ranks.world_size))
        # Posted from now on, and a sign for all others to do the same.
        self._account = describe_stack(main_stack())
        self._wants_posts = True
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / f"rank-{own}.txt").write_text(all_stacks())

        def accounts() -> dict[int, Post]:
            return {**{r: p for r, p in self._posts.items() if p.stack}, own: self._post(0)}

        if is_heard and len(everybody) > 1:
            # On a busy machine, who was silent may only have been slow.
            patience = time.monotonic() + min(MUTE_SECONDS, self._timeout / 2)

            def all_have_spoken() -> bool:
                excused = mute if time.monotonic() > patience else set()
                return everybody <= accounts().keys() | excused

            self._wait_until(all_have_spoken, GRACE_SECONDS)
        posts = self._posts | accounts()
        mute = everybody - accounts().keys()
        if is_heard:
            who = find_stalled(posts, mute, self._host)
        else:
            who = describe_lost_store(self._first, self._host)
        # The first of those that can speak does; where nobody knows, the others give it time.
        turn = sorted(accounts()).index(own) if is_heard else own
        self._wait_until(lambda: False, min(2.0 * turn, GRACE_SECONDS))
        self._say(posts, mute, who)
        # The launcher kills all ranks as soon as one has ended.
        time.sleep(2 * self._interval)
        end_at_once(EXIT_STALLED)

    def _wait_until(self, is_so: Callable[[], bool], limit_seconds: float) -> None:
        """Wait, but no longer than until another rank has spoken."""
        deadline = time.monotonic() + limit_seconds
        while time.monotonic() < deadline and not is_so():
            if (self._folder / REASON_NAME).exists():
                return
            time.sleep(self._interval / 2)

    def _say(self, posts: Mapping[int, Post], mute: set[int], who: str) -> None:
        lines = [f"rank {rank}: {account_of(posts[rank], rank in mute)}" for rank in sorted(posts)]
        lines.append(
            f"error: nothing moved for {self._timeout:g} s (--stall_timeout): {who}; stacks: "
            f"{self._folder}; go on with --resume auto, or raise --stall_timeout where a step "
            "merely takes long"
        )
        text = "".join(f"{line}\n" for line in lines)
        try:
            with (self._folder / REASON_NAME).open("x") as file:
                file.write(text)
        except FileExistsError:
            return  # another rank has spoken
        except OSError:
            pass
        os.write(2, text.encode())
        now = time.strftime("%Y-%m-%d %H:%M:%S,000")
        with suppress(OSError), (self._run / LOG_NAME).open("a") as log:
            log.write("".join(f"{now} ERROR {line}\n" for line in lines))


class _Forwarding(logging.Handler):
    """Keeps what another rank than the first has to say, whose log nobody reads."""

    def __init__(self, words: deque[str], rank: int) -> None:
        super().__init__(logging.WARNING)
        self._words, self._rank = words, rank

    def emit(self, record: logging.LogRecord) -> None:
        self._words.append(f"rank {self._rank}: {record.getMessage()}")


class _Stillness:
    """How long a number has stayed as it is."""

    def __init__(self) -> None:
        self._number: int | None = None
        self.seconds = 0.0

    def count(self, number: int, seconds: float) -> float:
        self.seconds = self.seconds + seconds if number == self._number else 0.0
        self._number = number
        return self.seconds
