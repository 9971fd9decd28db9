"""The backbone: the frozen parts of a text-to-image latent diffusion model, and the functions that InST needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from inst.arguments import check_path, check_type
from inst.backbone.blockwise import Blockwise, is_useful
from inst.backbone.devices import choose_device, choose_dtype, copy_to
from inst.backbone.fused import Fused, kernels
from inst.backbone.gradients import faster_gradients
from inst.backbone.graphs import Graphs, call_by_graph, cuda_graphs
from inst.backbone.offload import Offload
from inst.backbone.options import ModelOptions
from inst.backbone.parts import Parts, check_fit
from inst.backbone.quantization import Quantization, check_quantization, quantize_weights
from inst.backbone.self_attention import Finished, TensorHandler, replaced, running_handler
from inst.backbone.text import Frame, TextEmbedding, TextEncoding
from inst.errors import Argument, InstError, UsageError

_SMALLEST_DEFAULT = 512  # pixels
_LARGEST_GRAPH = 32 * 64**2  # latent positions of all samples; with more, the GPU needs longer than the launches

_LARGEST_GRAPHED_PICTURE = 512**2  # pixels of all pictures; a graph keeps its memory, and the autoencoder needs much

ControlResiduals = tuple[Sequence[Tensor], Tensor]
"""The tensors that a ControlNet adds inside the UNet: one per skip connection of the down blocks, and one for the mid
block. They are diffusers' `down_block_res_samples` and `mid_block_res_sample`."""


@dataclass(eq=False, kw_only=True)
class Backbone(TextEncoding):
    """A frozen latent diffusion model in Stable Diffusion's layout. Load one with `Backbone.load`.

    Its parts are the attributes of `inst.backbone.parts.Parts`. It also has:

    Attributes:
        device: the device of the parts and of all results. On an accelerator, the image encoder is on the device only
            while paintings are encoded. With `low_memory`, every part is on the device only while it runs.
        dtype: the precision of the parts; the autoencoder may differ (see `inst.backbone.devices.autoencoder_dtype`).
        name: the name of a bundled model or of a model on the hub, or the base name of the folder or file.
        low_memory: whether it was loaded with `low_memory` (see `load`).
        quantize: how the UNet's weights are stored (see `load`); None for the precision `dtype`.
        fast: whether it was loaded with `fast` (see `load`); always False without a CUDA device.
        graphs: the CUDA graphs of its calls; None unless `fast`, and None with `low_memory`.
        options: how it computes in a run; `dataclasses.replace(backbone, options=...)` is the same model with others.
        latent_channels: C, channels of the latents.
        downscale: number of pixels per latent position, along each side.
        native_size: (short) side in pixels of the pictures that the UNet was trained with.
        alphas_cumprod: abar, [T] float32 on `device`, at least 2^-24.
        schedule: the same on the CPU, for solvers, which compute their coefficients without waiting for the device.
        default_size: (short) side in pixels of results, if the user gives no size. It is twice the native size for a
            model that was trained with small pictures: its strokes are finer then, and faces can be read.
        size_multiple: pictures whose sides are multiples of this, in pixels, need no padding for autoencoder and UNet.

    Shapes: B pictures or prompts, H x W pixels, h x w = H / downscale x W / downscale, L text positions, d text width
    (with two text encoders, the sum of both widths; columns are split by `text_widths`).
    Pictures, latents and noise are float32, whatever the precision of the parts.
    """

    device: torch.device
    dtype: torch.dtype
    name: str = ""
    low_memory: bool = False
    quantize: Quantization | None = None
    fast: bool = False
    graphs: Graphs | None = field(default=None, repr=False)
    options: ModelOptions = field(default_factory=ModelOptions, repr=False)
    latent_channels: int = field(init=False)
    downscale: int = field(init=False)
    native_size: int = field(init=False)
    default_size: int = field(init=False)
    size_multiple: int = field(init=False)
    alphas_cumprod: Tensor = field(init=False, repr=False)
    schedule: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.latent_channels = self.vae.config["latent_channels"]
        self.downscale = 2 ** (len(self.vae.config["block_out_channels"]) - 1)
        sample_size = self.unet.config["sample_size"] or 64  # the value of Stable Diffusion 1.x, if missing
        self.native_size = self.downscale * (sample_size if isinstance(sample_size, int) else min(sample_size))
        self.default_size = max(self.native_size, min(2 * self.native_size, _SMALLEST_DEFAULT))
        self.size_multiple = self.downscale * 2 ** (len(self.unet.config["block_out_channels"]) - 1)
        # A schedule with zero terminal SNR (Lin et al. 2024) ends in 0, and clean latents cannot be computed from 0.
        self.schedule = self.scheduler.alphas_cumprod.to("cpu", torch.float32).clamp_min(2**-24)
        self.alphas_cumprod = self.schedule.to(self.device)

    @classmethod
    def load(
        cls,
        name: str | Path = "mini",
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        *,
        config: str | Path | None = None,
        image_encoder: str | Path | Literal[False] | None = None,
        download: bool = False,
        low_memory: bool = False,
        quantize: Quantization | None = None,
        fast: bool = True,
    ) -> Self:
        """Load a model of the families Stable Diffusion 1.x, 2.x (which predicts noise or v) or XL, with frozen parts.

        No code in a model file is ever run. The network is used only if `download` is True.

        Args:
            name: "mini" for the bundled model; a folder in the diffusers layout; a single file in the original layout;
                or a model on the hub, "owner/model" or "owner/model@revision".
            device: such as "cpu", "cuda:1" or "mps"; by default the best available one.
            dtype: "float32", "bfloat16" or "float16"; by default the best one for the device (`choose_dtype` in
                `inst.backbone.devices`). With float16, the autoencoder runs in float32 (`autoencoder_dtype`).
            config: the configuration of a single file with unusual sizes (`read_single_file` in
                `inst.backbone.loading.single_file`).
            image_encoder: a CLIP image encoder, as a folder or a name on the hub. It replaces the model's own image
                encoder, if there is one (Stable Diffusion's models have none). The model's pretrained inversion module
                is then left out, because it works only with the model's own image encoder. None: a model without an
                image encoder gets the matching one, if it is in the cache or `download` is True. False: it gets none,
                for uses without paintings.
            download: download from the hub the files that are not in its cache on this machine.
            low_memory: use less memory on an accelerator, but run slower. Each part is on the device only while it
                runs, the autoencoder processes one picture (or one smaller tile of it) at a time, and learning computes
                the UNet's activations twice and does not store them. Only one thread may use the backbone then;
                otherwise any number.
            quantize: store the UNet's weights in 8 bits (`inst.backbone.quantization`), as "int8" or "fp8". It needs
                torchao. The picture differs slightly, with "fp8" more than with "int8", and a call takes a little
                longer.
            fast: on a CUDA device, compute with CUDA graphs (not with `low_memory`), fused kernels and the
                channels-last layout (docs/performance.md). The results are the same up to rounding. False is for
                comparisons.

        Raises:
            UsageError: the device, precision or quantisation is not available, or a configuration is given but not
                needed.
            InstError: the model is not found, incomplete, broken or of another kind, or its parts do not fit together;
                or torchao is missing.
        """
        # The readers import diffusers and transformers, which takes seconds, so they are imported only here.
        from inst.backbone.loading.image_encoder import (
            find_image_encoder,
            find_matching_image_encoder,
            read_image_encoder,
        )
        from inst.backbone.loading.sources import display_name, find_source, read_parts

        check_path("A model", name)
        if config is not None:
            check_path("A configuration", config)
        if image_encoder is not None and image_encoder is not False:
            check_path("An image encoder", image_encoder)
        device = choose_device(device)
        dtype = choose_dtype(device, dtype)
        check_quantization(quantize, device)  # before the slow reading of the model
        source = find_source(name, download=download)
        # Find the image encoder first: a wrong name should fail before the slow reading of the model.
        encoder = find_image_encoder(image_encoder, download) if image_encoder else None
        parts = read_parts(source, dtype, config)
        if device.type == "cpu":
            # The convolutions of oneDNN then need no other order of the numbers. Measured with mini in bfloat16, CPU
            # time: encode 19 to 26 % less, decode 11 to 22 % less. The UNet gains at most 3 %, so it stays as it is.
            # diffusers' own `to` would import its hooks, peft and PyTorch's compiler.
            nn.Module.to(parts.vae, memory_format=torch.channels_last)  # type: ignore[call-overload]  # not annotated
        if image_encoder is None and parts.image_encoder is None:
            encoder = find_matching_image_encoder(parts.text_encoder.config, download)
        if encoder is not None:
            clip_encoder, extractor = read_image_encoder(encoder, dtype)
            # A pretrained inversion module works only with the image encoder that it was trained with.
            parts = replace(
                parts,
                image_encoder=clip_encoder,
                feature_extractor=extractor,
                image_encoder_replaced=image_encoder is not None,
                inversion=None,
            )
        options: dict[str, Any] = {"low_memory": low_memory, "quantize": quantize, "fast": fast}
        return cls.of(parts, device, dtype, display_name(name, source), source, **options)

    @classmethod
    def of(
        cls,
        parts: Parts,
        device: torch.device,
        dtype: torch.dtype,
        name: str,
        source: str | Path | None = None,
        *,
        low_memory: bool = False,
        quantize: Quantization | None = None,
        fast: bool = True,
    ) -> Self:
        """Check that parts fit together, freeze them, and make a backbone from them.

        Args:
            parts: the parts, from any source.
            device: the device to compute on.
            dtype: the precision of the parts.
            name: the backbone's name.
            source: the model's name in messages; None means `name`.
            low_memory: see `Backbone.load`.
            quantize: see `Backbone.load`. The UNet is changed.
            fast: see `Backbone.load`.

        Raises:
            UsageError, InstError: the parts do not fit together, or the UNet cannot be quantised.
        """
        check_fit(parts, name if source is None else source)
        models = {name: part for name, part in vars(parts).items() if isinstance(part, nn.Module)}
        for model in models.values():
            model.requires_grad_(False).eval()
        fast = fast and device.type == "cuda"
        if fast:
            for network in (parts.unet, parts.vae):
                network.to(memory_format=torch.channels_last)
        if quantize is not None:
            quantize_weights(parts.unet, quantize, device)
        if low_memory:
            parts.vae.enable_slicing()
            parts.unet.enable_gradient_checkpointing()
        if device.type != "cpu":
            # Transfer and generation do not need the image encoder: it is on the device only for encoding paintings.
            offloaded = set(models) - {"inversion"} if low_memory else {"image_encoder"}
            Offload([model for kind, model in models.items() if kind in offloaded], device)
            for kind in models.keys() - offloaded:
                models[kind].to(device)
        graphs = cuda_graphs(device) if fast and not low_memory else None
        about: dict[str, Any] = {"name": name, "low_memory": low_memory, "quantize": quantize}
        return cls(**vars(parts), device=device, dtype=dtype, **about, fast=fast, graphs=graphs)

    def encode(self, pictures: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Encode pictures into latents.

        Args:
            pictures: [B, 3, H, W] in [-1, 1]; H and W are multiples of `downscale`.
            generator: draws a sample of the posterior; None gives the posterior's mean. A generator on the CPU gives
                the same sample on every device.

        Returns:
            [B, C, h, w], multiplied by the autoencoder's scaling factor, so the variance is about 1.

        Raises:
            UsageError: the pictures have another shape.
        """
        mean, std = self.encode_moments(pictures)
        if generator is None:
            return mean
        return mean + std * torch.randn(mean.shape, generator=generator, device=generator.device).to(mean)

    def encode_moments(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and the standard deviation of the posterior, from which `encode` gets the latents.

        Both are [B, C, h, w] float32, multiplied by the autoencoder's scaling factor. Arguments and errors as `encode`.
        """
        _check_pictures(pictures)
        height, width = pictures.shape[-2:]
        if height % self.downscale or width % self.downscale:
            raise UsageError(
                f"A picture of {width} x {height} pixels cannot be encoded",
                f"crop or resize it to multiples of {self.downscale}",
            )

        def moments(inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
            with self._fast_operations():
                posterior: Any = self.vae.encode(inputs[0]).latent_dist
            scale = self.vae.config["scaling_factor"]
            return posterior.mean.float() * scale, posterior.std.float() * scale

        inputs = [copy_to(pictures, self.device, self.vae.dtype)]
        graphs = None if pictures[:, 0].numel() > _LARGEST_GRAPHED_PICTURE else self.graphs
        mean, std = call_by_graph(graphs, "encoder", self.vae, moments, inputs)
        return mean, std

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents [B, C, h, w] into pictures [B, 3, H, W], clamped to [-1, 1]."""
        latents = latents.to(self.device) / self.vae.config["scaling_factor"]
        with self._fast_operations():
            decoded: Any = self.vae.decode(latents.to(self.vae.dtype))
        pictures: Tensor = decoded.sample
        return pictures.float().clamp(-1, 1)

    def embed_picture(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Run CLIP's image encoder tau (paper eq. 2).

        Args:
            pictures: [B, 3, H, W] in [-1, 1], of any size; resized and cropped to a centre square, as in CLIP.

        Returns:
            The projected pooled embeddings [B, P], and the patch tokens [B, N, W], which are the last hidden state
            without the class token. Both are float32.

        Raises:
            InstError: the backbone has no image encoder.
            UsageError: the pictures have another shape.
        """
        _check_pictures(pictures)
        if self.image_encoder is None or self.feature_extractor is None:
            from inst.backbone.loading.image_encoder import image_encoder_remedy

            raise InstError(
                f"{self.name or 'This backbone'} has no image encoder",
                *image_encoder_remedy(self.text_encoder.config),
                ", or learn without one (",
                Argument("variant", "direct"),
                ")",
            )
        pixels = self.feature_extractor(pictures.to(self.device))
        output = self.image_encoder(pixel_values=pixels.to(self.dtype))
        return output.image_embeds.float(), output.last_hidden_state[:, 1:].float()

    def predict_noise(
        self,
        latents: Tensor,
        timesteps: Tensor | int,
        text: TextEmbedding,
        *,
        frame: Frame | None = None,
        residuals: ControlResiduals | None = None,
    ) -> Tensor:
        """Predict the noise epsilon in noisy latents. Differentiable in `latents` and `text`.

        A model that was trained to predict v = sqrt(abar) eps - sqrt(1 - abar) z0 (Salimans and Ho 2022, arXiv
        2202.00512) is converted: eps = sqrt(abar) v + sqrt(1 - abar) z_t.

        Args:
            latents: z_t, [B, C, h, w].
            timesteps: t in [0, T), one integer for all or [B] integers. The range is not checked if they are on an
                accelerator, because reading them would stall it.
            text: B prompts from `embed_text`, or one for all.
            frame: the position of the latents, as a tile, in the latents of the whole picture; None means that they are
                the whole picture.
            residuals: the tensors that a ControlNet adds inside the UNet.

        Returns:
            [B, C, h, w] float32.

        Raises:
            UsageError: a timestep is not an integer in [0, T), or the UNet has IP-Adapters and the text no images.
        """
        latents = latents.to(self.device)
        given = torch.as_tensor(timesteps)
        self._check_timesteps(given)
        if isinstance(timesteps, int):  # a copy to the device would wait for it
            steps = torch.full((len(latents),), timesteps, device=self.device)
        else:
            steps = copy_to(given, self.device).expand(len(latents))
        text = text.expand(len(latents))
        inputs: dict[str, Tensor | list[Tensor]] = {
            "sample": self._for_unet(latents),
            "timestep": steps,
            "encoder_hidden_states": self._for_unet(text.tokens),
            **(self.added_conditions(latents, text, frame) or {}),
        }
        if text.images:
            inputs["image_embeds"] = [self._for_unet(image) for image in text.images]
        elif getattr(self.unet, "encoder_hid_proj", None) is not None:
            raise UsageError(
                "The UNet has an IP-Adapter, and no picture is given for it",
                "use the pipeline that loaded it, or remove it with unload_ip_adapter()",
            )
        if residuals is not None:
            down, mid = residuals
            inputs["down_block_additional_residuals"] = [self._for_unet(part) for part in down]
            inputs["mid_block_additional_residual"] = self._for_unet(mid)
        predicted = self._call_unet(inputs)
        predicted = predicted.float()
        if self.scheduler.config["prediction_type"] == "epsilon":
            return predicted
        alpha = self.alphas_cumprod[steps].view(-1, 1, 1, 1)
        return alpha.sqrt() * predicted + (1 - alpha).sqrt() * latents.float()

    def _call_unet(self, inputs: Mapping[str, Tensor | list[Tensor]]) -> Tensor:
        """Call the UNet, by a CUDA graph if that is possible, also inside of `handled`.

        The result has no meaning if a handler has `Finished` the call.
        """

        def call(tensors: Sequence[Tensor]) -> Tensor:
            given = _unflatten(tensors, inputs)
            added = {name: given.pop(name) for name in _ADDED if name in given}
            if self.options.attention:
                given["cross_attention_kwargs"] = dict(self.options.attention)
            sample, timestep = given.pop("sample"), given.pop("timestep")
            predicted: Tensor = sample
            with self._fast_operations(), suppress(Finished):
                predicted = self.unet(sample, timestep, **given, added_cond_kwargs=added or None, return_dict=False)[0]
            return predicted

        flat = _flatten(inputs)
        handler = None if (running := running_handler()) is None else running[1]
        graphs = self.graphs if flat[0][:, 0].numel() <= _LARGEST_GRAPH and not self.options.attention else None
        if graphs is None or not (handler is None or isinstance(handler, TensorHandler)):
            return call(flat)
        structure = tuple((name, len(part) if isinstance(part, list) else 1) for name, part in inputs.items())
        if handler is None:
            return call_by_graph(graphs, structure, self.unet, lambda tensors: [call(tensors)], flat)[0]

        def call_handled(tensors: Sequence[Tensor]) -> list[Tensor]:
            own = handler.with_inputs(tensors[len(flat) :])
            with replaced(own):
                return [call(tensors[: len(flat)]), *own.outputs()]

        key, given = (structure, handler.key), [*flat, *handler.inputs]
        results = call_by_graph(graphs, key, self.unet, call_handled, given)
        handler.take(results[1:])
        return results[0]

    def _fast_operations(self) -> AbstractContextManager[Any]:
        """Compute some operations in a faster way inside the block.

        See `inst.backbone.fused`; on a CPU `inst.backbone.blockwise` and, with gradients, `inst.backbone.gradients`.
        With low memory, the backward pass computes the activations again, outside of the block.
        """
        if torch.is_grad_enabled() and (self.low_memory or self.device.type == "cpu"):
            return nullcontext() if self.low_memory else faster_gradients(self.device, self.dtype)
        if self.device.type == "cpu" and self.dtype == torch.bfloat16 and is_useful():
            return Blockwise()
        if not self.fast or kernels() is None:
            return nullcontext()
        return Fused()

    def added_conditions(
        self, latents: Tensor, text: TextEmbedding, frame: Frame | None = None
    ) -> dict[str, Tensor] | None:
        """Return the inputs of a UNet or ControlNet besides timestep and text, by diffusers' names, or None.

        Stable Diffusion XL (sec. 2.2) takes the pooled text and, in pixels, the original size of the picture, the
        position of the crop and the size of the crop. A tile is given as a crop of the whole picture. Otherwise the
        model would compose a complete picture in each tile.

        Args:
            latents: [B, C, h, w].
            text: B prompts.
            frame: as in `predict_noise`.
        """
        if text.pooled is None:
            return None
        height, width = latents.shape[-2:]
        whole = Frame(height, width) if frame is None else frame
        sizes = [whole.height, whole.width, whole.top, whole.left, height, width]
        size_ids = copy_to(torch.tensor(sizes, dtype=torch.float32), latents.device) * self.downscale
        return {"text_embeds": self._for_unet(text.pooled), "time_ids": size_ids.expand(len(latents), -1)}

    def _for_unet(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, self.unet.dtype)

    def _check_timesteps(self, timesteps: Tensor) -> None:
        if timesteps.dtype not in (torch.int64, torch.int32):
            raise UsageError(f"Timesteps of the type {timesteps.dtype} cannot be used", "give integers")
        last = len(self.alphas_cumprod) - 1
        if timesteps.device.type == "cpu" and ((timesteps < 0) | (timesteps > last)).any():
            raise UsageError(
                f"The timesteps {timesteps.tolist()} are not all in this model's range",
                f"give timesteps from 0 to {last}",
            )


_ADDED = ("text_embeds", "time_ids", "image_embeds")
"""Names of the inputs of a UNet that diffusers takes as `added_cond_kwargs`."""


def _flatten(inputs: Mapping[str, Tensor | list[Tensor]]) -> list[Tensor]:
    return [tensor for part in inputs.values() for tensor in (part if isinstance(part, list) else [part])]


def _unflatten(tensors: Sequence[Tensor], like: Mapping[str, Tensor | list[Tensor]]) -> dict[str, Any]:
    given = iter(tensors)
    return {name: [next(given) for _ in part] if isinstance(part, list) else next(given) for name, part in like.items()}


def check_backbone(backbone: object) -> None:
    """Raise UsageError unless an argument is a backbone."""
    check_type("A backbone", backbone, Backbone, "load one with inst.Backbone.load")


def _check_pictures(pictures: Tensor) -> None:
    if pictures.dim() != 4 or pictures.shape[1] != 3 or 0 in pictures.shape:
        raise UsageError(
            f"Pictures of the shape {list(pictures.shape)} cannot be used", "give [B, 3, H, W], in red, green and blue"
        )
