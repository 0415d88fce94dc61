"""MuseFormer's settings as transformers knows settings: a view of model/config.py, no second list.

config.json is written and read by the settings' own class, so a folder saved here is a model folder
for every recipe, and a run's model folder opens here.
"""

from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from meloformer.errors import ConfigError
from meloformer.hub.upload import upload
from meloformer.model import config as model_config
from meloformer.model.rules import parse_rule, rule_to_json

_SETTINGS = tuple(field.name for field in fields(model_config.MuseFormerConfig))
_OF_TRANSFORMERS = {field.name for field in fields(PreTrainedConfig)}
# Options of `from_pretrained` that transformers hands to settings without a field of that name.
_UNDECLARED = ("torch_dtype", "attn_implementation")


class MuseFormerConfig(PreTrainedConfig):
    """What `AutoConfig` gives for a MuseFormer.

    Args:
        settings: of `model.config.MuseFormerConfig`, the rule as config.json has it; those of
            transformers besides.

    Raises:
        ConfigError: a setting that neither knows, such as a newer release's.
    """

    model_type = "museformer"
    # Transformers builds an empty one to learn defaults; ours have their home in another class.
    has_no_defaults_at_init = True
    attribute_map = {
        "hidden_size": "width",
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads",
        "num_key_value_heads": "num_kv_heads",
        "intermediate_size": "ffn_width",
        "max_position_embeddings": "max_seq_len",
    }

    def __init__(self, **settings: Any) -> None:
        own = {name: settings.pop(name) for name in _SETTINGS if name in settings}
        settings.pop("model_type", None)
        unknown = {name for name in settings if name[0] != "_" and not _is_foreign(name)}
        if unknown:
            raise ConfigError(
                f"settings of a MuseFormer: found the unknown {', '.join(sorted(unknown))}; "
                f"allowed: {', '.join(_SETTINGS)}; was it written by a newer version?"
            )
        for name, value in _resolved(own).items():
            setattr(self, name, value)
        super().__init__(**settings)

    @classmethod
    def of(cls, settings: model_config.MuseFormerConfig) -> "MuseFormerConfig":
        """The view of these settings."""
        return cls(**_plain(settings))

    @property
    def model(self) -> model_config.MuseFormerConfig:
        """The settings themselves."""
        return _built({name: getattr(self, name) for name in _SETTINGS})

    def to_dict(self) -> dict[str, Any]:
        """What config.json holds."""
        return {"model_type": self.model_type, **_plain(self.model)}

    def to_diff_dict(self) -> dict[str, Any]:
        """The same: config.json is whole."""
        return self.to_dict()

    def save_pretrained(
        self, save_directory: Any, push_to_hub: bool = False, **hub_options: Any
    ) -> None:
        """Write config.json.

        Args:
            save_directory: made where missing.
            push_to_hub: send the folder to the hub afterwards.
            hub_options: see `hub.upload.upload`.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.model.save(folder)
        if push_to_hub:
            upload(folder, **{"repo_id": folder.name, **hub_options})

    def push_to_hub(self, repo_id: str, **hub_options: Any) -> str:
        """Send config.json to the hub; see `hub.upload.upload`."""
        return upload(self.save_pretrained, repo_id, **hub_options)


def _is_foreign(name: str) -> bool:
    return name in _OF_TRANSFORMERS or hasattr(PreTrainedConfig, name) or name in _UNDECLARED


def _plain(settings: model_config.MuseFormerConfig) -> dict[str, Any]:
    return {**vars(settings), "rule": rule_to_json(settings.rule)}


def _built(settings: dict[str, Any]) -> model_config.MuseFormerConfig:
    if "rule" in settings:
        settings = {**settings, "rule": parse_rule(settings["rule"], "config.json, rule")}
    try:
        return model_config.MuseFormerConfig(**settings)
    except TypeError as error:
        raise ConfigError(f"settings of a MuseFormer are missing ({error})") from error


def _resolved(settings: dict[str, Any]) -> dict[str, Any]:
    return _plain(_built(settings))
