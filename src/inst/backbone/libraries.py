"""The classes of diffusers and transformers that backbones are made of, imported lightly (`inst.backbone.light`).

All modules take them from here: a plain import elsewhere, if it came first, would import everything.
"""

from inst.backbone.light import import_lightly, leave_peft_out

import_lightly(
    "diffusers.models.attention_processor",
    "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.models.controlnets.controlnet",
    "diffusers.models.unets.unet_2d_condition",
    "diffusers.schedulers.scheduling_ddim",
    "transformers.convert_slow_tokenizer",
    "transformers.models.clip.modeling_clip",
    "transformers.models.clip.tokenization_clip",
)
leave_peft_out()

from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, ModelMixin, UNet2DConditionModel  # noqa: E402
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0  # noqa: E402
from transformers import (  # noqa: E402
    CLIPModel,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPTokenizerFast,
    CLIPVisionModelWithProjection,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode  # noqa: E402

__all__ = [
    "Attention",
    "AttnProcessor",
    "AttnProcessor2_0",
    "AutoencoderKL",
    "CLIPModel",
    "CLIPTextModel",
    "CLIPTextModelWithProjection",
    "CLIPTokenizer",
    "CLIPTokenizerFast",
    "CLIPVisionModelWithProjection",
    "ControlNetModel",
    "DDIMScheduler",
    "ModelMixin",
    "UNet2DConditionModel",
    "bytes_to_unicode",
]
