"""Where a MuseFormer's run writes what it says: metrics.jsonl, TensorBoard, train.log, terminal."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.image import imread
from torch.utils.tensorboard import SummaryWriter

from meloformer.midi.sound import SAMPLE_RATE
from meloformer.training.ema import AVERAGED_SCORES
from meloformer.training.metrics import STEPS_PER_LINE, StepMetrics
from meloformer.training.nats import Nats
from meloformer.training.run_writer import RunWriter
from meloformer.training.wandb_run import WandbRun


class MetricsWriter(RunWriter):
    """The account of a MuseFormer's run; see `RunWriter`."""

    def __init__(
        self,
        folder: Path,
        *,
        start_step: int,
        num_steps: int,
        is_first: bool,
        moment: Callable[[], str] | None = None,
    ) -> None:
        super().__init__(
            folder, start_step=start_step, num_steps=num_steps, is_first=is_first, moment=moment
        )
        self._wandb: WandbRun | None = None
        self.show_bar()

    def follow(self, wandb_run: WandbRun) -> None:
        """From now on, show the figures there too; on the first rank."""
        self._wandb = wandb_run

    def _show(self, values: Mapping[str, float | int | None], step: int) -> None:
        super()._show(values, step)
        if self._wandb:
            self._wandb.log(dict(values), step)

    def step(self, metrics: StepMetrics) -> None:
        """Write down a step; a line of words every few steps and at the end."""
        if not self.is_first:
            return
        values = asdict(metrics)
        self._write(self._lines, values)
        for event in ("dropped", "rolled_back"):
            if found := values.pop(event):
                self._draw(partial(_add_text, f"train/{event}", json.dumps(found), metrics.step))
        for kind, value in values.pop("loss_by_kind").items():
            values[f"kind/{kind}"] = value
        del values["step"]
        self._show({f"train/{name}": value for name, value in values.items()}, metrics.step)
        loss = "not finite" if metrics.loss is None else f"{metrics.loss:.3f}"
        is_due = metrics.step % STEPS_PER_LINE == 0 or metrics.step == self.num_steps
        self._say_step(
            metrics.step,
            f"loss {loss}, {metrics.tokens_per_second:,.0f} tokens/s",
            metrics.line(self.num_steps) if is_due else None,
            metrics.details() if is_due else "",
        )

    def validation(self, step: int, scores: dict[str, Nats]) -> None:
        """Write down the likelihoods of a validation.

        Args:
            step: optimizer steps done.
            scores: by which attributes of a piece the model was told, "all" and "none"; those of
                averaged weights under the same names, begun with `AVERAGED_SCORES`.
        """
        if not self.is_first:
            return
        line: dict[str, Any] = {"step": step}
        for told, nats in scores.items():
            line[told] = asdict(nats)
            kinds = {f"valid/{told}/kind/{kind}": value for kind, value in nats.per_kind.items()}
            means = {"nats_per_token": nats.per_token, "nats_per_note": nats.per_note}
            self._show(kinds | {f"valid/{told}/{k}": value for k, value in means.items()}, step)
        self._write(self._validation_lines, line)
        words = [
            f"{nats.per_token:.4f} nats per token and {nats.per_note:.3f} per note {_told(told)}"
            for told, nats in scores.items()
        ]
        self.say(f"validation after step {step}: {'; '.join(words)}")

    def piece(self, step: int, name: str, picture: Path, sound: np.ndarray) -> None:
        """Show a generated piece in TensorBoard.

        Args:
            step: optimizer steps done.
            name: of the piece; those of other steps go by the same names.
            picture: a PNG.
            sound: (num_samples,) float32, -1..1, at `midi.sound.SAMPLE_RATE`.
        """
        if not self.is_first:
            return
        image = imread(picture)

        def add(board: SummaryWriter) -> None:
            board.add_image(f"samples/{name}", image, step, dataformats="HWC")
            board.add_audio(f"samples/{name}", sound[None], step, sample_rate=SAMPLE_RATE)

        self._draw(add)

    def close(self) -> None:
        """Flush and close everything."""
        if self._wandb:
            self._wandb.close()
        super().close()


def _told(name: str) -> str:
    told = name.removeprefix(AVERAGED_SCORES)
    averaged = "" if told == name else ", averaged weights"
    return f"with {'no' if told == 'none' else told} attributes{averaged}"


def _add_text(name: str, text: str, step: int, board: SummaryWriter) -> None:
    board.add_text(name, text, step)
