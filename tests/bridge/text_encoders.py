"""Text encoders for tests: a small random Qwen3 in the layout of the hub, tokenizer included."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertModel,
    PreTrainedModel,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5Model,
)

SENTENCES = (
    "A fast rock piece in E minor.",
    "A calm piano piece in D major, four beats a bar, at 72 BPM.",
    "Strings play slowly for sixteen bars.",
    "E小调的快速摇滚",
    "一首安静的钢琴曲，每分钟七十二拍，D大调。",
)
END_TOKEN = "<|endoftext|>"
WIDTH = 32


def write_tokenizer(folder: Path, *, ends_texts: bool = True) -> Tokenizer:
    """A byte-level BPE trained on the sentences, which closes each text as Qwen3's does.

    Args:
        folder: to write tokenizer.json into.
        ends_texts: the file itself says that a text ends with the end token.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator(
        SENTENCES,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=[END_TOKEN],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    if ends_texts:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"$A {END_TOKEN}", special_tokens=[(END_TOKEN, 0)]
        )
    # Files of sentence encoders carry these; whoever reads them as they are cuts texts off.
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(pad_id=0, pad_token=END_TOKEN, length=8)
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


def write_qwen3(
    folder: Path, *, ends_texts: bool = True, seed: int = 0, max_tokens: int = 128
) -> Path:
    """A Qwen3 of two layers with random weights, as a folder that the hub could have given."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = write_tokenizer(folder, ends_texts=ends_texts)
    torch.manual_seed(seed)
    model = Qwen3Model(
        Qwen3Config(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=WIDTH,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            max_position_embeddings=max_tokens,
            initializer_range=0.2,
        )
    )
    model.save_pretrained(folder)
    (folder / "1_Pooling").mkdir(exist_ok=True)
    pooling = {"pooling_mode_mean_tokens": False, "pooling_mode_lasttoken": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


def write_other(folder: Path, kind: str) -> Path:
    """A small random encoder of another kind, with nothing but model and tokenizer.

    Args:
        folder: made here.
        kind: `bert`, or `t5`, of which the encoder alone is of use.
    """
    folder.mkdir(parents=True, exist_ok=True)
    vocab_size = write_tokenizer(folder).get_vocab_size()
    torch.manual_seed(0)
    model: PreTrainedModel
    if kind == "bert":
        model = BertModel(
            BertConfig(
                vocab_size=vocab_size,
                hidden_size=WIDTH,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=64,
                max_position_embeddings=128,
            )
        )
    else:
        config = T5Config(
            vocab_size=vocab_size, d_model=WIDTH, d_kv=8, d_ff=64, num_layers=2, num_heads=4
        )
        model = T5Model(config)
    model.save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 128}))
    return folder
