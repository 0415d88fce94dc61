"""What is claimed of attention and training on a GPU: goals of the benches and of the GPU report.

The benches give each figure with time to spare; `make gpu-report` gives all of them in minutes,
and judges them by the same goals.
"""

from meloformer.benchmarks.proof import SCRATCH, Command, Goal, figure_claim

_SHARDS = f"{SCRATCH}/shards/default"
_PREPARE = f"test -f {_SHARDS}/manifest.json || python launch/shard_data.py --output {_SHARDS}"
_NEEDS = ("gpu", "music21")


def _training(size: str) -> Command:
    return Command(
        name=f"train-{size}",
        prepare=_PREPARE,
        line=f"python launch/bench/train.py --data {_SHARDS} --model_size {size} "
        "--max_seq_len 8192 --json {figures}",
        needs=_NEEDS,
    )


_TRAIN_LARGE, _TRAIN_SMALL = _training("large"), _training("small")
_ATTENTION = Command(
    name="attention",
    prepare=_PREPARE,
    line=f"python launch/bench/attention.py --data {_SHARDS} --json {{figures}}",
    needs=_NEEDS,
)
_REPORT = Command(
    name="gpu-report",
    prepare=_PREPARE,
    line=f"python launch/tools/gpu_report.py --data {_SHARDS} --json {{figures}}",
    needs=_NEEDS,
)


SPEED = (
    figure_claim(
        "train-tokens", "train large at 8,192", _TRAIN_LARGE, "tokens/s", Goal(">=", 150_000)
    ),
    figure_claim(
        "train-mfu", "the same, unmasked attention only", _TRAIN_LARGE, "% MFU", Goal(">=", 45)
    ),
    figure_claim(
        "train-wait", "share of a step that the GPU waits for data", _TRAIN_LARGE, "%", Goal("<", 2)
    ),
    figure_claim(
        "graphs-beyond", "graphs beyond the declared number", _TRAIN_LARGE, "", Goal("=", 0)
    ),
    figure_claim(
        "epochs-hours", "529,000 pieces x 3 epochs, small", _TRAIN_SMALL, "h", Goal("<=", 6)
    ),
    *(
        figure_claim(
            f"attention-{rule}-{length // 1024}k",
            f"{rule}: the model forward and backward against its dense twin under the fastest "
            f"dense causal attention, {length:,} tokens, one run",
            _ATTENTION,
            "times",
            Goal(">=", times),
        )
        for rule, goals in (("halves", (1.4, 1.9, 3)), ("museformer", (1.2, 1.6, 2.4)))
        for length, times in zip((8192, 16384, 32768), goals, strict=True)
    ),
    figure_claim(
        "attention-memory", "memory at 32k beside 8k: linear", _ATTENTION, "times", Goal("<=", 4)
    ),
    figure_claim(
        "gradients-bf16",
        "flex in bf16 against dense in float64 at 1,024 tokens, all rules: error of outputs and "
        "gradients",
        _REPORT,
        "%",
        Goal("<=", 6),
    ),
    figure_claim("gradients-fp32", "the same in fp32", _REPORT, "%", Goal("<=", 0.2)),
    *(
        figure_claim(
            f"loss-fall-{size}",
            f"{size} on real shards, 200 steps: mean loss of the first 20 less that of the last 20",
            _REPORT,
            "nats",
            Goal(">", 0),
        )
        for size in ("base", "large")
    ),
    figure_claim(
        "busy",
        "share of the time in which the GPU computes, base, steps 200 to 400",
        _REPORT,
        "%",
        Goal(">=", 95),
    ),
    figure_claim(
        "cold-s", "first step of large, nothing compiled before", _REPORT, "s", Goal("<", 120)
    ),
    figure_claim("warm-s", "the same, compiled code from the cache", _REPORT, "s", Goal("<", 30)),
    figure_claim(
        "longest-row", "tokens of a row that large trains on", _REPORT, "", Goal(">=", 65_536)
    ),
    figure_claim(
        "peak-error",
        "predicted peak beside the measured one, worst run",
        _REPORT,
        "%",
        Goal("<=", 10),
    ),
)
