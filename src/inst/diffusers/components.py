"""The components of a diffusers pipeline for InST: how they are loaded, taken over, moved and saved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from diffusers import AutoencoderKL, DiffusionPipeline, SchedulerMixin, UNet2DConditionModel
from huggingface_hub import snapshot_download
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
    ImageProcessingMixin,
)

from inst.backbone.inversion import AttentionInversion, DirectInversion, Inversion
from inst.backbone.loading.pipeline import parts_of
from inst.backbone.loading.sources import BUNDLED
from inst.backbone.model import Backbone
from inst.backbone.parts import check_fit

_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision")


class InSTComponents(DiffusionPipeline):  # type: ignore[misc]
    """The components of `inst.diffusers.InSTPipeline`: loading, moving and saving them, and the backbone they make."""

    model_cpu_offload_seq = "text_encoder->text_encoder_2->image_encoder->unet->vae"
    _optional_components = ["text_encoder_2", "tokenizer_2", "image_encoder", "feature_extractor", "inversion"]  # noqa: RUF012
    _exclude_from_cpu_offload = ["inversion"]  # noqa: RUF012

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel | CLIPTextModelWithProjection,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: SchedulerMixin,
        text_encoder_2: CLIPTextModelWithProjection | None = None,
        tokenizer_2: CLIPTokenizer | None = None,
        image_encoder: CLIPVisionModelWithProjection | None = None,
        feature_extractor: ImageProcessingMixin | None = None,
        inversion: AttentionInversion | DirectInversion | None = None,
        force_zeros_for_empty_prompt: bool = True,
    ) -> None:
        super().__init__()
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            text_encoder_2=text_encoder_2,
            tokenizer_2=tokenizer_2,
            image_encoder=image_encoder,
            feature_extractor=feature_extractor,
            inversion=inversion,
        )
        self.register_to_config(force_zeros_for_empty_prompt=force_zeros_for_empty_prompt)
        self._made_of: list[Any] = []

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Self:
        """Load a pipeline as diffusers' do, and the inversion module where the model has one.

        Args:
            pretrained_model_name_or_path: a folder or a repository in the diffusers layout; or "mini", the bundled one.
            kwargs: diffusers' options, such as `dtype`. `use_safetensors` is True by default: no pickles.
        """
        place = BUNDLED.get(str(pretrained_model_name_or_path), pretrained_model_name_or_path)
        kwargs.setdefault("use_safetensors", True)
        folder = Path(place if Path(place).is_dir() else cls.download(str(place), **kwargs))
        if "inversion" not in kwargs and (folder / "inversion").is_dir():
            kwargs["inversion"] = Inversion.from_pretrained(folder / "inversion")
        pipeline: Self = super().from_pretrained(folder, **kwargs)
        pipeline.register_to_config(_name_or_path=str(pretrained_model_name_or_path))
        return pipeline

    @classmethod
    def download(cls, pretrained_model_name: str, **kwargs: Any) -> str | Path:
        """Download what `from_pretrained` needs into the cache, and return its folder there."""
        folder: str | Path = super().download(pretrained_model_name, **kwargs)
        if "inversion" not in kwargs:  # a folder that the model's index does not name, because diffusers knows it not
            options = {key: kwargs[key] for key in _HUB_OPTIONS if key in kwargs}
            snapshot_download(pretrained_model_name, allow_patterns=["inversion/*"], **options)
        return folder

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> Self:
        """Take over the components of another pipeline, which both then share.

        They keep their precision; without `dtype` diffusers would turn them to float32, for both.
        """
        if not kwargs.keys() & {"torch_dtype", "dtype"}:
            kwargs["dtype"] = pipeline.unet.dtype
        shared: Self = super().from_pipe(pipeline, **kwargs)
        return shared

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move the pipeline to a device or a precision, as diffusers' do. The inversion module stays in float32."""
        with self._inversion_apart() as inversion:
            super().to(*args, **kwargs)
            if inversion is not None:
                inversion.to(self.device)
        return self

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """Write the pipeline's components into a folder, as diffusers' do, and the inversion module among them."""
        with self._inversion_apart() as inversion:
            if inversion is not None:
                inversion.save_pretrained(Path(save_directory) / "inversion")
            super().save_pretrained(save_directory, *args, **kwargs)

    @contextmanager
    def _inversion_apart(self) -> Iterator[Inversion | None]:
        """Hide the inversion module from diffusers, which would round it, and knows not how to save it."""
        inversion = self.inversion
        self.register_modules(inversion=None)
        try:
            yield inversion
        finally:
            self.register_modules(inversion=inversion)

    @property
    def backbone(self) -> Backbone:
        """The components as what `inst.transfer` and all else in the package takes. They are shared, not copied.

        They are not frozen, as somebody may be training them: to learn styles, `inst.Backbone.load` is better.
        """
        components, device = self.components, self._execution_device
        made_of = [*components.values(), device, self.unet.dtype]
        if len(made_of) != len(self._made_of) or any(a is not b for a, b in zip(made_of, self._made_of, strict=True)):
            parts = parts_of(**components, **self.parameters)
            name = Path(self.config.get("_name_or_path") or "").name or "this pipeline"
            check_fit(parts, name)
            # Not `Backbone.of`, which would freeze and move what others may be using.
            self._backbone = Backbone(**vars(parts), device=device, dtype=self.unet.dtype, name=name)
            self._made_of = made_of
        return self._backbone
