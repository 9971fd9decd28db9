"""InST as a pipeline of the diffusers library, on top of `inst.transfer` and `inst.generate`.

Example:

    from inst.diffusers import InSTPipeline

    pipe = InSTPipeline.from_pretrained("stable-diffusion-v1-5/stable-diffusion-v1-5", dtype=torch.float16)
    pipe.to("cuda")
    picture = pipe(image=photo, style="starry-night.safetensors", strength=0.5).images[0]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import ImagePipelineOutput
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor

from inst.diffusers.components import InSTComponents
from inst.diffusers.inputs import (
    CALLBACK_TENSORS,
    Look,
    Picture,
    check_call,
    in_a_pipeline,
    noise_source,
    read_looks,
    read_mask_image,
    read_photos,
    refuse,
    repeated,
)
from inst.errors import InstError, UsageError, in_the_words_of
from inst.sampling.control import Control
from inst.sampling.solvers import Sampling, StopSampling
from inst.synthesis.from_photo import transfer
from inst.synthesis.from_prompt import generate

Callback = Callable[[Any, int, int, dict[str, Tensor]], Mapping[str, Tensor] | None]
"""(pipeline, number of the step, timestep, tensors by name) -> the tensors to go on with, or None."""


class InSTPipeline(InSTComponents):
    """Paint photos, and make pictures from prompts, in the style of a painting.

    The components are those of diffusers' Stable Diffusion pipelines, so that `from_pretrained` reads their folders and
    repositories, and `from_pipe` takes over a pipeline that is loaded, with its LoRA weights and without a copy.

    Args:
        vae, text_encoder, tokenizer, unet: the frozen model.
        scheduler: its noise schedule and kind of prediction are used; how steps are taken is said by `solver`.
        text_encoder_2, tokenizer_2: of models like Stable Diffusion XL.
        image_encoder, feature_extractor: CLIP's image encoder, which looks at paintings.
        inversion: the pretrained inversion module, for instant styles: the folder `inversion` beside the others, which
            `from_pretrained` reads and `save_pretrained` writes. It stays in float32.
        force_zeros_for_empty_prompt: with two text encoders, whether the UNet knows zeros as an empty prompt.
    """

    _callback_tensor_inputs = list(CALLBACK_TENSORS)  # noqa: RUF012
    _interrupt = False
    _num_timesteps = 0

    @property
    def num_timesteps(self) -> int:
        """The number of steps of sampling, while it runs."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether sampling is to end after this step. Set `_interrupt` in a callback, as with diffusers' pipelines."""
        return self._interrupt

    @torch.no_grad()
    @in_the_words_of(in_a_pipeline)
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        image: Picture | Sequence[Picture] | None = None,
        style: Look | Mapping[str, Look] | None = None,
        *,
        strength: float | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        height: int | None = None,
        width: int | None = None,
        size: int | None = None,
        mask_image: Picture | None = None,
        inversion: str | None = None,
        solver: str | None = None,
        tone: str | None = None,
        style_weight: float | None = None,
        tile: int | None = None,
        control: Control | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> ImagePipelineOutput | tuple[Any]:
        """Paint photos in a style (`inst.transfer`), or without any make pictures from prompts (`inst.generate`).

        What is None is left at the default of that function, whose documentation says more of every argument.

        Args:
            prompt: a text or one for each picture. With a photo it may be left out, or not name the style.
            image: a photo or several of one size: PIL images; or arrays [H, W, 3] or tensors [3, H, W] in [0, 1].
            style: a style or a style file; or a painting (an image, or its file) or several of one style, where the
                pipeline has an inversion module; or any of these by placeholder, `{"[C1]": one, "[C2]": other}`.
            strength, inversion: for photos.
            num_inference_steps, guidance_scale: `steps` and `guidance`.
            negative_prompt: one text for all.
            num_images_per_prompt: pictures of each prompt, or of each photo.
            generator: draws the noise of all pictures, or one generator for each. On the CPU it draws the same for
                every device, and with the seed s what `seed=s` does in `inst.transfer`. None is PyTorch's own.
            height, width: of pictures made from prompts, both or none.
            size: short side of painted photos, in pixels. They keep their proportions.
            mask_image: white where the style goes; of the photo's size.
            solver, tone, style_weight, tile: as they are there.
            control: a ControlNet of diffusers, on the pipeline's device, and what it is to hold on to
                (`inst.sampling.control.Control`).
            output_type: "pil", "np" [B, H, W, 3] or "pt" [B, 3, H, W], both in [0, 1]; or "latent" [B, C, h, w] after
                the last step, where no tone or mask is still to be applied to it.
            return_dict: False gives a tuple with the pictures.
            callback_on_step_end: called after each step with the pipeline, the step's number, its timestep, and a dict
                of tensors; from "latents" in the dict it returns, sampling goes on. Where it sets `_interrupt`,
                sampling ends and the latents are decoded as they are. The steps of DDIM inversion do not count.
            callback_on_step_end_tensor_inputs: what the dict holds: "latents" after the step, and "clean", the z_0
                predicted in it. Changes to the latter, and to prompts, are not possible.

        Raises:
            UsageError: an argument that cannot be used; it is a ValueError.
        """
        if isinstance(callback_on_step_end, PipelineCallback | MultiPipelineCallbacks):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        check_call(output_type, callback_on_step_end_tensor_inputs, num_images_per_prompt, negative_prompt)
        if style is None:
            raise UsageError("No style is given", "give one as style, such as a style file or a painting")
        texts = [prompt] if prompt is None or isinstance(prompt, str) else list(prompt)
        settings: dict[str, Any] = {
            "steps": num_inference_steps,
            "guidance": guidance_scale,
            "negative_prompt": negative_prompt,
            "solver": solver,
            "tone": tone,
            "style_weight": style_weight,
            "tile": tile,
            "control": control,
        }
        for_photos = {"strength": strength, "inversion": inversion, "size": size, "mask_image": mask_image}
        if image is None:
            refuse(for_photos, "give a photo as image")
            if None in texts:
                raise UsageError("There is nothing to paint", "give a prompt, or a photo as image")
            if (height is None) != (width is None):
                raise UsageError("Give both height and width, or neither.")
            settings["size"] = None if width is None else (width, height)
            subject: Any = repeated(texts, num_images_per_prompt)
        else:
            refuse({"height": height, "width": width}, "a photo keeps its proportions: give size")
            photos = read_photos(image)
            photos = photos.expand(len(texts), -1, -1, -1) if len(photos) == 1 else photos
            subject = photos.repeat_interleave(num_images_per_prompt, dim=0)
            settings |= {"strength": strength, "inversion": inversion, "size": size}
            settings["mask"] = None if mask_image is None else read_mask_image(mask_image)
            settings["prompt"] = texts[0] if len(texts) == 1 else repeated(texts, num_images_per_prompt)
        finished_later = "photo" if image is not None else "painting"
        if output_type == "latent" and (tone == finished_later or mask_image is not None or strength == 0):
            raise UsageError(
                f'The output_type "latent" is what the last step leaves: not with the tone "{finished_later}" or a '
                f"mask_image, which come after it, and not with a strength of 0."
            )
        backbone = self.backbone
        sampling = (transfer if image is not None else generate)(
            backbone,
            subject,
            read_looks(backbone, style),
            seed=noise_source(generator, len(subject)),
            **{name: value for name, value in settings.items() if value is not None},
        )
        with self._precise_autoencoder():
            found = self._follow(sampling, output_type, callback_on_step_end, callback_on_step_end_tensor_inputs)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=found) if return_dict else (found,)

    def _follow(
        self, sampling: Sampling, output_type: str, callback: Callback | None, tensor_inputs: Sequence[str]
    ) -> Any:
        """Run to the end, with a progress bar for each phase and the callback after each step of sampling."""
        self._interrupt, changed, bar = False, None, None
        try:
            while True:
                step = sampling.send(changed)
                if bar is None or step.index == 0:
                    bar = self._next_bar(bar, step.total)
                bar.update()
                if step.phase != "sampling":
                    continue
                self._num_timesteps, latents = step.total, step.latents
                if callback is not None:
                    offered = {name: getattr(step, name) for name in tensor_inputs}
                    changed = (callback(self, step.index, step.timestep, offered) or {}).get("latents")
                    latents = latents if changed is None else changed
                if output_type == "latent" and (self._interrupt or step.index + 1 == step.total):
                    return latents
                if self._interrupt:
                    sampling.throw(StopSampling(latents))
        except StopIteration as end:
            pictures: Tensor = end.value
        finally:
            sampling.close()
            if bar is not None:
                bar.close()
        if not pictures.isfinite().all():
            raise InstError("The pictures hold values that are not finite", "load the pipeline in float32")
        return VaeImageProcessor().postprocess(pictures, output_type)

    def _next_bar(self, bar: Any, total: int) -> Any:
        if bar is not None:
            bar.close()
        return self.progress_bar(total=total)

    @contextmanager
    def _precise_autoencoder(self) -> Iterator[None]:
        """Let an autoencoder that overflows in float16, as Stable Diffusion XL's does, work in float32 meanwhile."""
        overflows = self.text_encoder_2 is not None and self.vae.config.force_upcast
        if not (overflows and self.vae.dtype == torch.float16):
            yield
            return
        self.vae.to(torch.float32)
        try:
            yield
        finally:
            self.vae.to(torch.float16)
