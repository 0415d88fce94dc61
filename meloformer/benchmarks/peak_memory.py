"""The most memory that a process has held, for benches that measure in a process of its own."""

from pathlib import Path

from meloformer.errors import ConfigError

_STATUS = Path("/proc/self/status")


def peak_bytes() -> int:
    """Most memory that this process has held so far.

    Raises:
        ConfigError: the system does not say.
    """
    # Not getrusage: a process that was started by a large one begins with that one's peak.
    lines = _STATUS.read_text().splitlines() if _STATUS.exists() else []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise ConfigError(f"peak memory: found no VmHWM in {_STATUS}; allowed: Linux")
