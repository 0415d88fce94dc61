"""Attribute heads for the texts of a caption set, and for what its music has no example of."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from meloformer.bridge.attribute_heads import (
    FORMAT_VERSION,
    AttributeHeads,
    AttributeHeadsConfig,
)
from meloformer.bridge.text_encoder import TextEncoder, TextStates
from meloformer.bridge.text_states import EncodedText, TextStatesFolder, find_or_write_states
from meloformer.bridge_training.attribute_sentences import AttributeSentence, random_sentences
from meloformer.bridge_training.attribute_training import (
    HeadTargets,
    HeadTraining,
    score_heads,
    train_heads,
)
from meloformer.bridge_training.heads_cache import find_heads, keep_heads
from meloformer.captions.caption_set import read_captions, read_facts
from meloformer.captions.patterns import LANGUAGES, split_patterns
from meloformer.errors import ConfigError
from meloformer.file_sums import sha256_of
from meloformer.progress import shown
from meloformer.tokens import vocabulary


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

    @property
    def lengths(self) -> np.ndarray:
        """(N,) tokens of each text."""
        folders = {id(folder): folder for folder, _ in self._places}
        lengths = {name: folder.lengths for name, folder in folders.items()}
        return np.array([lengths[id(folder)][index] for folder, index in self._places])

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


class HeadsOfCaptions(NamedTuple):
    """Heads for the texts of a caption set.

    Args:
        heads: in evaluation mode.
        scores: on captions of validation pieces, see `score_heads`; none where there are no such
            captions.
        note: what somebody should know of how they were had; empty if nothing.
    """

    heads: AttributeHeads
    scores: dict[str, float]
    note: str


def heads_of_captions(
    states: TextStatesFolder,
    captions: Path,
    load_encoder: Callable[[], TextEncoder] | None,
    *,
    seed: int,
    config: HeadsOfCaptionsConfig | None = None,
    device: torch.device | str = "cpu",
) -> HeadsOfCaptions:
    """Attribute heads for a bridge, trained once for a caption set; one process alone.

    They follow from captions, encoder, seed and settings, and lie beside the states for the next
    bridge that asks for the same. So do the states of the sentences about random attributes.

    Args:
        states: of the captions; texts of further languages may be left out.
        captions: captions.jsonl.
        load_encoder: gives the encoder of the states, where there is something to encode; None
            trains on captions alone.
        seed: of what is drawn, and of the heads.
        config: what they are trained on; the defaults if not given.
        device: where they are trained.

    Raises:
        ConfigError: the states are of other captions or another encoder, or no caption is there of
            which it is known what it says.
    """
    config = config or HeadsOfCaptionsConfig()
    config = replace(config, training=replace(config.training, seed=seed))
    heads_config = AttributeHeadsConfig(
        text_width=states.width, encoder_fingerprint=states.encoder["fingerprint"]
    )
    random_ones = (
        [] if load_encoder is None else _random_sentences(states, captions, config.sentences, seed)
    )
    fingerprint = _fingerprint(states, captions, random_ones, heads_config, config)
    kept = states.path.with_name(f"{states.path.name}-heads-{fingerprint[:8]}")
    if found := find_heads(kept, fingerprint, states.encoder["fingerprint"]):
        return HeadsOfCaptions(*found, f"attribute heads: those of {kept}, of the same captions")

    known = _known_captions(states, captions)
    train, valid = (
        _drawn([caption for caption in known if caption[0] == split], most, seed)
        for split, most in (("train", config.captions), ("valid", config.scored))
    )
    parts: list[tuple[TextStatesFolder, Sequence[int]]] = [
        (states, [index for _, index, _ in train])
    ]
    sentences = [sentence for _, _, sentence in train]
    if load_encoder is not None and random_ones:
        encoder = load_encoder()
        check_encoder(states, encoder)
        # A few name more than a small encoder takes at once.
        readable = [sentence for sentence in random_ones if encoder.can_read(sentence.text)]
        if readable:
            folder = _states_of(readable, encoder, states.path)
            parts.append((folder, range(len(readable))))
            sentences += readable
    if not sentences:
        raise ConfigError(
            f"{captions}: found no caption of a training piece of which it is known what it says; "
            "allowed: captions of launch/caption.py; or train without attribute heads"
        )
    with shown(f"training attribute heads on {len(sentences):,} texts", "steps") as tell:
        heads = train_heads(
            JoinedStates(parts),
            _targets(sentences),
            heads_config,
            config.training,
            device=device,
            tell=tell,
        )
    scores = {}
    if valid:
        scored = JoinedStates([(states, [index for _, index, _ in valid])])
        scores = score_heads(heads, scored, _targets([sentence for _, _, sentence in valid]))
    try:
        keep_heads(kept, fingerprint, heads, scores)
    except OSError as error:
        note = f"attribute heads: {kept} cannot be written ({error.strerror}); another bridge on "
        return HeadsOfCaptions(heads, scores, f"{note}these captions will train them again")
    return HeadsOfCaptions(heads, scores, "")


def check_encoder(states: TextStatesFolder, encoder: TextEncoder) -> None:
    """Refuse another encoder than that of the states.

    Raises:
        ConfigError: names both.
    """
    if encoder.fingerprint != states.encoder["fingerprint"]:
        raise ConfigError(
            f"{states.path}: found states of the text encoder {states.encoder['name']}, expected "
            f"those of {encoder.name}; give --text_encoder {states.encoder['name']}"
        )


def _fingerprint(
    states: TextStatesFolder,
    captions: Path,
    random_ones: Sequence[AttributeSentence],
    heads_config: AttributeHeadsConfig,
    config: HeadsOfCaptionsConfig,
) -> str:
    """Sum over all that the heads follow from."""
    texts = "\n".join(sentence.text for sentence in random_ones)
    made_of = {
        "format": FORMAT_VERSION,
        "vocabulary": vocabulary.fingerprint(),
        "captions": sha256_of(captions),
        "states": [states.captions_sha256, states.encoder["dtype"], len(states)],
        "sentences": hashlib.sha256(texts.encode()).hexdigest(),
        "heads": asdict(heads_config),
        "config": asdict(config),
    }
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


def _random_sentences(
    states: TextStatesFolder, captions: Path, count: int, seed: int
) -> list[AttributeSentence]:
    """Sentences about random attributes, in the languages of the states."""
    languages = sorted({text.language for text in states.texts if text.language in LANGUAGES})
    return [
        sentence
        for language in languages
        for sentence in _sentences_for_training(captions, language, count, seed)
    ]


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
    with shown("encoding sentences about random attributes", "texts") as tell:
        return find_or_write_states(
            encoder,
            lambda: (EncodedText(text=s.text, language=s.language) for s in sentences),
            beside.with_name(f"{beside.name}-sentences-{digest.hexdigest()[:8]}"),
            captions_sha256=digest.hexdigest(),
            tell=lambda done: tell(done, len(sentences)),
        )


def _targets(sentences: Sequence[AttributeSentence]) -> HeadTargets:
    return HeadTargets.of(
        [sentence.attributes for sentence in sentences],
        [sentence.mentions or [] for sentence in sentences],
    )
