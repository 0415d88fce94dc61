"""The model of a run as it is before its first step, and the precision of its attention."""

import torch

from meloformer.model.config import MuseFormerConfig
from meloformer.model.museformer import MuseFormer
from meloformer.model.precision import choose_precision
from meloformer.model.weights import check_state, find_model_folder, load_weights
from meloformer.training.config import ResolvedConfig
from meloformer.training.ranks import Ranks
from meloformer.training.run_folder import Run
from meloformer.training.saving import check_tokenizer


def build_model(
    config: ResolvedConfig, model_config: MuseFormerConfig, *, fuse: bool
) -> MuseFormer:
    """Weights from the seed, or those that --init_from names; on the CPU.

    Args:
        config: the run's flags.
        model_config: settings of the model.
        fuse: whether pointwise parts are compiled.

    Raises:
        CheckpointError: weights that do not fit, or of another vocabulary.
    """
    torch.manual_seed(config.seed)
    model = MuseFormer(model_config, checkpointing=config.checkpointing, fuse=fuse)
    if config.init_from:
        folder = find_model_folder(config.init_from)
        check_tokenizer(folder)
        weights = load_weights(folder)
        check_state(model, weights, folder)
        model.load_state_dict(weights)
    return model


def attention_precision(
    config: ResolvedConfig, model_config: MuseFormerConfig, ranks: Ranks, run: Run
) -> torch.dtype | None:
    """Choose the dtype of the attention call, and note in the run why; collective.

    Args:
        config: the run's flags.
        model_config: settings of the model.
        ranks: the started processes.
        run: what run.json will say of this start.
    """
    # One rank tries it for all: hosts of a run hold the same cards.
    choice = ranks.on_first(
        lambda: choose_precision(
            config.attention_precision, ranks.device, head_width=model_config.head_width
        )
    )
    run.notes.append(choice.why)
    run.starts[-1]["attention_precision"] = choice.to_json()
    return choice.dtype
