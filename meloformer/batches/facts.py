"""What an epoch amounts to: counted exactly where that is quick, else extrapolated."""

from collections import Counter
from dataclasses import dataclass

from meloformer.batches.piece_index import PieceIndex
from meloformer.batches.plan import PlanConfig, plan_group, shard_groups
from meloformer.batches.windows import Windows

# Pieces that are planned to count an epoch; what comes after them is extrapolated.
MAX_COUNTED = 1_000_000


@dataclass(frozen=True, kw_only=True)
class EpochFacts:
    """What an epoch amounts to.

    Args:
        num_steps: optimizer steps.
        num_rows: rows of all steps.
        num_windows: windows of all rows.
        num_tokens: upper bound on their tokens.
        padding: share of the rows that holds no token; the last step, which may be short, left out.
        rows_per_length: rows of each shape.
        counted: share of the epoch's tokens that was planned; 1 where the facts are exact.
    """

    num_steps: int
    num_rows: int
    num_windows: int
    num_tokens: int
    padding: float
    rows_per_length: dict[int, int]
    counted: float = 1.0


def epoch_facts(
    index: PieceIndex, config: PlanConfig, epoch: int = 0, *, max_pieces: int = MAX_COUNTED
) -> EpochFacts:
    """Plan an epoch and count; of a large one plan whole groups of shards, and extrapolate.

    Args:
        index: the pieces.
        config: the plan.
        epoch: 0 for the first.
        max_pieces: the group of shards that brings the count there is the last to be planned.

    Raises:
        BatchError: no pieces, or a single bar is longer than a row.
    """
    groups = shard_groups(index, config, epoch)
    carried = Windows.of(())
    num_steps = num_windows = num_tokens = planned_pieces = planned_tokens = group = 0
    last_tokens = last_padded = 0
    lengths: Counter[int] = Counter()
    while group < len(groups) and planned_pieces < max_pieces:
        index.prefetch(groups[group + 1] if group + 1 < len(groups) else (), tars=False)
        plan = plan_group(index, config, epoch, groups, group, carried)
        group, carried = group + 1, plan.left
        planned_pieces += plan.num_pieces
        planned_tokens += plan.num_tokens
        num_steps += len(plan.steps)
        for step in plan.steps:
            lengths.update(plan.rows.length[step].tolist())
            num_windows += int((plan.rows.edges[step + 1] - plan.rows.edges[step]).sum())
            last_tokens = int(plan.rows.tokens[step].sum())
            last_padded = int(plan.rows.length[step].sum())
            num_tokens += last_tokens
    num_padded = sum(length * count for length, count in lengths.items())
    counted = 1.0
    if group < len(groups):
        # The epoch's last step is not among these.
        last_tokens = last_padded = 0
        counted = min(planned_tokens / index.num_tokens, 1.0)
    full = num_padded - last_padded
    return EpochFacts(
        num_steps=round(num_steps / counted),
        num_rows=round(lengths.total() / counted),
        num_windows=round(num_windows / counted),
        num_tokens=round(num_tokens / counted),
        padding=1 - (num_tokens - last_tokens) / full if full else 0.0,
        rows_per_length={n: round(count / counted) for n, count in sorted(lengths.items())},
        counted=counted,
    )
