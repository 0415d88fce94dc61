"""The model in the box: small weights that the package carries, so that music needs no training."""

import math
from pathlib import Path

from safetensors import safe_open

from meloformer.errors import CheckpointError
from meloformer.model.weights import WEIGHTS_NAME

# Config and weights, and a card that says what they were trained on and what not to expect.
BOX = Path(__file__).resolve().parents[1] / "box"
CARD_NAME = "README.md"


def has_boxed_model() -> bool:
    """Whether this copy of the package carries weights."""
    return (BOX / WEIGHTS_NAME).is_file()


def boxed_model() -> Path:
    """The model folder inside the package.

    Raises:
        CheckpointError: this copy carries none.
    """
    if not has_boxed_model():
        raise CheckpointError(
            f"{BOX / WEIGHTS_NAME}: no such file; this copy of the package carries no model: name "
            "one with --checkpoint, or train one with `make train`"
        )
    return BOX


def is_boxed_model(folder: Path) -> bool:
    """Whether a model folder is the one inside the package."""
    return folder.resolve() == BOX.resolve()


def describe_boxed_model() -> str:
    """What was taken and where it says what it is, on one line.

    Raises:
        CheckpointError: this copy carries none.
    """
    with safe_open(boxed_model() / WEIGHTS_NAME, framework="pt") as weights:
        shapes = [weights.get_slice(name).get_shape() for name in weights.keys()]  # noqa: SIM118
    millions = sum(map(math.prod, shapes)) / 1e6
    return f"the model in the box, {millions:.1f} M parameters, see its card: {BOX / CARD_NAME}"
