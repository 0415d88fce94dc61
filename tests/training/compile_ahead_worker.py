"""A cold start in small: compile ahead in processes, then warm up a real engine.

    python tests/training/compile_ahead_worker.py FOLDER DEVICE BACKEND train|score

Prints how many processes ran, and what the warm-up found in the cache. FOLDER holds the code.
"""

import json
import sys
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from meloformer.batches.batch import Batch  # noqa: E402
from meloformer.batches.phases import BatchShape  # noqa: E402
from meloformer.model.attention import build_plan  # noqa: E402
from meloformer.model.injection import NoisedOwn  # noqa: E402
from meloformer.model.masks import rule_of  # noqa: E402
from meloformer.model.museformer import MuseFormer  # noqa: E402
from meloformer.training import compile_ahead  # noqa: E402
from meloformer.training.compile_ahead import CompileAhead, CompileSpec  # noqa: E402
from meloformer.training.compile_cache import found_in_cache, use_compile_cache  # noqa: E402
from meloformer.training.ds_config import RunFacts, load_ds_config, resolve_ds_config  # noqa: E402
from meloformer.training.engine import Engine  # noqa: E402
from meloformer.training.graphs import Shapes, limit_graphs, warm_up  # noqa: E402
from meloformer.training.optimizer import OptimizerConfig  # noqa: E402
from meloformer.training.ranks import start_ranks  # noqa: E402
from tests.layouts import tiny_config  # noqa: E402

SHAPES = (BatchShape(1, 256, 128), BatchShape(1, 384, 128))


def main(folder: str, device: str, backend: str, modes: list[str]) -> None:
    """Compile ahead, warm up, compare."""
    ranks = start_ranks(device)  # type: ignore[arg-type]
    run = RunFacts(
        micro_batch_rows=1, accumulation=1, world_size=1, gradient_clipping=1.0, device=device
    )
    settings = load_ds_config(ROOT / "ds_configs/zero2.json") | {"bf16": {"enabled": True}}
    ds_config = resolve_ds_config(settings, run, source="zero2.json")
    use_compile_cache(Path(folder), ranks.device)
    # More layers than the processes have, in the order in which a session goes about it.
    spec = CompileSpec(
        model=tiny_config(num_layers=7, rule="museformer", open_summary_rate=0.3),
        device=ranks.device,
        backend=backend,  # type: ignore[arg-type]
        is_bf16=True,
        precision=None,
        checkpointing="none",
        fuse="train" in modes,
        block_size=128,
    )
    model = MuseFormer(spec.model, fuse=spec.fuse)
    engine = Engine(model, ranks, ds_config, OptimizerConfig())
    rule = rule_of(spec.model.rule)
    shapes = Shapes(
        train=SHAPES if "train" in modes else (), score=SHAPES if "score" in modes else ()
    )
    limit_graphs(spec.num_graphs(shapes))

    def predict(batch: Batch) -> Tensor:
        return engine(
            batch.ids_BT,
            batch.layout,
            build_plan(batch.layout, rule, spec.backend, batch.blocks),
            NoisedOwn.of(batch.open_seeds),
        )

    compile_ahead.FEW_GRAPHS = 0
    compile_ahead.LIMIT_SECONDS = 900  # a host may be busy with other things
    said: list[str] = []
    ahead = CompileAhead(spec, len(SHAPES), 0, say=said.append)
    ahead.compile(shapes)
    blocks_rule = rule if backend == "flex" else None
    warm_up(engine, predict, shapes, blocks_rule, opened=True, fuse=spec.fuse)
    ahead.note_compiled(shapes)
    said_when_warm: list[str] = []
    CompileAhead(spec, len(SHAPES), 0, say=said_when_warm.append).compile(shapes)
    counters = torch._dynamo.utils.counters
    print(
        json.dumps(
            {
                "said": said,
                "said_when_warm": said_when_warm,
                "found": found_in_cache(),
                "graphs": counters["stats"]["unique_graphs"],
                "hits": counters["inductor"]["fxgraph_cache_hit"],
                "misses": counters["inductor"]["fxgraph_cache_miss"],
                "bypassed": counters["inductor"]["fxgraph_cache_bypass"],
                "autograd_misses": counters["aot_autograd"]["autograd_cache_miss"],
                "autograd_bypassed": counters["aot_autograd"]["autograd_cache_bypass"],
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:4], sys.argv[4:])
