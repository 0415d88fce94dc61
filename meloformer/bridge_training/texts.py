"""The texts that a bridge is trained on, as states of a text encoder."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from meloformer.bridge.encoder_folder import DEFAULT_TEXT_ENCODER
from meloformer.bridge_training.config import BridgeTrainConfig
from meloformer.errors import ConfigError
from meloformer.file_sums import sha256_of
from meloformer.progress import shown
from meloformer.training.ranks import Ranks

if TYPE_CHECKING:
    from meloformer.bridge.text_states import EncodedText, TextStatesFolder


def open_states(flags: BridgeTrainConfig, ranks: Ranks) -> tuple["TextStatesFolder", list[str]]:
    """Text states of the captions: encoded once, by the first rank, and found again later.

    Returns:
        The states, and a line for what was left out.

    Raises:
        ConfigError: captions without a text, states of other captions or of another encoder, or an
            encoder that is not there.
    """
    from meloformer.bridge.text_states import TextStatesFolder

    if flags.captions is None:
        assert flags.states is not None
        return TextStatesFolder.open(flags.states), []
    captions = flags.captions
    folder = flags.states or states_folder(captions, flags.text_encoder)
    notes = ranks.on_first(
        lambda: _encode(captions, folder, flags.text_encoder, ranks.device, flags.languages),
        is_long=True,
    )
    return TextStatesFolder.open(folder), notes


def states_folder(captions: Path, text_encoder: str) -> Path:
    """Where the states of captions lie if nobody says: beside them, named after the encoder."""
    encoder = re.sub(r"[^A-Za-z0-9.]+", "-", Path(text_encoder).name)
    return captions.with_name(f"{captions.stem}-{encoder}")


def caption_texts(captions: Path, languages: Sequence[str] = ()) -> Iterator["EncodedText"]:
    """Every caption of every window, in the order of the file.

    Args:
        captions: captions.jsonl.
        languages: captions of others are left out; none are if none is given.

    Raises:
        ConfigError: see `read_captions`.
    """
    from meloformer.bridge.text_states import EncodedText
    from meloformer.captions.caption_set import read_captions

    for window in read_captions(captions):
        for language, sentences in window.captions.items():
            if languages and language not in languages:
                continue
            for sentence in sentences:
                yield EncodedText(
                    text=sentence,
                    language=language,
                    split=window.split,
                    key=window.key,
                    first_bar=window.first_bar,
                    last_bar=window.last_bar,
                )


def _encode(
    captions: Path,
    folder: Path,
    text_encoder: str,
    device: torch.device,
    languages: Sequence[str],
) -> list[str]:
    from meloformer.bridge.text_encoder import TextEncoder
    from meloformer.bridge.text_states import find_or_write_states

    if not captions.is_file():
        raise ConfigError(
            f"--captions {captions}: no such file; allowed: captions.jsonl; make one with "
            "launch/caption.py"
        )
    if next(caption_texts(captions), None) is None:
        raise ConfigError(
            f"--captions {captions}: found no text; allowed: at least one caption for half of the "
            "training windows; make some with launch/caption.py"
        )
    encoder = TextEncoder.load(text_encoder, device)
    # What is encoded depends on captions and encoder alone: other --languages find it again.
    readable = ("en",) if encoder.settings.reads_english_only else ()
    if readable and languages and not set(languages) & set(readable):
        raise ConfigError(
            f"--languages {' '.join(languages)} with --text_encoder {text_encoder}, which reads "
            f"English alone; allowed: en, or --text_encoder {DEFAULT_TEXT_ENCODER}"
        )
    with shown(f"encoding captions with {encoder.name}", "texts") as tell:
        total = 0

        def texts() -> Iterator["EncodedText"]:
            nonlocal total
            total = sum(1 for _ in caption_texts(captions, readable))
            yield from caption_texts(captions, readable)

        find_or_write_states(
            encoder,
            texts,
            folder,
            captions_sha256=sha256_of(captions),
            tell=lambda done: tell(done, total),
        )
    del encoder
    if device.type == "cuda":
        torch.cuda.empty_cache()
    # Not said where nobody wanted any other, or there is none.
    wanted = caption_texts(captions, languages) if readable else iter(())
    if all(text.language in readable for text in wanted):
        return []
    return [f"{text_encoder} reads English alone: captions in other languages are left out"]
