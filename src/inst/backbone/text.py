"""The text inputs of the denoiser, and the frozen text encoder that computes them.

Pseudo-word vectors can replace some token embeddings of the text encoder (paper sec. 3.2).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from inst.backbone.devices import copy_to
from inst.backbone.gradients import faster_gradients
from inst.backbone.graphs import Graphs, call_by_graph
from inst.backbone.parts import Parts
from inst.backbone.tokens import TokenizedPrompts, check_placeholders, tokenize
from inst.errors import InstError, UsageError

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

COARSE_WORD = "painting"
"""The word that a new inversion module starts at. It also replaces a style of weight 0."""


@dataclass(frozen=True)
class Frame:
    """The position of a tile of latents in the latents of the whole picture.

    Attributes:
        height, width: size of the whole picture, in latent positions.
        top, left: position of the tile's corner, in latent positions.
    """

    height: int
    width: int
    top: int = 0
    left: int = 0


@dataclass(frozen=True, eq=False)
class TextEmbedding:
    """Encoded prompts, the text input of a denoiser. B prompts, L text positions, D cross-attention width.

    Attributes:
        tokens: [B, L, D], for cross-attention.
        pooled: [B, P], one vector per prompt, if the denoiser uses it (Stable Diffusion XL); otherwise None.
        images: the pictures that go with the prompts, for a denoiser with IP-Adapters: for each adapter the embeddings
            of N pictures, [B, N, ...].
    """

    tokens: Tensor
    pooled: Tensor | None = None
    images: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: slice | Sequence[int] | Tensor) -> TextEmbedding:
        """Return some of the prompts, by slice or by index (a list, or an int64 tensor on the same device)."""
        pooled = None if self.pooled is None else self.pooled[rows]
        return TextEmbedding(self.tokens[rows], pooled, tuple(image[rows] for image in self.images))

    def expand(self, batch: int) -> TextEmbedding:
        """Repeat one prompt for a batch, [B = 1] -> [batch], without a copy; `batch` prompts stay as they are."""
        pooled = None if self.pooled is None else self.pooled.expand(batch, -1)
        return TextEmbedding(self.tokens.expand(batch, -1, -1), pooled).with_images(self.images)

    def with_images(self, images: Sequence[Tensor]) -> TextEmbedding:
        """Return the same prompts with these `images`. Those of one prompt, [1, N, ...], are for every prompt."""
        return replace(self, images=tuple(image.expand(len(self), *image.shape[1:]) for image in images))

    def lerp(self, other: TextEmbedding, weight: float) -> TextEmbedding:
        """Return self + weight (other - self), without images, in float32. A weight above 1 extrapolates."""
        return TextEmbedding(
            self.tokens.float().lerp(other.tokens.float(), weight),
            None if self.pooled is None else self.pooled.float().lerp(_pooled(other).float(), weight),
        )

    @staticmethod
    def cat(parts: Sequence[TextEmbedding]) -> TextEmbedding:
        """Concatenate the prompts of one or more parts, which must all come from the same model."""
        return TextEmbedding(
            torch.cat([part.tokens for part in parts]),
            None if parts[0].pooled is None else torch.cat([_pooled(part) for part in parts]),
            tuple(torch.cat(images) for images in zip(*(part.images for part in parts), strict=True)),
        )


def _pooled(text: TextEmbedding) -> Tensor:
    if text.pooled is None:
        raise ValueError("the text embeddings are from different models: one has a pooled output, the other has not")
    return text.pooled


def encode_text(
    text_encoder: Any, ids: Tensor, slots: Tensor, vectors: Tensor | None, *, skip: int = 0, norm: bool = True
) -> tuple[Tensor, Tensor]:
    """Run a CLIP text encoder on token ids. At the positions in `slots`, `vectors` replace the token embeddings.

    Args:
        text_encoder: `CLIPTextModelWithProjection` or `CLIPTextModel`.
        ids: [B, L] token ids. The id at a slot has no effect, but it must not be the end token, at which CLIP pools.
        slots: [B, L], -1 for an ordinary token, or k to use `vectors[:, k]` at this position.
        vectors: [B, K, d] pseudo-word vectors of the text encoder's width, or None if no slot is used.
        skip: return the hidden state before this many layers at the end.
        norm: whether the final layer norm is applied to it.

    Returns:
        The hidden state, [B, L, d], and the pooled output, [B, P], which does not depend on `skip` and `norm`. If the
        model has a projection, the pooled output is projected into the shared picture space; otherwise it is the hidden
        state at the end token.
    """
    table: nn.Module = text_encoder.get_input_embeddings()
    handle = None
    if vectors is not None:
        # transformers' CLIP text models have no `inputs_embeds`. A hook on the token table inserts the vectors, and
        # gradients flow back to them. Other threads that use the encoder meanwhile run the hook, too.
        thread = threading.get_ident()
        index = slots.clamp_min(0).unsqueeze(-1).expand(-1, -1, vectors.shape[-1])
        chosen = vectors.gather(1, index)
        used = (slots >= 0).unsqueeze(-1)

        def insert_vectors(module: nn.Module, arguments: tuple[Any, ...], embedded: Tensor) -> Tensor:
            if threading.get_ident() != thread:
                return embedded
            return torch.where(used, chosen.to(embedded.dtype), embedded)

        handle = table.register_forward_hook(insert_vectors)
    try:
        output = text_encoder(input_ids=ids, output_hidden_states=bool(skip) or not norm)
    finally:
        if handle is not None:
            handle.remove()
    pooled = output.text_embeds if "text_embeds" in output else output.pooler_output
    if norm and not skip:
        return output.last_hidden_state, pooled
    hidden = output.hidden_states[-1 - skip]
    # Of the two classes of text encoders, one has the layers itself, the other in `text_model`.
    return getattr(text_encoder, "text_model", text_encoder).final_layer_norm(hidden) if norm else hidden, pooled


class TextEncoding(Parts):
    """The text part of `inst.Backbone`.

    Shapes: B prompts, L text positions, d text width. With two text encoders, d is the sum of both widths; the columns
    of vectors are split by `text_widths`.
    """

    device: torch.device
    graphs: Graphs | None

    @property
    def text_encoders(self) -> tuple[CLIPTextModel | CLIPTextModelWithProjection, ...]:
        """The one or two text encoders."""
        return (self.text_encoder,) if self.text_encoder_2 is None else (self.text_encoder, self.text_encoder_2)

    @property
    def tokenizers(self) -> tuple[CLIPTokenizer, ...]:
        """The tokenizers of `text_encoders`."""
        return (self.tokenizer,) if self.tokenizer_2 is None else (self.tokenizer, self.tokenizer_2)

    @property
    def text_widths(self) -> tuple[int, ...]:
        """The width of each text encoder's token embeddings."""
        return tuple(encoder.config.hidden_size for encoder in self.text_encoders)

    @property
    def text_width(self) -> int:
        """The width d of a style's vectors: the sum of `text_widths`."""
        return sum(self.text_widths)

    @property
    def token_table(self) -> Tensor:
        """The token embeddings, [V, d] float32 on the CPU.

        Those of two text encoders are side by side, without tokens that were added to only one of them.
        """
        tables = [encoder.get_input_embeddings().weight.detach().cpu().float() for encoder in self.text_encoders]
        shared = min(map(len, tables))
        return tables[0] if len(tables) == 1 else torch.cat([table[:shared] for table in tables], dim=1)

    def tokenize(
        self, prompts: Sequence[str], lengths: Mapping[str, int] | None = None, *, what: str = "prompt"
    ) -> tuple[TokenizedPrompts, ...]:
        """Tokenise prompts for each text encoder. Arguments and errors as `inst.backbone.tokens.tokenize`."""
        return tuple(tokenize(tokenizer, prompts, lengths, what=what) for tokenizer in self.tokenizers)

    def embed_text(
        self, prompts: Sequence[str], styles: Mapping[str, Tensor] | None = None, *, clip_skip: int = 0
    ) -> TextEmbedding:
        """Encode prompts; pseudo-words replace their placeholders (paper sec. 3.2).

        With one text encoder, the result is its hidden states after the final layer norm. With two (Stable Diffusion
        XL, Podell et al. 2023, arXiv 2307.01952, sec. 2.1), it is the hidden states of both before their last layers,
        side by side, and the projected pooled output of the second. An empty prompt is then all zeros, if
        `force_zeros_for_empty_prompt`.

        Args:
            prompts: B texts; words in square brackets, such as `[C]`, are placeholders. Parts may have weights, such as
                `(a castle:1.3)` and `[C:0.5]` (`inst.backbone.weights`).
            styles: the vectors of each placeholder, `{"[C]": vectors}`: [n, d] for all prompts, or [B, n, d] for one
                set per prompt. A placeholder takes n positions. Gradients flow back to the vectors.
            clip_skip: number of layers at the end of the text encoders that are left out (of two, one more).

        Returns:
            B prompts in `dtype`, ready for the UNet.

        Raises:
            UsageError: there is no prompt, a prompt is too long, a placeholder has no style, or vectors have the wrong
                shape.
        """
        text = self.encode_tokens(*self._prepare_prompts(prompts, styles or {}), clip_skip=clip_skip)
        if text.pooled is None or not self.force_zeros_for_empty_prompt:
            return text
        has_text = torch.tensor([bool(prompt) for prompt in prompts], device=self.device).view(-1, 1)
        # `where` and not a product: in half precision the encoding may contain infinities, and 0 times infinity is NaN.
        return TextEmbedding(torch.where(has_text[..., None], text.tokens, 0), torch.where(has_text, text.pooled, 0))

    def encode_tokens(
        self, tokens: Sequence[TokenizedPrompts], vectors: Tensor | None = None, *, clip_skip: int = 0
    ) -> TextEmbedding:
        """Run the text encoders on the result of `tokenize`; see `embed_text`.

        The hidden state at a position with the weight w is empty + w (hidden - empty), where `empty` is that of the
        empty prompt at this position, as in ComfyUI. The pooled output does not depend on the weights.

        Args:
            tokens: B tokenised prompts for each text encoder.
            vectors: [B, K, d] for the slots of all placeholders, or None if there are none.
            clip_skip: see `embed_text`.
        """
        widths = list(self.text_widths)
        parts = [None] * len(widths) if vectors is None else vectors.split(widths, dim=-1)
        encoded = [
            self._encode(encoder, tokenizer, ids.to(self.device), part, clip_skip)
            for encoder, tokenizer, ids, part in zip(self.text_encoders, self.tokenizers, tokens, parts, strict=True)
        ]
        if len(encoded) == 1:
            return TextEmbedding(encoded[0][0])
        return TextEmbedding(torch.cat([hidden for hidden, _ in encoded], dim=-1), encoded[1][1])

    def _encode(
        self, encoder: Any, tokenizer: Any, tokens: TokenizedPrompts, vectors: Tensor | None, clip_skip: int
    ) -> tuple[Tensor, Tensor]:
        two = self.text_encoder_2 is not None
        layer: dict[str, Any] = {"skip": clip_skip + two, "norm": not two}
        hidden, pooled = self._run_encoder(encoder, tokens, vectors, layer)
        if tokens.weights is None:
            return hidden, pooled
        plain = tokenize(tokenizer, [""]).to(self.device)
        empty, _ = self._run_encoder(encoder, plain, None, layer)
        return torch.lerp(empty, hidden, tokens.weights[..., None].to(hidden.dtype)), pooled

    def _run_encoder(
        self, encoder: Any, tokens: TokenizedPrompts, vectors: Tensor | None, layer: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """Call `encode_text`, by a CUDA graph if that is possible."""

        def encode(inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
            with faster_gradients(self.device, encoder.dtype):
                return encode_text(encoder, inputs[0], inputs[1], inputs[2] if len(inputs) > 2 else None, **layer)

        inputs = [tokens.ids, tokens.slots, *([] if vectors is None else [vectors])]
        hidden, pooled = call_by_graph(self.graphs, ("text", *layer.items()), encoder, encode, inputs)
        return hidden, pooled

    def embed_caption(self, prompts: Sequence[str]) -> Tensor:
        """Project prompts into the shared space of CLIP's text and image encoder: [B, P], not normalised.

        The pooled embeddings of `embed_picture` are in the same space if the backbone's image encoder was trained with
        the text encoder. Of two text encoders, the one with a projection is used: in Stable Diffusion XL the second
        one, from OpenCLIP's ViT-bigG.

        Raises:
            InstError: the backbone's text encoder has no projection.
            UsageError: there is no prompt, a prompt is too long, or a prompt has a placeholder.
        """
        tokens, _ = self._prepare_prompts(prompts, {})
        for encoder, ids in zip(self.text_encoders, tokens, strict=True):
            if hasattr(encoder, "text_projection"):
                return encode_text(encoder, ids.ids.to(self.device), ids.slots.to(self.device), None)[1].float()
        raise InstError("This backbone's text encoder has no projection (text_projection.weight)", "use another model")

    def _prepare_prompts(
        self, prompts: Sequence[str], styles: Mapping[str, Tensor]
    ) -> tuple[tuple[TokenizedPrompts, ...], Tensor | None]:
        """Check prompts and styles. Return the tokens for each text encoder and the vectors for their slots."""
        if isinstance(prompts, str):  # a string is also a sequence of strings and would count as many short prompts
            raise TypeError("prompts is one string; give a list of strings")
        if not prompts:
            raise UsageError("No prompt is given", "give at least one text, which may be empty")
        check_placeholders(styles)
        batch, width = len(prompts), self.text_width
        vectors = []
        for name, style in styles.items():
            if style.dim() not in (2, 3) or style.shape[-1] != width or (style.dim() == 3 and len(style) != batch):
                raise UsageError(
                    f"The style {name} has the shape {list(style.shape)}, but this backbone takes [n, {width}] or "
                    f"[{batch}, n, {width}]",
                    "use a style that was learned with this backbone",
                )
            vectors.append(copy_to(style, self.device).expand(batch, -1, -1))
        tokens = self.tokenize(prompts, {name: style.shape[-2] for name, style in styles.items()})
        return tokens, torch.cat(vectors, dim=1) if vectors else None


def coarse_word(backbone: TextEncoding) -> Tensor:
    """Return the vector [d] of `COARSE_WORD` from the token table; the mean of its rows if it has several tokens.

    With two text encoders, the vectors of both are side by side.
    """
    rows = [
        encoder.get_input_embeddings().weight[tokenizer(COARSE_WORD, add_special_tokens=False)["input_ids"]]
        for encoder, tokenizer in zip(backbone.text_encoders, backbone.tokenizers, strict=True)
    ]
    # With low memory, one of two text encoders may be on the accelerator and the other on the CPU.
    return torch.cat([row.detach().to(backbone.device, torch.float32).mean(dim=0) for row in rows])
