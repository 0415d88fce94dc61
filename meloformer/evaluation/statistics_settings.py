"""What is said of statistics on the command line."""

from dataclasses import dataclass, field
from typing import Literal

from meloformer.command_line import check_at_least
from meloformer.errors import ConfigError
from meloformer.training.cores import cores_at_hand


@dataclass(frozen=True, kw_only=True)
class StatisticsConfig:
    """How folders and models are measured.

    Args:
        first_bars: bars of each piece that are looked at; all if not given. With --checkpoint
            --bars says it.
        distances: bars are compared that are up to so many apart.
        copying: look through the training split for what the pieces copy.
        rolls: pieces of each folder that the page draws.
        players: of these, those that can be heard; sound is cut so that all fit into one file.
        player_seconds: of each piece, at most.
        num_workers: processes that read files; all cores unless given.
    """

    first_bars: int | None = None
    distances: int = 32
    copying: Literal["on", "off"] = "on"
    rolls: int = 4
    players: int = 2
    player_seconds: float = 15.0
    num_workers: int = field(default_factory=cores_at_hand)

    def __post_init__(self) -> None:
        check_at_least(
            self, {"first_bars": 1, "distances": 1, "rolls": 0, "players": 0, "num_workers": 1}
        )
        if self.player_seconds <= 0:
            raise ConfigError(f"--player_seconds {self.player_seconds}: allowed: above 0")
