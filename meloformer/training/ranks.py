"""The processes of a run: who am I, what do all of us know, what does only the first one do.

torchrun, the deepspeed launcher and accelerate all say it in the environment; plain python gets
the same variables for a world of one, so nothing after this module asks how it was started.
"""

import atexit
import os
import time
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from typing import TypeVar

import torch
import torch.distributed as dist

from meloformer.errors import ConfigError, MeloFormerError
from meloformer.model.device import DeviceName, choose_device
from meloformer.training.leaving import FirstRankError, leave, watch_others
from meloformer.training.meeting import meet

Result = TypeVar("Result")

COLLECTIVE_TIMEOUT = timedelta(minutes=30)  # a first step may compile for minutes on one rank
_POLL_SECONDS = 0.2
# Of `Ranks.on_first`, in the same order on every rank.
_calls = count()


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """One process among all of a run.

    Args:
        rank: 0 .. world_size - 1 over all hosts.
        local_rank: 0 .. on this host; also the index of the device.
        world_size: number of processes.
        device: where this process computes.
    """

    rank: int
    local_rank: int
    world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    @property
    def totals_device(self) -> torch.device:
        """Where float64 totals are kept: beside the model, if its device has float64."""
        return torch.device("cpu") if self.device.type == "mps" else self.device

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sum each value over all ranks, in float64; not finite on one rank is so on all."""
        total = torch.tensor(values, dtype=torch.float64, device=self.totals_device)
        return self.sum_tensor(total).tolist()

    def sum_tensor(self, value: torch.Tensor) -> torch.Tensor:
        """Sum a tensor over all ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(value)
        return value

    def mean_of_sums(self, values: Sequence[torch.Tensor]) -> float:
        """Add up each rank's scalars, then average over ranks; not finite on one is so on all."""
        total = torch.stack([value.detach() for value in values]).to(self.totals_device)
        return float(self.sum_tensor(total.double().sum())) / self.world_size

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.world_size > 1:
            dist.barrier()

    def on_first(self, function: Callable[[], Result], *, is_long: bool = False) -> Result:
        """Run a function on the first rank; every rank gets its result, or its failure.

        Args:
            function: called on the first rank alone.
            is_long: it may take longer than a collective waits; the others wait in the store.

        Raises:
            MeloFormerError: what the function raised, on all ranks.
            FirstRankError: on the other ranks, where the function failed in another way.
        """
        if self.world_size == 1:
            return function()
        outcome: list = [None, None]
        failure: Exception | None = None
        store = dist.distributed_c10d._get_default_store()
        is_done = f"meloformer/is_done/{next(_calls)}"
        if self.is_first:
            try:
                outcome[0] = function()
            except MeloFormerError as error:
                outcome[1] = failure = error
            except Exception as error:
                # Told to the others first: a rank that dies silently leaves them waiting.
                outcome[1] = FirstRankError(f"the first rank failed: {error!r}")
                failure = error
            if is_long:
                store.set(is_done, "")
        while is_long and not store.check([is_done]):
            time.sleep(_POLL_SECONDS)
        dist.broadcast_object_list(outcome, src=0, device=self.totals_device)
        if outcome[1] is not None:
            raise failure or outcome[1]
        return outcome[0]


def start_ranks(wanted: DeviceName, environment: MutableMapping[str, str] = os.environ) -> Ranks:
    """Read the launcher's variables, check them against the machine and join the other processes.

    Raises:
        ConfigError: the device is absent, or there are more ranks on this host than GPUs.
    """
    device_type = choose_device(wanted)
    rank, local_rank, world_size = (
        int(environment.get(name, default))
        for name, default in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1"))
    )
    if device_type == "cuda":
        num_ranks = max(ranks_on_host(environment), local_rank + 1)
        check_gpus(num_ranks, torch.cuda.device_count())
        torch.cuda.set_device(local_rank)
    defaults = {
        "RANK": str(rank),
        "LOCAL_RANK": str(local_rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        # Of a process that no launcher has started: the store takes a port that is free.
        "MASTER_PORT": "0",
    }
    for name, value in defaults.items():
        environment.setdefault(name, value)
    # Before deepspeed is imported: otherwise it takes the first accelerator that it finds.
    environment["DS_ACCELERATOR"] = device_type

    device = torch.device(device_type, local_rank) if device_type == "cuda" else device_type
    if not dist.is_initialized():
        store, rank, world_size = next(
            dist.rendezvous("env://", rank, world_size, timeout=COLLECTIVE_TIMEOUT)
        )
        store.set_timeout(COLLECTIVE_TIMEOUT)
        dist.init_process_group(
            "nccl" if device_type == "cuda" else "gloo",
            store=meet(store, rank, world_size, COLLECTIVE_TIMEOUT),
            rank=rank,
            world_size=world_size,
            timeout=COLLECTIVE_TIMEOUT,
        )
        atexit.register(leave)
        watch_others()
    return Ranks(
        rank=rank, local_rank=local_rank, world_size=world_size, device=torch.device(device)
    )


def ranks_on_host(environment: Mapping[str, str] = os.environ) -> int:
    """Processes of the run on this host, as the launcher says."""
    return int(environment.get("LOCAL_WORLD_SIZE", environment.get("LOCAL_SIZE", 1)))


def check_gpus(num_ranks: int, num_gpus: int) -> None:
    """Refuse more ranks on this host than it has GPUs.

    Raises:
        ConfigError: names the command that fits.
    """
    if num_ranks > num_gpus:
        raise ConfigError(
            f"{num_ranks} ranks on a host with {num_gpus} GPU(s); allowed: one rank per GPU; "
            f"start with: torchrun --nproc_per_node {num_gpus} launch/train.py ..."
        )
