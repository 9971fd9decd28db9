"""Compute the style vector from an `embeddings.pt` of the public reference code (zyxElsa/InST).

The file is a pickle of the attention module; it holds no vector. The reference code computes the vector from the
painting each time it makes a picture, with dropout left on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from inst.errors import UsageError
from inst.files.pickles import is_dense
from inst.pictures.reading import Photo
from inst.pictures.tensors import to_image, to_tensor

if TYPE_CHECKING:
    from inst.backbone.model import Backbone


SIDE = 512
"""The reference code resizes every picture to a square of this many pixels, without keeping its proportions."""


class PickledModule:
    """Replaces a module class that a pickle names. It holds the state, and has no behaviour."""


CLASSES = (
    "ldm.modules.embedding_manager.Attentions",
    "ldm.modules.attention.CrossAttention",
    "torch.nn.modules.container.Sequential",
    "torch.nn.modules.linear.Linear",
    "torch.nn.modules.dropout.Dropout",
)
"""The module classes in `embeddings.pt`: two of the reference code, the others of PyTorch. `PickledModule` replaces
all of them."""


@dataclass(frozen=True, eq=False)
class ReferenceInversion:
    """The attention module of the reference code in evaluation mode.

    Its input is a single pooled embedding. So the softmax of each attention is 1, for any query and key, and the
    attention returns the value of the embedding. The second attention reads the embedding again, so the first one has
    no effect. Three linear maps remain: value and output of the second attention, and the last layer.

    Attributes:
        value: [k, d]; no bias.
        out, out_bias: [d, k] and [d].
        last, last_bias: [d, d] and [d].
    """

    value: Tensor
    out: Tensor
    out_bias: Tensor
    last: Tensor
    last_bias: Tensor

    @classmethod
    def of(cls, module: Any) -> ReferenceInversion:
        """Read the weights from the pickled module.

        Raises:
            KeyError, TypeError: it is another module, or not a module.
            ValueError: the weights are not finite, or their shapes do not fit together.
        """
        names = ("attn2.to_v.weight", "attn2.to_out.0.weight", "attn2.to_out.0.bias", "net.1.weight", "net.1.bias")
        found = cls(*(_weight(module, name) for name in names))
        inner, width = found.value.shape
        for name, tensor, shape in zip(
            names[1:],
            (found.out, found.out_bias, found.last, found.last_bias),
            ((width, inner), (width,), (width, width), (width,)),
            strict=True,
        ):
            if tensor.shape != shape:
                raise ValueError(f"{name} has the shape {list(tensor.shape)}, not {list(shape)}")
        return found

    @property
    def width(self) -> int:
        """d, the width of the pooled embedding (input) and of the vector (output)."""
        return self.value.shape[1]

    def __call__(self, pooled: Tensor) -> Tensor:
        """Compute the vectors [B, d] from pooled picture embeddings [B, d]. The embeddings are normalised first."""
        attended = F.linear(F.linear(F.normalize(pooled, dim=-1), self.value), self.out, self.out_bias)
        return F.linear(attended, self.last, self.last_bias)


@torch.no_grad()
def compute_vector(inversion: ReferenceInversion, backbone: Backbone, painting: Photo, as_reference: bool) -> Tensor:
    """Compute the vector [1, d] of a painting.

    Args:
        inversion: from `embeddings.pt`.
        backbone: its image encoder embeds the painting. The reference code uses CLIP ViT-L/14.
        painting: the painting that the style was learned from.
        as_reference: preprocess the painting as the reference code does (`cast_as_reference`); the module was learned
            with such input. Otherwise the painting is used as it is.

    Raises:
        InstError: the backbone has no image encoder.
        UsageError: the image encoder and the module have different widths.
    """
    encoder = backbone.image_encoder
    if encoder is not None and encoder.config.projection_dim != inversion.width:
        raise UsageError(
            f"The module takes picture embeddings of width {inversion.width} (CLIP ViT-L/14 has 768), but the image "
            f"encoder of the backbone {backbone.name} has width {encoder.config.projection_dim}",
            "use another backbone",
        )
    picture = painting.picture
    if as_reference:
        image = cast_as_reference(to_image(picture))
        if backbone.feature_extractor is not None:
            # The image is resized in 8 bits, as in CLIP's processor: the result is rounded to whole levels.
            image = image.resize((backbone.feature_extractor.size,) * 2, Image.Resampling.BICUBIC)
        picture = to_tensor(image)
    pooled, _ = backbone.embed_picture(picture[None])
    return inversion(pooled.cpu())


def cast_as_reference(image: Image.Image) -> Image.Image:
    """Return the picture that the reference code gives to CLIP: a square with nearly no content.

    The reference code scales the pixels to [-1, 1] and then casts them to 8 bits without scaling them back. So level 0
    becomes -1 and then 255, level 255 becomes 1, and every other level becomes 0.
    """
    levels = np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS))
    table = np.zeros(256, np.uint8)
    table[0], table[255] = 255, 1
    return Image.fromarray(table[levels])


def _weight(module: Any, path: str) -> Tensor:
    """Look up a parameter by path, such as "net.1.weight"."""
    *modules, name = path.split(".")
    for inner in modules:
        module = vars(module)["_modules"][inner]
    parameter = vars(module)["_parameters"][name]
    if isinstance(parameter, Tensor) and is_dense(parameter):
        numbers = parameter.detach().float()
        if numbers.isfinite().all():
            return numbers
    raise ValueError(f"{path} is not a tensor of finite numbers")
