"""Attribute heads for the texts of a caption set, and for what its music has no example of."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from meloformer.bridge.attribute_heads import AttributeHeads, AttributeHeadsConfig
from meloformer.bridge.text_encoder import TextEncoder, TextStates
from meloformer.bridge.text_states import EncodedText, TextStatesFolder, find_or_write_states
from meloformer.bridge_training.attribute_sentences import AttributeSentence, random_sentences
from meloformer.bridge_training.attribute_training import (
    HeadTargets,
    HeadTraining,
    score_heads,
    train_heads,
)
from meloformer.captions.caption_set import read_captions, read_facts
from meloformer.captions.patterns import LANGUAGES, split_patterns
from meloformer.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class HeadsOfCaptionsConfig:
    """What the heads are trained on.

    Args:
        captions: most captions of training pieces, drawn by the seed where there are more.
        sentences: about random attributes, of each language; 0 trains on captions alone.
        scored: most captions of validation pieces to score the heads on.
        training: see `HeadTraining`.
    """

    captions: int = 4000
    sentences: int = 3000
    scored: int = 1000
    training: HeadTraining = field(default_factory=HeadTraining)


class JoinedStates:
    """Some texts of several folders, one after the other.

    Args:
        parts: folders, and which texts of each.
    """

    def __init__(self, parts: Sequence[tuple[TextStatesFolder, Sequence[int]]]) -> None:
        self._places = [(folder, index) for folder, indices in parts for index in indices]

    def __len__(self) -> int:
        return len(self._places)

    def batch(self, indices: Sequence[int]) -> TextStates:
        """States of some of them, in the order asked for."""
        wanted = [self._places[index] for index in indices]
        rows: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        for folder in {id(folder): folder for folder, _ in wanted}.values():
            of_folder = [row for row, (other, _) in enumerate(wanted) if other is folder]
            states = folder.batch([wanted[row][1] for row in of_folder])
            for place, row in enumerate(of_folder):
                length = int(states.mask_BL[place].sum())  # filled up behind
                rows[row] = states.states_BLW[place, :length], states.pooled_BW[place]
        return TextStates.of_rows([rows[row] for row in range(len(wanted))])


def heads_of_captions(
    states: TextStatesFolder,
    captions: Path,
    encoder: TextEncoder | None,
    *,
    seed: int,
    config: HeadsOfCaptionsConfig | None = None,
    device: torch.device | str = "cpu",
) -> tuple[AttributeHeads, dict[str, float]]:
    """Train attribute heads beside a bridge; one process alone.

    The sentences about random attributes are encoded once and lie beside the states.

    Args:
        states: of the captions; texts of further languages may be left out.
        captions: captions.jsonl.
        encoder: the one of the states; None trains on captions alone.
        seed: of what is drawn, and of the heads.
        config: what they are trained on; the defaults if not given.
        device: where they are trained.

    Returns:
        The heads, and their scores on captions of validation pieces, see `score_heads`; none where
        there are no such captions.

    Raises:
        ConfigError: the states are of other captions or another encoder, or no caption is there of
            which it is known what it says.
    """
    config = config or HeadsOfCaptionsConfig()
    if encoder is not None and encoder.fingerprint != states.encoder["fingerprint"]:
        raise ConfigError(
            f"{states.path}: found states of the text encoder {states.encoder['name']}, expected "
            f"those of {encoder.name}; give --text_encoder {states.encoder['name']}"
        )
    found = _known_captions(states, captions)
    train, valid = (
        _drawn([caption for caption in found if caption[0] == split], most, seed)
        for split, most in (("train", config.captions), ("valid", config.scored))
    )
    parts: list[tuple[TextStatesFolder, Sequence[int]]] = [
        (states, [index for _, index, _ in train])
    ]
    sentences = [sentence for _, _, sentence in train]
    if encoder is not None and config.sentences:
        languages = sorted({text.language for text in states.texts if text.language in LANGUAGES})
        drawn = chain.from_iterable(
            _sentences_for_training(captions, language, config.sentences, seed)
            for language in languages
        )
        # A few name more than a small encoder takes at once.
        random_ones = [sentence for sentence in drawn if encoder.can_read(sentence.text)]
        if random_ones:
            folder = _states_of(random_ones, encoder, states.path)
            parts.append((folder, range(len(random_ones))))
            sentences += random_ones
    if not sentences:
        raise ConfigError(
            f"{captions}: found no caption of a training piece of which it is known what it says; "
            "allowed: captions of launch/caption.py; or train without attribute heads"
        )
    heads = train_heads(
        JoinedStates(parts),
        _targets(sentences),
        AttributeHeadsConfig(
            text_width=states.width, encoder_fingerprint=states.encoder["fingerprint"]
        ),
        config.training,
        device=device,
    )
    if not valid:
        return heads, {}
    scored = JoinedStates([(states, [index for _, index, _ in valid])])
    return heads, score_heads(heads, scored, _targets([sentence for _, _, sentence in valid]))


def _known_captions(
    states: TextStatesFolder, captions: Path
) -> list[tuple[str, int, AttributeSentence]]:
    """(split, number among the states, sentence) of every caption whose content is known."""
    windows = states.windows()
    found = []
    for window in read_captions(captions):
        numbers = {
            (states.texts[number].language, states.texts[number].text): number
            for number in windows.get(window.name, [])
        }
        for language, texts in window.captions.items():
            for text, mentions in zip(texts, window.mentions[language], strict=True):
                number = numbers.get((language, text))
                if number is not None and mentions is not None:
                    sentence = AttributeSentence(text, language, window.attributes, mentions)
                    found.append((window.split, number, sentence))
    return found


def _drawn(captions: list[Any], most: int, seed: int) -> list[Any]:
    if len(captions) <= most:
        return captions
    chosen = np.random.default_rng(seed).permutation(len(captions))[:most]
    return [captions[index] for index in np.sort(chosen)]


def _sentences_for_training(
    captions: Path, language: str, count: int, seed: int
) -> Iterator[AttributeSentence]:
    """None of the patterns that are kept for the judge."""
    held_out = read_facts(captions).get("held_out_templates", {}).get(language, [])
    patterns, _ = split_patterns(language, held_out)
    return islice(random_sentences(count, language, seed, patterns), count)


def _states_of(
    sentences: Sequence[AttributeSentence], encoder: TextEncoder, beside: Path
) -> TextStatesFolder:
    digest = hashlib.sha256("\n".join(sentence.text for sentence in sentences).encode())
    return find_or_write_states(
        encoder,
        lambda: (EncodedText(text=s.text, language=s.language) for s in sentences),
        beside.with_name(f"{beside.name}-sentences-{digest.hexdigest()[:8]}"),
        captions_sha256=digest.hexdigest(),
    )


def _targets(sentences: Sequence[AttributeSentence]) -> HeadTargets:
    return HeadTargets.of(
        [sentence.attributes for sentence in sentences],
        [sentence.mentions or [] for sentence in sentences],
    )
