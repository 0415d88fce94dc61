"""Saving and restoring a run in motion: all ranks write, the first one seals."""

import copy
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

from meloformer.errors import CheckpointError
from meloformer.model.config import MuseFormerConfig
from meloformer.model.tensor_file import FileSum
from meloformer.model.weights import MODEL_NAMES, WEIGHTS_NAME, Weights, model_metadata, save_model
from meloformer.tokens.vocabulary import fingerprint
from meloformer.training.background import BackgroundSaver, SaveOutcome
from meloformer.training.checkpoint import (
    FOLDER_NAME,
    MODEL_NAME,
    PARTS_NAME,
    TrainingState,
    begin_checkpoint,
    check_owner,
    drop_superseded,
    finish_checkpoint,
    set_aside_later,
    step_folder,
    whole_or_absent,
)
from meloformer.training.engine import Engine
from meloformer.training.host_copy import HostCopy
from meloformer.training.lora import ADAPTER_NAME, NO_ADAPTERS, AdapterConfig, merge, save_adapters
from meloformer.training.parts import part_name
from meloformer.training.ranks import Ranks


class Checkpoints:
    """The checkpoints that a run in motion makes.

    Args:
        engine: weights and optimizer state.
        run: the run folder.
        model: settings of the model.
        keep_last: checkpoints to keep; 0 keeps all.
        keep_every: steps at whose multiples a checkpoint stays for good; 0 for none.
        is_background: write beside training.
        tell: called with the outcome of every save, by the thread that trains.
        adapters: of the model; what is exported has them added up, and has them alone as well.
    """

    def __init__(
        self,
        engine: Engine,
        run: Path,
        model: MuseFormerConfig,
        *,
        keep_last: int,
        keep_every: int,
        is_background: bool,
        tell: Callable[[SaveOutcome], None],
        adapters: AdapterConfig = NO_ADAPTERS,
    ) -> None:
        self._adapters = adapters
        self._engine, self._run, self._model = engine, run, model
        self._keep = {"keep_last": keep_last, "keep_every": keep_every}
        self._saver = BackgroundSaver(engine.ranks, is_background=is_background, tell=tell)
        self._host = HostCopy(engine.ranks.device)
        self.poll, self.settle = self._saver.poll, self._saver.settle
        self.finish, self.close = self._saver.finish, self._saver.close

    @property
    def num_failed(self) -> int:
        """Saves of this start that failed, as far as this rank has heard."""
        return self._saver.num_failed

    def save(self, state: TrainingState) -> None:
        """Copy this moment to the host and begin to write it; collective.

        A save that is still under way is waited for. The outcome comes through `tell`.

        Raises:
            CheckpointError: on all ranks, when the two saves before have failed.
        """
        self.settle()
        # Written later, when what it refers to has moved on.
        state = copy.deepcopy(state)
        ranks, run, host = self._engine.ranks, self._run, self._host
        folder = run / FOLDER_NAME / f".step-{state.step}"

        def begin() -> str:
            try:
                begin_checkpoint(run, state.step)
            except OSError as error:
                return f"{error.strerror} ({error.filename})"
            return ""

        obstacle = ranks.on_first(begin)
        part = self._engine.copy_part(host)

        def write() -> dict[str, FileSum]:
            if obstacle:
                raise CheckpointError(obstacle)
            host.wait()
            name = f"{PARTS_NAME}/{part_name(ranks.rank)}"
            sums = {name: part.write(folder / name)}
            if ranks.is_first:
                exports = {MODEL_NAME: host.weights, MODEL_NAMES["ema"]: host.averaged}
                for model, weights in exports.items():
                    if weights:
                        plain = merge(weights, self._adapters)
                        file = save_model(folder / model, self._model, plain, _facts(state.step))
                        sums[f"{model}/{WEIGHTS_NAME}"] = file
                if self._adapters.lora:
                    saved = save_adapters(folder / ADAPTER_NAME, host.weights, self._adapters)
                    sums |= {f"{ADAPTER_NAME}/{name}": file for name, file in saved.items()}
            return sums

        def seal(sums: dict[str, FileSum]) -> Path:
            state.save(folder)
            return finish_checkpoint(folder, sums=sums, **self._keep)

        def abandon() -> None:
            # It takes the room that the next save needs.
            shutil.rmtree(folder, ignore_errors=True)

        self._saver.start(state.step, step_folder(run, state.step), write, seal, abandon)


def export_model(
    engine: Engine,
    run: Path,
    model: MuseFormerConfig,
    step: int,
    adapters: AdapterConfig = NO_ADAPTERS,
) -> Path:
    """Write the model after its last step next to the checkpoints, whole or not at all; collective.

    Where an average is kept, its model stands beside it; where adapters were trained, they do too.

    Returns:
        The model's folder.

    Raises:
        CheckpointError: the disk is full, or the run folder cannot be written.
    """
    each: dict[Weights, Callable[[], Iterator[tuple[str, torch.Tensor]]]] = {}
    # The model last: where it stands, all is written.
    if engine.has_average:
        each["ema"] = engine.each_averaged_weight
    each["raw"] = engine.each_weight
    for which, weights_of in each.items():
        # Copied, as averages are gone from the model when their turn is over.
        weights = {name: weight.to("cpu", copy=True) for name, weight in weights_of()}
        if which == "raw" and adapters.lora:
            alone = partial(save_adapters, weights=weights, config=adapters)
            engine.ranks.on_first(partial(whole_or_absent, run / ADAPTER_NAME, alone))
        plain = merge(weights, adapters)
        folder = engine.ranks.on_first(
            partial(_export, run / MODEL_NAMES[which], model, plain, step)
        )
    engine.ranks.on_first(lambda: drop_superseded(run))
    return folder


def _export(
    folder: Path, model: MuseFormerConfig, weights: dict[str, torch.Tensor], step: int
) -> Path:
    return whole_or_absent(folder, lambda at: save_model(at, model, weights, _facts(step)))


def is_exported(run: Path, step: int) -> bool:
    """Whether the run's model is there, and is the one after this step."""
    try:
        return model_metadata(run / MODEL_NAME).get("step") == str(step)
    except CheckpointError:
        return False


def check_tokenizer(model: Path) -> None:
    """Refuse weights that were trained on another vocabulary.

    Args:
        model: folder of the weights.

    Raises:
        CheckpointError: their header states another fingerprint, or none.
    """
    found = model_metadata(model).get("tokenizer", "none")
    if found != fingerprint():
        raise CheckpointError(
            f"{model}: found weights for tokenizer {found[:12]}, expected {fingerprint()[:12]}; "
            "take weights of this vocabulary, or the release that wrote these"
        )


def _facts(step: int) -> dict[str, str]:
    return {"tokenizer": fingerprint(), "step": str(step)}


def read_state(ranks: Ranks, checkpoint: Path, run_id: str) -> TrainingState:
    """State of a checkpoint that has been verified, if it is this run's own."""

    def read() -> TrainingState:
        state = TrainingState.load(checkpoint)
        check_owner(state, checkpoint, run_id, fingerprint())
        # What others load is no part of a run that goes on, but as little to be trusted.
        for name in MODEL_NAMES.values():
            if name == MODEL_NAME or (checkpoint / name).is_dir():
                check_tokenizer(checkpoint / name)
                MuseFormerConfig.load(checkpoint / name)
        return state

    return ranks.on_first(read)


def restore(engine: Engine, run: Path, checkpoint: Path, state: TrainingState) -> None:
    """Load weights and optimizer state; what came later no longer counts; collective.

    Any number of ranks may have written them, under any stage and in any precision. In a run that
    is in motion, `Checkpoints.settle` comes first.

    Raises:
        CheckpointError: the parts are damaged, or of another model.
    """
    engine.load(checkpoint / PARTS_NAME)
    engine.ranks.on_first(lambda: set_aside_later(run, state.step))
