"""What the run of some weights knows about them: data, settings, likelihoods, if there."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from meloformer.errors import ShardError
from meloformer.model.weights import MODEL_NAMES, Weights, model_metadata
from meloformer.shards.manifest import Manifest
from meloformer.shards.reader import ShardFolder
from meloformer.training.data import manifest_sum
from meloformer.training.ema import AVERAGED_SCORES
from meloformer.training.metrics import VALIDATION_NAME
from meloformer.training.run_folder import RUN_NAME, Run
from meloformer.training.run_reader import LineReader

# run.json stands beside model/, or above checkpoints/step-N/model/.
_LEVELS_ABOVE = 3


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """Everything that a card may say of weights.

    Args:
        weights: of the last step, or their average.
        step: optimizer steps; "" where the weights do not say it.
        run: None where no run.json is near.
        data: names of the shard folders.
        manifests: of those folders, in their order; None where they are not at hand, or are no
            longer those that the run has read.
        scores: likelihoods at that step by what the prefix told, "all" or "none".
        scored_step: the step that they are of.
    """

    weights: Weights
    step: str = ""
    run: Run | None = None
    data: tuple[str, ...] = ()
    manifests: tuple[Manifest, ...] | None = None
    scores: dict[str, dict[str, Any]] = field(default_factory=dict)
    scored_step: int | None = None


def run_facts(model_folder: Path) -> RunFacts:
    """Facts of a model folder, of its run and of the run's data.

    Raises:
        CheckpointError: run.json or the weights are there and damaged.
    """
    weights: Weights = "ema" if model_folder.name == MODEL_NAMES["ema"] else "raw"
    step = model_metadata(model_folder).get("step", "")
    above = list(model_folder.absolute().parents)[:_LEVELS_ABOVE]
    folder = next((place for place in above if (place / RUN_NAME).is_file()), None)
    if folder is None:
        return RunFacts(weights=weights, step=step)
    run = Run.load(folder)
    scored_step, scores = _scores(folder, weights, step)
    return RunFacts(
        weights=weights,
        step=step,
        run=run,
        data=tuple(Path(place).name for place in run.data),
        manifests=_manifests(run),
        scores=scores,
        scored_step=scored_step,
    )


def _manifests(run: Run) -> tuple[Manifest, ...] | None:
    if not run.data or any("://" in place for place in run.data):
        return None
    try:
        folders = [ShardFolder.open(place) for place in run.data]
    except ShardError:
        return None
    weights = tuple(run.settings.get("data_weights") or ()) or (1.0,) * len(folders)
    if manifest_sum(folders, weights) != run.manifest_sha256:
        return None
    return tuple(folder.manifest for folder in folders)


def _scores(
    folder: Path, weights: Weights, step: str
) -> tuple[int | None, dict[str, dict[str, Any]]]:
    """The last validation that these weights can have had."""
    lines, _ = LineReader(folder / VALIDATION_NAME).read_new()
    last = int(step) if step.isdigit() else None
    known = [line for line in lines if last is not None and line.get("step", last + 1) <= last]
    begin = AVERAGED_SCORES if weights == "ema" else ""
    if not known:
        return None, {}
    found = {told: known[-1][begin + told] for told in ("all", "none") if begin + told in known[-1]}
    return (int(known[-1]["step"]), found) if found else (None, {})
