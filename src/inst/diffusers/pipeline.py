"""InST as a pipeline of the diffusers library. It calls `inst.transfer` and `inst.generate`.

Example:

    from inst.diffusers import InSTPipeline

    pipe = InSTPipeline.from_pretrained("stable-diffusion-v1-5/stable-diffusion-v1-5", dtype=torch.float16)
    pipe.to("cuda")
    picture = pipe(image=photo, style="starry-night.safetensors", strength=0.5).images[0]
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from diffusers import ImagePipelineOutput
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput
from torch import Tensor

from inst.arguments import checked
from inst.diffusers.conditioning import InSTConditioning, read_encoded
from inst.diffusers.inputs import (
    CALLBACK_TENSORS,
    PipelinePicture,
    StyleInput,
    check_call,
    pipeline_wording,
    read_answer,
    read_copies,
    read_generators,
    read_mask_image,
    read_photos,
    read_styles,
    reject_arguments,
    reject_unknown,
    repeated,
    repeated_negative,
)
from inst.errors import Argument, InstError, UsageError, use_wording
from inst.sampling.control import Control
from inst.sampling.solvers import Sampling, StopSampling
from inst.synthesis.from_photo import transfer
from inst.synthesis.from_prompt import generate
from inst.synthesis.plan import check_pictures

Callback = Callable[[Any, int, int, dict[str, Tensor]], Mapping[str, Tensor] | None]
"""(pipeline, number of the step, timestep, tensors by name) -> the tensors to continue with, or None."""


class InSTPipeline(InSTConditioning):
    """Transfer a style to photos, and generate pictures from prompts, in the style of a painting.

    The components are those of the Stable Diffusion pipelines of diffusers. So `from_pretrained` reads their folders
    and repositories, and a saved folder is one of theirs, with the folder `inversion` in addition. `from_pipe` and
    `InSTPipeline(**other.components)` use the components of a loaded pipeline, with its LoRA weights, without a copy.
    LoRA weights, textual inversions, IP-Adapters and single files are loaded as in diffusers.

    Args:
        vae, text_encoder, tokenizer, unet: the frozen model.
        scheduler: gives the noise schedule and the kind of prediction. The steps are those of `solver`.
        text_encoder_2, tokenizer_2: for models like Stable Diffusion XL.
        image_encoder, feature_extractor: the image encoder of CLIP, which embeds paintings.
        safety_checker: looks at the finished pictures, as in diffusers, and blackens some; None is no check.
        inversion: the pretrained inversion module, for instant styles. It is the folder `inversion` next to the other
            components; `from_pretrained` reads it, `save_pretrained` writes it. It stays in float32.
        force_zeros_for_empty_prompt: whether the UNet was trained with zeros as the empty prompt; for models with two
            text encoders.
        requires_safety_checker, requires_aesthetics_score: only kept, for the pipelines of diffusers.
    """

    _callback_tensor_inputs = list(CALLBACK_TENSORS)  # noqa: RUF012
    _interrupt = False
    _num_timesteps = 0

    @property
    def num_timesteps(self) -> int:
        """The number of sampling steps, while sampling runs."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether sampling ends after this step. Set `_interrupt` in a callback, as in the pipelines of diffusers."""
        return self._interrupt

    @torch.no_grad()
    @use_wording(pipeline_wording)
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        image: PipelinePicture | Sequence[PipelinePicture] | None = None,
        style: StyleInput | Mapping[str, StyleInput] | None = None,
        *,
        strength: float | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        ip_adapter_image: Any = None,
        ip_adapter_image_embeds: Sequence[Tensor] | None = None,
        cross_attention_kwargs: Mapping[str, Any] | None = None,
        clip_skip: int | None = None,
        height: int | None = None,
        width: int | None = None,
        size: int | None = None,
        mask_image: PipelinePicture | None = None,
        inversion: str | None = None,
        solver: str | None = None,
        tone: str | None = None,
        style_weight: float | None = None,
        tile: int | None = None,
        control: Control | None = None,
        style_attention: float | None = None,
        style_scale: float | None = None,
        query_preservation: float | None = None,
        attention_temperature: float | None = None,
        attention_blocks: str | None = None,
        spacing: str | None = None,
        cache_interval: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        **others: Any,
    ) -> ImagePipelineOutput | StableDiffusionPipelineOutput | tuple[Any, ...]:
        """Transfer a style to photos (`inst.transfer`); without a photo, generate from prompts (`inst.generate`).

        None takes the default of that function. Its documentation describes every argument in more detail.

        Args:
            prompt: one text, or one text for each picture. With a photo the prompt is optional, and need not name the
                style.
            image: one photo, or several photos of one size: PIL images; or arrays [H, W, 3] or tensors [3, H, W] in
                [0, 1] or uint8.
            style: a style or a style file; or, if the pipeline has an inversion module, a painting (in a form of
                `image`, or its file) or several of one style; or any of these by placeholder,
                `{"[C1]": one, "[C2]": other}`.
            strength, inversion, query_preservation: for photos only.
            num_inference_steps: `steps`.
            guidance_scale: `guidance`; as in diffusers, 1 and less is none.
            negative_prompt: one text for all pictures, or one for each prompt.
            num_images_per_prompt: number of pictures for each prompt, or for each photo.
            eta: fresh noise in each step of the solver "ddim", 0 (none) to 1. The default solver takes none.
            generator: one generator that draws the noise of all pictures, or one for each. A CPU generator gives the
                same noise for every device; with the seed s, its noise is that of `seed=s` in `inst.transfer`. None is
                PyTorch's default generator.
            latents: the noise to start from, [B, C, h, w], in place of that of the generator; with photos, the noise
                that is added to them.
            prompt_embeds, negative_prompt_embeds: encoded prompts, [B, L, D], in place of the texts, such as from
                `encode_prompt`. No style is added to them: encode them with it, or rely on style attention and tone.
            pooled_prompt_embeds, negative_pooled_prompt_embeds: [B, P]; needed with them for Stable Diffusion XL.
            ip_adapter_image: a picture for each loaded IP-Adapter, or a list of pictures for each.
            ip_adapter_image_embeds: their embeddings, as in diffusers: for each IP-Adapter [2, N, ...], first those for
                the negative prompt; [1, N, ...] at a guidance scale of 1.
            cross_attention_kwargs: arguments for the attention of the UNet, such as {"scale": 0.5} for LoRA weights,
                which scales them in the text encoders, too.
            clip_skip: number of layers at the end of the text encoders that are left out for the prompt.
            height, width: size of generated pictures; both or neither.
            size: short side of the results for photos, in pixels. Photos keep their proportions.
            mask_image: white where the style is applied; it has the size of the photo.
            solver, tone, style_weight, tile, style_attention, style_scale, attention_temperature, attention_blocks,
                spacing, cache_interval: the arguments of that function.
            control: a ControlNet of diffusers on the device of the pipeline, and its control picture
                (`inst.sampling.control.Control`).
            output_type: "pil", "np" [B, H, W, 3] or "pt" [B, 3, H, W], both in [0, 1]; or "latent" [B, C, h, w], the
                latents after the last step. "latent" is not possible if a tone or a mask is applied after that step.
            return_dict: False returns a tuple, as in diffusers: the pictures, and for Stable Diffusion 1.x and 2.x what
                the safety checker found, or None.
            callback_on_step_end: called after each step with the pipeline, the number of the step, its timestep, and a
                dict of tensors. If it returns a dict with "latents", sampling continues with these. If it sets
                `_interrupt`, sampling ends and the current latents are decoded. It is not called in DDIM inversion.
            callback_on_step_end_tensor_inputs: the tensors in that dict: "latents" after the step, and "clean", the z_0
                predicted in the step. The callback cannot change "clean" or the prompts.
            others: none; an argument that only the pipelines of diffusers have is refused, with what to do instead.

        Raises:
            UsageError: an argument cannot be used. It is a ValueError.
        """
        if isinstance(callback_on_step_end, PipelineCallback | MultiPipelineCallbacks):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        reject_unknown(others)
        check_call(output_type, callback_on_step_end, callback_on_step_end_tensor_inputs)
        copies = read_copies(num_images_per_prompt)
        if style is None:
            raise UsageError("No style is given", "give ", Argument("style"), ", such as a style file or a painting")
        encoded = read_encoded("prompt", prompt, prompt_embeds, pooled_prompt_embeds)
        encoded_negative = read_encoded(
            "negative_prompt", negative_prompt, negative_prompt_embeds, negative_pooled_prompt_embeds
        )
        texts = list(prompt) if isinstance(prompt, Sequence) and not isinstance(prompt, str) else [prompt]
        prompts = texts if encoded is None else encoded
        negative = negative_prompt if encoded_negative is None else encoded_negative
        settings: dict[str, Any] = {
            "steps": num_inference_steps,
            "negative_prompt": repeated_negative(negative, len(prompts), copies),
            "solver": solver,
            "eta": eta,
            "noise": latents,
            "tone": tone,
            "style_weight": style_weight,
            "tile": tile,
            "control": control,
            "style_attention": style_attention,
            "style_scale": style_scale,
            "attention_temperature": attention_temperature,
            "attention_blocks": attention_blocks,
            "spacing": spacing,
            "cache_interval": cache_interval,
        }
        for_photos = {
            "strength": strength,
            "inversion": inversion,
            "size": size,
            "query_preservation": query_preservation,
            "mask_image": mask_image,
        }
        if image is None:
            reject_arguments(for_photos, "give a photo as image")
            if encoded is None and None in texts:
                raise UsageError("No prompt and no photo is given", "give a prompt, or a photo as image")
            if (height is None) != (width is None):
                raise UsageError("Only one of height and width is given", "give both, or neither")
            settings["size"] = None if width is None else (width, height)
            subject: Any = repeated(prompts, copies)
        else:
            reject_arguments({"height": height, "width": width}, "a photo keeps its proportions: give size")
            photos = read_photos(image, size, mask_image)
            photos = photos.expand(len(prompts), -1, -1, -1) if len(photos) == 1 else photos
            check_pictures(len(photos) * copies)
            # One photo needs no copies of itself in memory.
            many = len(photos) > 1
            subject = photos.repeat_interleave(copies, dim=0) if many else photos.expand(copies, -1, -1, -1)
            settings |= {name: value for name, value in for_photos.items() if name != "mask_image"}
            settings["mask"] = None if mask_image is None else read_mask_image(mask_image)
            if len(prompts) == 1:
                settings["prompt"] = texts[0] if encoded is None else encoded
            else:
                settings["prompt"] = repeated(prompts, copies)
        late_tones = ("photo",) if image is not None else ("painting", "adain")
        if output_type == "latent" and (tone in late_tones or mask_image is not None or strength == 0):
            raise UsageError(
                f'The output_type "latent" cannot be used with the tone "{tone or late_tones[0]}", with a mask_image '
                f"or with a strength of 0",
                "leave these out, or use another output_type",
            )
        function: Callable[..., Sampling] = generate if image is None else transfer
        if guidance_scale is None:
            guidance_scale = inspect.signature(function).parameters["guidance"].default
        self._guidance_scale = checked("guidance_scale", guidance_scale, "float")
        # As in diffusers, less than 1 is no guidance, too.
        settings["guidance"] = 1.0 if 0 <= self._guidance_scale < 1 else self._guidance_scale
        self._clip_skip, self._cross_attention_kwargs = clip_skip, cross_attention_kwargs
        backbone = self.backbone
        options = self.model_options(ip_adapter_image, ip_adapter_image_embeds, cross_attention_kwargs, clip_skip)
        backbone = replace(backbone, options=options)
        sampling = function(
            backbone,
            subject,
            read_styles(backbone, style),
            seed=read_generators(generator, len(subject)),
            **{name: value for name, value in settings.items() if value is not None},
        )
        with self._precise_autoencoder(), self.lora_scaled(options.attention.get("scale")):
            result = self._run_sampling(sampling, output_type, callback_on_step_end, callback_on_step_end_tensor_inputs)
        if output_type == "latent":
            images, unsafe = result.to(self.unet.dtype), None
        else:
            images, unsafe = self._finish(result, output_type)
        self.maybe_free_model_hooks()
        if self.text_encoder_2 is not None:
            return ImagePipelineOutput(images=images) if return_dict else (images,)
        return StableDiffusionPipelineOutput(images, unsafe) if return_dict else (images, unsafe)

    def _finish(self, pictures: Tensor, output_type: str) -> tuple[Any, list[bool] | None]:
        """Return finished pictures [B, 3, H, W] in [-1, 1] as `output_type`, and what the safety checker found."""
        if not pictures.isfinite().all():
            precise = self.unet.dtype == torch.float32
            raise InstError(
                "The pictures hold values that are not finite",
                "give other prompt_embeds, or other latents in the callback"
                if precise
                else "load the pipeline in float32",
            )
        pictures, unsafe = self.run_safety_checker(pictures, self._execution_device, self.unet.dtype)
        # The safety checker sets a picture to 0, which is black only if it is not converted from [-1, 1] to [0, 1].
        convert = None if unsafe is None else [not one for one in unsafe]
        return self.image_processor.postprocess(pictures, output_type, do_denormalize=convert), unsafe

    def _run_sampling(
        self, sampling: Sampling, output_type: str, callback: Callback | None, tensor_inputs: Sequence[str]
    ) -> Tensor:
        """Run the sampling to its end, with a progress bar for each phase and the callback after each sampling step.

        Returns:
            The pictures, [B, 3, H, W] in [-1, 1]; or the last latents, if the output type is "latent".
        """
        self._interrupt, changed, bar = False, None, None
        stop: StopSampling | None = None
        try:
            while True:
                try:  # around this alone: a StopIteration of the callback is not the end of the sampling
                    step = sampling.send(changed) if stop is None else sampling.throw(stop)
                except StopIteration as end:
                    pictures: Tensor = end.value
                    return pictures
                if bar is None or step.index == 0:
                    bar = self._next_bar(bar, step.total)
                bar.update()
                if step.phase != "sampling":
                    continue
                self._num_timesteps, latents = step.total, step.latents
                if callback is not None:
                    tensors = {name: getattr(step, name) for name in tensor_inputs}
                    changed = read_answer(callback(self, step.index, step.timestep, tensors), latents)
                    latents = latents if changed is None else changed
                if output_type == "latent" and (self._interrupt or step.index + 1 == step.total):
                    return latents
                if self._interrupt:
                    stop = StopSampling(latents)
        finally:
            sampling.close()
            if bar is not None:
                bar.close()

    def _next_bar(self, bar: Any, total: int) -> Any:
        if bar is not None:
            bar.close()
        return self.progress_bar(total=total)

    @contextmanager
    def _precise_autoencoder(self) -> Iterator[None]:
        """Run the autoencoder in float32 if it overflows in float16, like the one of Stable Diffusion XL."""
        overflows = self.text_encoder_2 is not None and self.vae.config.force_upcast
        if not (overflows and self.vae.dtype == torch.float16):
            yield
            return
        self.vae.to(torch.float32)
        try:
            yield
        finally:
            self.vae.to(torch.float16)
