"""Injection: summaries from elsewhere enter after a layer, and the layers above write from them.

Above it there are two summaries a bar. The *open* one begins as the injected one and reads open
summaries of its piece up to its own bar, nothing else: no token, no prefix. So tokens of its own
bar may read it before that bar is written, and so may the prefix, which is how a text sets the
tempo. The *closed* one begins as the model's own, as the injected one or as something between,
reads what SUMMARIZE allows and is read by later bars alone.

A base learns to read open summaries after `INJECTION_LAYER`. What enters after layer 0, at the
input, is a soft prompt of one vector a bar, under the same rules.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from meloformer.errors import ConfigError
from meloformer.model.masks import Layout

# Layers count from 1: this one and those before it are without injection, unless told otherwise.
INJECTION_LAYER = 3
_LEAST_VARIANCE = 1e-6

Strategy = Literal["replace", "blend", "adapter"]


class Start(Protocol):
    """Where the two summary streams begin above the injection layer."""

    @property
    def layer(self) -> int:
        """The layer after which they begin, counted from 1; 0 is the input."""
        ...

    def streams(self, s_BSD: Tensor, open_BS: Tensor) -> tuple[Tensor, Tensor]:
        """Closed and open stream, each (B, S, D).

        Args:
            s_BSD: the model's own summaries after the injection layer.
            open_BS: the piece of each slot that has an open summary, -1 where there is none.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Injection:
    """Summaries from elsewhere, and what they do to the closed ones.

    Args:
        summaries_BSD: in the scale of the model's own after that layer (not normalised).
        mask_BS: bool, the bars that have one; the others go on without.
        strategy: the closed summaries begin as the injected ones (`replace`), as the weighted mean
            of both (`blend`) or as `adapter(own, injected)`.
        alpha: weight of the injected ones in `blend`; 1 replaces.
        adapter: (B, S, D) own and injected to (B, S, D).
        layer: after which they enter; 0 before layer 1, where a model's own are all alike.
            Attention plans do not depend on it; the graphs and operations that the training of a
            base declares are those of `INJECTION_LAYER`.
    """

    summaries_BSD: Tensor
    mask_BS: Tensor
    strategy: Strategy = "blend"
    alpha: float = 0.7
    adapter: nn.Module | None = None
    layer: int = INJECTION_LAYER

    def __post_init__(self) -> None:
        if self.layer < 0:
            raise ConfigError(
                f"injection after layer {self.layer}: allowed: 0, the input, or a layer from 1"
            )
        if not 0 <= self.alpha <= 1:
            raise ConfigError(f"--alpha {self.alpha:g}: allowed 0 to 1, the injected ones' weight")
        if (self.strategy == "adapter") != (self.adapter is not None):
            has = "no adapter" if self.adapter is None else "an adapter"
            raise ConfigError(
                f"--strategy {self.strategy} with {has}: allowed: an adapter with strategy adapter "
                "and with no other; take blend or replace, or --adapter, a run of "
                "launch/train_adapter.py"
            )
        if self.summaries_BSD.shape[:2] != self.mask_BS.shape:
            raise ConfigError(
                f"injected summaries of shape {tuple(self.summaries_BSD.shape)} with a mask of "
                f"shape {tuple(self.mask_BS.shape)}: allowed: one flag a summary"
            )

    def check_width(self, width: int) -> None:
        """Refuse summaries of another model.

        Raises:
            ConfigError: another width.
        """
        found = self.summaries_BSD.shape[-1]
        if found != width:
            raise ConfigError(
                f"injected summaries are {found} wide, the model is {width} wide; allowed: those "
                "of a bridge that was trained for this model"
            )

    def rows(self) -> list["Injection"]:
        """Each row as a batch of its own."""
        return [
            replace(self, summaries_BSD=summaries_1SD, mask_BS=mask_1S)
            for summaries_1SD, mask_1S in zip(
                self.summaries_BSD.split(1), self.mask_BS.split(1), strict=True
            )
        ]

    def first_bars(self, num_bars: int) -> "Injection":
        """Those of the first bars alone."""
        return replace(
            self,
            summaries_BSD=self.summaries_BSD[:, :num_bars],
            mask_BS=self.mask_BS[:, :num_bars],
        )

    def later_bars(self, first: int) -> "Injection":
        """Those from a bar on; where none is left, those of one bar that has none."""
        if first >= self.mask_BS.shape[1]:
            empty = self.first_bars(1)
            return replace(empty, mask_BS=torch.zeros_like(empty.mask_BS))
        return replace(
            self, summaries_BSD=self.summaries_BSD[:, first:], mask_BS=self.mask_BS[:, first:]
        )

    def layout(self, layout: Layout) -> Layout:
        """The same tokens with an open summary at each bar that has an injected one."""
        return open_layout(layout, self.mask_BS)

    def streams(self, s_BSD: Tensor, open_BS: Tensor) -> tuple[Tensor, Tensor]:
        """See `Start`."""
        injected_BSD, is_open_BS1 = self.summaries_BSD.to(s_BSD), (open_BS >= 0)[..., None]
        if self.adapter is not None:
            closed_BSD = self.adapter(s_BSD, injected_BSD)
        elif self.strategy == "replace":
            closed_BSD = injected_BSD
        else:
            closed_BSD = self.alpha * injected_BSD + (1 - self.alpha) * s_BSD
        return (
            torch.where(is_open_BS1, closed_BSD, s_BSD),
            torch.where(is_open_BS1, injected_BSD, 0),
        )


def join_rows(rows: Sequence[Injection | None]) -> Injection | None:
    """Rows side by side as one batch; None where no row has any.

    Args:
        rows: a batch of one row each, which enter in one way; a row of None has no summary.
    """
    given = [row for row in rows if row is not None]
    if not given:
        return None
    first = given[0]
    ways = {(one.strategy, one.alpha, one.layer, id(one.adapter)) for one in given}
    assert len(ways) == 1, "the summaries of a batch enter in one way"
    num_slots = max(one.mask_BS.shape[1] for one in given)
    summaries_BSD = first.summaries_BSD.new_zeros(
        (len(rows), num_slots, first.summaries_BSD.shape[-1])
    )
    mask_BS = first.mask_BS.new_zeros((len(rows), num_slots))
    for number, row in enumerate(rows):
        if row is not None:
            summaries_BSD[number, : row.mask_BS.shape[1]] = row.summaries_BSD[0]
            mask_BS[number, : row.mask_BS.shape[1]] = row.mask_BS[0]
    return replace(first, summaries_BSD=summaries_BSD, mask_BS=mask_BS)


@dataclass(frozen=True)
class NoisedOwn:
    """What a base trains with: its own summaries, blurred and noised, so that it reads open ones.

    Blurred, since a text knows nothing of single bars: in a third of the rows the open summary of
    each bar is the mean of those of its piece, in a third something between. Noised, since a bridge
    errs: the level is drawn between none and as much as the summaries of the row vary, low ones
    more often. Both follow from the row's seed alone, however rows are shared out. The gradient
    goes through them, and through how much they vary: summaries learn to say what the layers above
    read in them, against noise that grows with them.

    Args:
        seeds: of each row; None where a row has no open summaries.
    """

    seeds: Sequence[int | None]
    layer: ClassVar[int] = INJECTION_LAYER

    @classmethod
    def of(cls, seeds: Sequence[int | None]) -> "NoisedOwn | None":
        """What a batch of training begins its open summaries with; None where it has none."""
        return cls(seeds) if seeds else None

    def streams(self, s_BSD: Tensor, open_BS: Tensor) -> tuple[Tensor, Tensor]:
        """See `Start`."""
        # Row by row: what a row is made of must not depend on what it lies beside.
        is_open_BS1 = (open_BS >= 0)[..., None]
        weight_BS1 = is_open_BS1.to(s_BSD)
        count_B11 = weight_BS1.sum(1, keepdim=True).clamp(min=1)
        mean_B1D = (s_BSD * weight_BS1).sum(1, keepdim=True) / count_B11
        variance_B1D = ((s_BSD - mean_B1D).square() * weight_BS1).sum(1, keepdim=True) / count_B11
        # A root has no slope at 0, which is the variance of a single bar.
        spread_B1D = (variance_B1D + _LEAST_VARIANCE).sqrt()
        draws = [_draw(seed, s_BSD.shape[1:]) for seed in self.seeds]
        blur_B11 = torch.tensor([blur for blur, _ in draws])[:, None, None]
        noise_BSD = torch.stack([noise_SD for _, noise_SD in draws])
        blur_B11, noise_BSD = (x.to(s_BSD, non_blocking=True) for x in (blur_B11, noise_BSD))
        blurred_BSD = s_BSD + blur_B11 * (_means_of_pieces(s_BSD, open_BS) - s_BSD)
        noised_BSD = blurred_BSD + noise_BSD * spread_B1D
        return s_BSD, torch.where(is_open_BS1, noised_BSD, 0)


def _draw(seed: int | None, shape: Sequence[int]) -> tuple[float, Tensor]:
    """Of a row the share of its pieces' means, and (S, D) normal noise of a level up to 1."""
    if seed is None:
        return 0.0, torch.zeros(*shape)
    generator = torch.Generator().manual_seed(seed)
    level, fate, between = torch.rand(3, generator=generator).tolist()
    blur = 0.0 if fate < 1 / 3 else between if fate < 2 / 3 else 1.0
    return blur, level**2 * torch.randn(*shape, generator=generator)


def _means_of_pieces(s_BSD: Tensor, piece_BS: Tensor) -> Tensor:
    """(B, S, D): in each slot the mean over the slots of its piece; 0 where there is no piece."""
    is_same_BSS = (piece_BS[:, :, None] == piece_BS[:, None]) & (piece_BS >= 0)[:, None]
    count_BS1 = is_same_BSS.sum(2, keepdim=True).clamp(min=1)
    # A product of matrices: sums by index come in another order each time on a GPU.
    return (is_same_BSS.to(s_BSD) @ s_BSD) / count_BS1


def open_layout(layout: Layout, mask_BS: Any) -> Layout:
    """The same tokens with an open summary at some bars.

    Args:
        layout: torch labels.
        mask_BS: bool, the slots that have one; padding never has.
    """
    return replace(layout, open_BS=torch.where(mask_BS, layout.piece_BS, -1))
