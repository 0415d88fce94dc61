"""Whether a run is well: each thing that goes wrong unseen, with the figure and the remedy."""

from dataclasses import dataclass

import numpy as np

from meloformer.progress import duration
from meloformer.training.doing import read_doing
from meloformer.training.metrics import BYTES_PER_GIB, gibibytes
from meloformer.training.run_reader import RunReader

# Where a figure is no longer that of a healthy run.
MOST_DATA_WAIT = 0.05
LEAST_UTILISATION = 0.85
MOST_SKIPPED = 0.01
MOST_RANK_RATIO = 1.25
LEAST_PACE = 0.67
_MOST_DEVICE_GROWTH, _LEAST_DEVICE_BYTES = 0.02, BYTES_PER_GIB / 16
_MOST_HOST_GROWTH, _LEAST_HOST_BYTES = 0.1, BYTES_PER_GIB / 2
# A trend is taken over the last half of the steps since the start, and no more than this.
_LONGEST_PART = 5000
_SHORTEST_PART = 10
# Deviations of Kendall's statistic beyond which a rise is no chance: one in 700.
_SIGNIFICANT = 3.0
_LEAST_RISE = 0.01
_MOST_BINS = 64
# Without a word for so long, and for so many steps, a run is taken for dead; not one that says that
# it compiles, say, or validates, unless that takes too long for anything.
_SILENCE_SECONDS, _SILENT_STEPS = 120.0, 20
_BUSY_SECONDS = 1800.0


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One row of a check.

    Args:
        name: what was looked at.
        is_ok: whether it is as it should be.
        found: the figure, in words.
        remedy: what to do; empty where nothing is wrong.
    """

    name: str
    is_ok: bool
    found: str
    remedy: str = ""


def check_run(run: RunReader, now: float) -> list[Finding]:
    """Look at everything that goes wrong unseen.

    Args:
        run: as it stands.
        now: seconds since 1970.
    """
    return [
        check_loss(run),
        check_memory(run),
        check_graphs(run),
        check_skipped(run),
        check_saves(run),
        check_utilisation(run),
        check_data_wait(run),
        check_ranks(run),
        check_pace(run, now),
    ]


def check_loss(run: RunReader) -> Finding:
    """Does it fall? A loss that stands still at the end of a schedule is no trouble."""
    loss = run.column("loss")
    loss = loss[np.isfinite(loss)]
    part = loss[-_part_length(len(loss)) :]
    if len(part) < _SHORTEST_PART:
        return Finding(name="loss", is_ok=True, found=f"{len(loss)} steps: too few to see a trend")
    slope, deviations = trend(part)
    change, level = slope * len(part), float(np.median(part))
    found = f"{level:.4f}, {change:+.4f} over the last {len(part)} steps"
    if deviations > _SIGNIFICANT and change > _LEAST_RISE * level:
        remedy = "it rises: lower --learning_rate and go on from a checkpoint before the rise"
        if not run.is_bridge:
            remedy += ", or drop spikes with --spike_sigma 6"
        return Finding(name="loss", is_ok=False, found=found, remedy=remedy)
    start = float(np.median(loss[: max(len(part) // 10, 3)]))
    if len(loss) >= 100 and level >= start:
        remedy = (
            f"it has not fallen since the start ({start:.4f}): see --learning_rate and the data"
        )
        return Finding(name="loss", is_ok=False, found=found, remedy=remedy)
    word = "falling" if deviations < -_SIGNIFICANT else "no trend beyond its noise"
    return Finding(name="loss", is_ok=True, found=f"{found}, {word}")


def check_memory(run: RunReader) -> Finding:
    """Does it grow? The largest batch is tried before the first step: peaks stand still."""
    device, host = (_last_part(run, name) for name in ("memory", "memory_host"))
    words, wrong = [], []
    if len(device):
        growth = device[-1] - device[0]
        words.append(f"device peak {gibibytes(device[-1])} ({growth / device[0]:+.1%})")
        if growth > max(_MOST_DEVICE_GROWTH * device[0], _LEAST_DEVICE_BYTES):
            wrong.append("the device's peak grows: launch/tools/memory_profile.py, a smaller batch")
    if len(host):
        edge = max(len(host) // 10, 1)
        before, after = np.median(host[:edge]), np.median(host[-edge:])
        words.append(f"host {gibibytes(after)} ({after / before - 1:+.1%})")
        if after - before > max(_MOST_HOST_GROWTH * before, _LEAST_HOST_BYTES):
            wrong.append(
                "the process grows: fewer --num_workers, a smaller --shard_cache; go on with "
                "--resume auto before the host is full"
            )
    return Finding(
        name="memory",
        is_ok=not wrong,
        found=", ".join(words) or "no figure",
        remedy="; ".join(wrong),
    )


def check_graphs(run: RunReader) -> Finding:
    """More graphs than declared: each batch compiles anew."""
    declared = run.run.starts[-1].get("num_graphs") if run.run.starts else None
    graphs = run.of_last_start("graphs")
    graphs = graphs[np.isfinite(graphs)]
    if declared is None or not len(graphs):
        return Finding(name="recompiles", is_ok=True, found="nothing is compiled on this device")
    compiled = int(graphs.max())
    is_ok = compiled <= declared
    return Finding(
        name="recompiles",
        is_ok=is_ok,
        found=f"{compiled} graphs of {declared} declared",
        remedy="" if is_ok else "start with TORCH_LOGS=recompiles to see which value changes",
    )


def check_skipped(run: RunReader) -> Finding:
    """Steps that were dropped lately."""
    skipped = run.of_last_start("skipped")
    part = skipped[-_part_length(len(skipped)) :]
    if not len(part):
        return Finding(name="skipped steps", is_ok=True, found="no step yet")
    lately = int(part[-1] - (skipped[-len(part) - 1] if len(skipped) > len(part) else part[0]))
    is_ok = lately <= max(1, MOST_SKIPPED * len(part))
    return Finding(
        name="skipped steps",
        is_ok=is_ok,
        found=f"{lately} of the last {len(part)}, {int(part[-1])} in all",
        remedy="" if is_ok else "lower --learning_rate; metrics.jsonl names the dropped batches",
    )


def check_saves(run: RunReader) -> Finding:
    """Checkpoints that could not be written: what a crash would cost."""
    failed = _last_part(run, "failed_saves")
    count = int(failed[-1] - failed[0]) if len(failed) else 0
    return Finding(
        name="saves",
        is_ok=not count,
        found=f"{count} of the latest failed" if count else "none of the latest failed",
        remedy="see train.log for the reason: a full disk, or a folder that is gone"
        if count
        else "",
    )


def check_utilisation(run: RunReader) -> Finding:
    """How busy the first rank's GPU is."""
    busy = _last_part(run, "gpu_utilisation")
    mfu = _last_part(run, "mfu")
    if not len(busy):
        return Finding(name="utilisation", is_ok=True, found="no figure: no GPU, or none to be had")
    found = f"GPU busy {busy.mean():.0%}" + (f", MFU {mfu.mean():.1%}" if len(mfu) else "")
    is_ok = bool(busy.mean() >= LEAST_UTILISATION)
    remedy = "see data wait; where that is small: larger --batch_size, --fuse on, fewer micro-steps"
    return Finding(name="utilisation", is_ok=is_ok, found=found, remedy="" if is_ok else remedy)


def check_data_wait(run: RunReader) -> Finding:
    """Share of the time that ranks wait for data."""
    wait = _last_part(run, "data_wait")
    if not len(wait):
        return Finding(name="data wait", is_ok=True, found="no step yet")
    is_ok = bool(wait.mean() <= MOST_DATA_WAIT)
    remedy = "more --num_workers; launch/bench/stream.py says what one brings"
    if run.is_bridge:
        remedy = "a faster disk for the folders of --states and --targets"
    return Finding(
        name="data wait",
        is_ok=is_ok,
        found=f"{wait.mean():.1%} of a step",
        remedy="" if is_ok else remedy,
    )


def check_ranks(run: RunReader) -> Finding:
    """Is one rank slower than the others, again and again?"""
    most, median = (_last_part(run, f"rank_seconds_{name}") for name in ("max", "median"))
    slowest = _last_part(run, "slowest_rank").astype(int)
    num_ranks = run.run.starts[-1]["world_size"] if run.run.starts else 1
    if num_ranks == 1 or not len(slowest):
        return Finding(name="slowest rank", is_ok=True, found="one rank, or no step yet")
    times = np.bincount(slowest)
    rank, share = int(times.argmax()), times.max() / len(slowest)
    ratio = float(np.median(most / np.maximum(median, 1e-9)))
    found = f"rank {rank} in {share:.0%} of the steps, slowest at {ratio:.2f} x the median"
    is_ok = ratio <= MOST_RANK_RATIO or share <= 0.5
    remedy = f"look at rank {rank}'s host and GPU: clocks, heat, other processes, its disk"
    return Finding(name="slowest rank", is_ok=is_ok, found=found, remedy="" if is_ok else remedy)


def check_pace(run: RunReader, now: float) -> Finding:
    """When will it end, does it still go on, and as fast as before?"""
    if run.is_finished:
        return Finding(name="ETA", is_ok=True, found=f"all {run.run.num_steps} steps are done")
    silence = silent_seconds(run, now)
    if silence is not None:
        return Finding(
            name="ETA",
            is_ok=False,
            found=f"step {run.last_step} of {run.run.num_steps}, silent for {duration(silence)}",
            remedy="it stands still or has ended: see the end of train.log; --resume auto goes on",
        )
    counted = "rows" if run.is_bridge else "tokens"
    rate = _last_part(run, f"{counted}_per_second")
    if not len(rate):
        return Finding(name="ETA", is_ok=True, found="no step yet")
    lately = float(np.median(rate[-max(len(rate) // 10, 3) :]))
    usual = float(np.median(rate))
    is_ok = lately >= LEAST_PACE * usual
    eta = run.column("eta_seconds")[-1]
    return Finding(
        name="ETA",
        is_ok=is_ok,
        found=f"{duration(eta)}, {lately:,.0f} {counted}/s ({lately / usual:.0%} of the usual)",
        remedy=""
        if is_ok
        else "it has become slower: see data wait, slowest rank, other processes",
    )


def silent_seconds(run: RunReader, now: float) -> float | None:
    """Seconds since an unfinished run last wrote, if that is too long; None if not."""
    if run.is_finished:
        return None
    pace = _last_part(run, "step_seconds")
    patience = max(_SILENCE_SECONDS, _SILENT_STEPS * float(pace.mean()) if len(pace) else 0.0)
    if read_doing(run.folder, now):
        patience = max(patience, _BUSY_SECONDS)
    silence = now - run.written_at()
    return silence if silence > patience else None


def trend(values: np.ndarray) -> tuple[float, float]:
    """Slope per step, and how many deviations it lies from none.

    Medians of bins, so that a step far off weighs no more than another.

    Args:
        values: one per step, finite.

    Source: slope of Theil 1950 and Sen 1968; test of Mann 1945 and Kendall 1975.

    >>> slope, deviations = trend(np.arange(50.0))
    >>> float(slope), bool(deviations > 9)
    (1.0, True)
    """
    bins = np.array_split(values, min(len(values), _MOST_BINS))
    middle = np.array([np.median(part) for part in bins])
    ends = np.cumsum([len(part) for part in bins])
    place = ends - np.array([len(part) for part in bins]) / 2
    first, second = np.triu_indices(len(middle), k=1)
    rise = middle[second] - middle[first]
    slope = float(np.median(rise / (place[second] - place[first])))
    n = len(middle)
    return slope, float(np.sign(rise).sum() / np.sqrt(n * (n - 1) * (2 * n + 5) / 18))


def _part_length(num_steps: int) -> int:
    return min(max(num_steps // 2, min(num_steps, _SHORTEST_PART)), _LONGEST_PART)


def _last_part(run: RunReader, name: str) -> np.ndarray:
    """Figures of the last half of the steps since the start, where there are any."""
    values = run.of_last_start(name)
    part = values[-_part_length(len(values)) :]
    return part[np.isfinite(part)]
