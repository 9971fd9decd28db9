"""The inputs of the denoiser besides latents, for the diffusers pipeline: encoded prompts, IP-Adapters, LoRA scale."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from diffusers import StableDiffusionImg2ImgPipeline
from diffusers.utils import USE_PEFT_BACKEND, scale_lora_layers, unscale_lora_layers
from torch import Tensor

from inst.arguments import check_type, checked
from inst.backbone.devices import choose_device
from inst.backbone.options import ModelOptions
from inst.backbone.text import TextEmbedding
from inst.diffusers.components import InSTComponents
from inst.diffusers.inputs import StyleInput, pipeline_wording, read_copies, read_styles
from inst.errors import UsageError, use_wording
from inst.synthesis.prompts import check_prompts, complete_prompts, embed_both, name_styles, read_prompts


class InSTConditioning(InSTComponents):
    """Base class of `inst.diffusers.InSTPipeline`: it prepares what the denoiser gets besides latents."""

    _guidance_scale = 1.0
    _clip_skip: int | None = None
    _cross_attention_kwargs: Mapping[str, Any] | None = None

    encode_image = StableDiffusionImg2ImgPipeline.encode_image
    prepare_ip_adapter_image_embeds = StableDiffusionImg2ImgPipeline.prepare_ip_adapter_image_embeds
    run_safety_checker = StableDiffusionImg2ImgPipeline.run_safety_checker

    @property
    def guidance_scale(self) -> float:
        """The guidance scale of the call that runs, or of the last one. Changes have no effect on a call that runs."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether that guidance scale is more than 1; 1 and less is no guidance."""
        return self._guidance_scale > 1

    @property
    def clip_skip(self) -> int | None:
        """The argument `clip_skip` of the call that runs, or of the last one."""
        return self._clip_skip

    @property
    def cross_attention_kwargs(self) -> Mapping[str, Any] | None:
        """The argument `cross_attention_kwargs` of the call that runs, or of the last one."""
        return self._cross_attention_kwargs

    @use_wording(pipeline_wording)
    def encode_prompt(
        self,
        prompt: str | Sequence[str] | None = None,
        device: torch.device | str | None = None,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
        negative_prompt: str | Sequence[str] | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        lora_scale: float | None = None,
        clip_skip: int | None = None,
        *,
        pooled_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        style: StyleInput | Mapping[str, StyleInput] | None = None,
        style_weight: float = 1.0,
    ) -> tuple[Tensor | None, ...]:
        """Encode prompts, as the pipelines of diffusers do. The results are arguments of a call.

        Args:
            prompt: one text, or a list of B texts. Parts may have weights, such as `(a castle:1.3)`.
            device: the device of the results; None is that of the pipeline.
            num_images_per_prompt: how often each prompt is repeated.
            do_classifier_free_guidance: whether the negative prompt is encoded.
            negative_prompt: one text for all prompts, or B texts.
            prompt_embeds, negative_prompt_embeds, pooled_prompt_embeds, negative_pooled_prompt_embeds: already encoded
                prompts, which are only repeated.
            lora_scale: a factor of the LoRA weights in the text encoders.
            clip_skip: number of layers at the end of the text encoders that are left out for the prompt.
            style, style_weight: the arguments of a call. With a style, a prompt names it as with a photo: " in the
                style of [C]" is added if it does not.

        Returns:
            The prompts and the negative prompts, [B, L, D]; for Stable Diffusion XL also the pooled vectors of both,
            [B, P]. Without guidance, the entries for the negative prompts are those given as embeddings, or None.

        Raises:
            UsageError: an argument cannot be used, such as a prompt that is too long.
        """
        copies = read_copies(num_images_per_prompt)
        place = self._execution_device if device is None else choose_device(device)
        positive = read_encoded("prompt", prompt, prompt_embeds, pooled_prompt_embeds)
        negative = read_encoded(
            "negative_prompt", negative_prompt, negative_prompt_embeds, negative_pooled_prompt_embeds
        )
        if prompt is None and positive is None:
            raise UsageError("No prompt is given", "give a prompt, or prompt_embeds")
        given = negative_prompt or "" if negative is None else negative
        texts, negatives = read_prompts(prompt if positive is None else positive, given)
        styles = {} if style is None else name_styles(self.backbone, read_styles(self.backbone, style))
        backbone = replace(self.backbone, options=ModelOptions(clip_skip=self._read_clip_skip(clip_skip)))
        prompts = complete_prompts(texts, negatives, styles)
        guided = do_classifier_free_guidance or negative is not None
        # The guidance of the later call is not known: with any, the negative prompt may name a style alone.
        check_prompts(backbone, prompts, negatives if guided else prompts, styles, style_weight, guidance=2.0)
        with self.lora_scaled(lora_scale):
            positive, unwanted = embed_both(backbone, prompts, negatives, styles, style_weight)
        if guided:
            negative = unwanted.expand(len(positive))

        def of(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(place).repeat_interleave(copies, dim=0)

        tokens = of(positive.tokens), None if negative is None else of(negative.tokens)
        if self.text_encoder_2 is None:
            return tokens
        return *tokens, of(positive.pooled), None if negative is None else of(negative.pooled)

    def model_options(
        self, ip_adapter_image: Any, ip_adapter_image_embeds: Any, cross_attention_kwargs: Any, clip_skip: int | None
    ) -> ModelOptions:
        """Return the options of the backbone for these arguments of a call. Raises UsageError if one cannot be used."""
        if cross_attention_kwargs is not None:
            check_type("cross_attention_kwargs", cross_attention_kwargs, Mapping, "give a dict")
            for name in cross_attention_kwargs:
                check_type("A name in cross_attention_kwargs", name, str, 'give texts as names, such as "scale"')
            if "gligen" in cross_attention_kwargs and not hasattr(self.unet, "position_net"):
                raise UsageError("The UNet has no layers for gligen", "leave gligen out of cross_attention_kwargs")
        images = self._adapter_images(ip_adapter_image, ip_adapter_image_embeds)
        return ModelOptions(
            attention=cross_attention_kwargs or {},
            clip_skip=self._read_clip_skip(clip_skip),
            images=tuple(shown for _, shown in images),
            no_images=tuple(blank for blank, _ in images),
        )

    def _read_clip_skip(self, clip_skip: int | None) -> int:
        skip: int = checked("clip_skip", 0 if clip_skip is None else clip_skip, "int")
        most = min(encoder.config.num_hidden_layers for encoder in self.backbone.text_encoders) - 1
        if not 0 <= skip <= most:
            raise UsageError(f"A clip_skip of {skip} cannot be used", f"give 0 to {most}, or leave it out")
        return skip

    def _adapter_images(self, image: Any, embeds: Any) -> list[tuple[Tensor, Tensor]]:
        """Return the embeddings for the negative prompt and for the prompt, each [1, N, ...], for each IP-Adapter."""
        hidden = self.unet.encoder_hid_proj
        adapters = len(getattr(hidden, "image_projection_layers", ()))
        if image is None and embeds is None:
            if adapters:
                raise UsageError(
                    "The pipeline has an IP-Adapter, and no picture is given for it",
                    "give ip_adapter_image or ip_adapter_image_embeds, or remove it with unload_ip_adapter()",
                )
            return []
        if not adapters:
            raise UsageError("The pipeline has no IP-Adapter", "load one with load_ip_adapter")
        if image is not None and embeds is not None:
            raise UsageError("ip_adapter_image and ip_adapter_image_embeds are both given", "give one of them")
        given = embeds if image is None else image
        given = given if isinstance(given, list | tuple) else [given]
        if len(given) != adapters:
            raise UsageError(f"{len(given)} pictures do not fit {adapters} IP-Adapters", "give a list, one for each")
        if image is not None:
            if self.image_encoder is None or self.feature_extractor is None:
                raise UsageError("The pipeline has no image_encoder", "load one, or give ip_adapter_image_embeds")
            both = self.prepare_ip_adapter_image_embeds(list(given), None, self._execution_device, 1, True)
            return [tensor.chunk(2) for tensor in both]
        pairs = []
        for tensor in given:
            check_type("An entry of ip_adapter_image_embeds", tensor, Tensor, "give a list of tensors")
            rows = 2 if self.do_classifier_free_guidance else 1
            if tensor.dim() not in (3, 4) or len(tensor) != rows:
                raise UsageError(
                    f"ip_adapter_image_embeds of the shape {list(tensor.shape)} cannot be used",
                    f"give [{rows}, N, ...]"
                    + (", first for the negative prompt" if rows == 2 else ", because the guidance_scale is 1"),
                )
            tensor = tensor.to(self._execution_device)
            pairs.append(tensor.chunk(2) if rows == 2 else (torch.zeros_like(tensor), tensor))
        return pairs

    @contextmanager
    def lora_scaled(self, scale: float | None) -> Iterator[None]:
        """Scale the LoRA weights in the text encoders. Those in the UNet are scaled in each of its calls."""
        scale = None if scale is None else checked("scale of the LoRA weights", scale, "float")
        if scale is None or not USE_PEFT_BACKEND:
            yield
            return
        encoders = [encoder for encoder in (self.text_encoder, self.text_encoder_2) if encoder is not None]
        for encoder in encoders:
            scale_lora_layers(encoder, scale)
        try:
            yield
        finally:
            for encoder in encoders:
                unscale_lora_layers(encoder, scale)


def read_encoded(name: str, text: object, embeds: Tensor | None, pooled: Tensor | None) -> TextEmbedding | None:
    """Return an encoded prompt, or None if it is a text or not given.

    Args:
        name: "prompt" or "negative_prompt".
        text: the argument of this name.
        embeds: `prompt_embeds` or `negative_prompt_embeds`, [B, L, D].
        pooled: the pooled vectors that go with them, [B, P].

    Raises:
        UsageError: text and encoded prompt are both given, only the pooled vectors are given, or one is not a tensor of
            so many dimensions.
    """
    long = {"prompt": "pooled_prompt_embeds", "negative_prompt": "negative_pooled_prompt_embeds"}[name]
    if embeds is None:
        if pooled is not None:
            raise UsageError(f"{long} is given without {name}_embeds", "give both")
        return None
    if text is not None:
        raise UsageError(f"{name} and {name}_embeds are both given", "give one of them")
    for argument, tensor, form in ((f"{name}_embeds", embeds, "[B, L, D]"), (long, pooled, "[B, P]")):
        if tensor is None:
            continue
        check_type(argument, tensor, Tensor, "give a tensor, as from encode_prompt")
        if tensor.dim() != form.count(",") + 1 or len(tensor) != len(embeds):
            raise UsageError(
                f"{argument} of the shape {list(tensor.shape)} cannot be used",
                f"give {form}" if tensor is embeds else f"give {form} for the {len(embeds)} of {name}_embeds",
            )
    return TextEmbedding(embeds, pooled)
