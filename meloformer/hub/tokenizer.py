"""HID as transformers knows tokenizers: MIDI in, ids out; ids in, MIDI out."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BatchEncoding
from transformers.utils import cached_file

from meloformer.errors import TokenError
from meloformer.hub.upload import upload
from meloformer.midi.piece import Piece
from meloformer.midi.quantise import quantise
from meloformer.midi.quantised import QuantisedPiece
from meloformer.midi.read import read_midi
from meloformer.midi.render import to_piece
from meloformer.tokens.hid import decode, encode
from meloformer.tokens.vocabulary import (
    BOS,
    EOS,
    PAD,
    VOCAB_SIZE,
    load_vocabulary,
    save_vocabulary,
    token_name,
)

VOCABULARY_NAME = "hid_vocabulary.json"
TOKENIZER_CONFIG_NAME = "tokenizer_config.json"
# What of `from_pretrained` says where a file lies.
PLACES = (
    *("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder"),
    "proxies",
)

# A MIDI file by its bytes or its path, or a piece that was read already.
Music = bytes | str | Path | Piece | QuantisedPiece


class HIDTokenizer:
    """What `AutoTokenizer` gives for a MuseFormer: it takes music, never text.

    It has what loaders of data ask of a tokenizer (`pad`, `pad_token_id`, names of inputs) and none
    of what belongs to words. The vocabulary is that of this release; another one is refused.

    >>> HIDTokenizer().convert_ids_to_tokens([0, 1])
    ['PAD', 'BOS']
    """

    model_input_names = ("input_ids", "attention_mask")
    padding_side = "right"
    pad_token, pad_token_id = "PAD", PAD
    bos_token, bos_token_id = "BOS", BOS
    eos_token, eos_token_id = "EOS", EOS
    vocab_size = VOCAB_SIZE

    def __len__(self) -> int:
        return VOCAB_SIZE

    def __call__(
        self,
        music: Music | Sequence[Music],
        *,
        padding: bool | str = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
    ) -> BatchEncoding:
        """Tokens of one piece, or of several.

        Args:
            music: a MIDI file's bytes or path, a piece, or a list of them.
            padding: fill up to the longest (True) or to `max_length` ("max_length").
            max_length: most tokens of a piece; a longer one is refused, as a cut through a bar
                would be no music.
            return_tensors: "pt" for tensors, "np" for arrays.

        Raises:
            MidiError: a file that cannot be read.
            TokenError: a piece without notes, or longer than `max_length`.
        """
        padding = False if padding == "do_not_pad" else padding
        if not isinstance(music, Sequence) or isinstance(music, str | bytes):
            ids = self.encode(music, max_length=max_length)
            if return_tensors is None and not padding:
                return BatchEncoding({"input_ids": ids, "attention_mask": [1] * len(ids)})
            several = [ids]
        else:
            several = [self.encode(one, max_length=max_length) for one in music]
        if not padding and return_tensors and len({len(ids) for ids in several}) > 1:
            raise TokenError("pieces of several lengths as a tensor: allowed: padding=True")
        rows = [{"input_ids": ids} for ids in several]
        length = max_length if padding == "max_length" else None
        return self.pad(
            rows, padding=bool(padding), max_length=length, return_tensors=return_tensors
        )

    def encode(self, music: Music, *, max_length: int | None = None) -> list[int]:
        """Ids of one piece, BOS to EOS, its prefix saying all that can be said of it."""
        if isinstance(music, str):
            music = Path(music)
        if isinstance(music, bytes | Path):
            music = read_midi(music)
        if isinstance(music, Piece):
            music = quantise(music)
        ids: list[int] = encode(music).tolist()
        if max_length is not None and len(ids) > max_length:
            raise TokenError(
                f"a piece of {len(ids)} tokens: allowed: {max_length} (max_length); cut it at bar "
                "lines with meloformer.tokens.windows.cut_window"
            )
        return ids

    def decode(self, ids: Any) -> Piece:
        """Music of a piece or of a window; padding behind it is left out.

        Raises:
            TokenError: the ids break the grammar.
        """
        found = np.asarray(ids.cpu() if isinstance(ids, torch.Tensor) else ids)
        return to_piece(decode(found[: int(np.max(np.flatnonzero(found != PAD), initial=-1)) + 1]))

    def batch_decode(self, rows: Any) -> list[Piece]:
        """Music of each row; see `decode`."""
        return [self.decode(row) for row in rows]

    def pad(
        self,
        encoded_inputs: Any,
        *,
        padding: bool | str = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        return_tensors: str | None = None,
    ) -> BatchEncoding:
        """Rows of one length, with PAD behind the shorter ones.

        Args:
            encoded_inputs: a list of mappings with `input_ids`, or a mapping of lists.
            padding: False leaves rows as they are.
            max_length: the length; that of the longest row if not given.
            pad_to_multiple_of: lengths are rounded up to such multiples.
            return_tensors: "pt" for tensors, "np" for arrays.
        """
        if not isinstance(encoded_inputs, list | tuple):
            encoded_inputs = [{"input_ids": ids} for ids in encoded_inputs["input_ids"]]
        rows = [np.asarray(one["input_ids"]).tolist() for one in encoded_inputs]
        padding = False if padding == "do_not_pad" else padding
        length = max_length or max(map(len, rows), default=0)
        if pad_to_multiple_of:
            length = -(-length // pad_to_multiple_of) * pad_to_multiple_of
        missing = [length - len(ids) if padding else 0 for ids in rows]
        fields: dict[str, Any] = {
            "input_ids": [ids + [PAD] * n for ids, n in zip(rows, missing, strict=True)],
            "attention_mask": [
                [1] * len(ids) + [0] * n for ids, n in zip(rows, missing, strict=True)
            ],
        }
        return BatchEncoding(fields, tensor_type=return_tensors)

    def get_vocab(self) -> dict[str, int]:
        """Every token's name and its id."""
        return {token_name(index): index for index in range(VOCAB_SIZE)}

    def convert_ids_to_tokens(self, ids: Any) -> Any:
        """Readable names of ids, or of one."""
        if np.ndim(ids) == 0:
            return token_name(int(ids))
        return [token_name(int(index)) for index in ids]

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """Ids of names, or of one."""
        vocabulary = self.get_vocab()
        if isinstance(tokens, str):
            return vocabulary[tokens]
        return [vocabulary[name] for name in tokens]

    def save_pretrained(
        self, save_directory: Any, push_to_hub: bool = False, **hub_options: Any
    ) -> tuple[str, ...]:
        """Write the vocabulary, and the file by which `AutoTokenizer` finds this class.

        Args:
            save_directory: made where missing.
            push_to_hub: send the folder to the hub afterwards.
            hub_options: see `hub.upload.upload`.

        Returns:
            Names of the files.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        save_vocabulary(folder / VOCABULARY_NAME)
        said = {"tokenizer_class": type(self).__name__}
        (folder / TOKENIZER_CONFIG_NAME).write_text(json.dumps(said, indent=2) + "\n")
        if push_to_hub:
            upload(folder, **{"repo_id": folder.name, **hub_options})
        return str(folder / VOCABULARY_NAME), str(folder / TOKENIZER_CONFIG_NAME)

    @classmethod
    def from_pretrained(cls, path: Any, *_: Any, **options: Any) -> "HIDTokenizer":
        """The tokenizer of a folder or of a repository of a hub, if its vocabulary is this one.

        Raises:
            TokenError: it has another vocabulary, or none.
        """
        places = {name: options[name] for name in PLACES if name in options}
        found = cached_file(
            path, VOCABULARY_NAME, _raise_exceptions_for_missing_entries=False, **places
        )
        if found is None:
            raise TokenError(
                f"{path}: found no {VOCABULARY_NAME}; allowed: a folder that launch/export.py or "
                "HIDTokenizer().save_pretrained has written"
            )
        load_vocabulary(found)
        return cls()

    def push_to_hub(self, repo_id: str, **hub_options: Any) -> str:
        """Send the vocabulary to the hub; see `hub.upload.upload`."""
        return upload(self.save_pretrained, repo_id, **hub_options)
