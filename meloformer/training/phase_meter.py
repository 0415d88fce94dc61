"""What each phase of a start takes: seconds, and the most memory of device and host.

Peaks are forgotten where a phase begins, so each has its own. What torch keeps of the trial before
the first step is held by the device all the same, and told apart from what a phase needs.
"""

import contextlib
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import torch

from meloformer.batches.phases import Phase, PhaseConfig, describe, phase_at
from meloformer.training.metrics import device_memory, gibibytes
from meloformer.training.out_of_memory import peak_memory, start_measuring
from meloformer.training.ranks import Ranks

# Linux: 5 forgets how much memory a process has held at most.
_CLEAR_REFS, _FORGET_PEAK = Path("/proc/self/clear_refs"), "5"
_STATUS, _PEAK = Path("/proc/self/status"), "VmHWM:"


@dataclass(frozen=True, kw_only=True)
class PhaseFacts:
    """What a phase has taken; memory in bytes, of the rank that took most.

    Args:
        phase: 1, 2 or 3; 3 is all there is without phases.
        first_step: of the phase, in this start.
        last_step: likewise.
        micro_batch_rows: rows per rank and micro-step.
        num_workers: data workers of a rank.
        seconds: from its beginning to the end of its last step, with compiling, validations and
            checkpoints.
        seconds_in_steps: of those, in optimizer steps.
        memory: peak of the device, with what others hold on it; None on a CPU.
        memory_held: the same with what torch keeps for later; None on a CPU.
        memory_host: peak of the process.
        memory_workers: that its data workers hold at the end, without what they share with it.
    """

    phase: int
    first_step: int
    last_step: int
    micro_batch_rows: int
    num_workers: int
    seconds: float
    seconds_in_steps: float
    memory: int | None
    memory_held: int | None
    memory_host: int
    memory_workers: int

    def line(self) -> str:
        """For train.log."""
        phase = Phase(self.phase, self.micro_batch_rows, self.num_workers)
        words = [
            f"phase {self.phase} is over after step {self.last_step}: {describe(phase)}, "
            f"{self.last_step - self.first_step + 1} steps in {self.seconds:.1f} s, "
            f"{self.seconds_in_steps:.1f} s of them in steps; peak"
        ]
        if self.memory is not None and self.memory_held is not None:
            words.append(
                f"of the device {gibibytes(self.memory)}, {gibibytes(self.memory_held)} held,"
            )
        words.append(f"of the host {gibibytes(self.memory_host)}")
        if self.num_workers:
            words.append(f"and {gibibytes(self.memory_workers)} in data workers")
        return " ".join(words)


class PhaseMeter:
    """Measures the phases of a start, and says when they change.

    Args:
        phases: when they do.
        num_steps: optimizer steps of the whole run.
        ranks: the started processes.
        say: takes a line.

    Attributes:
        over: what the phases that are over have taken.
    """

    def __init__(
        self, phases: PhaseConfig, num_steps: int, ranks: Ranks, say: Callable[[str], None]
    ) -> None:
        self._phases, self._num_steps, self._ranks, self._say = phases, num_steps, ranks, say
        self.over: list[PhaseFacts] = []
        self._phase: Phase | None = None
        self._first_step, self._began, self._seconds_in_steps = 0, 0.0, 0.0
        self._peak_before = 0

    def enter(self, step: int) -> bool:
        """Before a step, and what is compiled for it: where it is of another phase, begin that.

        Returns:
            Whether a phase begins: what came before belongs to no step of it.
        """
        phase = phase_at(step, self._phases)
        if phase == self._phase:
            return False
        self._peak_before = self.peak_of_start(device_memory(self._ranks.device)) or 0
        self._phase, self._first_step = phase, step
        self._seconds_in_steps, self._began = 0.0, time.perf_counter()
        forget_peaks(self._ranks.device)
        if self._phases.phases == "on":
            end = min(self._phases.last_step(phase) or self._num_steps, self._num_steps)
            self._say(f"phase {phase.number} until step {end}: {describe(phase)}")
        return True

    def leave(self, step: int, step_seconds: float) -> PhaseFacts | None:
        """After a step; collective after the last one of a phase or of the run.

        Args:
            step: that is done.
            step_seconds: that it took.

        Returns:
            What the phase has taken, if it is over.
        """
        assert self._phase is not None
        self._seconds_in_steps += step_seconds
        if step < self._num_steps and phase_at(step + 1, self._phases) == self._phase:
            return None
        seconds = time.perf_counter() - self._began
        memory, held, host, workers = self._most_over_ranks(self._phase)
        is_cuda = self._ranks.device.type == "cuda"
        facts = PhaseFacts(
            phase=self._phase.number,
            first_step=self._first_step,
            last_step=step,
            micro_batch_rows=self._phase.micro_batch_rows,
            num_workers=self._phase.num_workers,
            seconds=seconds,
            seconds_in_steps=self._seconds_in_steps,
            memory=memory if is_cuda else None,
            memory_held=held if is_cuda else None,
            memory_host=host,
            memory_workers=workers,
        )
        self._phase = None
        self.over.append(facts)
        if self._phases.phases == "on":
            self._say(facts.line())
        return facts

    def peak_of_start(self, peak: int | None) -> int | None:
        """The most that a start has held on the device, of what the phase has; None on a CPU."""
        return None if peak is None else max(peak, self._peak_before)

    def to_json(self) -> list[dict[str, float | None]]:
        """For run.json."""
        return [asdict(facts) for facts in self.over]

    def _most_over_ranks(self, phase: Phase) -> list[int]:
        """Peak of the device, what it held, peak of the host, of data workers; each the largest."""
        device = self._ranks.device
        is_cuda = device.type == "cuda"
        own = [
            peak_memory(device).peak if is_cuda else 0,
            held_at_most(device) if is_cuda else 0,
            host_peak(),
            workers_memory() if phase.num_workers else 0,
        ]
        # Each rank's figures at a place of their own: the sum is all of them.
        figures = [0.0] * (len(own) * self._ranks.world_size)
        figures[self._ranks.rank :: self._ranks.world_size] = own
        figures = self._ranks.sum(figures)
        size = self._ranks.world_size
        return [int(max(figures[at : at + size])) for at in range(0, len(figures), size)]


def forget_peaks(device: torch.device) -> None:
    """Begin to measure `peak_memory` and `host_peak` anew, where device and system can."""
    start_measuring(device)
    # Not Linux, or a container that forbids it: the peak is that of the whole process then.
    with contextlib.suppress(OSError):
        _CLEAR_REFS.write_text(_FORGET_PEAK)


def host_peak() -> int:
    """Most bytes that this process has held since `forget_peaks`."""
    with contextlib.suppress(OSError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith(_PEAK):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def held_at_most(device: torch.device) -> int:
    """Most bytes of a CUDA device that were taken at once, by torch to keep and by others."""
    free, total = torch.cuda.mem_get_info(device)
    outside = max(total - free - torch.cuda.memory_reserved(device), 0)
    return torch.cuda.max_memory_reserved(device) + outside


def workers_memory() -> int:
    """Bytes that the processes started by this one hold and share with nobody."""
    total = 0
    for process in psutil.Process().children(recursive=True):
        # It may end in between, or be of somebody who does not tell.
        with contextlib.suppress(psutil.Error):
            total += process.memory_full_info().uss
    return total
