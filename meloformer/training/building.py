"""The model of a run as it is before its first step, and the precision of its attention."""

from pathlib import Path

import torch
from torch import nn

from meloformer.errors import CheckpointError
from meloformer.model.config import SIZES, MuseFormerConfig
from meloformer.model.museformer import MuseFormer
from meloformer.model.precision import choose_precision
from meloformer.model.weights import check_state, find_model_folder, load_weights
from meloformer.training.config import ResolvedConfig
from meloformer.training.freezing import count_parameters, describe_frozen, freeze
from meloformer.training.lora import add_adapters, describe_adapters
from meloformer.training.optimizer import count_by_muon
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
        ConfigError: --freeze names nothing, or everything; --lora without peft.
    """
    torch.manual_seed(config.seed)
    model = MuseFormer(model_config, checkpointing=config.checkpointing, fuse=fuse)
    if config.init_from:
        folder = find_model_folder(config.init_from)
        check_tokenizer(folder)
        check_size(MuseFormerConfig.load(folder), model_config, folder)
        weights = load_weights(folder)
        check_state(model, weights, folder)
        model.load_state_dict(weights)
    _choose_trained(model, config)
    return model


def _choose_trained(model: MuseFormer, config: ResolvedConfig) -> None:
    if config.adapters.lora:
        add_adapters(model, config.adapters)
    else:
        freeze(model, config.freeze)


def describe_trained_part(model: nn.Module, config: ResolvedConfig) -> list[str]:
    """A line on what is trained of a built model, where that is not all of it."""
    return [*describe_frozen(model, config.freeze), *describe_adapters(model, config.adapters)]


def count_trained(config: ResolvedConfig, model_config: MuseFormerConfig) -> tuple[int, int]:
    """Parameters that will be trained, and all of them, adapters too; nothing is allocated.

    Raises:
        ConfigError: --freeze names nothing, or everything; --lora without peft.
    """
    return count_parameters(_without_weights(config, model_config))


def count_moved(config: ResolvedConfig, model_config: MuseFormerConfig) -> int:
    """Of the parameters that will be trained, those that Muon moves; nothing is allocated."""
    return count_by_muon(_without_weights(config, model_config), config.optimizer)


def _without_weights(config: ResolvedConfig, model_config: MuseFormerConfig) -> MuseFormer:
    with torch.device("meta"):
        model = MuseFormer(model_config)
    _choose_trained(model, config)
    return model


def check_size(found: MuseFormerConfig, wanted: MuseFormerConfig, folder: Path) -> None:
    """Refuse weights with which the model would compute something else, or nothing at all.

    Length, rule and rows with open summaries may differ: the weights do not depend on them.

    Args:
        found: settings of the weights.
        wanted: those of the model.
        folder: of the weights.

    Raises:
        CheckpointError: names what differs, on both sides.
    """
    free = {"max_seq_len", "rule", "open_summary_rate", "fill_rate"}
    differing = [
        name
        for name, value in vars(found).items()
        if name not in free and value != getattr(wanted, name)
    ]
    if not differing:
        return
    values = [
        ", ".join(f"{name} {getattr(config, name)}" for name in differing)
        for config in (found, wanted)
    ]
    sizes = [name for name, size in SIZES.items() if vars(size).items() <= vars(found).items()]
    remedy = f"--model_size {sizes[0]}" if sizes else "weights of this size"
    raise CheckpointError(
        f"--init_from {folder}: found a model of {values[0]}, expected {values[1]}; take {remedy}"
    )


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
