"""The components of the diffusers pipeline for InST: load, reuse, move and save them."""

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
    """Base class of `inst.diffusers.InSTPipeline`: it loads, moves and saves the components, and makes the backbone."""

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
        self._backbone_sources: list[Any] = []

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Self:
        """Load a pipeline as diffusers does, and its inversion module if the model has one.

        Args:
            pretrained_model_name_or_path: a folder or a repository in the diffusers layout; or "mini", the bundled
                model.
            kwargs: options of diffusers, such as `dtype`. `use_safetensors` is True by default, so no pickle is read.
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
        """Download the files that `from_pretrained` needs into the cache, and return their folder."""
        folder: str | Path = super().download(pretrained_model_name, **kwargs)
        if "inversion" not in kwargs:  # diffusers does not know this folder, so the model index does not list it
            options = {key: kwargs[key] for key in _HUB_OPTIONS if key in kwargs}
            snapshot_download(pretrained_model_name, allow_patterns=["inversion/*"], **options)
        return folder

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> Self:
        """Make a pipeline from the components of another pipeline. The two pipelines share the components.

        The components keep their precision. Without `dtype`, diffusers would convert them to float32 in both pipelines.
        """
        if not kwargs.keys() & {"torch_dtype", "dtype"}:
            kwargs["dtype"] = pipeline.unet.dtype
        shared: Self = super().from_pipe(pipeline, **kwargs)
        return shared

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move the pipeline to a device or a precision, as diffusers does. The inversion module stays in float32."""
        with self._without_inversion() as inversion:
            super().to(*args, **kwargs)
            if inversion is not None:
                inversion.to(self.device)
        return self

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """Write the components of the pipeline to a folder, as diffusers does, with the inversion module."""
        with self._without_inversion() as inversion:
            if inversion is not None:
                inversion.save_pretrained(Path(save_directory) / "inversion")
            super().save_pretrained(save_directory, *args, **kwargs)

    @contextmanager
    def _without_inversion(self) -> Iterator[Inversion | None]:
        """Hide the inversion module from diffusers, which would convert its precision and cannot save it."""
        inversion = self.inversion
        self.register_modules(inversion=None)
        try:
            yield inversion
        finally:
            self.register_modules(inversion=inversion)

    @property
    def backbone(self) -> Backbone:
        """The components as a backbone, for `inst.transfer` and the other functions. They are shared, not copied.

        The components are not frozen, because other code may be training them. To learn styles, `inst.Backbone.load`
        is better.
        """
        components, device = self.components, self._execution_device
        sources = [*components.values(), device, self.unet.dtype]
        cached = self._backbone_sources
        if len(sources) != len(cached) or any(a is not b for a, b in zip(sources, cached, strict=True)):
            parts = parts_of(**components, **self.parameters)
            name = Path(self.config.get("_name_or_path") or "").name or "this pipeline"
            check_fit(parts, name)
            # `Backbone.of` would freeze and move the components, which other code may be using.
            self._backbone = Backbone(**vars(parts), device=device, dtype=self.unet.dtype, name=name)
            self._backbone_sources = sources
        return self._backbone
