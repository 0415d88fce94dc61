import subprocess
import sys

import pytest

from meloformer.benchmarks import peak_memory
from meloformer.errors import ConfigError

ASK = "from meloformer.benchmarks.peak_memory import peak_bytes; print(peak_bytes())"


def test_a_process_does_not_begin_with_the_peak_of_the_one_that_started_it() -> None:
    size = 1 << 28
    held = bytearray(size)
    held[::4096] = b"x" * len(held[::4096])
    assert peak_memory.peak_bytes() > size
    started = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True)
    assert int(started.stdout) < size


def test_a_system_that_does_not_say_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(peak_memory, "_STATUS", tmp_path / "absent")
    with pytest.raises(ConfigError, match="allowed: Linux"):
        peak_memory.peak_bytes()
