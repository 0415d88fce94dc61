"""MuseFormer as transformers knows models: the same weights, the same logits, our own sampling."""

from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput
from transformers.utils import cached_file

from meloformer.batches.batch import IGNORE_INDEX
from meloformer.errors import CheckpointError, GenerationError, TokenError
from meloformer.generation.wishes import sample_pieces
from meloformer.hub.config import MuseFormerConfig
from meloformer.hub.inputs import batch_of, targets_of
from meloformer.hub.tokenizer import PLACES, HIDTokenizer
from meloformer.hub.upload import upload
from meloformer.midi.piece import Piece
from meloformer.model import config as model_config
from meloformer.model.attention import build_plan
from meloformer.model.masks import rule_of
from meloformer.model.museformer import MuseFormer
from meloformer.model.weights import WEIGHTS_NAME, load_model, model_metadata, save_model
from meloformer.shards.manifest import CARD_NAME
from meloformer.tokens.vocabulary import check_fingerprint, fingerprint


class MuseFormerForCausalLM(PreTrainedModel):
    """What `AutoModelForCausalLM` gives for a MuseFormer.

    Attention is the dense one on every device, which is the oracle of the sparse kernel; training
    at speed is launch/train.py's.

    Attributes:
        museformer: the model itself.
        facts: strings of the weights' header, such as the step of the run.
        card: text of the model card that lay beside the weights; empty where none did.
    """

    config_class = MuseFormerConfig
    base_model_prefix = "museformer"
    main_input_name = "input_ids"
    _no_split_modules = ["Layer"]

    def __init__(self, config: MuseFormerConfig) -> None:
        super().__init__(config)
        self.museformer = MuseFormer(config.model)
        self.facts: dict[str, str] = {}
        self.card = ""
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        # Its layers are drawn as one; transformers would draw them by rules of its own.
        if isinstance(module, MuseFormer):
            module.reset_parameters()

    @classmethod
    def of(cls, model: MuseFormer, facts: dict[str, str] | None = None) -> "MuseFormerForCausalLM":
        """A model that is loaded already; weights are shared.

        Args:
            model: ours.
            facts: strings for the header of the weights.
        """
        with torch.device("meta"):
            wrapped = cls(MuseFormerConfig.of(model.config))
        wrapped.museformer, wrapped.facts = model, dict(facts or {})
        return wrapped.train(model.training)

    @classmethod
    def of_folder(cls, folder: Path, device: str = "cpu") -> "MuseFormerForCausalLM":
        """The model of a run's model folder, in evaluation mode; see `model.weights.load_model`."""
        return cls.of(load_model(folder, device), model_metadata(folder))

    @classmethod
    def from_pretrained(  # type: ignore[override]  # the same, without a list of all options
        cls, path: Any, *arguments: Any, **options: Any
    ) -> Any:
        """Load a folder or a repository of a hub, in evaluation mode.

        Args:
            path: folder, or `owner/name`.
            arguments: of transformers.
            options: of transformers, such as `dtype`, `device_map` and `revision`.

        Raises:
            CheckpointError: tensors are missing or left over.
            TokenError: weights of another vocabulary.
        """
        places = {name: options[name] for name in PLACES if name in options}
        weights = cached_file(path, WEIGHTS_NAME, **places)
        assert weights is not None, "raises where it finds none"
        facts = model_metadata(Path(weights).parent)
        check_fingerprint(facts.get("tokenizer", "none"), str(path))
        wants_info = options.pop("output_loading_info", False)
        loaded: Any = super().from_pretrained(path, *arguments, output_loading_info=True, **options)
        model, info = loaded
        wrong = sorted(
            str(key) for kind in ("missing_keys", "unexpected_keys") for key in info[kind]
        )
        if wrong:
            raise CheckpointError(
                f"{path}: {len(wrong)} tensors do not fit, first {wrong[0]}; the weights belong to "
                "another model"
            )
        model.facts = facts
        card = cached_file(path, CARD_NAME, _raise_exceptions_for_missing_entries=False, **places)
        # Words beside the weights, of whatever making, are no reason to refuse them.
        model.card = Path(card).read_text(encoding="utf-8", errors="replace") if card else ""
        return (model, info) if wants_info else model

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: Any,
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        push_to_hub: bool = False,
        max_shard_size: int | str | None = None,
        **hub_options: Any,
    ) -> None:
        """Write config.json, model.safetensors, and the card where there is one.

        The folder is one that every recipe takes as `--checkpoint`.

        Args:
            save_directory: made where missing.
            is_main_process: others write nothing.
            state_dict: this model's; its own if not given.
            push_to_hub: send the folder to the hub afterwards.
            max_shard_size: of no effect, as recipes read one file of weights.
            hub_options: see `hub.upload.upload`.
        """
        if not is_main_process:
            return
        folder, prefix = Path(save_directory), f"{self.base_model_prefix}."
        state = self.state_dict() if state_dict is None else state_dict
        save_model(
            folder,
            self.settings,
            {name.removeprefix(prefix): tensor for name, tensor in state.items()},
            {"tokenizer": fingerprint(), **_others(self.facts)},
        )
        if self.card:
            (folder / CARD_NAME).write_text(self.card, encoding="utf-8")
        if push_to_hub:
            upload(folder, **{"repo_id": folder.name, **hub_options})

    def push_to_hub(  # type: ignore[override]
        self, repo_id: str, **options: Any
    ) -> str:
        """Send weights, settings, vocabulary and card to the hub; see `hub.upload.upload`."""

        def write(folder: Path) -> None:
            self.save_pretrained(folder)
            HIDTokenizer().save_pretrained(folder)

        return upload(write, repo_id, **options)

    @property
    def settings(self) -> model_config.MuseFormerConfig:
        """What the weights compute."""
        return self.museformer.config

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        attention_mask: Tensor | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> CausalLMOutput | tuple[Tensor, ...]:
        """Logits of the next token, and the mean loss.

        Args:
            input_ids: (B, T); see `hub.inputs.batch_of`.
            labels: (B, T) the same ids, -100 where nothing is to be predicted. They are shifted
                here. Padding, and the first token of each piece, never count.
            attention_mask: (B, T), 0 at padding; not needed where padding is PAD.
            return_dict: False for a tuple.
            num_items_in_batch: what the sum of losses is divided by; the targets if not given.

        Returns:
            `loss` where there are labels, and `logits` (B, T, V).

        Raises:
            TokenError: ids that are no rows of tokens, or labels of another shape.
        """
        batch = batch_of(input_ids, attention_mask)
        if labels is not None and labels.shape != input_ids.shape:
            raise TokenError(
                f"labels of shape {tuple(labels.shape)}; allowed: that of input_ids, "
                f"{tuple(input_ids.shape)}"
            )
        device = self.museformer.token_embedding.weight.device
        moved = batch.to(device)
        plan_layout = moved.layout
        if not self.settings.summaries:
            plan_layout = plan_layout.without_summaries()
        plan = build_plan(plan_layout, rule_of(self.settings.rule))
        logits_BTV = self.museformer(moved.ids_BT, moved.layout, plan)[:, : input_ids.shape[1]]
        loss = None
        if labels is not None:
            targets_BT = targets_of(batch, labels.cpu()).to(device)[:, : input_ids.shape[1]]
            losses = F.cross_entropy(
                logits_BTV.flatten(0, 1).float(),
                targets_BT.flatten(),
                ignore_index=IGNORE_INDEX,
                reduction="sum",
            )
            count = num_items_in_batch
            loss = losses / ((targets_BT != IGNORE_INDEX).sum() if count is None else count)
        if return_dict is False:
            return (logits_BTV,) if loss is None else (loss, logits_BTV)
        return CausalLMOutput(loss=loss, logits=logits_BTV)

    def get_input_embeddings(self) -> nn.Embedding:
        """The token embedding, which is the head as well."""
        return self.museformer.token_embedding

    def generate_piece(self, *, seed: int = 0, **wishes: Any) -> Piece:
        """Sample a piece under the grammar, with cached keys and values.

        Args:
            seed: the same seed gives the same piece on the same device.
            wishes: see `generation.wishes.sample_pieces`.

        Raises:
            GenerationError: a wish that cannot be fulfilled.
        """
        return self.generate_pieces(1, seed=seed, **wishes)[0]

    def generate_pieces(self, count: int, *, seed: int = 0, **wishes: Any) -> list[Piece]:
        """Several at once; the first is that of `generate_piece`."""
        return sample_pieces(self.museformer, count=count, seed=seed, **wishes)

    def generate(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse: transformers' sampling knows no grammar, and what it draws does not decode.

        Raises:
            GenerationError: always.
        """
        raise GenerationError(
            "generate of transformers knows no grammar, and what it samples is no music; allowed: "
            "model.generate_piece(bars=16, tempo=120), which samples under it and gives a Piece"
        )


def _others(facts: dict[str, str]) -> dict[str, str]:
    """What a header of weights says besides what it always says."""
    return {name: value for name, value in facts.items() if name not in ("format", "tokenizer")}
