"""The one door to DeepSpeed: gradients in, one update or none out.

DeepSpeed would decide by counting where a step ends and update at once. Here a step is
`backward` per micro-batch, `grad_norm` once, then `update` or `drop_gradients`: the norm is known
before anything changes, and a step can be left out as if its batch had never been seen.
"""

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from meloformer.errors import ConfigError
from meloformer.training.ema import WeightAverage
from meloformer.training.gradients import take_over
from meloformer.training.host_copy import HostCopy
from meloformer.training.muon import Muon
from meloformer.training.optimizer import OptimizerConfig, build_optimizer, check_stage
from meloformer.training.partitions import Partition, find_partitions
from meloformer.training.parts import Part, load_parts
from meloformer.training.ranks import Ranks


class Engine:
    """A model whose gradients and optimizer state are partitioned over the ranks.

    Args:
        model: on the CPU or on the device; every rank ends with the first rank's weights.
        ranks: the started processes.
        ds_config: as `resolve_ds_config` returns it.
        optimizer: its settings.
        ema: decay of the moving average of the weights; 0 keeps none.

    Raises:
        ConfigError: DeepSpeed refuses a value of the partitioning, or the optimizer its stage.
    """

    def __init__(
        self,
        model: nn.Module,
        ranks: Ranks,
        ds_config: dict,
        optimizer: OptimizerConfig,
        *,
        ema: float = 0.0,
    ) -> None:
        prepare_deepspeed(ranks)
        import deepspeed

        self.ranks = ranks
        self.stage: int = ds_config["zero_optimization"]["stage"]
        self.is_bf16: bool = ds_config["bf16"]["enabled"]
        check_stage(optimizer, self.stage)
        model = model.to(ranks.device)
        client = build_optimizer(model, optimizer)
        with refusing_values():
            self._deepspeed, *_ = deepspeed.initialize(
                model=model,
                optimizer=client,
                config=ds_config,
                dist_init_required=False,
            )
        self._gradients = take_over(self._deepspeed, self.stage)
        self._hold_partitions(client, ema)

    def _hold_partitions(self, client: torch.optim.Optimizer, ema: float) -> None:
        """Find what DeepSpeed has made of model and optimizer, and begin the average of weights."""
        self._partitions = find_partitions(self._deepspeed, self.stage, self.ranks.rank)
        if isinstance(client, Muon):
            client.follow(self._partitions.all(), self.ranks)
        if ema:
            self._partitions.average = WeightAverage(self._partitions.trained_weights(), ema)
        self._is_averaged = False

    @property
    def module(self) -> nn.Module:
        """The model itself; under stage 3 its weights are only there during a forward."""
        return self._deepspeed.module

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """Run the model forward."""
        return self._deepspeed(*inputs, **named)

    def set_learning_rate(self, learning_rate: float) -> None:
        """Set the rate of the next update, for all parameters."""
        for group in self._deepspeed.optimizer.param_groups:
            group["lr"] = learning_rate

    def backward(self, loss: torch.Tensor) -> torch.Tensor:
        """Add the gradient of one micro-batch; the ranks' gradients are averaged.

        Returns:
            The loss, detached; not yet known to be finite.
        """
        self._deepspeed.backward(loss, scale_wrt_gas=False)
        return loss.detach()

    def grad_norm(self) -> float:
        """End the accumulation; norm of the whole gradient, the same on all ranks.

        Returns:
            inf where any element on any rank is not finite.
        """
        norms = self._gradients.norms()
        # DeepSpeed says -1 for a group that is not finite, which hypot would take for a length.
        return math.hypot(*norms) if all(0 <= norm < math.inf for norm in norms) else math.inf

    def update(self) -> None:
        """Clip, step the optimizer, share the new weights, clear the gradients."""
        self._gradients.finish()
        self._deepspeed.step()
        self._gradients.is_finished = False
        if self._partitions.average is not None:
            self._partitions.average.update(self._partitions.trained_weights())

    def drop_gradients(self) -> None:
        """Forget every gradient since the last update: weights and moments stay as they are."""
        self._gradients.clear()

    @property
    def gradient_bytes(self) -> int:
        """Bytes of the gradients that a rank accumulates in fp32: its part from stage 2 on."""
        trained = (p for p in self.module.parameters() if p.requires_grad)
        parameters = sum(getattr(p, "ds_numel", p.numel()) for p in trained)
        return 4 * parameters // (self.ranks.world_size if self.stage >= 2 else 1)

    def state_to_come(self) -> int:
        """Bytes that the first update adds to this rank's device for good: the moments.

        0 after it, after a checkpoint was loaded, and where the state is kept on the host.
        """
        return sum(
            _num_moments(partition) * partition.weights.numel() * partition.weights.element_size()
            for partition in self._partitions.all()
            if partition.optimizer is not None
            and not partition.optimizer.state.get(partition.weights)
            and partition.weights.device.type == self.ranks.device.type
        )

    def full_gradients(self) -> dict[str, torch.Tensor]:
        """Gradient of every trained parameter, whole, on every rank; for tests and checks.

        Call between the last `backward` and `update`.
        """
        from deepspeed.utils import safe_get_full_grad

        self._gradients.finish()
        return {
            name: safe_get_full_grad(parameter).detach().clone()
            for name, parameter in self.module.named_parameters()
            if parameter.requires_grad
        }

    def full_weights(self) -> dict[str, torch.Tensor]:
        """Every weight, whole, in the precision of training, on the CPU of every rank; collective.

        A tied weight stands under one name. Buffers that are part of the model are included.
        """
        return {
            name: weight.to("cpu", copy=True) for name, weight in self.each_weight(everywhere=True)
        }

    def each_weight(self, *, everywhere: bool = False) -> Iterator[tuple[str, torch.Tensor]]:
        """Every weight, whole, one after another, on the device; collective, to its end.

        Args:
            everywhere: on all ranks; on the first alone otherwise.

        Yields:
            Name and weight as the model uses it; copy it before the next update.
        """
        for name, weight in self._partitions.members():
            # Without a cut of its own every rank has it: nothing to wait for.
            whole = self._gather(weight) if hasattr(weight, "ds_tensor") else weight.detach()
            if everywhere or self.ranks.is_first:
                yield name, whole

    def _gather(self, weight: Any) -> torch.Tensor:
        from deepspeed.runtime.zero import GatheredParameters
        from deepspeed.utils import safe_get_full_fp32_param

        if weight.requires_grad:
            return safe_get_full_fp32_param(weight).detach().to(weight.dtype)
        with GatheredParameters([weight]):
            return weight.detach().clone()

    @property
    def has_average(self) -> bool:
        """Whether a moving average of the weights is kept."""
        return self._partitions.average is not None

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Held while the model computes with its averaged weights; collective.

        Weights and averages change places, so that it takes no memory, and change back.
        """
        average = self._partitions.average
        assert average is not None and not self._is_averaged
        average.swap(self._partitions.trained_weights())
        self._is_averaged = True
        try:
            self._partitions.share()
            yield
        finally:
            # Also where an error comes: nothing may take the averages for the weights.
            average.swap(self._partitions.trained_weights())
        self._partitions.share()
        self._is_averaged = False

    def each_averaged_weight(self) -> Iterator[tuple[str, torch.Tensor]]:
        """As `each_weight`, of the averaged weights, in the same precision; collective."""
        with self.averaged_weights():
            yield from self.each_weight()

    def copy_part(self, host: HostCopy) -> Part:
        """Copy this rank's part of weights and optimizer state, and the first rank all weights.

        Collective. The part, `host.weights` and `host.averaged` may be read after `host.wait`.
        """
        # What the model computes with is exported too, and must not be the average then.
        assert not self._is_averaged
        averaged = self.each_averaged_weight() if self.has_average else ()
        return host.copy(self._partitions.all(), self.each_weight(), averaged)

    def load(self, folder: Path) -> None:
        """Read parts that any number of ranks wrote under any stage; collective.

        Raises:
            CheckpointError: they are damaged, not all there, or of another model.
        """
        load_parts(self._partitions, folder)


def prepare_deepspeed(ranks: Ranks) -> None:
    """Say to DeepSpeed what it has to know before anything of it is used.

    Imported late: the import takes seconds and settles which accelerator DeepSpeed uses, which
    `start_ranks` has to say first.
    """
    import deepspeed
    from deepspeed.runtime.zero.utils import ZERO_SUPPORTED_OPTIMIZERS

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING if ranks.is_first else logging.ERROR)
    # Calls of DeepSpeed that torch has renamed.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    # An inference collective that DeepSpeed would compile at every first start on a CPU
    # (a minute, and a compiler); training never calls it.
    deepspeed.ops.__compatible_ops__ = {}
    # It goes by the class alone, and would warn of one that it does not know.
    if Muon not in ZERO_SUPPORTED_OPTIMIZERS:
        ZERO_SUPPORTED_OPTIMIZERS.append(Muon)


@contextmanager
def refusing_values() -> Iterator[None]:
    """Held while DeepSpeed reads its settings.

    Raises:
        ConfigError: it refuses a value.
    """
    from pydantic import ValidationError

    try:
        yield
    except ValidationError as error:
        wrong = error.errors()[0]
        raise ConfigError(
            f"--config: found {'.'.join(map(str, wrong['loc']))} = {wrong['input']!r}; "
            f"allowed: what DeepSpeed takes there ({wrong['msg']})"
        ) from error


def _num_moments(partition: Partition) -> int:
    optimizer = partition.optimizer
    return optimizer.num_moments(partition.weights) if isinstance(optimizer, Muon) else 2
