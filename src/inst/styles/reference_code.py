"""What the public reference code (zyxElsa/InST) keeps of a style, `embeddings.pt`, and the vector that it stands for.

The file is a pickle of the attention module itself; it holds no vector. The reference makes the vector anew from the
painting whenever it draws a picture, with dropout left on.
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
from inst.files.pickles import holds_numbers
from inst.pictures.io import Photo, to_image, to_tensor

if TYPE_CHECKING:
    from inst.backbone.model import Backbone


SIDE = 512
"""Pixels of the square that the reference squashes every picture to."""


class PickledModule:
    """Stands in for a module class that a pickle names: holds the state, and has no behaviour."""


CLASSES = (
    "ldm.modules.embedding_manager.Attentions",
    "ldm.modules.attention.CrossAttention",
    "torch.nn.modules.container.Sequential",
    "torch.nn.modules.linear.Linear",
    "torch.nn.modules.dropout.Dropout",
)
"""The module classes in `embeddings.pt`: two of the reference's own, and PyTorch's. Stand-ins answer to all."""


@dataclass(frozen=True, eq=False)
class ReferenceInversion:
    """The reference's attention module in evaluation mode.

    Over the one pooled embedding that it is given, each attention's softmax is 1, whatever query and key say: what is
    attended to is its value. The second attention looks at the embedding again, so nothing of the first one is left
    either. What remains are three linear maps: the second attention's value and output, and the last layer.

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
        """Take the weights out of the pickled module.

        Raises:
            KeyError, TypeError: it is another module, or none.
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
        """d, the width of the pooled embedding that goes in, and of the vector that comes out."""
        return self.value.shape[1]

    def __call__(self, pooled: Tensor) -> Tensor:
        """Compute the vectors [B, d] of pooled picture embeddings [B, d], of any scale (they are normalised)."""
        attended = F.linear(F.linear(F.normalize(pooled, dim=-1), self.value), self.out, self.out_bias)
        return F.linear(attended, self.last, self.last_bias)


@torch.no_grad()
def vector_of(inversion: ReferenceInversion, backbone: Backbone, painting: Photo, as_reference: bool) -> Tensor:
    """Compute the vector [1, d] of a painting.

    Args:
        inversion: from `embeddings.pt`.
        backbone: whose image encoder looks at the painting; the reference's is CLIP ViT-L/14.
        painting: that the style was learned from.
        as_reference: show the painting as the reference does (`cast_as_reference`), which is what the module was
            learned with; else as it is.

    Raises:
        InstError: the backbone has no image encoder.
        UsageError: its embeddings have another width than the module takes.
    """
    encoder = backbone.image_encoder
    if encoder is not None and encoder.config.projection_dim != inversion.width:
        raise UsageError(
            f"The module takes picture embeddings of width {inversion.width} (CLIP ViT-L/14's is 768), but the image "
            f"encoder of the backbone {backbone.name} gives {encoder.config.projection_dim}",
            "use another backbone",
        )
    picture = painting.picture
    if as_reference:
        shown = cast_as_reference(to_image(picture))
        if backbone.feature_extractor is not None:
            # As CLIP's processor does with 8-bit pictures: what is resized is rounded to whole levels.
            shown = shown.resize((backbone.feature_extractor.size,) * 2, Image.Resampling.BICUBIC)
        picture = to_tensor(shown)
    pooled, _ = backbone.embed_picture(picture[None])
    return inversion(pooled.cpu())


def cast_as_reference(image: Image.Image) -> Image.Image:
    """Return what the reference's CLIP sees of a picture: a square nearly without content.

    The reference brings the pixels to [-1, 1], and then casts them to 8 bits without bringing them back: 0 turns into
    -1 and so into 255, 255 into 1, and every other level into 0.
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
    if isinstance(parameter, Tensor) and holds_numbers(parameter):
        numbers = parameter.detach().float()
        if numbers.isfinite().all():
            return numbers
    raise ValueError(f"{path} is no tensor of finite numbers")
