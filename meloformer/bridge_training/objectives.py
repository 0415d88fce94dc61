"""What a bridge is trained for: its own loss, a contrastive term, and the loss of its base."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from meloformer.bridge.bridges import Bridge, BridgeBatch
from meloformer.bridge.qformer import QFormer, regression
from meloformer.bridge_training.token_loss import TokenLoss
from meloformer.errors import ConfigError
from meloformer.model.injection import INJECTION_LAYER, Injection

Metrics = dict[str, torch.Tensor]
# Of the contrastive term beside a regression.
_CONTRASTIVE_WEIGHT = 0.1
# Name of the bridge within an objective: what a checkpoint's model/ is made of begins with it.
BRIDGE = "bridge."
NATS = "nats_per_token"


class Objective(nn.Module):
    """A bridge within its loss; forward takes a `BridgeBatch` and returns loss and metrics.

    Attributes:
        over_tokens: what of loss and metrics is, in validation, a mean over the batch's tokens; all
            else is one over its bars.
    """

    over_tokens: frozenset[str] = frozenset()


class OwnLoss(Objective):
    """The loss that a bridge has by itself.

    Args:
        bridge: to be trained.
    """

    def __init__(self, bridge: Bridge) -> None:
        super().__init__()
        assert isinstance(bridge, nn.Module)
        self.bridge = bridge

    def forward(self, batch: BridgeBatch) -> tuple[torch.Tensor, Metrics]:
        """Loss of this rank's rows; the mean over ranks is that of the global batch."""
        return self.bridge.loss(batch)


@dataclass(frozen=True, kw_only=True)
class ContrastiveConfig:
    """The term against collapse: a piece's summaries are nearer to its own text than to others'.

    Args:
        contrastive_weight: of the term; 0 leaves it out. If not given, 0.1 beside the regression
            and 0 without.
        temperature: by which cosines are divided.
    """

    contrastive_weight: float | None = None
    temperature: float = 0.07

    def __post_init__(self) -> None:
        check_weight("contrastive_weight", self.contrastive_weight)
        if not 0 < self.temperature < float("inf"):
            raise ConfigError(f"--temperature {self.temperature:g}: allowed: above 0")

    def weight_beside(self, regression_weight: float) -> float:
        """Weight of the term beside a regression of some weight."""
        if self.contrastive_weight is not None:
            return self.contrastive_weight
        return _CONTRASTIVE_WEIGHT if regression_weight else 0.0


def check_weight(name: str, weight: float | None) -> None:
    """Refuse the weight of a term that is none.

    Raises:
        ConfigError: it is below 0, or not finite.
    """
    if weight is not None and not 0 <= weight < float("inf"):
        raise ConfigError(f"--{name} {weight:g}: allowed: 0 or more")


@dataclass(frozen=True, kw_only=True)
class TokenTerm:
    """The frozen base's own loss, with the answers injected.

    Args:
        loss: of the base.
        weight: of its nats per token.
        layer: of the base, after which the answers enter; 0 is the input.
        alpha: weight of the answers in the blend as which closed summaries begin.
    """

    loss: TokenLoss
    weight: float
    layer: int = INJECTION_LAYER
    alpha: float = Injection.alpha

    def inject(self, summaries_BSD: torch.Tensor, mask_BS: torch.Tensor) -> Injection:
        """Answers as they enter."""
        return Injection(
            summaries_BSD=summaries_BSD,
            mask_BS=mask_BS,
            strategy="blend",
            alpha=self.alpha,
            layer=self.layer,
        )


class QFormerObjective(Objective):
    """Masked regression, and the contrastive term between what is said and what is.

    Regression alone answers every text with the mean of all pieces where a text says little; the
    mean is as near to every piece as to any other.

    The base's own loss stands beside them or alone: answers that enter at its input have nothing to
    be regressed to, since all its own summaries begin as one vector there.

    Args:
        bridge: to be trained.
        config: of the contrastive term.
        regression_weight: of the regression; 0 leaves it out.
        world_size: ranks that share the global batch.
        rank: this one.
        token_term: the base's own loss; None leaves it out.
    """

    def __init__(
        self,
        bridge: QFormer,
        config: ContrastiveConfig,
        *,
        regression_weight: float = 1.0,
        world_size: int = 1,
        rank: int = 0,
        token_term: TokenTerm | None = None,
    ) -> None:
        super().__init__()
        assert regression_weight or token_term is not None, "nothing to validate by"
        # No module of this one: the base is neither trained nor part of a checkpoint.
        self._token_term = token_term
        self.bridge, self.config = bridge, config
        self.regression_weight = regression_weight
        self.contrastive_weight = config.weight_beside(regression_weight)
        self.world_size, self.rank = world_size, rank
        self.over_tokens = frozenset({NATS} if regression_weight else {NATS, "loss"})

    def forward(self, batch: BridgeBatch) -> tuple[torch.Tensor, Metrics]:
        """Loss of this rank's rows; the mean of the regression over ranks is the global one's.

        In validation the loss is the regression, or the nats per token of these rows where there is
        no regression: it does not depend on the weights of the terms.

        The contrastive term is computed whole on every rank, and weighs world_size times as much in
        the returned loss: a rank has the gradient of its own rows only, and ranks are averaged.
        """
        states = batch.states
        predicted_BSD = self.bridge(states.states_BLW, states.mask_BL, batch.mask_BS)
        loss = torch.zeros((), device=predicted_BSD.device)
        metrics: Metrics = {}
        if self.regression_weight:
            error = regression(predicted_BSD, batch)
            loss, metrics["regression"] = self.regression_weight * error, error.detach()
        if (term := self._token_term) is not None:
            # In validation each rank says its own rows' mean: some of them count for nothing.
            world_size = self.world_size if self.training else 1
            nats, said = term.loss(predicted_BSD, batch.tokens, world_size, term.inject)
            loss, metrics[NATS] = loss + term.weight * nats, said
        if not self.training:
            return metrics["regression" if self.regression_weight else NATS], metrics
        if not self.contrastive_weight:
            return loss, metrics
        contrast, accuracy = contrastive(
            *self._gathered(
                pooled(predicted_BSD, batch.mask_BS), pooled(batch.summaries_BSD, batch.mask_BS)
            ),
            self._pieces(batch, loss.device),
            self.config.temperature,
        )
        metrics |= {"contrastive": contrast.detach(), "retrieved": accuracy}
        # The value stays the global one, the gradient becomes that of the sum over ranks.
        scaled = contrast + (self.world_size - 1) * (contrast - contrast.detach())
        return loss + self.contrastive_weight * scaled, metrics

    def _gathered(
        self, predicted_BD: torch.Tensor, summaries_BD: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows of all ranks; those of this one with their gradient."""
        if self.world_size == 1:
            return predicted_BD, summaries_BD
        predicted = _gather(predicted_BD.detach(), self.world_size)
        predicted[self.rank] = predicted_BD
        return torch.cat(predicted), torch.cat(_gather(summaries_BD, self.world_size))

    def _pieces(self, batch: BridgeBatch, device: torch.device) -> torch.Tensor:
        if not batch.pieces:
            return torch.arange(len(batch.mask_BS) * self.world_size, device=device)
        own_B = torch.tensor(batch.pieces, dtype=torch.int64, device=device)
        return own_B if self.world_size == 1 else torch.cat(_gather(own_B, self.world_size))


def contrastive(
    predicted_ND: torch.Tensor,
    summaries_ND: torch.Tensor,
    pieces_N: torch.Tensor,
    temperature: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Symmetric cross-entropy of finding the own among all others, and the share that is found.

    Args:
        predicted_ND: what the texts were answered with, one vector each.
        summaries_ND: what the pieces really have.
        pieces_N: rows of the same piece are no negatives of one another.
        temperature: by which cosines are divided.

    Source: van den Oord et al. 2018 (InfoNCE); both directions as Radford et al. 2021 (CLIP).
    """
    cosines_NM = F.normalize(predicted_ND.float(), dim=-1) @ F.normalize(summaries_ND.float()).T
    is_same_NM = pieces_N[:, None] == pieces_N[None, :]
    own_NM = torch.eye(len(pieces_N), dtype=torch.bool, device=pieces_N.device)
    logits_NM = (cosines_NM / temperature).masked_fill(is_same_NM & ~own_NM, float("-inf"))
    own_N = torch.arange(len(pieces_N), device=pieces_N.device)
    loss = (F.cross_entropy(logits_NM, own_N) + F.cross_entropy(logits_NM.T, own_N)) / 2
    return loss, (logits_NM.argmax(dim=1) == own_N).float().mean()


def pooled(summaries_BSD: torch.Tensor, mask_BS: torch.Tensor) -> torch.Tensor:
    """Mean (B, D) of the real bars, in fp32."""
    kept_BSD = summaries_BSD.float().masked_fill(~mask_BS[..., None], 0.0)
    return kept_BSD.sum(dim=1) / mask_BS.sum(dim=1, keepdim=True)


def _gather(rows: torch.Tensor, world_size: int) -> list[torch.Tensor]:
    found = [torch.empty_like(rows) for _ in range(world_size)]
    dist.all_gather(found, rows.contiguous())
    return found
