"""Write a piece on summaries from a file, such as launch/inference_diffusion_bridge.py writes it.

python launch/inject_museformer.py --checkpoint runs/<name> --summaries summary_tokens.pt
--strategy blend --alpha 0.7 --output out.mid

python launch/inject_museformer.py --summaries summary_tokens.pt --strategy replace --bars 64
--num_samples 4 --seed 1 --tempo 120 --instruments 0 drums

The file holds one tensor (bars, width) in the scale of the model's own summaries after layer 3;
nothing in it is executed. alpha is the weight of the injected summaries, 1 replaces. --strategy
adapter takes --adapter runs/<adapter>; a file does not say which bridge has made it, so that alone
is not checked.
"""

from dataclasses import dataclass, field
from pathlib import Path

from meloformer.bridge.summarising import MAX_BARS
from meloformer.bridge.text_to_summaries import load_summaries
from meloformer.command_line import run_recipe
from meloformer.generation.injecting import InjectingConfig
from meloformer.generation.text import check_reads_summaries, order_of_summaries
from meloformer.generation.writing import WritingConfig, load_writer, write_orders
from meloformer.model.device import choose_device
from meloformer.model.weights import model_fingerprint


@dataclass(frozen=True, kw_only=True)
class InjectMuseformerConfig:
    """Flags of launch/inject_museformer.py.

    Args:
        summaries: the file; one summary a bar, and as many bars if --bars does not ask for fewer.
        injecting: what they do to the model's own.
        writing: which model writes, how, how much and where to.
    """

    summaries: Path
    injecting: InjectingConfig = field(default_factory=InjectingConfig)
    writing: WritingConfig = field(default_factory=WritingConfig)


def main(config: InjectMuseformerConfig) -> None:
    """Load both, inject, sample, write."""
    model, folder = load_writer(config.writing)
    check_reads_summaries(model)
    fingerprint = model_fingerprint(folder) if config.injecting.adapter else ""
    injecting = config.injecting.load(fingerprint, choose_device(config.writing.device))
    summaries_SD = load_summaries(config.summaries, model.config.width, MAX_BARS)
    title = f"on {config.summaries.name}"
    order = order_of_summaries(injecting, config.writing.controls, summaries_SD, title)
    write_orders(config.writing, model, [order])


if __name__ == "__main__":
    run_recipe(main, InjectMuseformerConfig)
