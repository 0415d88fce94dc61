"""The plan: which windows stand in which row of which optimizer step.

A pure function of (index, PlanConfig, epoch). Ranks, workers and micro-batches are unknown here, so
none of them can change what a step trains on. Memory is bounded by a group of shards; the cursor
holds what a group left over, so that any step can be reached without replaying the epoch.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from meloformer.batches.piece_index import PieceIndex
from meloformer.batches.rows import Row, Rows, best_fit, next_fit
from meloformer.batches.windows import SizedWindow, Windows, cut_long_pieces, whole_pieces
from meloformer.errors import BatchError, ConfigError
from meloformer.model.masks import num_summaries

Collate = Literal["bucket", "pack"]

# Changes with the rows that the same shards and settings give: 2 brings the tokens of carried
# windows; 3 packs rows more tightly.
CURSOR_FORMAT = 3

# Streams of random numbers of one epoch.
_SHARDS, _PIECES, _STEPS = range(3)


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """What the plan depends on besides the shards.

    Args:
        max_seq_len: longest row, in tokens.
        collate: whole pieces in rows of few lengths, or full rows of one length.
        global_batch: rows of an optimizer step over all ranks and micro-steps.
        seed: of all permutations.
        bucket_multiple: row lengths are multiples of it.
        group_shards: shards whose pieces are mixed with each other.
    """

    max_seq_len: int = 8192
    collate: Collate = "bucket"
    global_batch: int = 48
    seed: int = 0
    bucket_multiple: int = 512
    group_shards: int = 16

    def __post_init__(self) -> None:
        for name in ("max_seq_len", "global_batch", "bucket_multiple", "group_shards"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)}: allowed 1 or more")
        if self.seed < 0:
            raise ConfigError(f"--seed {self.seed}: allowed 0 or more")
        if self.collate not in ("bucket", "pack"):
            raise ConfigError(f"--collate {self.collate!r}: allowed bucket, pack")

    @property
    def max_bars(self) -> int:
        """Bars that the longest row takes."""
        return num_summaries(self.max_seq_len)

    @property
    def row_lengths(self) -> tuple[int, ...]:
        """Every length that a row can have, ascending; the last is max_seq_len.

        >>> PlanConfig(max_seq_len=1300).row_lengths
        (512, 1024, 1300)
        """
        if self.collate == "pack":
            return (self.max_seq_len,)
        shorter = range(self.bucket_multiple, self.max_seq_len, self.bucket_multiple)
        return (*shorter, self.max_seq_len)


@dataclass(frozen=True, kw_only=True)
class Cursor:
    """A place between two steps: everything that is needed to go on from there.

    Args:
        epoch: 0 for the first.
        group: the group of shards that the next step comes from.
        step_in_group: steps of that group that are done.
        step_in_epoch: steps of the epoch that are done.
        carried: windows that earlier groups left to that group, in order.
    """

    epoch: int = 0
    group: int = 0
    step_in_group: int = 0
    step_in_epoch: int = 0
    carried: tuple[SizedWindow, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data for a checkpoint."""
        return {"format": CURSOR_FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Cursor":
        """The cursor that `to_json` wrote.

        Raises:
            BatchError: another format, or not a cursor.
        """
        if data.get("format") != CURSOR_FORMAT:
            raise BatchError(
                f"data cursor of format {data.get('format')!r}, allowed {CURSOR_FORMAT}; "
                "resume with the release that wrote it"
            )
        try:
            numbers = {
                name: int(data[name])
                for name in ("epoch", "group", "step_in_group", "step_in_epoch")
            }
            carried = tuple(SizedWindow(*map(int, window)) for window in data["carried"])
        except (KeyError, TypeError, ValueError) as error:
            raise BatchError(
                f"data cursor cannot be read ({error!r}); resume from another checkpoint"
            ) from error
        return cls(**numbers, carried=carried)


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """Rows of one optimizer step and the place after it."""

    epoch: int
    rows: tuple[Row, ...]
    cursor_after: Cursor


@dataclass(frozen=True, eq=False)
class GroupPlan:
    """Steps of a group of shards.

    Args:
        rows: all rows of the group.
        steps: numbers of the rows of each step.
        left: windows that go on to the next group.
        num_pieces: pieces of its shards that the epoch takes.
        num_tokens: tokens of those.
    """

    rows: Rows
    steps: list[np.ndarray]
    left: Windows
    num_pieces: int
    num_tokens: int


def plan_fingerprint(index: PieceIndex, config: PlanConfig) -> str:
    """Short hash of all that the plan is a function of: a cursor is worth nothing under another."""
    digest = hashlib.sha256(json.dumps(asdict(config), sort_keys=True).encode())
    digest.update(index.fingerprint.encode())
    return digest.hexdigest()[:16]


def iterate_steps(
    index: PieceIndex, config: PlanConfig, cursor: Cursor | None = None
) -> Iterator[Step]:
    """Steps from a cursor to the end of its epoch.

    Every window of the epoch is in exactly one step, and only the epoch's last step may hold fewer
    rows than `global_batch`.

    Raises:
        BatchError: no pieces, or a single bar is longer than a row.
    """
    cursor = cursor or Cursor()
    next_epoch = Cursor(epoch=cursor.epoch + 1)
    carried = Windows.of(cursor.carried)
    groups = shard_groups(index, config, cursor.epoch)
    index.prefetch(groups[cursor.group] if cursor.group < len(groups) else ())
    for group in range(cursor.group, len(groups)):
        is_last = group == len(groups) - 1
        plan = plan_group(index, config, cursor.epoch, groups, group, carried)
        # While this group trains there is time to fetch the next one.
        index.prefetch(groups[group + 1] if not is_last else ())
        left = tuple(plan.left)
        for done in range(cursor.step_in_group, len(plan.steps)):
            cursor = replace(cursor, step_in_group=done + 1, step_in_epoch=cursor.step_in_epoch + 1)
            after = cursor
            if done + 1 == len(plan.steps):
                after = next_epoch if is_last else _next_group(cursor, left)
            rows = tuple(plan.rows[row] for row in plan.steps[done].tolist())
            yield Step(epoch=cursor.epoch, rows=rows, cursor_after=after)
        cursor, carried = _next_group(cursor, left), plan.left


def shard_groups(index: PieceIndex, config: PlanConfig, epoch: int) -> list[list[int]]:
    """Shards of each group of an epoch.

    Raises:
        BatchError: there are no pieces.
    """
    if not index.num_pieces:
        raise BatchError("a split without pieces, allowed 1 or more; build shards from more files")
    shards = index.order_shards(_random(config, epoch, _SHARDS)).tolist()
    size = config.group_shards
    return [shards[start : start + size] for start in range(0, len(shards), size)]


def plan_group(
    index: PieceIndex,
    config: PlanConfig,
    epoch: int,
    groups: list[list[int]],
    group: int,
    carried: Windows,
) -> GroupPlan:
    """Plan the steps of a group of shards and of what earlier groups left to it.

    Raises:
        BatchError: a single bar is longer than a row.
    """
    is_last = group == len(groups) - 1
    of_shards = [whole_pieces(index, n, index.chosen(n, epoch)) for n in groups[group]]
    pieces = Windows.joined(*of_shards)
    order = _random(config, epoch, _PIECES, group).permutation(len(pieces))
    windows = Windows.joined(carried, pieces[order])
    random = _random(config, epoch, _STEPS, group)
    if config.collate == "bucket":
        rows, steps, left = _bucket_steps(index, config, windows, random)
    else:
        rows, steps, left = _pack_steps(index, config, windows, random)
    if is_last and len(left):
        steps, left = [*steps, left], left[:0]
    return GroupPlan(rows, steps, rows.windows_of(left), len(pieces), int(pieces.tokens.sum()))


def _next_group(cursor: Cursor, carried: tuple[SizedWindow, ...]) -> Cursor:
    return replace(cursor, group=cursor.group + 1, step_in_group=0, carried=carried)


def _random(config: PlanConfig, epoch: int, stream: int, group: int = 0) -> np.random.Generator:
    return np.random.default_rng([config.seed, epoch, stream, group])


def _bucket_steps(
    index: PieceIndex, config: PlanConfig, windows: Windows, random: np.random.Generator
) -> tuple[Rows, list[np.ndarray], np.ndarray]:
    """Rows, those of each step, and those that are left to the next group."""
    whole = cut_long_pieces(index, windows, config.max_seq_len, config.max_bars)
    rows = Rows.of(*best_fit(whole, config.max_seq_len, config.max_bars), config.row_lengths)
    shuffled = random.permutation(len(rows))

    size = config.global_batch
    steps, rest = [], []
    for length in np.unique(rows.length).tolist():
        same = shuffled[rows.length[shuffled] == length]
        num_whole = len(same) // size * size
        steps += list(same[:num_whole].reshape(-1, size))
        rest.append(same[num_whole:])

    # The emptiest rows wait: the next group has windows that fill them.
    mixed = np.concatenate([np.zeros(0, dtype=np.int64), *rest])
    mixed = mixed[np.argsort((rows.tokens - rows.length)[mixed], kind="stable")]
    left, mixed = mixed[: len(mixed) % size], mixed[len(mixed) % size :]
    mixed = mixed[np.argsort(rows.length[mixed], kind="stable")]
    steps += list(mixed.reshape(-1, size))
    return rows, [steps[i] for i in random.permutation(len(steps)).tolist()], left


def _pack_steps(
    index: PieceIndex,
    config: PlanConfig,
    windows: Windows,
    random: np.random.Generator,
) -> tuple[Rows, list[np.ndarray], np.ndarray]:
    """Rows, those of each step, and those that are left to the next group."""
    filled = next_fit(index, windows, config.max_seq_len, config.max_bars)
    rows = Rows.of(*filled, config.row_lengths)
    # The last row is still open: the next group goes on filling it, or it ends the epoch.
    num_closed = max(len(rows) - 1, 0)
    num_whole = num_closed // config.global_batch * config.global_batch
    order = random.permutation(num_whole)
    steps = list(order.reshape(-1, config.global_batch))
    return rows, steps, np.arange(num_whole, len(rows))
