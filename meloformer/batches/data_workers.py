"""Data workers: the processes that make the batches of a rank, in the order of what it asks for.

A worker that dies or hangs costs the run nothing but time. What a batch holds follows from its spec
alone, so new workers make again what was under way, bit for bit, and nothing is lost or repeated.
"""

import contextlib
import logging
import resource
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing.process import BaseProcess
from multiprocessing.util import get_temp_dir
from pathlib import Path
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from meloformer.batches.batch import Batch
from meloformer.batches.collate import Collator
from meloformer.batches.share import MicroBatchSpec
from meloformer.errors import BatchError, MeloFormerError
from meloformer.interrupts import leave_signals_to_parent

logger = logging.getLogger(__name__)

# How long a batch is waited for before the workers count as hanging, in seconds. A first batch may
# have to fetch many remote shards.
DATA_TIMEOUT = 240.0
# As often in a row, and then the data or the machine are to blame.
MAX_LOSSES = 3
# Micro-batches that each worker keeps ready.
_PREFETCH = 2
_POLL_SECONDS = 1.0
_REAP_SECONDS, _NAP_SECONDS = 5.0, 0.05
# For workers that are told to end, and may be in the middle of a batch.
_CLOSE_SECONDS = 2.0
# For a worker that is killed; one that reads from a dead disk may not hear of it at once.
_END_SECONDS = 5.0
_IDLE = -1
_PIECES_NAMED = 3
# Where torch makes shared memory on Linux, as torch_<pid>_<random>_<number>.
_SHARED_MEMORY = Path("/dev/shm")

_WELL = "is running"
_STATES = {
    "T": "is stopped",
    "t": "is stopped by a debugger",
    "D": "waits for a disk that does not answer",
    "Z": "has ended",
    "X": "has ended",
}
_REMEDIES: dict[int, str] = {
    signal.SIGKILL: "the system ends processes so where memory runs out: take fewer --num_workers, "
    "or give the job more memory",
    signal.SIGBUS: "shared memory is full: give /dev/shm more room (docker run --shm-size), or "
    "take fewer --num_workers",
}
_REMEDY = "look at these pieces with launch/tools/inspect_shards.py"

Numbered = tuple[int, MicroBatchSpec]


class _LostWorkersError(Exception):
    """Workers have died or hang; says which, how and over what."""


def load(
    specs: Iterator[MicroBatchSpec] | Sequence[MicroBatchSpec],
    collator: Collator,
    num_workers: int,
    pin_memory: bool,
    timeout_seconds: float = DATA_TIMEOUT,
) -> Iterator[Batch]:
    """Batches of specs in their order, made in `num_workers` processes, or here if there are none.

    Workers that die, or do not deliver, are started anew at the batch that is due.

    Args:
        specs: what each batch holds.
        collator: makes them; travels into the workers.
        num_workers: processes.
        pin_memory: hand them out in page-locked memory.
        timeout_seconds: longest wait for a batch; 0 waits for ever.

    Raises:
        MeloFormerError: what a worker raised.
        BatchError: workers were lost time and again.
    """
    if not num_workers:
        for spec in specs:
            batch = collator(spec)
            yield batch.pin_memory() if pin_memory else batch
        return
    _raise_file_limit()
    outstanding = _Outstanding(specs)
    losses = num_since = 0
    while True:
        workers = _Workers(outstanding, collator, num_workers, pin_memory, timeout_seconds)
        try:
            for batch in workers:
                outstanding.pop()
                num_since += 1
                yield batch
            return
        except _LostWorkersError as error:
            # One batch of each worker, or it was the batches before that got through.
            losses = 1 if num_since >= num_workers else losses + 1
            num_since = 0
            if losses >= MAX_LOSSES:
                raise BatchError(
                    f"--num_workers {num_workers}: found data workers lost {losses} times in a "
                    f"row, the last time: {error}; allowed: {MAX_LOSSES - 1} times; "
                    f"{workers.remedy}; then go on with --resume auto"
                ) from error
            logger.warning(
                "%s; all %d data workers are started anew at the batch that was due",
                error,
                num_workers,
            )
        finally:
            workers.close()


class _Outstanding:
    """Specs by number: those handed to workers and not delivered yet, then the rest."""

    def __init__(self, specs: Iterator[MicroBatchSpec] | Sequence[MicroBatchSpec]) -> None:
        self._rest = enumerate(specs)
        self._handed_out: deque[Numbered] = deque()

    def __iter__(self) -> Iterator[Numbered]:
        """All of them from the first that is not delivered; at any time, as often as wanted."""
        yield from tuple(self._handed_out)
        for numbered in self._rest:
            self._handed_out.append(numbered)
            yield numbered

    def pop(self) -> None:
        """The first one is delivered."""
        self._handed_out.popleft()

    def first(self) -> int | None:
        """Number of the one that is due."""
        return self._handed_out[0][0] if self._handed_out else None

    def find(self, number: int) -> MicroBatchSpec | None:
        """The spec of this number, if it is with the workers."""
        return dict(self._handed_out).get(number)


class _SpecSampler(Sampler[Numbered]):
    """Hands specs to the loader as if they were indices."""

    def __init__(self, specs: _Outstanding) -> None:
        self._specs = specs

    def __iter__(self) -> Iterator[Numbered]:
        return iter(self._specs)


class _Batches(Dataset[Batch | MeloFormerError]):
    """Collates inside a worker; an error of ours travels back as it is, not as a traceback.

    Args:
        collator: makes the batches.
        at_W: int64 in shared memory, where each of W workers notes the number of its spec.
    """

    def __init__(self, collator: Collator, at_W: torch.Tensor) -> None:
        self._collator, self._at_W = collator, at_W

    def __getitem__(self, numbered: Numbered) -> Batch | MeloFormerError:
        number, spec = numbered
        worker = get_worker_info()
        assert worker is not None, "runs in a data worker"
        self._at_W[worker.id] = number
        try:
            return self._collator(spec)
        except MeloFormerError as error:
            return error
        finally:
            self._at_W[worker.id] = _IDLE


class _Workers:
    """One start of all workers: an iterator over batches that ends, or says who was lost.

    Attributes:
        remedy: what to do about the workers that were lost.
    """

    def __init__(
        self,
        specs: _Outstanding,
        collator: Collator,
        num_workers: int,
        pin_memory: bool,
        timeout_seconds: float,
    ) -> None:
        # Workers put their sockets there: made by this process, it goes with it, not with them.
        get_temp_dir()
        self._specs, self._collator = specs, collator
        self._at_W = torch.full((num_workers,), _IDLE).share_memory_()
        loader = DataLoader(
            _Batches(collator, self._at_W),
            batch_size=None,
            sampler=_SpecSampler(specs),
            collate_fn=_unchanged,
            num_workers=num_workers,
            prefetch_factor=_PREFETCH,
            worker_init_fn=_start_worker,
            pin_memory=pin_memory,
            timeout=_POLL_SECONDS,
            # Its own generator: starting a loader must not advance the random numbers of the run.
            generator=torch.Generator(),
        )
        # What they make is younger, by the clock of a file system too, which moves in ticks.
        self._started = time.time() - 1.0
        # The loader's handler raises wherever this process happens to be when a worker dies: in
        # the middle of a backward pass, in which all ranks take part.
        handler = signal.getsignal(signal.SIGCHLD)
        self._iterator = cast(Any, iter(loader))  # it has more than torch's types say
        if threading.current_thread() is threading.main_thread() and handler is not None:
            signal.signal(signal.SIGCHLD, handler)
        self._processes: list[BaseProcess] = self._iterator._workers
        self.remedy = ""
        self._timeout_seconds = timeout_seconds
        self._late = ""
        self._is_waiting, self._num_delivered = False, 0
        self._is_over = threading.Event()
        if timeout_seconds:
            # A worker that stops while it hands over a batch blocks who takes it: nobody but
            # another thread can tell the time then.
            threading.Thread(target=self._kill_late, daemon=True).start()

    def __iter__(self) -> Iterator[Batch]:
        while True:
            self._is_waiting = True
            try:
                item = self._take()
            except StopIteration:
                return
            finally:
                self._is_waiting = False
            self._num_delivered += 1
            if isinstance(item, MeloFormerError):
                raise item
            yield item

    def _take(self) -> Batch | MeloFormerError:
        while True:
            try:
                return next(self._iterator)
            except (RuntimeError, OSError, EOFError) as error:
                is_timeout = str(error).startswith("DataLoader timed out")
                if lost := self._find_lost(0.0 if is_timeout else _REAP_SECONDS):
                    raise _LostWorkersError(lost) from error
                if not is_timeout:
                    raise

    def close(self) -> None:
        """End the workers, those too that do not answer."""
        self._is_over.set()
        if self._late or any(process.exitcode is not None for process in self._processes):
            self._kill()
        late = threading.Timer(_CLOSE_SECONDS, self._kill)
        late.start()
        self._iterator._shutdown_workers()
        late.cancel()
        self._kill()
        for process in self._processes:
            _free_shared_memory(process.pid, self._started)

    def _kill(self) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join(_END_SECONDS)

    def _kill_late(self) -> None:
        """Watch how long a batch is waited for, and end the workers when it is too long."""
        poll_seconds = min(1.0, self._timeout_seconds / 5)
        waited_seconds, num_delivered = 0.0, -1
        while not self._is_over.wait(poll_seconds):
            # Counted, not read from a clock: a run that was suspended has waited for nobody.
            waited_seconds += poll_seconds
            if not self._is_waiting or self._num_delivered != num_delivered:
                waited_seconds, num_delivered = 0.0, self._num_delivered
            if waited_seconds >= self._timeout_seconds:
                self._late = self._describe_late()
                self._kill()
                return

    def _find_lost(self, patience_seconds: float) -> str:
        """Which workers have ended and how; "" if they all live."""
        # The connection of a process ends a little earlier than the process. Naps are counted, no
        # clock is read: where the machine stood still, nobody had time to end.
        for naps_left in range(round(patience_seconds / _NAP_SECONDS), -1, -1):
            if self._late:
                self.remedy = (
                    "look at the disk or the network under --data, or raise --data_timeout where "
                    "batches merely take long"
                )
                return self._late
            if dead := [w for w, p in enumerate(self._processes) if p.exitcode is not None]:
                break
            if not naps_left:
                return ""
            time.sleep(_NAP_SECONDS)
        codes = [self._processes[worker].exitcode or 0 for worker in dead]
        self.remedy = next((_REMEDIES[-code] for code in codes if -code in _REMEDIES), _REMEDY)
        return ", ".join(
            f"data worker {self._name(worker)} {_ending(code)}, {self._work_of(worker)}"
            for worker, code in zip(dead, codes, strict=True)
        )

    def _describe_late(self) -> str:
        states = [process_state(process.pid) for process in self._processes]
        guilty = [worker for worker, state in enumerate(states) if state != _WELL]
        if not guilty:
            due = self._specs.first()
            guilty = [worker for worker, at in enumerate(self._at_W.tolist()) if at == due]
        words = [
            f"data worker {self._name(worker)} {states[worker]}, {self._work_of(worker)}"
            for worker in guilty
        ]
        return f"no batch came for {self._timeout_seconds:g} s (--data_timeout): " + (
            ", ".join(words) or "no data worker has it in hand"
        )

    def _name(self, worker: int) -> str:
        return f"{worker} (pid {self._processes[worker].pid})"

    def _work_of(self, worker: int) -> str:
        spec = self._specs.find(int(self._at_W[worker]))
        if spec is None:
            return "between two batches"
        pieces = [self._collator.index.key(window.piece) for row in spec.rows for window in row]
        more = f" and {len(pieces) - _PIECES_NAMED} more" if len(pieces) > _PIECES_NAMED else ""
        return f"over a batch of piece {', '.join(pieces[:_PIECES_NAMED])}{more}"


def _free_shared_memory(pid: int | None, since: float) -> None:
    """Give back what a process that was killed has made and not named free yet.

    torch takes the name of a segment away as soon as it is open. A worker that dies between the
    two leaves memory that nobody would ever free.

    Args:
        pid: of a process that has ended.
        since: seconds since the epoch; what is older belongs to an earlier process of that number.
    """
    for path in _SHARED_MEMORY.glob(f"torch_{pid}_*"):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime >= since:
                path.unlink()


def process_state(pid: int | None) -> str:
    """How a process of this host is, in words, where the system tells; "is running" if well."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return "has ended" if Path("/proc/self").exists() else _WELL
    # The name before it, in brackets, may hold anything.
    return _STATES.get(text.rpartition(")")[2].split()[0], _WELL)


def _ending(exit_code: int) -> str:
    if exit_code >= 0:
        return f"ended with status {exit_code}"
    return f"was ended by {signal.Signals(-exit_code).name}"


def _unchanged(item: Any) -> Any:
    return item


def _raise_file_limit() -> None:
    """Let this process, and the workers it starts, open as many files as the system allows.

    Every tensor that comes from a worker holds a file descriptor as long as it lives. Where many
    micro-batches make a step, those of one step pass the usual soft limit.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):
            logger.warning("%d open files allowed, and the limit cannot be raised", soft)


def _start_worker(worker: int) -> None:
    leave_signals_to_parent()
    torch.set_num_threads(1)
