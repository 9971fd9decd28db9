"""Similarities in the shared space of pictures and texts (CLIP; Radford et al., ICML 2021), as in the InST paper.

Accuracy is the mean cosine between results and their paintings. Editability is the mean cosine between results and
their prompts without the placeholder (Zhang et al., CVPR 2023, sec. 4; its code uses CLIP ViT-B/32). Both are in
[-1, 1]. Scores by different encoders cannot be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inst.arguments import check_path
from inst.backbone.devices import choose_device
from inst.backbone.fingerprints import denoiser_fingerprint_of
from inst.backbone.model import Backbone
from inst.backbone.tokens import PLACEHOLDER
from inst.backbone.weights import read_weights
from inst.errors import Argument, InstError


@dataclass(frozen=True, eq=False)
class PictureTextEncoder:
    """Embeds pictures and texts as vectors of length 1 in one space.

    Attributes:
        name: first word of the columns' titles: "CLIP" for CLIP itself, otherwise the backbone's name.
        source: name of the weights.
        pictures: [B, 3, H, W] in [-1, 1] -> [B, P], of length 1.
        texts: B texts -> [B, P], of length 1; None if no text encoder shares the space of the pictures.
        no_texts: the reason if `texts` is None.
        mark: identifies the weights; "" if it is not known.
    """

    name: str
    source: str
    pictures: Callable[[Tensor], Tensor]
    texts: Callable[[Sequence[str]], Tensor] | None
    no_texts: str = ""
    mark: str = ""

    @classmethod
    def of_backbone(cls, backbone: Backbone) -> Self:
        """Return a backbone's own encoders. The columns have the backbone's name, because these may not be CLIP.

        An image encoder that was not trained together with the text encoder has its own space, even if the widths are
        the same. Cosines between the two mean nothing then, and `texts` is None.

        Raises:
            InstError: the backbone has no image encoder.
        """
        if backbone.image_encoder is None:
            raise InstError(
                f"The backbone {backbone.name} has no image encoder", "give CLIP (", Argument("encoder"), ")"
            )
        projection = getattr(backbone.text_encoder, "text_projection", None)
        no_texts = ""
        if backbone.image_encoder_replaced:
            no_texts = f"the image encoder given for {backbone.name} shares no space with its text encoder"
        elif projection is None:
            no_texts = f"the text encoder of {backbone.name} has no projection into the space of pictures"
        elif projection.out_features != backbone.image_encoder.config.projection_dim:
            no_texts = f"the image encoder of {backbone.name} shares no space with its text encoder"

        return cls(
            backbone.name,
            backbone.name,
            lambda pictures: F.normalize(backbone.embed_picture(pictures)[0], dim=-1),
            None if no_texts else lambda prompts: F.normalize(backbone.embed_caption(prompts), dim=-1),
            no_texts,
            _mark(backbone.image_encoder, backbone.text_encoder),
        )

    @classmethod
    def load_clip(cls, name: str | Path, device: str | torch.device = "cpu", download: bool = False) -> Self:
        """Load CLIP in the layout of transformers, in float32.

        Args:
            name: a folder with config.json, model.safetensors, the tokenizer and preprocessor_config.json, or the name
                of a model on the hub, such as "openai/clip-vit-base-patch32".
            device: device of the model.
            download: download the model if it is not in the hub's cache.

        Raises:
            UsageError: there is no such device.
            InstError: the folder is missing or incomplete, or the model is not in the cache and `download` is False.
        """
        # Imported here because importing transformers takes seconds.
        from inst.backbone.loading.image_encoder import read_clip

        check_path("A CLIP model", name)
        device = choose_device(device)
        model, tokenizer, extractor = read_clip(name, download)
        model = model.eval().requires_grad_(False).to(device)
        positions = model.config.text_config.max_position_embeddings

        def pictures(batch: Tensor) -> Tensor:
            outputs = model.vision_model(pixel_values=extractor(batch.to(device)))
            return F.normalize(model.visual_projection(outputs.pooler_output), dim=-1)

        def texts(prompts: Sequence[str]) -> Tensor:
            tokens = tokenizer(
                list(prompts), padding=True, truncation=True, max_length=positions, return_tensors="pt"
            ).to(device)
            outputs = model.text_model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
            return F.normalize(model.text_projection(outputs.pooler_output), dim=-1)

        return cls("CLIP", Path(name).name, pictures, texts, mark=_mark(model))


def _mark(*networks: nn.Module) -> str:
    rows = {
        f"{place} {name}": value.detach()[:1].cpu() if value.dim() else value.detach().cpu()
        for place, network in enumerate(networks)
        for name, value in network.named_parameters()
    }
    return denoiser_fingerprint_of(rows)


def without_placeholder(prompt: str) -> str:
    """Return the prompt without placeholders such as `[C]`, and without the spaces that they leave."""
    return " ".join(PLACEHOLDER.sub(" ", read_weights(prompt).text).split())


def cosine(x: Tensor, y: Tensor) -> Tensor:
    """Return the cosines [B] of vectors of length 1, [B, P] and [B or 1, P]."""
    return (x * y).sum(-1)
