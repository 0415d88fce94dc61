"""Music from the weights of the moment, after each validation: to see, to hear, to keep."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from meloformer.midi.piano_roll import save_piano_roll
from meloformer.midi.render import to_piece
from meloformer.midi.sound import synthesise
from meloformer.midi.write import write_midi
from meloformer.model.museformer import MuseFormer
from meloformer.tokens.hid import decode
from meloformer.tokens.vocabulary import EOS
from meloformer.tokens.windows import bar_starts
from meloformer.training.session import Session

SAMPLES_NAME = "samples"
# What a validation may take longer for them. The other ranks wait so long.
MAX_SECONDS = 20.0

# Model in evaluation mode, number of pieces, and whether to end with so many tokens sampled; token
# ids of the pieces.
Compose = Callable[[MuseFormer, int, Callable[[int], bool]], list[np.ndarray]]


class Sampler:
    """Lets a model that trains write a few pieces.

    The first rank does, on its own copy of the weights; the others wait. Nothing of the training
    changes: random numbers come from a generator of their own, and no graph is compiled.

    Args:
        compose: writes the pieces; what it compiles is its own affair.
    """

    def __init__(self, compose: Compose) -> None:
        self._compose = compose
        self._has_said_why = False

    def __call__(self, session: Session, step: int) -> None:
        """Write pieces into the run folder and TensorBoard; on all ranks.

        Args:
            session: between two steps.
            step: optimizer steps done.
        """
        if not session.config.samples:
            return
        if session.engine.stage == 3:
            if not self._has_said_why:
                session.metrics.say("no samples: under ZeRO stage 3 no rank holds all weights")
            self._has_said_why = True
            return
        session.stalls.at(f"the samples after step {step}", is_slow=True)
        session.ranks.on_first(lambda: self._write(session, step))
        session.clock.pause()

    def _write(self, session: Session, step: int) -> None:
        module, began = session.engine.module, time.monotonic()
        assert isinstance(module, MuseFormer)
        num_pieces = session.config.samples
        max_tokens = num_pieces * session.model_config.max_seq_len

        def stop(num_tokens: int) -> bool:
            is_late = time.monotonic() - began >= MAX_SECONDS
            return num_tokens >= max_tokens or is_late or session.stopping.is_asked()

        module.eval()
        try:
            pieces = self._compose(module, num_pieces, stop)
        except torch.OutOfMemoryError:
            session.metrics.say(f"no samples after step {step}: the device has no memory left")
            return
        finally:
            module.train()
        if session.stopping.is_asked():
            session.metrics.say(f"no samples after step {step}: the run stops")
            return
        folder = session.config.output / SAMPLES_NAME / f"step-{step}"
        shutil.rmtree(folder, ignore_errors=True)  # of this step before a resume
        try:
            folder.mkdir(parents=True)
            said = [
                self._write_piece(session, ids, folder / f"piece-{number}.mid", step)
                for number, ids in enumerate(pieces)
            ]
        except OSError as error:
            session.metrics.say(
                f"no samples after step {step}: {folder}: {error.strerror or error}"
            )
            return
        seconds = time.monotonic() - began  # pictures and sound included
        session.metrics.say(f"samples in {folder}, {seconds:.1f} s: {'; '.join(said)}")

    def _write_piece(self, session: Session, ids: np.ndarray, path: Path, step: int) -> str:
        """One piece as MIDI, picture and sound; what it is, in words."""
        if len(bar_starts(ids)) == 1:
            return f"{path.stem} finished no bar"
        piece = decode(ids)
        if not piece.num_notes:
            return f"{path.stem} has no notes in {piece.num_bars} finished bars"
        write_midi(to_piece(piece), path)
        picture = path.with_suffix(".png")
        save_piano_roll(piece, picture, title=f"step {step}, {path.stem}")
        session.metrics.piece(step, path.stem, picture, synthesise(piece))
        end = "" if ids[-1] == EOS else ", cut short"
        return f"{path.stem} {piece.num_bars} bars, {piece.num_notes} notes{end}"
