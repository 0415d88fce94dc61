"""MeloFormer for transformers: importing this package registers its classes there.

import meloformer.hub
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained("<folder or owner/name>")
"""

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from meloformer.hub.config import MuseFormerConfig
from meloformer.hub.modeling import MuseFormerForCausalLM
from meloformer.hub.tokenizer import HIDTokenizer

__all__ = ["HIDTokenizer", "MuseFormerConfig", "MuseFormerForCausalLM"]

AutoConfig.register(MuseFormerConfig.model_type, MuseFormerConfig, exist_ok=True)
AutoModelForCausalLM.register(MuseFormerConfig, MuseFormerForCausalLM, exist_ok=True)
AutoTokenizer.register(MuseFormerConfig, tokenizer_class=HIDTokenizer, exist_ok=True)
