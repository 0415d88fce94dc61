"""The exponential moving average of the weights, kept where the optimizer keeps its state.

Each rank averages the fp32 weights that it moves, after every update, so that an average costs no
word between ranks until somebody wants to see it. It stands in the parts of a checkpoint like a
moment of the optimizer, for any number of ranks under any stage.
"""

from collections.abc import Sequence

import torch

from meloformer.errors import ConfigError

# Its kind in the parts of a checkpoint.
AVERAGE = "ema"
# What the names of its scores in a validation begin with.
AVERAGED_SCORES = "ema_"
# Elements that change places at once: a copy of all of them would be a peak of its own.
_CHUNK_ELEMENTS = 1 << 22


def check_decay(decay: float) -> None:
    """Refuse a decay that keeps no average.

    Raises:
        ConfigError: below 0, or 1 and above.
    """
    if not 0 <= decay < 1:
        raise ConfigError(f"--ema {decay:g}: allowed: 0 for none, up to below 1, such as 0.999")


def check_same_average(asked: float, known: float) -> None:
    """Refuse to go on with another average than the run was started with.

    An average that begins in the middle, or ends there, is not the one that its decay promises,
    and a forgotten flag must not throw days of it away.

    Args:
        asked: --ema of this start.
        known: that of the run in --output.

    Raises:
        ConfigError: the two differ.
    """
    if asked == known:
        return
    if not known:
        raise ConfigError(
            f"--ema {asked:g}: the run in --output was started without it, and its checkpoints "
            "hold no averaged weights; allowed: to go on without --ema, or another --output, with "
            "--init_from and this run's folder"
        )
    raise ConfigError(
        f"--ema {asked:g}: the run in --output was started with --ema {known:g}; allowed: the "
        "same, or another --output"
    )


def decay_after(num_updates: int, decay: float) -> float:
    """Share that the average keeps at an update.

    Early weights are worth little, and a constant decay would remember the first of them for
    1 / (1 - decay) updates: the share rises to the decay.

    Args:
        num_updates: updates so far, this one included.
        decay: that it rises to.

    Source: num_updates of TensorFlow's tf.train.ExponentialMovingAverage.

    >>> decay_after(1, 0.999), decay_after(80, 0.999), decay_after(100_000, 0.999)
    (0.18181818181818182, 0.9, 0.999)
    """
    return min(decay, (1 + num_updates) / (10 + num_updates))


class WeightAverage:
    """The average of this rank's cuts of the weights; begins as they are.

    Args:
        weights: (N,) fp32 cuts, always handed over in this order.
        decay: share that the average keeps at each update, once there have been many.

    Attributes:
        tensors: (N,) averages of the cuts, where those lie.
        num_updates: that they are an average of.
    """

    def __init__(self, weights: Sequence[torch.Tensor], decay: float) -> None:
        self._decay = decay
        self.tensors = [cut.detach().clone() for cut in weights]
        self.num_updates = 0

    def update(self, weights: Sequence[torch.Tensor]) -> None:
        """Take in the weights after an update of the optimizer."""
        self.num_updates += 1
        share = 1 - decay_after(self.num_updates, self._decay)
        for average, cut in zip(self.tensors, weights, strict=True):
            average.lerp_(cut.detach(), share)

    def swap(self, weights: Sequence[torch.Tensor]) -> None:
        """Let averages and weights change places; twice is once as before, to the last bit."""
        for average, cut in zip(self.tensors, weights, strict=True):
            chunks = (flat.split(_CHUNK_ELEMENTS) for flat in (average, cut.detach()))
            for one, other in zip(*chunks, strict=True):
                held = one.clone()
                one.copy_(other)
                other.copy_(held)
