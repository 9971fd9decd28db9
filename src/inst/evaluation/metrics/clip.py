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
from inst.errors import InstError, first_line


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
            raise InstError(f"the backbone {backbone.name} has no image encoder: give CLIP's folder with --clip")
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
        from transformers import CLIPModel, CLIPTokenizerFast
        from transformers.utils import cached_file

        from inst.backbone.loading.image_encoder import read_feature_extractor
        from inst.backbone.loading.part import find_folder, quiet

        folder = find_folder(name)
        place = str(folder or name)
        try:
            if folder and not (folder / "config.json").is_file():
                raise ValueError("it has no config.json")  # transformers would make a CLIP of the usual size first
            with quiet():
                options = {"local_files_only": not download}
                model, report = CLIPModel.from_pretrained(
                    place, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **options
                )
                tokenizer = CLIPTokenizerFast.from_pretrained(place, **options)
                found = cached_file(place, "preprocessor_config.json", **options)
            if not 0.9 * model.config.text_config.vocab_size <= len(tokenizer) <= model.config.text_config.vocab_size:
                raise ValueError("its tokenizer is missing or of another model")  # transformers makes an empty one
            if report["missing_keys"]:
                raise ValueError(f"it has no {min(report['missing_keys'])}")  # transformers draws it at random
        except (OSError, ValueError, RuntimeError) as error:
            raise InstError(
                f"CLIP cannot be read from {name} ({first_line(error)}): give its folder, or a name on the model hub "
                f"with --download"
            ) from error
        extractor = read_feature_extractor(Path(str(found)), model.config.vision_config.image_size)
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

        return cls("CLIP", Path(place).name, pictures, texts)


def without_placeholder(prompt: str) -> str:
    """The prompt without its placeholders such as `[C]`, and without the gaps that they leave."""
    return " ".join(PLACEHOLDER.sub(" ", prompt).split())


def cosine(x: Tensor, y: Tensor) -> Tensor:
    """Cosines [B] of vectors of unit length, [B, P] and [B or 1, P]."""
    return (x * y).sum(-1)
