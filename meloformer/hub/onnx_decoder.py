"""Decoding by the two graphs of an export, through onnxruntime: no weights of torch are loaded."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from meloformer.errors import CheckpointError, ConfigError
from meloformer.generation.controls import ControlConfig
from meloformer.generation.labeller import Labeller
from meloformer.generation.moved_mass import move_mass
from meloformer.generation.piece_mask import PieceMask
from meloformer.generation.sampling import SamplingConfig, sample_tokens
from meloformer.hub.config import MuseFormerConfig
from meloformer.hub.onnx_graphs import AddTokens, CloseBar, empty_caches
from meloformer.tokens.vocabulary import check_fingerprint

FOLDER_NAME = "onnx"
ADD_TOKENS_NAME, CLOSE_BAR_NAME = "add_tokens.onnx", "close_bar.onnx"


class OnnxDecoder:
    """One row: tokens go in, logits come out, bars are closed when they end.

    Args:
        folder: with both graphs.

    Attributes:
        caches: inputs of the next call, by name; see `onnx_graphs`.

    Raises:
        ConfigError: onnxruntime is not installed.
        CheckpointError: a graph is missing or damaged.
        TokenError: it knows another vocabulary.
    """

    def __init__(self, folder: Path) -> None:
        self._add = _session(folder / ADD_TOKENS_NAME)
        self._close = _session(folder / CLOSE_BAR_NAME)
        facts = self._add.get_modelmeta().custom_metadata_map
        check_fingerprint(facts.get("tokenizer", "none"), str(folder))
        settings = json.loads(facts["meloformer"])
        empty = empty_caches(MuseFormerConfig(**settings).model, 0, 0)
        self.caches: dict[str, np.ndarray] = {name: x.numpy() for name, x in empty.items()}

    def add(self, ids_1N: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Append tokens that lie in one bar or in the prefix.

        Args:
            ids_1N: int64.
            labels: (4, 1, N) int64, as `Labeller` gives them.

        Returns:
            (1, V) logits after the last of them.
        """
        given = {"ids": ids_1N.astype(np.int64), "labels": labels.astype(np.int64)}
        inputs = {name: {**given, **self.caches}[name] for name in AddTokens.inputs}
        logits, *grown = self._add.run(list(AddTokens.outputs), inputs)
        self.caches["past_labels"], self.caches["tokens"] = grown
        return np.asarray(logits)

    def close_bar(self) -> None:
        """The newest bar is complete: from now on it can be read as a summary."""
        inputs = {name: self.caches[name] for name in CloseBar.inputs}
        grown = self._close.run(list(CloseBar.outputs), inputs)
        self.caches["summaries"], self.caches["own"] = grown


def generate_onnx(
    folder: Path, controls: ControlConfig, sampling: SamplingConfig, *, seed: int = 0
) -> np.ndarray:
    """Sample one piece under the grammar, as `generation.generate` does by torch.

    Args:
        folder: with both graphs.
        controls: wishes.
        sampling: temperature and cut-offs.
        seed: of the draws; the same as torch's, so that pieces differ by rounding alone.

    Returns:
        (T,) uint16, BOS to EOS.

    Raises:
        ConfigError: the best of several pieces, which these graphs do not score.
    """
    if sampling.best_of > 1:
        raise ConfigError(f"--best_of {sampling.best_of}: allowed with ONNX is 1")
    decoder = OnnxDecoder(folder)
    prefix = controls.prefix().astype(np.int64)
    ids = prefix.tolist()
    mask = PieceMask(ids, controls.wishes, sampling.no_repeat_bars)
    generator = torch.Generator().manual_seed(seed)
    labeller = Labeller(prefix[None])
    logits_1V = decoder.add(prefix[None], labeller.prefix)
    while True:
        allowed_1V = torch.from_numpy(mask.allowed()[None])
        draw_1 = torch.rand((), generator=generator).reshape(1)
        moved_1V = move_mass(torch.from_numpy(logits_1V), allowed_1V)
        drawn_1 = sample_tokens(moved_1V, allowed_1V, sampling, draw_1).numpy()
        ids.append(int(drawn_1[0]))
        mask.advance(ids[-1])
        if mask.is_finished:
            return np.array(ids, dtype=np.uint16)
        labels_41 = labeller.advance(drawn_1)
        # A bar token says that the bar before it is complete.
        if labels_41[2, 0] == 0 and labels_41[0, 0] > 0:
            decoder.close_bar()
        logits_1V = decoder.add(drawn_1[None], labels_41[:, :, None])


def _session(path: Path) -> Any:
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise ConfigError(
            "found no package onnxruntime; install it with "
            "pip install -c constraints.txt -e '.[onnx]'"
        ) from error
    if not path.is_file():
        raise CheckpointError(
            f"{path}: no such file; expected the onnx/ folder of launch/export.py --onnx"
        )
    try:
        return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime raises classes of its own, all mean this
        raise CheckpointError(f"{path}: cannot be read ({error}); export it again") from error
