"""One rank of test_traffic.py: the real loop, with every collective of its steps written down.

    torchrun --nproc_per_node N tests/training/traffic_worker.py SHARDS FOLDER

The first rank writes FOLDER/<N>.json: for each partitioning the collectives of each step.
"""

import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any

import torch.distributed as dist

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

ACCUMULATIONS = (1, 3)
# Steps of a run: DeepSpeed learns in all but the last in which order stage 3 needs the weights.
NUM_STEPS = 3
# The files that ship, and what else a file may say that changes how much is moved. The first
# threshold makes the matrices of a tiny model count as large, as those of other sizes do.
LARGE = {"stage3_param_persistence_threshold": 1_000}
PARTITIONINGS: dict[str, tuple[int, str, dict[str, Any]]] = {
    "zero1": (1, "bf16", {}),
    "zero1 in fp32": (1, "fp32", {}),
    "zero2": (2, "bf16", {}),
    "zero2, each gradient to its owner": (2, "bf16", {"use_multi_rank_bucket_allreduce": False}),
    "zero3 in fp32": (3, "fp32", {}),
    "zero3, large matrices": (3, "bf16", LARGE),
}
# What other numbers of ranks repeat.
FEW = ("zero1", "zero2", "zero3, large matrices")


def partitioning_file(name: str) -> dict[str, Any]:
    """Content of the ds_configs file of a partitioning."""
    stage, dtype, more = PARTITIONINGS[name]
    settings = json.loads((ROOT / f"ds_configs/zero{stage}.json").read_text())
    settings["bf16"]["enabled"] = dtype == "bf16"
    settings["zero_optimization"] |= more
    return settings


class CountedError(Exception):
    """Enough steps were counted."""


class Collectives:
    """What this rank asks of torch.distributed: operation, elements of the whole tensor, dtype."""

    # Position of the tensor that is as long as everything that the ranks hold together.
    WHOLE = {
        "all_reduce": 0,
        "reduce": 0,
        "broadcast": 0,
        "all_gather_into_tensor": 0,
        "reduce_scatter_tensor": 1,
        "all_gather": 0,
        "reduce_scatter": 1,
        "all_to_all_single": 0,
    }
    # What moves bytes in another way: none of them belongs into a step.
    FORBIDDEN = (
        "all_reduce_coalesced",
        "all_gather_coalesced",
        "all_to_all",
        "gather",
        "scatter",
        "send",
        "recv",
        "isend",
        "irecv",
        "batch_isend_irecv",
        "all_gather_object",
        "broadcast_object_list",
        "gather_object",
    )

    def __init__(self) -> None:
        self.seen: list[tuple[str, int, str]] = []
        for name, position in self.WHOLE.items():
            setattr(dist, name, self._written_down(name, position))
        for name in self.FORBIDDEN:
            setattr(dist, name, self._written_down(name, None))

    def take(self) -> list[tuple[str, int, str]]:
        seen, self.seen = self.seen, []
        return seen

    def _written_down(self, name: str, position: int | None) -> Callable:
        function = getattr(dist, name)

        @wraps(function)
        def call(*arguments: Any, **named: Any) -> Any:
            if position is None:
                self.seen.append((name, -1, ""))
            else:
                values = [*arguments, *named.values()]
                whole = values[position]
                tensors = whole if isinstance(whole, (list, tuple)) else [whole]
                num_elements = sum(tensor.numel() for tensor in tensors)
                self.seen.append((name, num_elements, str(tensors[0].dtype)))
            before = len(self.seen)
            result = function(*arguments, **named)
            del self.seen[before:]  # what it calls in turn moves the same bytes
            return result

        return call


def main(shards: Path, folder: Path) -> None:
    # Before DeepSpeed is imported, which keeps references to some of them.
    collectives = Collectives()
    from meloformer.command_line import parse_flags
    from meloformer.training.config import TrainConfig
    from meloformer.training.loop import train
    from meloformer.training.prepare import prepare
    from meloformer.training.session import Session

    class CountedSession(Session):
        """Cuts what was seen into steps: the report is the last thing of each."""

        steps: list[list[tuple[str, int, str]]]

        def begin(self, step: int) -> None:
            super().begin(step)
            if step == 1:
                self.steps = []
                collectives.take()  # what a start takes

        def report(self, *arguments: Any, **named: Any) -> None:
            super().report(*arguments, **named)
            self.steps.append(collectives.take())
            if len(self.steps) == NUM_STEPS:
                raise CountedError

    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    counted = []
    for number, name in enumerate(PARTITIONINGS if world_size == 2 else FEW):
        config = folder / f"{number}-{world_size}-{rank}.json"
        config.write_text(json.dumps(partitioning_file(name)))
        for accumulation in ACCUMULATIONS:
            flags = (
                f"--data {shards} --config {config} --model_size tiny --max_seq_len 128 "
                f"--batch_size 1 --gradient_accumulation_steps {accumulation} --num_workers 0 "
                f"--max_steps {NUM_STEPS + 1} --device cpu "
                f"--output {folder}/run-{number}-{world_size}-{accumulation}"
            )
            session = CountedSession(prepare(parse_flags(TrainConfig, flags.split())))
            with suppress(CountedError):
                train(session)
            session.close()
            counted.append(
                {"partitioning": name, "accumulation": accumulation, "steps": session.steps}
            )
    if rank == 0:
        (folder / f"{world_size}.json").write_text(json.dumps(counted))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
