"""The components of the diffusers pipeline for InST: load, reuse, move and save them."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, Self

from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    SchedulerMixin,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.image_processor import VaeImageProcessor
from diffusers.loaders import (
    FromSingleFileMixin,
    IPAdapterMixin,
    StableDiffusionLoraLoaderMixin,
    StableDiffusionXLLoraLoaderMixin,
    TextualInversionLoaderMixin,
)
from diffusers.pipelines.pipeline_utils import StableDiffusionMixin
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from huggingface_hub import snapshot_download
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
    ImageProcessingMixin,
)

from inst.arguments import check_path, check_type
from inst.backbone.graphs import cuda_graphs
from inst.backbone.inversion import AttentionInversion, DirectInversion, Inversion, InversionConfig
from inst.backbone.loading.part import read_json
from inst.backbone.loading.pipeline import parts_of
from inst.backbone.loading.sources import BUNDLED
from inst.backbone.model import Backbone
from inst.backbone.parts import check_fit
from inst.errors import InstError, UsageError, first_line

_NEEDED = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
_INVERSION_FILES = {"config.json", "model.safetensors"}
_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision")


class InSTComponents(
    DiffusionPipeline,
    StableDiffusionMixin,
    TextualInversionLoaderMixin,
    IPAdapterMixin,
    StableDiffusionXLLoraLoaderMixin,
    StableDiffusionLoraLoaderMixin,
    FromSingleFileMixin,
):
    """Base class of `inst.diffusers.InSTPipeline`: it loads, moves and saves the components, and makes the backbone.

    The loaders of diffusers load LoRA weights, textual inversions, IP-Adapters and single files. Of the two for LoRA,
    the one for Stable Diffusion XL also does what the other does; only their `load_lora_weights` differ.
    """

    model_cpu_offload_seq = "text_encoder->text_encoder_2->image_encoder->unet->vae"
    _optional_components = [  # noqa: RUF012
        *("text_encoder_2", "tokenizer_2", "image_encoder", "feature_extractor", "safety_checker", "inversion")
    ]
    _exclude_from_cpu_offload = ["safety_checker", "inversion"]  # noqa: RUF012

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
        safety_checker: StableDiffusionSafetyChecker | None = None,
        inversion: AttentionInversion | DirectInversion | None = None,
        force_zeros_for_empty_prompt: bool = True,
        requires_safety_checker: bool = True,
        requires_aesthetics_score: bool = False,
    ) -> None:
        super().__init__()
        if safety_checker is not None and feature_extractor is None:
            raise UsageError(
                "The safety_checker needs a feature_extractor", "give both, or safety_checker=None to do without"
            )
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
            safety_checker=safety_checker,
            inversion=inversion,
        )
        self.register_to_config(
            force_zeros_for_empty_prompt=force_zeros_for_empty_prompt,
            requires_safety_checker=requires_safety_checker,
            requires_aesthetics_score=requires_aesthetics_score,
        )
        self.vae_scale_factor = 8 if vae is None else 2 ** (len(vae.config.block_out_channels) - 1)
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor)
        self._backbone_sources: list[Any] = []

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Self:
        """Load a pipeline as diffusers does, and its inversion module and safety checker if the folder has them.

        Args:
            pretrained_model_name_or_path: a folder or a repository in the diffusers layout; or "mini", the bundled
                model.
            kwargs: options of diffusers, such as `dtype`. `use_safetensors` is True by default, so no pickle is read.
        """
        check_path("A model", pretrained_model_name_or_path)
        place = BUNDLED.get(str(pretrained_model_name_or_path), pretrained_model_name_or_path)
        kwargs.setdefault("use_safetensors", True)
        folder = Path(place if Path(place).is_dir() else cls.download(str(place), **kwargs))
        if "inversion" not in kwargs and (folder / "inversion").is_dir():
            kwargs["inversion"] = Inversion.from_pretrained(folder / "inversion")
        if not (folder / "safety_checker").is_dir():  # many copies of a model leave it out
            kwargs.setdefault("safety_checker", None)
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
        check_type("A pipeline", pipeline, DiffusionPipeline, "give a loaded pipeline of diffusers")
        if not kwargs.keys() & {"torch_dtype", "dtype"}:
            unet = pipeline.components.get("unet")
            kwargs["dtype"] = pipeline.dtype if unet is None else unet.dtype
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
        """Write the components of the pipeline to a folder, as diffusers does, with the inversion module.

        A pipeline without such a module removes that of a pipeline that was saved there before: it would be read again.

        Raises:
            InstError: it would have to remove other files.
        """
        check_path("A folder", save_directory)
        folder = Path(save_directory) / "inversion"
        with self._without_inversion() as inversion:
            if inversion is not None:
                inversion.save_pretrained(folder)
            elif folder.exists():
                _remove_inversion(folder)
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

    def to_json_file(self, json_file_path: str | Path) -> None:
        """Write the model index, as that of the pipeline of diffusers for this model, so that diffusers reads it."""
        known = StableDiffusionPipeline if self.text_encoder_2 is None else StableDiffusionXLPipeline
        taken = inspect.signature(known.__init__).parameters
        index = {
            key: value
            for key, value in json.loads(self.to_json_string()).items()
            if key in taken or key.startswith("_")
        }
        index["_class_name"] = known.__name__
        Path(json_file_path).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def load_lora_weights(self, *args: Any, **kwargs: Any) -> None:
        """Load LoRA weights for UNet and text encoders, as the pipeline of diffusers for this model does."""
        one = self.text_encoder_2 is None
        loader = StableDiffusionLoraLoaderMixin if one else StableDiffusionXLLoraLoaderMixin
        loader.load_lora_weights(self, *args, **kwargs)

    def unload_ip_adapter(self) -> None:
        """Remove the IP-Adapters, as diffusers does. The image encoder stays if the inversion module needs it."""
        needed = {"image_encoder": self.image_encoder, "feature_extractor": self.feature_extractor}
        super().unload_ip_adapter()
        if self.inversion is not None:
            self.register_modules(**needed)

    @property
    def backbone(self) -> Backbone:
        """The components as a backbone, for `inst.transfer` and the other functions. They are shared, not copied.

        The components are not frozen, because other code may be training them. To learn styles, `inst.Backbone.load`
        is better.
        """
        try:
            return self._share_components()
        except AttributeError as error:  # the __getattr__ of diffusers would hide it, and say that there is no backbone
            raise UsageError(
                f"The components of the pipeline cannot be used ({first_line(error)})",
                "give those of a Stable Diffusion 1.x, 2.x or XL model",
            ) from error

    def _share_components(self) -> Backbone:
        components, device = self.components, self._execution_device
        needed = _NEEDED if self.text_encoder_2 is None else (*_NEEDED, "tokenizer_2")
        missing = [name for name in needed if components[name] is None]
        if missing:
            raise UsageError(f"The pipeline has no {' and no '.join(missing)}", "load it with all parts of its model")
        components.pop("safety_checker")
        sources = [*components.values(), device, self.unet.dtype]
        cached = self._backbone_sources
        if len(sources) != len(cached) or any(a is not b for a, b in zip(sources, cached, strict=True)):
            parts = parts_of(**components, force_zeros_for_empty_prompt=self.config["force_zeros_for_empty_prompt"])
            name = Path(self.config.get("_name_or_path") or "").name or "this pipeline"
            check_fit(parts, name)
            # `Backbone.of` would freeze and move the components, which other code may be using.
            fast = device.type == "cuda"
            graphs = cuda_graphs(device) if fast else None
            about: dict[str, Any] = {"name": name, "fast": fast, "graphs": graphs}
            self._backbone = Backbone(**vars(parts), device=device, dtype=self.unet.dtype, **about)
            self._backbone_sources = sources
        return self._backbone


def _remove_inversion(folder: Path) -> None:
    """Remove an inversion module that was saved before. Raises InstError if the folder holds anything else."""
    try:
        known = {name.name for name in fields(InversionConfig)}
        ours = read_json(folder / "config.json").keys() <= known
        ours = ours and not folder.is_symlink() and {file.name for file in folder.iterdir()} == _INVERSION_FILES
    except (InstError, OSError, AttributeError):
        ours = False
    if not ours:
        raise InstError(
            f"{folder} would be read as an inversion module, which the pipeline does not have",
            "move it away, or choose another folder",
        )
    for name in _INVERSION_FILES:
        (folder / name).unlink()
    folder.rmdir()
