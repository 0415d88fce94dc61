"""Claims that wait for recipes to come: each names the figure that its recipe will write."""

from meloformer.benchmarks.proof import Command, Goal, figure_claim

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


PLANNED = (
    figure_claim("generate-gpu", "a 2-minute 8-track piece", _GENERATE, "s", Goal("<=", 10)),
    figure_claim(
        "generate-cpu",
        "the same beside a bare matmul loop",
        _GENERATE_CPU,
        "times",
        Goal("<=", 1.5),
    ),
    figure_claim(
        "bridge-diffusion", "text to 160 summaries, 10 steps", _BRIDGE, "s", Goal("<=", 0.06)
    ),
    figure_claim(
        "bridge-qformer", "text to 160 summaries, Q-Former", _BRIDGE, "s", Goal("<=", 0.005)
    ),
    *(
        figure_claim(
            f"control-{way}-{what}",
            f"text control on held-out wordings, {told}: {what.replace('-', ' ')}",
            _CONTROL,
            "%",
            Goal(">=", percent),
        )
        for way, told, goals in (
            ("summaries", "summaries alone", (60, 85, 50, 60)),
            ("attributes", "with attributes", (90, 97, 80, 85)),
        )
        for what, percent in zip(
            ("tempo-bin", "tempo-within-one-bin", "key", "key-or-relative"), goals, strict=True
        )
    ),
    figure_claim(
        "control-strict",
        "strict text control: of what was predicted",
        _CONTROL,
        "%",
        Goal(">=", 99),
    ),
)
