"""How long it takes from a text to summaries: encoder, Q-Former, Diffusion Bridge by its steps.

The time of a forward pass does not depend on what the weights hold, so that random ones of the
same shapes serve where there are no trained ones, and the table says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from tokenizers import Tokenizer, models, pre_tokenizers

from meloformer.benchmarks.alternation import Candidate, Failure, Timing, time_in_turns
from meloformer.benchmarks.bench_tables import mebibytes, percent, plain, rounded, table_of
from meloformer.bridge.bridges import Bridge, LoadedBridge
from meloformer.bridge.diffusion_bridge import DiffusionBridge, DiffusionBridgeConfig
from meloformer.bridge.encoder_folder import DEFAULT_TEXT_ENCODER, EncoderSettings
from meloformer.bridge.flow import Solver
from meloformer.bridge.qformer import QFormer, QFormerConfig
from meloformer.bridge.text_encoder import TextEncoder, TextStates

# Words that are tokens of the random encoder, as long as an exact caption and its instruction.
TEXT = (
    "a fast and loud rock piece in e minor with two electric guitars a bass and drums in four four "
    "at one hundred and fifty beats per minute which begins with four bars of drums alone and ends "
    "softly on a long chord"
)
# Of the published config.json of DEFAULT_TEXT_ENCODER.
_QWEN3: dict[str, Any] = {
    "vocab_size": 151669,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
# The claims speak of these: steps of Euler, and one text.
_CLAIMED_STEPS, _CLAIMED_BATCH = 10, 1
_COLUMNS = {
    "name": ("", plain),
    "batch": ("texts", plain),
    "ms": ("ms", rounded(2)),
    "spread": ("spread", percent),
    "ms_per_text": ("ms a text", rounded(2)),
    "memory": ("MiB", mebibytes),
}


@dataclass(frozen=True, kw_only=True)
class BridgeBench:
    """What is timed.

    Args:
        encoder: of texts.
        qformer: made for its states.
        diffusion_bridge: likewise.
        text: that is read.
        num_bars: summaries of a text.
        steps: of the flow, each number timed with Euler.
        heun_steps: of the flow with Heun.
        guidance: of the flow; other than 1 doubles its rows.
        device: where all of it computes.
        rounds: timed calls of each.
    """

    encoder: TextEncoder
    qformer: LoadedBridge
    diffusion_bridge: LoadedBridge
    text: str
    num_bars: int
    steps: tuple[int, ...]
    heun_steps: int
    guidance: float
    device: torch.device
    rounds: int

    @property
    def num_tokens(self) -> int:
        """Of the text."""
        return len(self.encoder.token_ids([self.text])[0])


def measure(bench: BridgeBench, batch: int) -> list[dict[str, Any]]:
    """Time every part, and the whole way from text to summaries, in turns.

    Args:
        bench: what is timed.
        batch: texts at once.
    """
    texts = [bench.text] * batch
    states = bench.encoder.encode(texts)
    candidates = {"text encoder": Candidate(lambda: bench.encoder.encode(texts))}
    candidates["Q-Former"] = Candidate(lambda: _answer(bench.qformer, states, bench))
    flows: list[tuple[Solver, int]] = [("euler", steps) for steps in bench.steps]
    flows.append(("heun", bench.heun_steps))
    for solver, steps in flows:

        def flow(solver: Solver = solver, steps: int = steps) -> torch.Tensor:
            return _answer(bench.diffusion_bridge, states, bench, steps, solver)

        candidates[f"Diffusion Bridge, {solver} {steps}"] = Candidate(flow)
    candidates["text to summaries, Q-Former"] = Candidate(
        lambda: _answer(bench.qformer, bench.encoder.encode(texts), bench)
    )
    candidates[_whole(_CLAIMED_STEPS)] = Candidate(
        lambda: _answer(bench.diffusion_bridge, bench.encoder.encode(texts), bench, _CLAIMED_STEPS)
    )
    timings = time_in_turns(candidates, bench.device, bench.rounds)
    return [_row(name, batch, timing) for name, timing in timings.items()]


def claimed(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Seconds under the names by which claims ask for them: one text, its encoder included."""
    names = {
        "text to summaries, Q-Former": "bridge_qformer",
        _whole(_CLAIMED_STEPS): "bridge_diffusion",
    }
    return {
        names[row["name"]]: row["ms"] / 1000
        for row in rows
        if row["name"] in names and row["batch"] == _CLAIMED_BATCH and "ms" in row
    }


def bridge_table(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    """The figures for people."""
    return table_of(title, rows, _COLUMNS)


def random_encoder(device: torch.device, dtype: torch.dtype | None = None) -> TextEncoder:
    """The default encoder's shape with random weights; every word of `TEXT` is a token.

    Args:
        device: where it computes.
        dtype: of its weights; as `TextEncoder.load` chooses if not given.
    """
    # Imported late: what the bench of a real encoder does not need.
    from transformers import Qwen3Config, Qwen3Model

    words = ["<end>", "<unknown>", *dict.fromkeys(TEXT.split())]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    settings = EncoderSettings(
        pooling="last",
        padding_side="left",
        instruction="",
        end_token="<end>",
        max_tokens=512,
        reads_english_only=False,
    )
    dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            model = Qwen3Model(Qwen3Config(**_QWEN3))
    finally:
        torch.set_default_dtype(before)
    return TextEncoder(
        f"random weights of the shape of {DEFAULT_TEXT_ENCODER}", settings, "", tokenizer, model
    )


def random_qformer(text_width: int, summary_width: int, device: torch.device) -> LoadedBridge:
    """A Q-Former of the default shape that nobody has trained."""
    return _untrained(
        QFormer(QFormerConfig(text_width=text_width, summary_width=summary_width)), device
    )


def random_diffusion_bridge(
    text_width: int, summary_width: int, device: torch.device
) -> LoadedBridge:
    """A Diffusion Bridge of the default shape that nobody has trained."""
    config = DiffusionBridgeConfig(text_width=text_width, summary_width=summary_width)
    return _untrained(DiffusionBridge(config), device)


def _untrained(model: Any, device: torch.device) -> LoadedBridge:
    made: Bridge = model.to(device).eval().requires_grad_(False)
    return LoadedBridge(
        model=made,
        mean_D=torch.zeros(made.config.summary_width, device=device),
        std_D=torch.ones(made.config.summary_width, device=device),
        base={},
        encoder={},
        heads=None,
        weights="raw",
        folder=Path("untrained"),
        trained_bars=made.config.num_queries,
    )


def _answer(
    bridge: LoadedBridge,
    states: TextStates,
    bench: BridgeBench,
    steps: int = 1,
    solver: Solver = "euler",
) -> torch.Tensor:
    guidance = 1.0 if bridge is bench.qformer else bench.guidance
    return bridge.summaries(
        states, bench.num_bars, seed=0, steps=steps, guidance=guidance, solver=solver
    )


def _whole(steps: int) -> str:
    return f"text to summaries, Diffusion Bridge, euler {steps}"


def _row(name: str, batch: int, timing: Timing | Failure) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name, "batch": batch}
    if isinstance(timing, Failure):
        return row | {"why": timing.reason}
    ms = 1000 * timing.median
    return row | {
        "ms": ms,
        "spread": timing.spread,
        "ms_per_text": ms / batch,
        "memory": timing.memory,
        "first_seconds": timing.first_seconds,
    }
