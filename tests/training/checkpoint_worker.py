"""One rank of test_parts.py: a run that goes on from what another number of ranks has written.

    torchrun --nproc_per_node N tests/training/checkpoint_worker.py FOLDER FROM TO [adamw|muon|lora]

Goes on from FOLDER/FROM (`-` starts anew) under every partitioning: trains some steps, writes
FOLDER/TO, trains as many more. FOLDER/TO.json says what was measured.
"""

import json
import sys
from collections.abc import Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from meloformer.batches.batch import IGNORE_INDEX  # noqa: E402
from meloformer.model.attention import build_plan  # noqa: E402
from meloformer.training.ds_config import (  # noqa: E402
    RunFacts,
    load_ds_config,
    resolve_ds_config,
)
from meloformer.training.engine import Engine  # noqa: E402
from meloformer.training.freezing import freeze  # noqa: E402
from meloformer.training.host_copy import HostCopy  # noqa: E402
from meloformer.training.lora import NO_ADAPTERS, AdapterConfig, add_adapters  # noqa: E402
from meloformer.training.loss import step_loss  # noqa: E402
from meloformer.training.optimizer import OptimizerConfig, OptimizerName  # noqa: E402
from meloformer.training.parts import part_name  # noqa: E402
from meloformer.training.ranks import Ranks, start_ranks  # noqa: E402
from meloformer.training.schedule import ScheduleConfig  # noqa: E402
from tests.training.gradient_worker import RULE, global_batch, shares, tiny_model  # noqa: E402

NUM_STEPS = 3
LEARNING_RATE = 3e-3
# Of runs that go on on another number of ranks, the highest of a recipe: gradients in bf16 round
# otherwise there, and an update carries that into the next losses in proportion to its rate.
RECIPE_RATE = ScheduleConfig().learning_rate
EMA = 0.999
# One of each way in which DeepSpeed keeps state, for a launch that others use too.
FEW = (("zero2", False), ("zero3", True))
PARTITIONINGS = tuple(
    (name, is_bf16)
    for name in ("zero1", "zero2", "zero2_offload", "zero3")
    for is_bf16 in (False, True)
)

# Those under which a matrix may be put together again.
MUON_PARTITIONINGS = tuple(pair for pair in PARTITIONINGS if pair[0] != "zero3")


def build_engine(
    ranks: Ranks,
    name: str,
    *,
    is_bf16: bool,
    frozen: tuple[str, ...] = (),
    ema: float = 0.0,
    optimizer: OptimizerName = "adamw",
    adapters: AdapterConfig = NO_ADAPTERS,
) -> Engine:
    run = RunFacts(
        micro_batch_rows=1,
        accumulation=1,
        world_size=ranks.world_size,
        gradient_clipping=1.0,
        device="cpu",
    )
    settings = load_ds_config(ROOT / f"ds_configs/{name}.json") | {"bf16": {"enabled": is_bf16}}
    ds_config = resolve_ds_config(settings, run, source=name)
    model = tiny_model()
    freeze(model, frozen)
    if adapters.lora:
        add_adapters(model, adapters)
    return Engine(model, ranks, ds_config, OptimizerConfig(optimizer=optimizer), ema=ema)


def train(engine: Engine, num_steps: int, rate: float = LEARNING_RATE) -> list[float]:
    """Losses of some steps over one global batch, however many ranks share it."""
    ids, targets, layout = global_batch()
    num_targets = int((targets != IGNORE_INDEX).sum())
    losses = []
    for _ in range(num_steps):
        engine.set_learning_rate(rate)
        shared = []
        for rows in shares(engine.ranks, 2):
            part = layout.map(itemgetter(rows))
            wanted = targets[rows].clone()
            wanted[torch.tensor(rows) < 0] = IGNORE_INDEX
            logits = engine(ids[rows], part, build_plan(part, RULE))
            loss = step_loss(logits, wanted, num_targets, engine.ranks.world_size)
            shared.append(engine.backward(loss))
        losses.append(engine.ranks.mean_of_sums(shared))
        engine.grad_norm()
        engine.update()
    return losses


def save(engine: Engine, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    host = HostCopy(engine.ranks.device)
    part = engine.copy_part(host)
    host.wait()
    part.write(folder / part_name(engine.ranks.rank))
    engine.ranks.barrier()


def through(
    folder: Path,
    source: str | None,
    target: str,
    partitionings: Sequence[tuple[str, bool]],
    optimizer: OptimizerName = "adamw",
    adapters: AdapterConfig = NO_ADAPTERS,
) -> dict:
    """Go on under each partitioning.

    Returns:
        For each: losses before and after the save, and the largest difference of what was loaded.
    """
    ranks = start_ranks("cpu")
    measured: dict = {}
    for name, is_bf16 in partitionings:
        key = f"{name} {'bf16' if is_bf16 else 'fp32'}"
        engine = build_engine(
            ranks, name, is_bf16=is_bf16, ema=EMA, optimizer=optimizer, adapters=adapters
        )
        found: dict = {}
        if source:
            # A run that has gone on meanwhile must not keep anything of that.
            train(engine, 1)
            engine.load(folder / source / key)
            again = folder / f"{target} again" / key
            save(engine, again)
            found["difference"] = ranks.on_first(partial(difference, folder / source / key, again))
        found["before"] = train(engine, NUM_STEPS, RECIPE_RATE)
        save(engine, folder / target / key)
        found["after"] = train(engine, NUM_STEPS, RECIPE_RATE)
        measured[key] = found
    return measured


def difference(one: Path, other: Path) -> float:
    """Largest difference of any weight, moment or average, from the files alone."""
    wholes = [whole(folder) for folder in (one, other)]
    assert wholes[0].keys() == wholes[1].keys()
    return max((wholes[0][key] - wholes[1][key]).abs().max().item() for key in wholes[0])


def whole(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, put together again by nothing but the header."""
    from safetensors import safe_open

    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["fragments"])
            for key in set(file.keys()):
                at = facts[key.split("/", 1)[1]]
                size = torch.Size(at["shape"]).numel()
                run = file.get_tensor(key).float()
                target = tensors.setdefault(key, torch.full((size,), torch.nan))
                target[at["start"] : at["start"] + len(run)] = run
                tensors[f"steps of {key}"] = torch.tensor([at["scalars"].get("step", 0.0)])
                tensors[f"updates of {key}"] = torch.tensor([at.get("num_averaged", 0)])
    assert not any(tensor.isnan().any() for tensor in tensors.values()), "a run is missing"
    return tensors


def main(folder: Path, source: str, target: str, way: str = "adamw") -> None:
    start = None if source == "-" else source
    if way == "lora":
        measured = through(folder, start, target, FEW, adapters=AdapterConfig(lora=4))
    elif way == "muon":
        measured = through(folder, start, target, MUON_PARTITIONINGS, "muon")
    else:
        measured = through(folder, start, target, PARTITIONINGS)
    if start_ranks("cpu").is_first:
        (folder / f"{target}.json").write_text(json.dumps(measured))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])  # type: ignore[arg-type]
