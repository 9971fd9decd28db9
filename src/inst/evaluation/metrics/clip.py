"""Similarities in a space that pictures and texts share (CLIP; Radford et al., ICML 2021), as in the InST paper.

Accuracy is the mean cosine between results and their paintings, editability the mean cosine between results and their
prompts with the placeholder removed (Zhang et al., CVPR 2023, sec. 4; its code takes CLIP ViT-B/32). Both lie in
[-1, 1]; the figures of different encoders cannot be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from inst.backbone.model import Backbone
from inst.backbone.tokens import PLACEHOLDER
from inst.errors import Argument, InstError


@dataclass(frozen=True, eq=False)
class PictureTextEncoder:
    """Pictures and texts to vectors of unit length in one space.

    Attributes:
        name: what the columns are called after: "CLIP" for CLIP itself, else the backbone's name.
        source: which weights.
        pictures: [B, 3, H, W] in [-1, 1] -> [B, P], of length 1.
        texts: B texts -> [B, P], of length 1; None where there is no text side in the pictures' space.
        no_texts: why there is none.
    """

    name: str
    source: str
    pictures: Callable[[Tensor], Tensor]
    texts: Callable[[Sequence[str]], Tensor] | None
    no_texts: str = ""

    @classmethod
    def of_backbone(cls, backbone: Backbone) -> Self:
        """A backbone's own encoders. They are not CLIP unless somebody made them so, and are not called it.

        An image encoder that was not trained together with the text encoder has a space of its own, even where the
        widths agree: cosines between the two mean nothing, and there is no text side then.

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
        )

    @classmethod
    def load_clip(cls, name: str | Path, device: str | torch.device = "cpu", download: bool = False) -> Self:
        """CLIP in the layout of transformers, in float32.

        Args:
            name: a folder with config.json, model.safetensors, the tokenizer and preprocessor_config.json, or the name
                of a model on the hub, such as "openai/clip-vit-base-patch32".
            device: where to run it.
            download: fetch it where it is not in the hub's cache.

        Raises:
            InstError: the folder is missing or incomplete, or the model is neither here nor allowed to be fetched.
        """
        # transformers takes seconds to import: only who measures with CLIP waits for it.
        from inst.backbone.loading.image_encoder import read_clip

        model, tokenizer, extractor = read_clip(name, download)
        model = model.eval().requires_grad_(False).to(device)
        positions = model.config.text_config.max_position_embeddings

        def pictures(batch: Tensor) -> Tensor:
            seen = model.vision_model(pixel_values=extractor(batch.to(device)))
            return F.normalize(model.visual_projection(seen.pooler_output), dim=-1)

        def texts(prompts: Sequence[str]) -> Tensor:
            tokens = tokenizer(
                list(prompts), padding=True, truncation=True, max_length=positions, return_tensors="pt"
            ).to(device)
            read = model.text_model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
            return F.normalize(model.text_projection(read.pooler_output), dim=-1)

        return cls("CLIP", Path(name).name, pictures, texts)


def without_placeholder(prompt: str) -> str:
    """The prompt without its placeholders such as `[C]`, and without the gaps that they leave."""
    return " ".join(PLACEHOLDER.sub(" ", prompt).split())


def cosine(x: Tensor, y: Tensor) -> Tensor:
    """Cosines [B] of vectors of unit length, [B, P] and [B or 1, P]."""
    return (x * y).sum(-1)
