"""Flags of the page: which model writes, who may reach it, how much it takes."""

from dataclasses import dataclass, field
from pathlib import Path

from meloformer.bridge.bridges import BridgeWeights
from meloformer.demo.border import is_loopback
from meloformer.errors import ConfigError
from meloformer.generation.injecting import InjectingConfig
from meloformer.model.device import DeviceName
from meloformer.model.weights import Weights
from meloformer.shards.guard import FileLimits

LOCALHOST = "127.0.0.1"
_MEGABYTE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class PageLimits:
    """What one visitor may take.

    Args:
        max_bars: most bars that are written at once.
        max_upload_megabytes: largest MIDI file that is read.
        max_seconds: of writing; past it a new piece ends with its last finished bar, and a piece
            of which some bars were to be written stays as it was.
        queue: visitors that may wait while the model writes for another one.
        connections: open at once; more are turned away.
    """

    max_bars: int = 64
    max_upload_megabytes: float = 2.0
    max_seconds: float = 300.0
    queue: int = 8
    connections: int = 64

    def __post_init__(self) -> None:
        for name, least, most in (
            ("max_bars", 1, 1024),
            ("max_upload_megabytes", 0.001, 64),
            ("max_seconds", 1, 86_400),
            ("queue", 0, 1000),
            ("connections", 1, 10_000),
        ):
            value = getattr(self, name)
            if not least <= value <= most:
                raise ConfigError(f"--{name} {value:g}: allowed: {least:g} to {most}")

    @property
    def max_upload_bytes(self) -> int:
        return int(self.max_upload_megabytes * _MEGABYTE)


def _file_limits() -> FileLimits:
    # A visitor waits for the file, and others wait behind it: less than a build allows.
    return FileLimits(file_seconds=10.0, file_megabytes=1024)


@dataclass(frozen=True, kw_only=True)
class PageConfig:
    """Flags of launch/demo.py.

    Args:
        checkpoint: run folder, step folder or model folder; the newest run if not given, and the
            model in the box where there is none.
        weights: those of the last step, or the moving average of a run trained with --ema.
        bridge: run folder of a bridge that was trained for the model; without, no texts.
        bridge_weights: those of its last step, their average, or the average where there is one.
        text_encoder: another place of the bridge's encoder, such as a folder.
        host: address to listen on; only this machine reaches the default.
        port: 0 takes a free one.
        device: where the model runs.
        limits: what one visitor may take.
        files: what reading one MIDI file may take.
        injecting: what the bridge's summaries do to the model's own.
    """

    checkpoint: Path | None = None
    weights: Weights = "raw"
    bridge: Path | None = None
    bridge_weights: BridgeWeights = "auto"
    text_encoder: str | None = None
    host: str = LOCALHOST
    port: int = 7860
    device: DeviceName = "auto"
    limits: PageLimits = field(default_factory=PageLimits)
    files: FileLimits = field(default_factory=_file_limits)
    injecting: InjectingConfig = field(default_factory=InjectingConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65_535:
            raise ConfigError(f"--port {self.port}: allowed: 0 (a free one) to 65535")
        if not self.host.strip():
            raise ConfigError("--host '': found no address; allowed: such as 127.0.0.1 or 0.0.0.0")

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the page."""
        return is_loopback(self.host)
