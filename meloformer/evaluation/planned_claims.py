"""Claims that wait for recipes to come: each names the figure that its recipe will write."""

from typing import Any

from meloformer.evaluation.proof import Claim, Command, Goal, named

_TRAIN_LARGE = Command(
    name="train-large",
    line="python launch/bench/train.py --model_size large --max_seq_len 8192 --json {figures}",
    needs=("gpu",),
)
_TRAIN_SMALL = Command(
    name="train-small",
    line="python launch/bench/train.py --model_size small --max_seq_len 8192 --json {figures}",
    needs=("gpu",),
)
_ATTENTION = Command(
    name="attention", line="python launch/bench/attention.py --json {figures}", needs=("gpu",)
)
_GENERATE = Command(
    name="generate",
    line="python launch/bench/generate.py --device cuda --json {figures}",
    needs=("gpu",),
)
_GENERATE_CPU = Command(
    name="generate-cpu", line="python launch/bench/generate.py --device cpu --json {figures}"
)
_BRIDGE = Command(
    name="bridge", line="python launch/bench/bridge.py --json {figures}", needs=("gpu",)
)
_CONTROL = Command(
    name="control", line="python launch/evaluate.py --control --json {figures}", needs=("gpu",)
)


def _planned(
    id: str, claim: str, command: Command, unit: str, comparison: Any, number: float
) -> Claim:
    return Claim(
        id=id,
        claim=claim,
        command=command,
        figure=named(id.replace("-", "_")),
        unit=unit,
        goal=Goal(comparison, number),
    )


PLANNED = (
    _planned("train-tokens", "train large at 8,192", _TRAIN_LARGE, "tokens/s", ">=", 150_000),
    _planned("train-mfu", "the same, unmasked attention only", _TRAIN_LARGE, "% MFU", ">=", 45),
    _planned(
        "train-wait", "share of a step that the GPU waits for data", _TRAIN_LARGE, "%", "<", 2
    ),
    _planned("graphs-beyond", "graphs beyond the declared number", _TRAIN_LARGE, "", "=", 0),
    _planned("epochs-hours", "529,000 pieces x 3 epochs, small", _TRAIN_SMALL, "h", "<=", 6),
    *(
        _planned(
            f"attention-{rule}-{length // 1024}k",
            f"{rule} against the fastest dense causal attention, {length:,} tokens, one run",
            _ATTENTION,
            "times",
            ">=",
            times,
        )
        for rule, goals in (("halves", (1.4, 1.9, 3)), ("museformer", (1.2, 1.6, 2.4)))
        for length, times in zip((8192, 16384, 32768), goals, strict=True)
    ),
    _planned("attention-memory", "memory at 32k beside 8k: linear", _ATTENTION, "times", "<=", 4),
    _planned("generate-gpu", "a 2-minute 8-track piece", _GENERATE, "s", "<=", 10),
    _planned(
        "generate-cpu", "the same beside a bare matmul loop", _GENERATE_CPU, "times", "<=", 1.5
    ),
    _planned("bridge-diffusion", "text to 160 summaries, 10 steps", _BRIDGE, "s", "<=", 0.06),
    _planned("bridge-qformer", "text to 160 summaries, Q-Former", _BRIDGE, "s", "<=", 0.005),
    *(
        _planned(
            f"control-{way}-{what}",
            f"text control on held-out wordings, {told}: {what.replace('-', ' ')}",
            _CONTROL,
            "%",
            ">=",
            percent,
        )
        for way, told, goals in (
            ("summaries", "summaries alone", (60, 85, 50, 60)),
            ("attributes", "with attributes", (90, 97, 80, 85)),
        )
        for what, percent in zip(
            ("tempo-bin", "tempo-within-one-bin", "key", "key-or-relative"), goals, strict=True
        )
    ),
    _planned(
        "control-strict", "strict text control: of what was predicted", _CONTROL, "%", ">=", 99
    ),
)
