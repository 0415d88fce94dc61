"""Muon for the matrices of linear maps, AdamW for everything else, whole or cut among ranks.

Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; the scale of
an update as in Liu et al. 2025, "Muon is Scalable for LLM Training", section 2.2, so that learning
rate and weight decay mean what they mean to AdamW. torch.optim.Muon does the same for matrices that
are whole. DeepSpeed's own replaces gradients by updates before their norm is taken, which would
then tell nothing of a bad step, and cut every step down; here gradients stay what they are, and
matrices are put together from the ranks' parts when the optimizer moves.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from meloformer.training.partitions import Fragment, Partition
from meloformer.training.ranks import Ranks

IS_MATRIX = "is_matrix"
MOMENTUM = "momentum_buffer"
_EPSILON = 1e-7
# Steepest at 0: after five rounds all singular values lie around 1, which is near enough.
_COEFFICIENTS, _ROUNDS = (3.4445, -4.7750, 2.0315), 5
_RMS_OF_ADAMW = 0.2

# (N,) of this rank in, (W, N) of all ranks out.
Gather = Callable[[Tensor], Tensor]


class Muon(torch.optim.AdamW):
    """Moves groups marked `IS_MATRIX` by Muon and the others by AdamW.

    Args:
        groups: of parameters; those that are marked hold matrices only.
        betas: of AdamW.
        momentum: decay of Muon's running mean of gradients.
    """

    def __init__(
        self, groups: list[dict[str, Any]], *, betas: tuple[float, float], momentum: float
    ) -> None:
        super().__init__(groups, lr=0.0, betas=betas, fused=True)
        self._momentum = momentum
        self._fragments: dict[int, tuple[Fragment, ...]] = {}
        self._rank, self._gather = 0, _alone
        self._device: torch.device | None = None

    def follow(self, partitions: Sequence[Partition], ranks: Ranks) -> None:
        """Learn what the flat parameters hold by which matrices were replaced.

        Args:
            partitions: of this rank, of matrices laid in a row and cut into equal lengths.
            ranks: that hold the others.
        """
        self._fragments = {id(part.weights): part.fragments for part in partitions}
        # Where matrices are multiplied, if the parameters themselves are kept on the host.
        self._rank, self._device = ranks.rank, ranks.device
        if ranks.world_size > 1:
            self._gather = _from_all_ranks

    def num_moments(self, parameter: Tensor) -> int:
        """Tensors as large as a parameter that are kept of it from its first update on."""
        matrices = (group["params"] for group in self.param_groups if group[IS_MATRIX])
        return 1 if any(one is parameter for group in matrices for one in group) else 2

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of every group; collective where groups are cut."""
        assert closure is None
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group[IS_MATRIX]]
        try:
            if self.param_groups:
                super().step()
        finally:
            self.param_groups = groups
        for group in groups:
            if group[IS_MATRIX]:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._move(parameter, group["lr"], group["weight_decay"])

    def _move(self, parameter: Tensor, lr: float, weight_decay: float) -> None:
        gradient, state = parameter.grad, self.state[parameter]
        assert gradient is not None
        if MOMENTUM not in state:
            state[MOMENTUM] = torch.zeros_like(parameter)
        mean = state[MOMENTUM].lerp_(gradient, 1 - self._momentum)
        update = gradient.lerp(mean, self._momentum)  # Nesterov's
        if parameter.ndim == 2:
            direction = orthogonalized(update)
        else:
            fragments = self._fragments[id(parameter)]
            update = update.to(self._device)
            update = update.to(_precision(update))  # before it travels
            direction = orthogonalized_cut(update, fragments, self._rank, self._gather)
        parameter.mul_(1 - lr * weight_decay).add_(direction.to(parameter.device), alpha=-lr)


def orthogonalized(update_MN: Tensor) -> Tensor:
    """A matrix with the same singular vectors, whose singular values all lie around one value.

    Args:
        update_MN: any precision; multiplied in bfloat16 on CUDA.

    Returns:
        (M, N) float32, its elements about as large as those of an update of AdamW.
    """
    a, b, c = _COEFFICIENTS
    x = update_MN.to(_precision(update_MN))
    is_tall = x.shape[0] > x.shape[1]
    if is_tall:
        x = x.T
    x = x / x.norm().clamp(min=_EPSILON)
    for _ in range(_ROUNDS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    if is_tall:
        x = x.T
    return x.float() * (_RMS_OF_ADAMW * math.sqrt(max(x.shape)))


def orthogonalized_cut(
    update: Tensor, fragments: Iterable[Fragment], rank: int, gather: Gather
) -> Tensor:
    """Orthogonalize every matrix that a rank's partition holds a part of.

    A matrix that lies on a border is computed on both sides of it, from the same numbers.

    Args:
        update: (N,) this rank's cut of matrices laid in a row.
        fragments: what it holds; the rest is padding.
        rank: whose cut it is.
        gather: cuts of all ranks.

    Returns:
        (N,) float32, the parts of the orthogonal matrices; padding is 0.
    """
    row, begin = gather(update).flatten(), rank * update.numel()
    direction = torch.zeros_like(update, dtype=torch.float32)
    for part in fragments:
        first = begin + part.offset - part.start
        whole = orthogonalized(row[first : first + math.prod(part.shape)].view(part.shape))
        direction[part.offset : part.offset + part.length] = whole.flatten()[
            part.start : part.start + part.length
        ]
    return direction


def _precision(update: Tensor) -> torch.dtype:
    """Of the products: the iteration forgives much, and a CPU would gain nothing."""
    return torch.bfloat16 if update.device.type == "cuda" else torch.float32


def _alone(update: Tensor) -> Tensor:
    return update[None]


def _from_all_ranks(update: Tensor) -> Tensor:
    cuts_WN = update.new_empty(dist.get_world_size(), update.numel())
    dist.all_gather(list(cuts_WN), update)
    return cuts_WN
