"""What a bridge is trained for: its own loss, and a contrastive term over the global batch."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from meloformer.bridge.bridges import Bridge, BridgeBatch
from meloformer.bridge.qformer import QFormer, regression
from meloformer.bridge_training.token_loss import TokenLoss
from meloformer.errors import ConfigError

Metrics = dict[str, torch.Tensor]
# Name of the bridge within an objective: what a checkpoint's model/ is made of begins with it.
BRIDGE = "bridge."


class OwnLoss(nn.Module):
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
        contrastive_weight: of the term beside the regression; 0 leaves it out.
        temperature: by which cosines are divided.
    """

    contrastive_weight: float = 0.1
    temperature: float = 0.07

    def __post_init__(self) -> None:
        if not 0 <= self.contrastive_weight < float("inf"):
            raise ConfigError(
                f"--contrastive_weight {self.contrastive_weight:g}: allowed: 0 or more"
            )
        if not 0 < self.temperature < float("inf"):
            raise ConfigError(f"--temperature {self.temperature:g}: allowed: above 0")


class QFormerObjective(nn.Module):
    """Masked regression, and the contrastive term between what is said and what is.

    Regression alone answers every text with the mean of all pieces where a text says little; the
    mean is as near to every piece as to any other.

    Args:
        bridge: to be trained.
        config: of the term.
        world_size: ranks that share the global batch.
        rank: this one.
        token_loss: the base's own loss, and its weight; None leaves it out.
    """

    def __init__(
        self,
        bridge: QFormer,
        config: ContrastiveConfig,
        *,
        world_size: int = 1,
        rank: int = 0,
        token_loss: tuple[TokenLoss, float] | None = None,
    ) -> None:
        super().__init__()
        # No module of this one: the base is neither trained nor part of a checkpoint.
        self._token_loss = token_loss
        self.bridge, self.config = bridge, config
        self.world_size, self.rank = world_size, rank

    def forward(self, batch: BridgeBatch) -> tuple[torch.Tensor, Metrics]:
        """Loss of this rank's rows; the mean of the regression over ranks is the global one's.

        The contrastive term is computed whole on every rank, and weighs world_size times as much in
        the returned loss: a rank has the gradient of its own rows only, and ranks are averaged.
        """
        states = batch.states
        predicted_BSD = self.bridge(states.states_BLW, states.mask_BL, batch.mask_BS)
        loss = regression(predicted_BSD, batch)
        metrics = {"regression": loss.detach()}
        if not self.training:
            return loss, metrics
        if self._token_loss is not None:
            token_loss, weight = self._token_loss
            nats, said = token_loss(predicted_BSD, batch.tokens, self.world_size)
            loss, metrics["nats_per_token"] = loss + weight * nats, said
        if not self.config.contrastive_weight:
            return loss, metrics
        term, accuracy = contrastive(
            *self._gathered(
                pooled(predicted_BSD, batch.mask_BS), pooled(batch.summaries_BSD, batch.mask_BS)
            ),
            self._pieces(batch, loss.device),
            self.config.temperature,
        )
        metrics |= {"contrastive": term.detach(), "retrieved": accuracy}
        # The value stays the global one, the gradient becomes that of the sum over ranks.
        scaled = term + (self.world_size - 1) * (term - term.detach())
        return loss + self.config.contrastive_weight * scaled, metrics

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
