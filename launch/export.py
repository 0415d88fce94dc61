"""Turn a run into a folder that others can load, with transformers or without.

    python launch/export.py --checkpoint runs/<name> --output <folder> --licence cc-by-4.0
    python launch/export.py --checkpoint runs/<name> --weights ema --output <folder>
    python launch/export.py --checkpoint runs/<name>/checkpoints/step-1000 --output <folder>
    python launch/export.py --checkpoint runs/<name> --output <folder> --onnx

Writes config.json, model.safetensors, the vocabulary, tokenizer_config.json and a model card that
says what the run knows: data and their licences, settings, nats. The folder is loaded again and its
logits are compared; nothing is written over. --onnx adds the decoding step as two graphs, compared
with the model through onnxruntime (extra `onnx`). Then `hf upload owner/name <folder>` shares it.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from meloformer.bridge.base_folder import find_base
from meloformer.command_line import run_recipe
from meloformer.model.weights import Weights


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Flags of launch/export.py.

    Args:
        output: folder to be made.
        checkpoint: run folder, step folder or model folder; the newest run if not given.
        weights: those of the last step, or the moving average of a run trained with --ema.
        name: of the model, for its card; that of the folder if not given.
        licence: of the weights, as model hubs spell it, such as apache-2.0 or cc-by-nc-4.0.
        onnx: write the decoding step as graphs too, for runtimes without torch.
    """

    output: Path
    checkpoint: Path | None = None
    weights: Weights = "raw"
    name: str | None = None
    licence: str | None = None
    onnx: bool = False


def main(config: ExportConfig) -> None:
    """Find, write, load again, compare."""
    # No address is looked up for a folder that lies here; transformers reads it when it is loaded.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers.utils import logging

    from meloformer.hub.export import check_output_folder, export_folder

    logging.disable_progress_bar()

    check_output_folder(config.output)
    source = find_base(config.checkpoint, config.weights)
    done = export_folder(
        source, config.output, name=config.name, licence=config.licence, onnx=config.onnx
    )
    console = Console(markup=False, soft_wrap=True)
    for path in sorted(path for path in done.folder.rglob("*") if path.is_file()):
        console.print(f"{path}: {path.stat().st_size:,} bytes")
    console.print(f"from {source}; loaded again, {done.num_probed:,} logits equal to the last bit")
    if done.onnx_difference is not None:
        console.print(f"ONNX: logits of every step within {done.onnx_difference:.1g} of torch's")
    if done.keeps_card:
        console.print("the card is that which the folder has; a new one: --name or --licence")
    elif config.licence is None:
        console.print("the card says that nobody has told the licence of the weights: --licence")


if __name__ == "__main__":
    run_recipe(main, ExportConfig)
