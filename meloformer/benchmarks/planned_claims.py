"""Claims that wait for recipes to come: each names the figure that its recipe will write."""

from typing import Any

from meloformer.benchmarks.proof import Claim, Command, Goal, named

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
