"""One rank of a run that only reads: `stream_rank.py URL CACHE RANK RANKS WORKERS STEPS`.

Says "opened" before its workers start and "read" with the number of tokens when the steps are
done, and waits for a line each time, so that another process can look at its memory.
"""

import sys
from pathlib import Path

from meloformer.batches.attributes import ALL_ATTRIBUTES
from meloformer.batches.collate import Collator
from meloformer.batches.phases import PhaseConfig
from meloformer.batches.plan import PlanConfig
from meloformer.batches.stream import TrainStream
from meloformer.shards.disk_cache import CacheConfig
from meloformer.shards.reader import ShardFolder
from meloformer.tokens.vocabulary import PAD


def main(url: str, cache: str, *numbers: str) -> None:
    """Open, wait, read, wait."""
    rank, num_ranks, num_workers, num_steps = map(int, numbers)
    shards = ShardFolder.open(url, CacheConfig(cache_dir=Path(cache)))
    stream = TrainStream(
        Collator(index=shards.split("train"), attributes=ALL_ATTRIBUTES, seed=0),
        PlanConfig(max_seq_len=2048, collate="pack", global_batch=64 * num_ranks, seed=0),
        PhaseConfig(phases="off", micro_batch_rows=16, num_workers=num_workers),
        rank=rank,
        world_size=num_ranks,
    )
    print("opened", flush=True)
    sys.stdin.readline()
    num_tokens = 0
    for _ in range(num_steps):
        for batch in next(stream):
            num_tokens += int((batch.ids_BT != PAD).sum())
    print("read", num_tokens, flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    main(*sys.argv[1:])
