"""From a run to a folder that others can load: copied aside, loaded again, compared, renamed."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from meloformer.errors import CheckpointError, ConfigError
from meloformer.hub.card import model_card
from meloformer.hub.modeling import MuseFormerForCausalLM
from meloformer.hub.onnx_decoder import FOLDER_NAME
from meloformer.hub.onnx_files import check_installed, write_onnx
from meloformer.hub.probe import probe_ids
from meloformer.hub.run_facts import RunFacts, run_facts
from meloformer.hub.tokenizer import HIDTokenizer
from meloformer.model.weights import WEIGHTS_NAME, load_model, model_fingerprint
from meloformer.shards.manifest import CARD_NAME
from meloformer.training.checkpoint import MANIFEST_NAME, rename_whole


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written.

    Args:
        folder: where.
        source: the model folder that it is of.
        facts: of its run.
        num_probed: logits that were compared, each equal to the last bit.
        keeps_card: the card is that of the source, word for word.
        onnx_difference: the largest between logits of the graphs and the model's; None without.
    """

    folder: Path
    source: Path
    facts: RunFacts
    num_probed: int
    keeps_card: bool
    onnx_difference: float | None = None


def check_output_folder(output: Path) -> None:
    """Refuse to write over anything.

    Raises:
        ConfigError: something stands there.
    """
    if output.exists() or output.is_symlink():
        raise ConfigError(
            f"--output {output}: found something there already; allowed: a folder that does not "
            "exist yet; name another one, or move that one away"
        )


def export_folder(
    source: Path,
    output: Path,
    *,
    name: str | None = None,
    licence: str | None = None,
    onnx: bool = False,
) -> Exported:
    """Write weights, settings, vocabulary and card, whole or not at all.

    Args:
        source: a model folder, as `bridge.base_folder.find_base` finds it.
        output: folder to be made.
        name: of the model, for its card; that of the folder if not given.
        licence: of the weights; see `model_card`. A folder without a run that has a card keeps it
            where neither is given.
        onnx: write the decoding step as graphs too; see `onnx_files.write_onnx`.

    Raises:
        ConfigError: something stands at the output, or it cannot be written.
        CheckpointError: the weights are not those that their checkpoint was sealed with, or the
            folder did not load as what it was made of.
    """
    check_output_folder(output)
    if onnx:
        check_installed()
    _check_sealed(source)
    model = MuseFormerForCausalLM.of_folder(source)
    facts = run_facts(source)
    card = source / CARD_NAME
    if facts.run is None and card.is_file() and not (name or licence):
        # The model in the box, or what was exported before: no run is near that knows more.
        model.card, keeps_card = card.read_text(encoding="utf-8", errors="replace"), True
    else:
        model.card = model_card(name or output.name, model.settings, facts, licence=licence)
        keeps_card = False
    # No name that a folder of the user's may have, such as .ssh beside ssh: it is emptied first.
    aside = output.with_name(f".{output.name}.unfinished")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        model.save_pretrained(aside)
        HIDTokenizer().save_pretrained(aside)
        num_probed = check_same(aside, model)
        difference = None
        if onnx:
            difference = write_onnx(load_model(aside).float(), aside / FOLDER_NAME)
        check_output_folder(output)
        rename_whole(aside, output)
    except OSError as error:
        raise ConfigError(
            f"--output {output}: cannot be written ({error}); allowed: a disk with room"
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return Exported(
        folder=output,
        source=source,
        facts=facts,
        num_probed=num_probed,
        keeps_card=keeps_card,
        onnx_difference=difference,
    )


def check_same(folder: Path, model: MuseFormerForCausalLM) -> int:
    """Load a folder as others will and compare its logits with a model's.

    Returns:
        Logits compared.

    Raises:
        CheckpointError: it does not load as a MuseFormer, or one logit differs.
    """
    again = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if not (isinstance(again, MuseFormerForCausalLM) and isinstance(tokenizer, HIDTokenizer)):
        raise CheckpointError(
            f"{folder}: loads as {type(again).__name__} with {type(tokenizer).__name__}; expected "
            "a MuseFormer with HID; has something else registered model type museformer?"
        )
    ids_BT = probe_ids()
    with torch.no_grad():
        found, expected = again(ids_BT).logits, model(ids_BT).logits
    if not torch.equal(found, expected):
        raise CheckpointError(
            f"{folder}: its logits differ from the run's by up to "
            f"{(found - expected).abs().max().item():g}; expected the same to the last bit; is the "
            "disk sound?"
        )
    return found.numel()


def _check_sealed(source: Path) -> None:
    """Of a checkpoint, compare the weights with the sum that it was sealed with."""
    manifest = source.parent / MANIFEST_NAME
    if not manifest.is_file():
        return
    try:
        files: dict[str, Any] = json.loads(manifest.read_text())["files"]
        expected = files[f"{source.name}/{WEIGHTS_NAME}"]["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{manifest}: cannot be read ({error!r}); expected the sums of a checkpoint; take "
            "another one"
        ) from error
    found = model_fingerprint(source)
    if found != expected:
        raise CheckpointError(
            f"{source / WEIGHTS_NAME}: found sha256 {found}, expected {expected}; the checkpoint "
            "is damaged: take another one"
        )
