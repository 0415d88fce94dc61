"""The one door to DeepSpeed: gradients in, one update or none out.

DeepSpeed would decide by counting where a step ends and update at once. Here a step is
`backward` per micro-batch, `grad_norm` once, then `update` or `drop_gradients`: the norm is known
before anything changes, and a step can be left out as if its batch had never been seen.
"""

import logging
import math
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from meloformer.errors import CheckpointError, ConfigError
from meloformer.training.gradients import take_over
from meloformer.training.optimizer import OptimizerConfig, build_optimizer
from meloformer.training.ranks import Ranks

CHECKPOINT_TAG = "state"

# Where each optimizer of DeepSpeed keeps this rank's part of the weights that AdamW moves.
_MASTER_WEIGHTS = (
    "single_partition_of_fp32_groups",
    "fp32_groups_flat_partition",
    "fp32_partitioned_groups_flat",
)


class Engine:
    """A model whose gradients and optimizer state are partitioned over the ranks.

    Args:
        model: on the CPU or on the device; every rank ends with the first rank's weights.
        ranks: the started processes.
        ds_config: as `resolve_ds_config` returns it.
        optimizer: settings of AdamW.

    Raises:
        ConfigError: DeepSpeed refuses a value of the partitioning.
    """

    def __init__(
        self, model: nn.Module, ranks: Ranks, ds_config: dict, optimizer: OptimizerConfig
    ) -> None:
        # Imported here and not above: the import takes seconds and settles which accelerator
        # DeepSpeed uses, which `start_ranks` has to say first.
        import deepspeed
        from pydantic import ValidationError

        self.ranks = ranks
        self.stage: int = ds_config["zero_optimization"]["stage"]
        self.is_bf16: bool = ds_config["bf16"]["enabled"]
        logging.getLogger("DeepSpeed").setLevel(
            logging.WARNING if ranks.is_first else logging.ERROR
        )
        # Calls of DeepSpeed that torch has renamed.
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
        # An inference collective that DeepSpeed would compile at every first start on a CPU
        # (a minute, and a compiler); training never calls it.
        deepspeed.ops.__compatible_ops__ = {}
        model = model.to(ranks.device)
        try:
            self._deepspeed, *_ = deepspeed.initialize(
                model=model,
                optimizer=build_optimizer(model, optimizer),
                config=ds_config,
                dist_init_required=False,
            )
        except ValidationError as error:
            wrong = error.errors()[0]
            raise ConfigError(
                f"--config: found {'.'.join(map(str, wrong['loc']))} = {wrong['input']!r}; "
                f"allowed: what DeepSpeed takes there ({wrong['msg']})"
            ) from error
        self._gradients = take_over(self._deepspeed, self.stage)

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

    def drop_gradients(self) -> None:
        """Forget every gradient since the last update: weights and moments stay as they are."""
        self._gradients.clear()

    @property
    def gradient_bytes(self) -> int:
        """Bytes of the gradients that a rank accumulates in fp32: its part from stage 2 on."""
        parameters = sum(getattr(p, "ds_numel", p.numel()) for p in self.module.parameters())
        return 4 * parameters // (self.ranks.world_size if self.stage >= 2 else 1)

    def state_to_come(self) -> int:
        """Bytes that the first update adds to this rank's device for good: AdamW's two moments.

        0 after it, after a checkpoint was loaded, and where the state is kept on the host.
        """
        zero = self._deepspeed.optimizer
        name = next(name for name in _MASTER_WEIGHTS if hasattr(zero, name))
        return sum(
            2 * weights.numel() * weights.element_size()
            for weights in getattr(zero, name)
            if not zero.optimizer.state.get(weights)
            and weights.device.type == self.ranks.device.type
        )

    def full_gradients(self) -> dict[str, torch.Tensor]:
        """Gradient of every parameter, whole, on every rank; for tests and checks.

        Call between the last `backward` and `update`.
        """
        from deepspeed.utils import safe_get_full_grad

        self._gradients.finish()
        return {
            name: safe_get_full_grad(parameter).detach().clone()
            for name, parameter in self.module.named_parameters()
        }

    def full_weights(self) -> dict[str, torch.Tensor]:
        """Every weight, whole, in the precision of training, on the CPU; collective.

        A tied weight stands under one name. Buffers that are part of the model are included.
        """
        from deepspeed.utils import safe_get_full_fp32_param

        weights = {}
        for name, parameter in self.module.named_parameters():
            full = safe_get_full_fp32_param(parameter)
            weights[name] = full.detach().to("cpu", parameter.dtype).clone()
        saved = self.module.state_dict().keys()
        for name, buffer in self.module.named_buffers():
            if name in saved:
                weights[name] = buffer.detach().to("cpu", copy=True)
        return weights

    def save(self, folder: Path) -> None:
        """Write weights and optimizer state, one part per rank; collective."""
        self._deepspeed.save_checkpoint(str(folder), tag=CHECKPOINT_TAG, save_latest=False)

    def load(self, folder: Path, *, universal: bool = False) -> None:
        """Read what `save` wrote; collective.

        Args:
            folder: as given to `save`, or holding the universal format.
            universal: read parts that fit any number of ranks.

        Raises:
            CheckpointError: there is no such checkpoint. DeepSpeed alone would go on untrained.
        """
        self._deepspeed._config.load_universal_checkpoint = universal
        path, _ = self._deepspeed.load_checkpoint(str(folder), tag=CHECKPOINT_TAG)
        self._deepspeed._config.load_universal_checkpoint = False
        if path is None:
            raise CheckpointError(f"{folder}: found no DeepSpeed state, expected {CHECKPOINT_TAG}/")
