"""From a text to summaries that a MuseFormer reads, through whichever bridge."""

import pickle
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from meloformer.bridge.bridges import LoadedBridge
from meloformer.bridge.flow import Solver, check_solver
from meloformer.bridge.joined_windows import join_windows
from meloformer.bridge.summarising import OVERLAP
from meloformer.bridge.text_encoder import TextEncoder, TextStates
from meloformer.errors import ConfigError

# What torch raises of a file that is no tensor; its reader of pickles lets its own stack break.
_DAMAGED = (
    OSError,
    RuntimeError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    pickle.UnpicklingError,
)


@dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """How a Diffusion Bridge is asked; a Q-Former has one answer and knows none of it.

    Args:
        steps: of the solver from noise to summaries.
        solver: heun asks the network twice a step, and is of second order.
        guidance: 1 is the answer to the text, more exaggerates what the text changes, 0 forgets it.
    """

    steps: int = 10
    solver: Solver = "euler"
    guidance: float = 1.0

    def __post_init__(self) -> None:
        check_solver(self.steps, self.solver)
        if not 0 <= self.guidance < float("inf"):
            raise ConfigError(f"--guidance {self.guidance}: allowed 0 or more")


def encoder_of(
    bridge: LoadedBridge, name: str | Path | None = None, device: torch.device | str = "cpu"
) -> TextEncoder:
    """The text encoder that a bridge was trained with.

    Args:
        bridge: which knows its name.
        name: another place of the same encoder, such as a folder; the bridge's own if not given.
        device: where it computes.

    Raises:
        ConfigError: it cannot be found.
        CheckpointError: it is another one.
    """
    encoder = TextEncoder.load(name or bridge.encoder["name"], device)
    bridge.check_encoder(encoder.fingerprint)
    return encoder


def summaries_of_texts(
    bridge: LoadedBridge,
    encoder: TextEncoder,
    texts: Sequence[str],
    num_bars: int,
    flow: FlowConfig,
    *,
    seed: int | Sequence[int] = 0,
) -> torch.Tensor:
    """Summaries (B, S, D) in the base's own scale, float32.

    More bars than the bridge was trained on at once come as windows that overlap and are joined:
    what it would say of bars beyond, it has never learned.

    Args:
        bridge: a trained one.
        encoder: `encoder_of` the bridge.
        texts: B descriptions.
        num_bars: S.
        flow: how a Diffusion Bridge is asked.
        seed: one for each text, or one with which all begin from the same noise.

    Raises:
        ConfigError: a text that the encoder cannot read.
    """
    asked = list(dict.fromkeys(texts))
    found, rows = encoder.encode(asked), [asked.index(text) for text in texts]
    states = TextStates(found.states_BLW[rows], found.mask_BL[rows], found.pooled_BW[rows])
    states = states.to(bridge.mean_D.device)
    spans = _spans(num_bars, bridge.trained_bars)
    windows = [
        bridge.summaries(
            states,
            last - first,
            seed=seed,
            first_bar=first,
            steps=flow.steps,
            guidance=flow.guidance,
            solver=flow.solver,
        )
        for first, last in spans
    ]
    return torch.stack(
        [
            join_windows([(*span, w[row]) for span, w in zip(spans, windows, strict=True)])
            for row in range(len(texts))
        ]
    )


def _spans(num_bars: int, most_bars: int) -> list[tuple[int, int]]:
    """First bar, and one past the last, of windows that overlap, of at most so many bars each.

    >>> _spans(9, 4), _spans(2, 4)
    ([(0, 4), (2, 6), (4, 8), (6, 9)], [(0, 2)])
    """
    step = most_bars - min(OVERLAP, most_bars // 2)
    spans = [(0, min(most_bars, num_bars))]
    while spans[-1][1] < num_bars:
        first = spans[-1][0] + step
        spans.append((first, min(first + most_bars, num_bars)))
    return spans


def save_summaries(path: Path, summaries_SD: torch.Tensor) -> None:
    """Write the summaries of a piece as one tensor, whole or not at all.

    Args:
        path: of the file.
        summaries_SD: in the base's own scale.

    Raises:
        ConfigError: it cannot be written.
    """
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        torch.save(summaries_SD.cpu().clone(), unfinished)
        unfinished.replace(path)
    except (OSError, RuntimeError) as error:
        unfinished.unlink(missing_ok=True)
        raise ConfigError(f"{path}: cannot be written ({error})") from error


def load_summaries(path: Path, width: int, max_bars: int) -> torch.Tensor:
    """Read what `save_summaries` or somebody else has written; nothing in it is executed.

    Args:
        path: of the file.
        width: D that the reader wants.
        max_bars: most bars that it can take.

    Returns:
        (S, D) float32.

    Raises:
        ConfigError: no such file, not one tensor, of another width or number of bars, or not
            finite.
    """
    expected = f"expected one tensor of 1 to {max_bars} bars x {width}"
    try:
        # What it has to say of another pickle's protocol is no line for a user.
        with warnings.catch_warnings(action="ignore"):
            summaries_SD = torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGED as error:
        first_line = str(error).partition("\n")[0]
        raise ConfigError(f"{path}: cannot be read ({first_line}); {expected}") from error
    if not isinstance(summaries_SD, torch.Tensor):
        raise ConfigError(f"{path}: found a {type(summaries_SD).__name__}; {expected}")
    shape = tuple(summaries_SD.shape)
    if len(shape) != 2 or shape[1] != width or not 1 <= shape[0] <= max_bars:
        raise ConfigError(f"{path}: found a tensor of {shape}; {expected}")
    if not summaries_SD.is_floating_point() or not summaries_SD.isfinite().all():
        raise ConfigError(f"{path}: found numbers that are no finite floats; {expected}")
    return summaries_SD.float()
