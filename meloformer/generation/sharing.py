"""Pieces shared out over processes that know of each other by their environment alone.

No process waits for another: whoever starts them (torchrun, Slurm, a shell) ends them all where
one of them fails.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from meloformer.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Share:
    """One process among all that write.

    Args:
        rank: 0 .. num_processes - 1.
        local_rank: 0 .. on this host; also the index of the GPU.
        num_processes: that share the work.
    """

    rank: int
    local_rank: int
    num_processes: int

    @property
    def is_first(self) -> bool:
        """Whether this process speaks."""
        return self.rank == 0

    @property
    def name(self) -> str:
        """What stands before figures of this process; nothing where it is alone."""
        return f"process 1 of {self.num_processes}: " if self.num_processes > 1 else ""

    def of(self, count: int) -> range:
        """Numbers of the batches of this process.

        >>> [list(Share(rank=r, local_rank=r, num_processes=2).of(5)) for r in range(2)]
        [[0, 2, 4], [1, 3]]
        """
        return range(self.rank, count, self.num_processes)

    def describe(self, count: int) -> str:
        """How so many batches are shared out."""
        said = f"{count} batches over {self.num_processes} processes"
        idle = self.num_processes - count
        return said if idle <= 0 else f"{said}, {idle} without any: a smaller --batch_size has more"

    def device(self, kind: str) -> str:
        """The device of this process, of a kind.

        Raises:
            ConfigError: the host has fewer GPUs than processes.
        """
        if kind != "cuda" or self.num_processes == 1:
            return kind
        found = torch.cuda.device_count()
        if self.local_rank >= found:
            raise ConfigError(
                f"process {self.local_rank + 1} of this host: found {found} GPUs; allowed: "
                f"--nproc_per_node {found}, or --device cpu"
            )
        torch.cuda.set_device(self.local_rank)
        return f"cuda:{self.local_rank}"


def share_of_environment(environment: Mapping[str, str] = os.environ) -> Share:
    """What torchrun says in RANK, LOCAL_RANK and WORLD_SIZE; one process without them.

    Raises:
        ConfigError: they contradict each other.
    """
    found = {name: environment.get(name, "") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    if not (found["RANK"] or found["WORLD_SIZE"]):
        return Share(rank=0, local_rank=0, num_processes=1)
    found["LOCAL_RANK"] = found["LOCAL_RANK"] or found["RANK"]
    is_right = all(text.isdecimal() for text in found.values())
    if not is_right or int(found["RANK"]) >= int(found["WORLD_SIZE"]):
        said = ", ".join(f"{name}={text}" for name, text in found.items())
        raise ConfigError(
            f"found {said} in the environment; allowed: RANK from 0 to WORLD_SIZE - 1, as torchrun "
            "sets them, or none of them"
        )
    return Share(
        rank=int(found["RANK"]),
        local_rank=int(found["LOCAL_RANK"]),
        num_processes=int(found["WORLD_SIZE"]),
    )
