"""What the denoiser is told (TextEmbedding, Frame), and the frozen text transformer that makes the former, with
pseudo-word vectors in place of some of its token embeddings (paper sec. 3.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from inst.backbone.parts import Parts
from inst.backbone.tokens import TokenizedPrompts, check_placeholders, tokenize
from inst.errors import InstError, UsageError

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

COARSE_WORD = "painting"
"""The word that a fresh inversion module starts at, and that stands for a style of weight 0."""


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


class TextEncoding(Parts):
    """What `inst.Backbone` does with its text encoders.

    Shapes: B prompts, L text positions, d text width: the sum of both where there are two text encoders. Columns of
    vectors are split by `text_widths`.
    """

    device: torch.device

    @property
    def text_encoders(self) -> tuple[CLIPTextModel | CLIPTextModelWithProjection, ...]:
        """One, or both."""
        return (self.text_encoder,) if self.text_encoder_2 is None else (self.text_encoder, self.text_encoder_2)

    @property
    def tokenizers(self) -> tuple[CLIPTokenizer, ...]:
        """Those of `text_encoders`."""
        return (self.tokenizer,) if self.tokenizer_2 is None else (self.tokenizer, self.tokenizer_2)

    @property
    def text_widths(self) -> tuple[int, ...]:
        """Width of the token embeddings of each text encoder."""
        return tuple(encoder.config.hidden_size for encoder in self.text_encoders)

    @property
    def text_width(self) -> int:
        """d, the width of a style's vectors: the sum of `text_widths`."""
        return sum(self.text_widths)

    @property
    def token_table(self) -> Tensor:
        """The token embeddings, [V, d] float32 on the CPU; those of two text encoders side by side."""
        tables = [encoder.get_input_embeddings().weight.detach().cpu().float() for encoder in self.text_encoders]
        return tables[0] if len(tables) == 1 else torch.cat(tables, dim=1)

    def tokenize(
        self, prompts: Sequence[str], lengths: Mapping[str, int] | None = None
    ) -> tuple[TokenizedPrompts, ...]:
        """Tokenise prompts for each text encoder; arguments and errors as `inst.backbone.tokens.tokenize`."""
        return tuple(tokenize(tokenizer, prompts, lengths) for tokenizer in self.tokenizers)

    def embed_text(self, prompts: Sequence[str], styles: Mapping[str, Tensor] | None = None) -> TextEmbedding:
        """Encode prompts, with pseudo-words in the places of their placeholders (paper sec. 3.2).

        One text encoder: its hidden states after the final layer norm. Two (Stable Diffusion XL, Podell et al. 2023,
        arXiv 2307.01952, sec. 2.1): the hidden states of both before their last layers, side by side, and the second
        one's projected pooled output. There an empty prompt is all zeros, if `force_zeros_for_empty_prompt`.

        Args:
            prompts: B texts; words in square brackets, such as `[C]`, are placeholders.
            styles: the vectors of each placeholder, `{"[C]": vectors}`: [n, d] for all prompts or [B, n, d] for each
                its own. A placeholder takes n positions. Gradients flow back to the vectors.

        Returns:
            B prompts in `dtype`, as the UNet wants them.

        Raises:
            UsageError: no prompt or one that is too long, a placeholder without a style, or vectors of the wrong shape.
        """
        text = self.encode_tokens(*self._prepare_prompts(prompts, styles or {}))
        if text.pooled is None or not self.force_zeros_for_empty_prompt:
            return text
        said = torch.tensor([bool(prompt) for prompt in prompts], device=self.device).view(-1, 1)
        # Chosen, not multiplied: in half precision the encoding may hold infinities, and 0 times one is no number.
        return TextEmbedding(torch.where(said[..., None], text.tokens, 0), torch.where(said, text.pooled, 0))

    def encode_tokens(self, tokens: Sequence[TokenizedPrompts], vectors: Tensor | None = None) -> TextEmbedding:
        """Run the text encoders; as `embed_text`, for what `tokenize` gave.

        Args:
            tokens: B prompts for each text encoder.
            vectors: [B, K, d] for the slots of all placeholders, or None where there are none.
        """
        widths = list(self.text_widths)
        parts = [None] * len(widths) if vectors is None else vectors.split(widths, dim=-1)
        encoded = [
            encode_text(encoder, ids.ids.to(self.device), ids.slots.to(self.device), part, penultimate=len(widths) == 2)
            for encoder, ids, part in zip(self.text_encoders, tokens, parts, strict=True)
        ]
        if len(encoded) == 1:
            return TextEmbedding(encoded[0][0])
        return TextEmbedding(torch.cat([hidden for hidden, _ in encoded], dim=-1), encoded[1][1])

    def embed_caption(self, prompts: Sequence[str]) -> Tensor:
        """Project prompts into the space that text and image encoder of one CLIP share: [B, P], not normalised.

        It is that of `embed_picture`'s pooled embeddings where the backbone's image encoder was trained with the text
        encoder. Of two text encoders the one that has a projection says it: in Stable Diffusion XL the second one, that
        of OpenCLIP's ViT-bigG.

        Raises:
            InstError: this backbone's text encoder has no projection.
            UsageError: no prompt, one that is too long, or a placeholder.
        """
        tokens, _ = self._prepare_prompts(prompts, {})
        for encoder, ids in zip(self.text_encoders, tokens, strict=True):
            if hasattr(encoder, "text_projection"):
                return encode_text(encoder, ids.ids.to(self.device), ids.slots.to(self.device), None)[1].float()
        raise InstError("This backbone's text encoder has no projection (text_projection.weight)", "use another one")

    def _prepare_prompts(
        self, prompts: Sequence[str], styles: Mapping[str, Tensor]
    ) -> tuple[tuple[TokenizedPrompts, ...], Tensor | None]:
        """Check prompts and styles, and return the tokens for each text encoder and the vectors for their slots."""
        if isinstance(prompts, str):  # a string is a sequence of strings too, and would pass as many short prompts
            raise TypeError("prompts is one string; give a list of strings")
        if not prompts:
            raise UsageError("No prompt is given", "give at least one text, which may be empty")
        check_placeholders(styles)
        batch, width = len(prompts), self.text_width
        vectors = []
        for name, style in styles.items():
            if style.dim() not in (2, 3) or style.shape[-1] != width or (style.dim() == 3 and len(style) != batch):
                raise UsageError(
                    f"The style {name} has the shape {list(style.shape)}; this backbone takes [n, {width}] or "
                    f"[{batch}, n, {width}]",
                    "use a style that was learned with this backbone",
                )
            vectors.append(style.to(self.device).expand(batch, -1, -1))
        tokens = self.tokenize(prompts, {name: style.shape[-2] for name, style in styles.items()})
        return tokens, torch.cat(vectors, dim=1) if vectors else None


def coarse_word(backbone: TextEncoding) -> Tensor:
    """The row [d] of `COARSE_WORD` in the token table: the mean of its rows where it takes several tokens.

    With two text encoders, each one's row, side by side.
    """
    rows = [
        encoder.get_input_embeddings().weight[tokenizer(COARSE_WORD, add_special_tokens=False)["input_ids"]]
        for encoder, tokenizer in zip(backbone.text_encoders, backbone.tokenizers, strict=True)
    ]
    # In low memory one of two text encoders may be on the accelerator, and the other not.
    return torch.cat([row.detach().to(backbone.device, torch.float32).mean(dim=0) for row in rows])
