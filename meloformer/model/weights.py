"""A model folder in the Hugging Face layout: config.json and model.safetensors."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from meloformer.errors import CheckpointError
from meloformer.model.config import MuseFormerConfig
from meloformer.model.museformer import MuseFormer

WEIGHTS_NAME = "model.safetensors"


def save_model(
    folder: Path,
    config: MuseFormerConfig,
    state: dict[str, torch.Tensor],
    metadata: dict[str, str] | None = None,
) -> None:
    """Write config and weights.

    Args:
        folder: created where missing.
        config: the model's settings.
        state: the model's state dict, whole tensors.
        metadata: strings for the header of the weights, such as the tokenizer's fingerprint.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config.save(folder)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / WEIGHTS_NAME, metadata={"format": "pt", **(metadata or {})})


def load_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Read the weights alone.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    path = folder / WEIGHTS_NAME
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected the weights of a MuseFormer")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: damaged ({error}); take another checkpoint") from error


def load_model(folder: Path, device: str = "cpu") -> MuseFormer:
    """Build the model of a folder, in evaluation mode.

    Raises:
        CheckpointError: files are missing, damaged, or fit another architecture.
    """
    config = MuseFormerConfig.load(folder)
    state = load_weights(folder)
    with torch.device("meta"):
        model = MuseFormer(config)
    check_state(model, state, folder)
    model.load_state_dict(state, assign=True)
    return model.to(device).eval()


def check_state(model: MuseFormer, state: dict[str, torch.Tensor], source: Path) -> None:
    """Refuse weights of another architecture, naming the first differences."""
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    differing = sorted(
        name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)
    )
    if differing:
        name = differing[0]
        raise CheckpointError(
            f"{source}: {len(differing)} tensors do not fit, first {name}: found "
            f"{found.get(name, 'none')}, expected {expected.get(name, 'none')}; "
            "the weights belong to another model size"
        )
