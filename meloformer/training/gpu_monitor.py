"""How busy the GPU is, asked once a second beside the training."""

import threading
from collections.abc import Callable

SECONDS_PER_SAMPLE = 1.0


class GpuMonitor:
    """Samples a figure in a thread; a step reads the mean of what came while it ran.

    NVML's figure is the share of its last sampling period, a sixth of a second to a second, in
    which a kernel ran. Asked once per step it would show the moment at which steps end.

    Args:
        sample: share of the device that is busy, 0 to 1; None where nobody can say, after which
            it is not asked again.
    """

    def __init__(self, sample: Callable[[], float | None]) -> None:
        self._sample = sample
        self._lock = threading.Lock()
        self._samples: list[float] = []
        self._last: float | None = None
        self._is_over = threading.Event()
        # A run does not wait at its end for a figure.
        self._thread = threading.Thread(target=self._watch, name="gpu monitor", daemon=True)
        self._thread.start()

    def take(self) -> float | None:
        """Mean over the samples since the last call; the newest one where a step had none."""
        with self._lock:
            if self._samples:
                self._last = sum(self._samples) / len(self._samples)
                self._samples.clear()
            return self._last

    def close(self) -> None:
        """Ask no more."""
        self._is_over.set()
        self._thread.join(SECONDS_PER_SAMPLE)

    def _watch(self) -> None:
        while not self._is_over.is_set():
            found = self._sample()
            if found is None:
                return
            with self._lock:
                self._samples.append(found)
            self._is_over.wait(SECONDS_PER_SAMPLE)
