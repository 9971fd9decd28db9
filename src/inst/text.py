"""What the denoiser is told (TextEmbedding, Frame), and the frozen text transformer that makes the former, with
pseudo-word vectors in place of some of its token embeddings (paper sec. 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Frame:
    """Where latents lie, as a tile, in those of the whole picture.

    Attributes:
        height, width: of the whole, in latent positions.
        top, left: where the tile starts.
    """

    height: int
    width: int
    top: int = 0
    left: int = 0


@dataclass(frozen=True, eq=False)
class TextEmbedding:
    """Prompts as a denoiser takes them. B prompts, L text positions, D cross-attention width.

    Attributes:
        tokens: [B, L, D], for cross-attention.
        pooled: [B, P], one vector for each prompt, where the denoiser takes one (Stable Diffusion XL), else None.
    """

    tokens: Tensor
    pooled: Tensor | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: slice | Sequence[int] | Tensor) -> TextEmbedding:
        """Take some of the prompts, by slice or by numbers (a list, or an int64 tensor on the same device)."""
        return TextEmbedding(self.tokens[rows], None if self.pooled is None else self.pooled[rows])

    def expand(self, batch: int) -> TextEmbedding:
        """One prompt for a batch, [B = 1] -> [batch], without a copy; `batch` prompts stay as they are."""
        return TextEmbedding(
            self.tokens.expand(batch, -1, -1), None if self.pooled is None else self.pooled.expand(batch, -1)
        )

    def lerp(self, other: TextEmbedding, weight: float) -> TextEmbedding:
        """self + weight (other - self), in float32; beyond `other` where the weight is more than 1."""
        return TextEmbedding(
            self.tokens.float().lerp(other.tokens.float(), weight),
            None if self.pooled is None else self.pooled.float().lerp(_pooled(other).float(), weight),
        )

    @staticmethod
    def cat(parts: Sequence[TextEmbedding]) -> TextEmbedding:
        """The prompts of all parts, one after another. At least one part, and all of one model."""
        return TextEmbedding(
            torch.cat([part.tokens for part in parts]),
            None if parts[0].pooled is None else torch.cat([_pooled(part) for part in parts]),
        )


def _pooled(text: TextEmbedding) -> Tensor:
    if text.pooled is None:
        raise ValueError("text embeddings of two models: one is pooled, the other is not")
    return text.pooled


def encode_text(
    text_encoder: Any, ids: Tensor, slots: Tensor, vectors: Tensor | None, *, penultimate: bool = False
) -> tuple[Tensor, Tensor]:
    """Run a CLIP text model over token ids, putting `vectors` in place of the token embeddings that `slots` names.

    Args:
        text_encoder: `CLIPTextModelWithProjection` or `CLIPTextModel`.
        ids: [B, L] token ids; what stands at a slot does not matter, apart from the end token that CLIP pools at.
        slots: [B, L] of -1 for an ordinary token, or k to take `vectors[:, k]` there.
        vectors: [B, K, d] pseudo-word vectors of the text encoder's width, or None where no slot is used.
        penultimate: return the hidden state before the last layer and without the final layer norm, as Stable Diffusion
            XL reads it, instead of the last one.

    Returns:
        The last hidden state after the final layer norm (or see `penultimate`), [B, L, d], and the pooled output,
        [B, P]: projected into the space shared with pictures where the model has a projection, else the hidden state at
        the end token.
    """
    table: nn.Module = text_encoder.get_input_embeddings()
    handle = None
    if vectors is not None:
        # transformers' CLIP text models take no `inputs_embeds`; a hook on the table puts the vectors in and lets
        # gradients flow back to them.
        index = slots.clamp_min(0).unsqueeze(-1).expand(-1, -1, vectors.shape[-1])
        chosen = vectors.gather(1, index)
        used = (slots >= 0).unsqueeze(-1)

        def put_in(module: nn.Module, arguments: tuple[Any, ...], embedded: Tensor) -> Tensor:
            return torch.where(used, chosen.to(embedded.dtype), embedded)

        handle = table.register_forward_hook(put_in)
    try:
        output = text_encoder(input_ids=ids, output_hidden_states=penultimate)
    finally:
        if handle is not None:
            handle.remove()
    pooled = output.text_embeds if "text_embeds" in output else output.pooler_output
    return output.hidden_states[-2] if penultimate else output.last_hidden_state, pooled
