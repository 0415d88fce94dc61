"""Writing the graphs of onnx_graphs.py as files, and holding them against the model."""

import contextlib
import io
import json
import logging
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn

from meloformer.errors import CheckpointError, ConfigError
from meloformer.generation.cache import DecodeCache
from meloformer.generation.labeller import Labeller
from meloformer.hub.config import MuseFormerConfig
from meloformer.hub.onnx_decoder import ADD_TOKENS_NAME, CLOSE_BAR_NAME, OnnxDecoder
from meloformer.hub.onnx_graphs import AddTokens, CloseBar, empty_caches
from meloformer.hub.probe import probe_ids
from meloformer.model.museformer import MuseFormer
from meloformer.tokens.attributes import prefix_length
from meloformer.tokens.vocabulary import fingerprint

# Logits may differ by so much of the largest one: sums come in another order.
LOGIT_TOLERANCE = 1e-4

# Sizes that differ from call to call, by input: axis and name. Examples of other sizes than these
# two would do; 0 and 1 would be taken for constants.
_MOVING = {
    "ids": {1: "new"},
    "labels": {2: "new"},
    "past_labels": {2: "tokens"},
    "tokens": {4: "tokens"},
    "summaries": {4: "bars"},
    "own": {4: "bars"},
}
_EXAMPLE_NEW, _EXAMPLE_TOKENS, _EXAMPLE_BARS = 2, 5, 3


def write_onnx(model: MuseFormer, folder: Path) -> float:
    """Write both graphs in float32 and compare them with the model on a piece of some bars.

    Args:
        model: in evaluation mode, on the CPU, in float32.
        folder: to be made.

    Returns:
        The largest difference of a logit.

    Raises:
        ConfigError: the extra `onnx` is not installed, or the model has no summaries.
        CheckpointError: a logit differs by more than rounding.
    """
    check_installed()
    folder.mkdir(parents=True, exist_ok=True)
    facts = {
        "meloformer": json.dumps(MuseFormerConfig.of(model.config).to_dict(), sort_keys=True),
        "tokenizer": fingerprint(),
    }
    _write(AddTokens(model).eval(), folder / ADD_TOKENS_NAME, facts)
    _write(CloseBar(model).eval(), folder / CLOSE_BAR_NAME, facts)
    return largest_difference(model, folder)


def check_installed() -> None:
    """Refuse where a package of the extra is missing.

    Raises:
        ConfigError: names it.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"--onnx: found no package {error.name}; install it with "
            "pip install -c constraints.txt -e '.[onnx]', or leave --onnx out"
        ) from error


def largest_difference(model: MuseFormer, folder: Path) -> float:
    """The largest difference between logits of the graphs and of the model's own cache.

    Raises:
        CheckpointError: it is more than rounding.
    """
    ids_T = probe_ids()[0].numpy()
    num_prefix = prefix_length(ids_T)
    labeller = Labeller(ids_T[None, :num_prefix])
    cache, decoder = DecodeCache(model, 1), OnnxDecoder(folder)
    active_B = np.array([True])
    worst = largest = 0.0
    ids_1N, labels = ids_T[None, :num_prefix], labeller.prefix
    for place in range(num_prefix, len(ids_T) + 1):
        own = cache.add(ids_1N, labels, active_B)
        found = decoder.add(ids_1N, labels)
        worst = max(worst, float(np.abs(own.numpy() - found).max()))
        largest = max(largest, float(own.abs().max()))
        if place == len(ids_T):
            break
        ids_1N = ids_T[None, place : place + 1]
        labels = labeller.advance(ids_T[place : place + 1])[:, :, None]
        bar, index = int(labels[0, 0, 0]), int(labels[2, 0, 0])
        if index == 0 and bar > 0:
            cache.close_bar(np.array([0]), np.array([bar - 1]))
            decoder.close_bar()
    if worst > LOGIT_TOLERANCE * largest:
        raise CheckpointError(
            f"{folder}: its logits differ from the model's by up to {worst:g}, of {largest:g}; "
            f"allowed: a share of {LOGIT_TOLERANCE:g}, as by rounding; report it with the versions "
            "of torch, onnx and onnxruntime"
        )
    return worst


def _write(graph: nn.Module, path: Path, facts: dict[str, str]) -> None:
    """One graph, its exporter kept quiet."""
    assert isinstance(graph, AddTokens | CloseBar)
    examples = {
        "ids": torch.ones((1, _EXAMPLE_NEW), dtype=torch.int64),
        "labels": torch.ones((4, 1, _EXAMPLE_NEW), dtype=torch.int64),
        **empty_caches(graph.model.config, _EXAMPLE_TOKENS, _EXAMPLE_BARS),
    }
    levels = logging.root.manager.disable
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            program = torch.onnx.export(
                graph,
                tuple(examples[name] for name in graph.inputs),
                input_names=list(graph.inputs),
                output_names=list(graph.outputs),
                dynamic_shapes=tuple(_MOVING[name] for name in graph.inputs),
                dynamo=True,
                verbose=False,
            )
        finally:
            logging.disable(levels)
    assert program is not None
    program.model.metadata_props.update(facts)
    program.save(path)
