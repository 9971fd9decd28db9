"""The frozen text transformer, with pseudo-word vectors in place of some of its token embeddings (paper sec. 3.2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def encode_text(text_encoder: Any, ids: Tensor, slots: Tensor, vectors: Tensor | None) -> tuple[Tensor, Tensor]:
    """Run a CLIP text model over token ids, putting `vectors` in place of the token embeddings that `slots` names.

    Args:
        text_encoder: `CLIPTextModelWithProjection` or `CLIPTextModel`.
        ids: [B, L] token ids; what stands at a slot does not matter, apart from the end token that CLIP pools at.
        slots: [B, L] of -1 for an ordinary token, or k to take `vectors[:, k]` there.
        vectors: [B, K, d] pseudo-word vectors of the text encoder's width, or None where no slot is used.

    Returns:
        The last hidden state after the final layer norm, [B, L, d], and the pooled output, [B, P]: projected into
        the space shared with pictures where the model has a projection, else the hidden state at the end token.
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
        output = text_encoder(input_ids=ids)
    finally:
        if handle is not None:
            handle.remove()
    pooled = output.text_embeds if "text_embeds" in output else output.pooler_output
    return output.last_hidden_state, pooled
