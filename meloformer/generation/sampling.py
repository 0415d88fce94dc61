"""From logits to one token a row: temperatures, top-k, top-p, min-p, under a grammar mask."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from meloformer.errors import ConfigError
from meloformer.tokens.vocabulary import BLOCK_SIZES, OFFSET, Kind

# What a piece says behind its prefix; EOS is one token, with nothing to choose from.
_TEMPERED_KINDS = {
    kind.name.lower(): kind
    for kind in (
        Kind.BAR,
        Kind.METRE,
        Kind.TEMPO,
        Kind.INSTRUMENT,
        Kind.ONSET,
        Kind.PITCH,
        Kind.DURATION,
        Kind.VELOCITY,
    )
}
# Candidates are sampled side by side.
_MOST_CANDIDATES = 64


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How bold the choice of a token is.

    Args:
        temperature: divides the logits; 0 takes the likeliest token.
        top_k: only so many of the likeliest tokens; 0 keeps all.
        top_p: only the likeliest tokens that together reach this probability (nucleus).
        min_p: only tokens at least so likely as this share of the likeliest one; 0 keeps all.
        kind_temperature: temperatures of their own for the choice within a kind of token, such as
            pitch:1.1 onset:0.9; kinds: bar (its chord), metre, tempo, instrument, onset, pitch,
            duration, velocity. Which kind comes next is up to --temperature.
        no_repeat_bars: a bar may not have the notes (instrument, onset, pitch) of one of so many
            bars before it: more must come before it ends; empty bars may repeat. 0 lets all.
        best_of: so many candidates a piece, of which the model's own likeliest is kept, by nats per
            note; it costs as many times the work.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 0.95
    min_p: float = 0.0
    kind_temperature: tuple[str, ...] = ()
    no_repeat_bars: int = 0
    best_of: int = 1

    def __post_init__(self) -> None:
        # Negated, so that nan, which compares as neither too small nor too large, is refused too.
        if not 0 <= self.temperature < math.inf:
            raise ConfigError(f"--temperature {self.temperature}: allowed are 0 and above")
        if not 0 <= self.top_k < math.inf:
            raise ConfigError(f"--top_k {self.top_k}: allowed are 0 (all) and above")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"--top_p {self.top_p}: allowed is 0 < top_p <= 1")
        if not 0 <= self.min_p <= 1:
            raise ConfigError(f"--min_p {self.min_p}: allowed is 0 <= min_p <= 1")
        if not 0 <= self.no_repeat_bars < math.inf:
            raise ConfigError(f"--no_repeat_bars {self.no_repeat_bars}: allowed are 0 and above")
        if not 1 <= self.best_of <= _MOST_CANDIDATES:
            raise ConfigError(f"--best_of {self.best_of}: allowed are 1 to {_MOST_CANDIDATES}")
        if self.best_of > 1 and self.temperature == 0:
            raise ConfigError(
                f"--best_of {self.best_of} with --temperature 0: all candidates would be the same; "
                "allowed: a temperature above 0"
            )
        if self.kind_temperatures and self.temperature == 0:
            raise ConfigError(
                "--kind_temperature with --temperature 0, which takes the likeliest token of all; "
                "allowed: one of them"
            )

    @property
    def kind_temperatures(self) -> dict[Kind, float]:
        """Temperature of each kind that has one of its own.

        Raises:
            ConfigError: no such pair, or a kind that is named twice.
        """
        found: dict[Kind, float] = {}
        for pair in self.kind_temperature:
            name, _, text = pair.partition(":")
            kind = _TEMPERED_KINDS.get(name)
            try:
                temperature = float(text)
            except ValueError:
                temperature = 0.0
            if kind is None or not 0 < temperature < math.inf:
                raise ConfigError(
                    f"--kind_temperature {pair}: allowed are a kind and a number above 0, such as "
                    f"pitch:1.1; kinds: {', '.join(_TEMPERED_KINDS)}"
                )
            if kind in found:
                raise ConfigError(f"--kind_temperature {pair}: {name} has two; allowed: one each")
            found[kind] = temperature
        return found


def sample_tokens(
    logits_BV: Tensor, allowed_BV: Tensor, config: SamplingConfig, uniform_B: Tensor
) -> Tensor:
    """Draw one allowed token a row.

    Args:
        logits_BV: scores of the next token.
        allowed_BV: bool; at least one True in every row.
        config: temperature and cut-offs, applied to the allowed tokens alone.
        uniform_B: a draw from [0, 1) for each row, on the CPU; the row's token follows from it.

    Returns:
        (B,) int64 on the CPU.

    Source: nucleus sampling, Holtzman et al. 2020, section 3.1; min-p, Nguyen et al. 2024,
    section 3.
    """
    logits_BV = logits_BV.float().cpu().masked_fill(~allowed_BV, -torch.inf)
    if config.temperature == 0:
        return logits_BV.argmax(dim=-1)
    scores_BV = logits_BV / config.temperature
    for kind, temperature in config.kind_temperatures.items():
        _temper(scores_BV, logits_BV, kind, temperature)
    probabilities_BV = torch.softmax(scores_BV, dim=-1)
    sorted_BV, order_BV = probabilities_BV.sort(dim=-1, descending=True)
    # A token stays while the likelier ones have not reached top_p: the first always does.
    before_BV = sorted_BV.cumsum(dim=-1) - sorted_BV
    keep_BV = before_BV < config.top_p
    keep_BV[:, 0] = True
    if config.min_p:
        keep_BV &= sorted_BV >= config.min_p * sorted_BV[:, :1]
    if config.top_k:
        keep_BV[:, config.top_k :] = False
    below_BV = (sorted_BV * keep_BV).double().cumsum(dim=-1)
    # A token without probability ends where the one before it ends, and is never the first beyond.
    target_B1 = uniform_B.double()[:, None] * below_BV[:, -1:]
    choice_B1 = torch.searchsorted(below_BV, target_B1, right=True)
    return order_BV.gather(1, choice_B1)[:, 0]


def _temper(scores_BV: Tensor, logits_BV: Tensor, kind: Kind, temperature: float) -> None:
    """Share out a kind's own probability anew among its tokens; the kinds keep theirs.

    Dividing the logits of one kind alone would move it against the others, and by how much would
    depend on a constant that logits may be shifted by.

    Args:
        scores_BV: changed in place.
        logits_BV: -inf where nothing is allowed.
        kind: of token.
        temperature: above 0.
    """
    block = slice(OFFSET[kind], OFFSET[kind] + BLOCK_SIZES[kind])
    mass_B1 = scores_BV[:, block].logsumexp(dim=-1, keepdim=True)
    shared = mass_B1 + torch.log_softmax(logits_BV[:, block] / temperature, dim=-1)
    # A kind without an allowed token has no shares.
    scores_BV[:, block] = shared.where(mass_B1 > -torch.inf, -torch.inf)
