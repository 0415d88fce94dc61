"""Accelerate in front of DeepSpeed: the same ds_configs files, with Accelerate's way to step.

MuseFormer's loop ends a step itself, in two halves, so as to look at the norm in between. A bridge
is small and its loss is looked at before backward: `accelerator.backward` may step at once. What
checkpoints and averages need of the partitions is the same, and is inherited.
"""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from meloformer.errors import ConfigError
from meloformer.training.engine import Engine, prepare_deepspeed, refusing_values
from meloformer.training.optimizer import OptimizerConfig, build_optimizer, check_stage
from meloformer.training.ranks import Ranks


class AccelerateEngine(Engine):
    """A module whose forward returns a loss, its optimizer, and Accelerate around both.

    Args:
        model: every rank ends with the first rank's weights.
        ranks: the started processes.
        ds_config: as `resolve_ds_config` returns it, without accumulation.
        optimizer: its settings.
        ema: decay of the moving average of the weights; 0 keeps none.

    Raises:
        ConfigError: Accelerate is not installed, DeepSpeed refuses a value of the partitioning, or
            the optimizer its stage.
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
        self.ranks = ranks
        self.stage = ds_config["zero_optimization"]["stage"]
        self.is_bf16 = ds_config["bf16"]["enabled"]
        check_stage(optimizer, self.stage)
        prepare_deepspeed(ranks)
        # Where it computes is settled; Accelerate would take the first GPU that it sees.
        os.environ["ACCELERATE_TORCH_DEVICE"] = str(ranks.device)
        try:
            from accelerate import Accelerator
            from accelerate.state import AcceleratorState, GradientState
            from accelerate.utils import DeepSpeedPlugin, InitProcessGroupKwargs
        except ImportError as error:
            raise ConfigError(
                f"found no Accelerate ({error}); allowed: the extra bridge: "
                "pip install 'meloformer[train,bridge]'"
            ) from error
        # It remembers the first run of a process, and would give its settings to the second.
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        # Accelerate ends a step in backward, which a boundary of ours would never tell it to.
        settings = {k: v for k, v in ds_config.items() if k != "managed_gradient_accumulation"}
        self.accelerator = Accelerator(
            deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=settings),
            mixed_precision="bf16" if self.is_bf16 else "no",
            kwargs_handlers=[
                InitProcessGroupKwargs(backend="nccl" if ranks.device.type == "cuda" else "gloo")
            ],
        )
        client = build_optimizer(model.to(ranks.device), optimizer)
        with refusing_values():
            self._deepspeed, self._optimizer = self.accelerator.prepare(model, client)
        self._hold_partitions(client, ema)

    def step(self, loss: torch.Tensor) -> float:
        """Backward, clip, step, share the new weights, clear the gradients; collective.

        Args:
            loss: of this rank's rows; the ranks' gradients are averaged.

        Returns:
            Norm of the whole gradient before clipping, the same on all ranks; inf where it is not
            finite.
        """
        self.accelerator.backward(loss)
        norm = float(self._deepspeed.get_global_grad_norm())
        if self._partitions.average is not None:
            self._partitions.average.update(self._partitions.trained_weights())
        return norm if math.isfinite(norm) and norm >= 0 else math.inf

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Held while nothing is learned: no dropout, no gradient."""
        self._deepspeed.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self._deepspeed.train()
