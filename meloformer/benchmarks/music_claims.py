"""Claims of making music: how fast, how fast from a text, and how much a text decides."""

from collections.abc import Mapping
from typing import Any

from meloformer.benchmarks.proof import Claim, Command, Goal, ReadFigure, figure_claim

_GENERATE = Command(
    name="generate",
    line="python launch/bench/generate.py --device cuda --batch_sizes 1 --json {figures}",
    needs=("gpu",),
)
_GENERATE_COMPILED = Command(
    name="generate-compiled",
    line="python launch/bench/generate.py --device cuda --batch_sizes 1 --compile --json {figures}",
    needs=("gpu",),
)
_GENERATE_CPU = Command(
    name="generate-cpu",
    line="python launch/bench/generate.py --device cpu --batch_sizes 1 --max_tokens 200 --rounds 3"
    " --json {figures}",
)
_BRIDGE = Command(
    name="bridge", line="python launch/bench/bridge.py --json {figures}", needs=("gpu",)
)
_CONTROL = Command(
    name="control",
    line="python launch/evaluate.py --control --checkpoint runs/text-base --bridge runs/text-bridge"
    " --data data_shards/text --captions captions.jsonl --output build/proof/control"
    " && cp build/proof/control/control.json {figures}",
    needs=("runs/text-base", "runs/text-bridge", "data_shards/text", "captions.jsonl"),
    is_long=True,
)
# What the grammar can hold by force; a key is told and no more.
_KEPT_BY_FORCE = ("tempo_bin", "metre", "instruments")


def _score(way: str, metric: str) -> ReadFigure:
    """Percent of the texts that came true, of the judge's control.json."""

    def read(found: Mapping[str, Any]) -> tuple[float, str]:
        score = found["rows"][f"text, {way}"]["scores"][metric]
        return 100 * score["mean"], f"{score['n']} pieces, {_judged(found)}"

    return read


def _kept(found: Mapping[str, Any]) -> tuple[float, str]:
    """Percent of what heads had foretold that came; the least of what can be held by force."""
    kept = found["rows"]["text, strict"]["kept"]
    percent = {metric: 100 * kept[metric]["mean"] for metric in _KEPT_BY_FORCE}
    said = ", ".join(f"{metric} {value:.1f}" for metric, value in percent.items())
    return min(percent.values()), f"{said}; {_judged(found)}"


def _judged(found: Mapping[str, Any]) -> str:
    settings = found["settings"]
    return f"{settings['model']}, {settings['bridge']}, {settings['encoder']}"


def _control(id: str, claim: str, figure: ReadFigure, percent: float) -> Claim:
    goal = Goal(">=", percent)
    return Claim(id=id, claim=claim, command=_CONTROL, figure=figure, unit="%", goal=goal)


MUSIC = (
    Claim(
        id="generate-gpu",
        claim="a 2-minute 8-track piece",
        command=_GENERATE,
        figure=lambda found: (found["generate_gpu"], found["title"]),
        unit="s",
        goal=Goal("<=", 10),
    ),
    Claim(
        id="generate-gpu-compiled",
        claim="a 2-minute 8-track piece by compiled decoding",
        command=_GENERATE_COMPILED,
        figure=lambda found: (found["generate_gpu_compiled"], found["title"]),
        unit="s",
        goal=Goal("<=", 10),
    ),
    Claim(
        id="generate-cpu",
        claim="writing on a CPU, one piece at a time, beside a bare loop of its matrix products",
        command=_GENERATE_CPU,
        figure=lambda found: (found["generate_cpu"], found["title"]),
        unit="times",
        goal=Goal("<=", 1.5),
    ),
    figure_claim(
        "bridge-diffusion", "text to 160 summaries, 10 steps", _BRIDGE, "s", Goal("<=", 0.06)
    ),
    figure_claim(
        "bridge-qformer", "text to 160 summaries, Q-Former", _BRIDGE, "s", Goal("<=", 0.005)
    ),
    *(
        _control(
            f"control-{way}-{what}",
            f"text control on held-out wordings, {told}: {what.replace('-', ' ')}",
            _score(way, metric),
            percent,
        )
        for way, told, goals in (
            ("summaries", "summaries alone", (60, 85, 50, 60)),
            ("attributes", "with attributes", (90, 97, 80, 85)),
        )
        for what, metric, percent in zip(
            ("tempo-bin", "tempo-within-one-bin", "key", "key-or-relative"),
            ("tempo_bin", "tempo_near", "key", "key_near"),
            goals,
            strict=True,
        )
    ),
    _control("control-strict", "strict text control: of what was predicted", _kept, 99),
)
