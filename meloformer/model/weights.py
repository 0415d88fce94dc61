"""A model folder in the Hugging Face layout: config.json and model.safetensors."""

from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from meloformer.errors import CheckpointError
from meloformer.file_sums import sha256_of
from meloformer.model.config import MuseFormerConfig
from meloformer.model.museformer import MuseFormer
from meloformer.model.tensor_file import FileSum, write_tensors

WEIGHTS_NAME = "model.safetensors"

# Weights of the last step, or their moving average.
Weights = Literal["raw", "ema"]
# Folder of each, in a run folder and in a step folder.
MODEL_NAMES: dict[Weights, str] = {"raw": "model", "ema": "model_ema"}


def save_model(
    folder: Path,
    config: MuseFormerConfig,
    state: dict[str, torch.Tensor],
    metadata: dict[str, str] | None = None,
) -> FileSum:
    """Write config and weights.

    Args:
        folder: created where missing.
        config: the model's settings.
        state: the model's state dict, whole tensors.
        metadata: strings for the header of the weights, such as the tokenizer's fingerprint.

    Returns:
        Size and sum of the weights' file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config.save(folder)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    return write_tensors(folder / WEIGHTS_NAME, tensors, {"format": "pt", **(metadata or {})})


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


def model_metadata(folder: Path) -> dict[str, str]:
    """Strings that `save_model` put into the header of the weights.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    path = folder / WEIGHTS_NAME
    try:
        with safe_open(path, framework="pt") as weights:
            return dict(weights.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); take another one") from error


def model_fingerprint(folder: Path) -> str:
    """Sha256 over the weights of a model folder: what was made with them fits no others.

    Raises:
        CheckpointError: the file is missing or cannot be read.
    """
    path = folder / WEIGHTS_NAME
    try:
        return sha256_of(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); take another one") from error


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


def find_model_folder(path: Path, weights: Weights = "raw") -> Path:
    """The model of a run folder, of a step folder, or the folder itself.

    Args:
        path: what `--checkpoint` says.
        weights: which of a run's or a step's; a model folder holds what it holds.

    Raises:
        CheckpointError: none of the three holds a model, or none of averaged weights.
    """
    models = _models(path, weights)
    if models:
        return models[0]
    if weights == "ema" and (others := _models(path, "raw")):
        raise CheckpointError(
            f"{path}: found no averaged weights ({MODEL_NAMES['ema']}/) beside {others[0]}; "
            "allowed: the weights of the last step, or a run that was trained with --ema 0.999"
        )
    found = "no such folder" if not path.is_dir() else f"found {_listing(path)}"
    raise CheckpointError(
        f"{path}: {found}; expected a run folder, a checkpoints/step-N folder or a model folder "
        f"(config.json and {WEIGHTS_NAME}); train one with `make train`"
    )


def newest_run(runs: Path = Path("runs")) -> Path:
    """The run whose folder changed last; what an ungiven `--checkpoint` means.

    Raises:
        CheckpointError: there is none with a model.
    """
    found = [folder for folder in runs.glob("*") if _models(folder)]
    if not found:
        raise CheckpointError(
            f"{runs}/: no run with a model; name one with --checkpoint, or train one with "
            "`make train`"
        )
    return max(found, key=lambda folder: folder.stat().st_mtime)


def step_of(folder: Path) -> int:
    """N of step-N; -1 for any other name."""
    number = folder.name.removeprefix("step-")
    return int(number) if number.isdigit() else -1


def _models(path: Path, weights: Weights = "raw") -> list[Path]:
    """Model folders at a path, the best first: its own, a run's last, then newest step first."""
    steps = sorted(path.glob("checkpoints/step-*"), key=step_of, reverse=True)
    name = MODEL_NAMES[weights]
    folders = [path / name, *(step / name for step in steps if step_of(step) >= 0)]
    if weights == "raw" or path.name == name:
        folders.insert(0, path)
    return [
        folder
        for folder in folders
        if (folder / "config.json").is_file() and (folder / WEIGHTS_NAME).is_file()
    ]


def _listing(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") if names else "nothing in it"
