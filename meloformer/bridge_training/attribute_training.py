"""Training of the attribute heads, on captions of which it is known what they say."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F

from meloformer.bridge.attribute_heads import (
    GATES,
    NUM_INSTRUMENTS,
    NUM_VALUES,
    AttributeHeads,
    AttributeHeadsConfig,
    HeadLogits,
    most_likely,
)
from meloformer.bridge.text_encoder import TextStates
from meloformer.errors import TrainingError
from meloformer.midi.grid import DRUMS

# Where the value of an attribute stands in the attributes of captions.jsonl.
_FIELDS = {
    "metre": "metre_index",
    "tempo": "tempo_index",
    "key": "key_index",
    "length": "length_bin",
    "density": "density_bin",
    "drums": "has_drums",
}
NOT_SAID = -1
# Batches whose texts are drawn together, before they are shared out by length.
_BATCHES_SHARED_OUT = 16
# Of a hundred and more instruments a text names few, and each of its tokens one at most.
_NAMING_START = -6.0


class StatesSource(Protocol):
    """States of N texts, on the disk or in memory."""

    def __len__(self) -> int: ...

    @property
    def lengths(self) -> np.ndarray:
        """(N,) tokens of each."""

    def batch(self, indices: Sequence[int]) -> TextStates:
        """States of some of them."""


@dataclass(frozen=True)
class HeadTargets:
    """What N texts say.

    Args:
        gates_NA: whether they say it, in the order of GATES.
        values: (N,) of each attribute of one value, NOT_SAID where it is not said.
        instruments_NI: which instruments they name.
    """

    gates_NA: torch.Tensor
    values: Mapping[str, torch.Tensor]
    instruments_NI: torch.Tensor

    @classmethod
    def of(
        cls, attributes: Sequence[Mapping[str, Any]], mentions: Sequence[Sequence[Any]]
    ) -> "HeadTargets":
        """Targets of captions.

        Args:
            attributes: of each caption's window, as in `captions.jsonl`.
            mentions: of each caption, likewise; a user's captions, of which nobody knows what
                they say, have no place here.
        """
        gates_NA = torch.zeros(len(mentions), len(GATES))
        values = {name: torch.full((len(mentions),), NOT_SAID) for name in NUM_VALUES}
        instruments_NI = torch.zeros(len(mentions), NUM_INSTRUMENTS)
        for row, (known, said) in enumerate(zip(attributes, mentions, strict=True)):
            named = _named(known, said)
            speaks = {name for name in said if isinstance(name, str) and name in NUM_VALUES}
            # Whoever names the drum kit, or all that play, has said whether there are drums.
            if "instruments" in said or DRUMS in named:
                speaks.add("drums")
            for name in speaks:
                values[name][row] = int(known[_FIELDS[name]])
            if named:
                speaks.add("instruments")
                instruments_NI[row, named] = 1.0
            if "instruments" in said:
                speaks.add("all_instruments")
            gates_NA[row, [GATES.index(name) for name in speaks]] = 1.0
        return cls(gates_NA, values, instruments_NI)

    def __len__(self) -> int:
        return len(self.gates_NA)

    def rows(self, indices: torch.Tensor, device: torch.device | str = "cpu") -> "HeadTargets":
        """Some of them, on a device."""
        return HeadTargets(
            self.gates_NA[indices].to(device),
            {name: value[indices].to(device) for name, value in self.values.items()},
            self.instruments_NI[indices].to(device),
        )


@dataclass(frozen=True, kw_only=True)
class HeadTraining:
    """How the heads are trained.

    Args:
        epochs: how often every text is seen.
        batch_size: texts of a step.
        learning_rate: at its highest; it falls to zero along a cosine.
        weight_decay: of AdamW.
        seed: of start, order and dropout.
    """

    epochs: int = 20
    batch_size: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    seed: int = 0


def train_heads(
    states: StatesSource,
    targets: HeadTargets,
    config: AttributeHeadsConfig,
    training: HeadTraining | None = None,
    *,
    device: torch.device | str = "cpu",
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> AttributeHeads:
    """Train heads; the same seed gives the same ones.

    Args:
        states: of N texts.
        targets: what they say.
        config: of the heads.
        training: how; the defaults if not given.
        device: where.
        tell: called after each step with the number of steps done and in all.

    Returns:
        The heads, in evaluation mode.

    Raises:
        TrainingError: no text, or a loss that is not finite.
    """
    training = training or HeadTraining()
    if not len(targets) or len(targets) != len(states):
        raise TrainingError(
            f"attribute heads: found {len(states)} texts and {len(targets)} targets; allowed: as "
            "many of the one as of the other, and at least one"
        )
    cuda = [torch.device(device)] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(training.seed)
        heads = AttributeHeads(config)
        torch.nn.init.constant_(heads.naming.bias, _NAMING_START)
        heads = heads.to(device).train()
        optimizer = torch.optim.AdamW(
            heads.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay
        )
        lengths_N = torch.from_numpy(states.lengths)
        num_steps = training.epochs * math.ceil(len(states) / training.batch_size)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
        num_done = 0
        for epoch in range(1, training.epochs + 1):
            for indices in shuffled_batches(lengths_N, training.batch_size):
                batch = states.batch(indices.tolist()).to(device)
                loss = heads_loss(heads(batch), targets.rows(indices, device))
                if not bool(loss.isfinite()):
                    raise TrainingError(
                        f"attribute heads: found a loss of {loss.item()} in epoch {epoch}; lower "
                        "the learning rate"
                    )
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(heads.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                num_done += 1
                tell(num_done, num_steps)
    return heads.eval().requires_grad_(False)


def shuffled_batches(lengths_N: torch.Tensor, batch_size: int) -> list[torch.Tensor]:
    """Every text once, in batches of like length, by torch's own generator.

    A few texts are several times as long as most: in batches drawn freely, padding is what takes
    the time. So some batches are drawn together and shared out by length.

    Args:
        lengths_N: tokens of each text.
        batch_size: texts of a batch; one has what is left over.

    Returns:
        Indices of the texts of each batch.
    """
    batches: list[torch.Tensor] = []
    for some in torch.randperm(len(lengths_N)).split(batch_size * _BATCHES_SHARED_OUT):
        by_length = some[lengths_N[some].argsort(stable=True)]
        batches += by_length.split(batch_size)
    return [batches[index] for index in torch.randperm(len(batches)).tolist()]


def heads_loss(logits: HeadLogits, targets: HeadTargets) -> torch.Tensor:
    """Gates over all texts, values over those that say them, names over those that may name.

    What a text does not say teaches its value nothing, only its gate.
    """
    gates = F.binary_cross_entropy_with_logits(logits.gates_BA, targets.gates_NA)
    names = F.binary_cross_entropy_with_logits(
        logits.instruments_BI, targets.instruments_NI, reduction="none"
    )
    loss = gates * len(GATES) + names.sum(-1).mean()
    for name, values_N in targets.values.items():
        is_said = values_N != NOT_SAID
        if bool(is_said.any()):
            loss = loss + F.cross_entropy(logits.values[name][is_said], values_N[is_said])
    return loss


@torch.no_grad()
def score_heads(
    heads: AttributeHeads, states: StatesSource, targets: HeadTargets, batch_size: int = 256
) -> dict[str, float]:
    """How right the heads are on texts that they were not trained on.

    Returns:
        `gate_<name>`: share of texts of which they know whether it is said; `<name>`: share of
        values that are exact where the text says them; `<name>_within_1`: those at most one bin
        off, of numbers; `instruments_f1`: of the names, over all texts. NaN where nothing is said.
    """
    device = next(heads.parameters()).device
    rows = torch.arange(len(states)).split(batch_size)
    parts = [heads(states.batch(indices.tolist()).to(device)) for indices in rows]
    gates_NA = torch.cat([part.gates_BA for part in parts]).cpu() > 0
    agrees_A = (gates_NA == targets.gates_NA.bool()).float().mean(0)
    scores = {f"gate_{name}": float(agrees_A[index]) for index, name in enumerate(GATES)}
    for name, values_N in targets.values.items():
        logits_NV = torch.cat([part.values[name] for part in parts]).cpu()
        off_N = (most_likely(name, logits_NV) - values_N).abs()[values_N != NOT_SAID].float()
        scores[name] = float((off_N == 0).float().mean())
        scores[f"{name}_within_1"] = float((off_N <= 1).float().mean())
    found_NI = torch.cat([part.instruments_BI for part in parts]).cpu() > 0
    wanted_NI = targets.instruments_NI.bool()
    both = float((found_NI & wanted_NI).sum())
    either = float(found_NI.sum() + wanted_NI.sum())
    scores["instruments_f1"] = 2 * both / either if either else math.nan
    return scores


def _named(known: Mapping[str, Any], said: Sequence[Any]) -> list[int]:
    """Instruments that a caption names."""
    named: set[int] = set()
    for mention in said:
        if mention == "instruments":
            named |= set(known["instruments"])
        elif isinstance(mention, Mapping):
            named |= set(mention["instruments"])
        elif mention == "drums" and known["has_drums"]:
            named.add(DRUMS)
    return sorted(named)
