"""Reading a text encoder's files into a tokenizer and a model."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from torch import nn

from meloformer.bridge.encoder_folder import TOKENIZER_NAME
from meloformer.errors import ConfigError

# What transformers raises for files that do not fit each other, or for a kind it does not know.
_LOADING_ERRORS = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    RuntimeError,
    ImportError,
    SafetensorError,
)


def load_tokenizer(name: str, folder: Path) -> Tokenizer:
    """The tokenizer of an encoder's folder.

    Args:
        name: what the user called the encoder.
        folder: its files.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        # The file as it is: transformers builds some tokenizers anew and keeps part of it.
        if (folder / TOKENIZER_NAME).is_file():
            return Tokenizer.from_file(str(folder / TOKENIZER_NAME))
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(folder, local_files_only=True).backend_tokenizer
    except Exception as error:  # the library raises bare Exception for a damaged file
        raise ConfigError(
            f"--text_encoder {name}: its tokenizer cannot be read ({error}); expected "
            f"{TOKENIZER_NAME}; fetch the encoder again"
        ) from error


def load_encoder_model(name: str, folder: Path, dtype: torch.dtype) -> nn.Module:
    """The model of an encoder's folder, on the CPU.

    Args:
        name: what the user called the encoder.
        folder: its files.
        dtype: of the weights.

    Raises:
        ConfigError: it cannot be loaded, or weights are missing.
    """
    # Imported late: transformers takes seconds, and states on the disk need none of it.
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model, report = AutoModel.from_pretrained(
            folder,
            dtype=dtype,
            # Nothing of a stranger's is unpickled or run.
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except _LOADING_ERRORS as error:
        raise ConfigError(
            f"--text_encoder {name}: its model cannot be loaded ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}); allowed: a text encoder of transformers, "
            "weights as safetensors"
        ) from error
    # A head for pooling that is not used may be absent; anything else would be random numbers.
    missing = sorted(key for key in report["missing_keys"] if "pooler" not in key)
    if missing or report["mismatched_keys"]:
        found = missing[0] if missing else next(iter(report["mismatched_keys"]))
        raise ConfigError(
            f"--text_encoder {name}: {len(missing) + len(report['mismatched_keys'])} tensors are "
            f"missing or of another shape, first {found}; expected weights that fit config.json"
        )
    return model.get_encoder() if model.config.is_encoder_decoder else model
