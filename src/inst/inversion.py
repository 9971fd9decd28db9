"""AttentionInversion: from the picture tokens of a painting to the vectors of its pseudo-word (paper eq. 2-3)."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from inst.errors import InstError


@dataclass(frozen=True)
class InversionConfig:
    """Sizes of an `AttentionInversion`.

    Attributes:
        picture_width: width of the image encoder's patch tokens.
        pooled_width: width of its pooled (projected) embedding.
        text_width: width d of the text encoder's token embeddings.
        vectors: number n of pseudo-word vectors.
        layers: number of cross-attention layers.
        heads: attention heads of each layer.
        dropout: dropout rate in every layer (0.05 in the paper, sec. 3.2).
    """

    picture_width: int
    pooled_width: int
    text_width: int
    vectors: int = 8
    layers: int = 3
    heads: int = 8
    dropout: float = 0.05

    def __post_init__(self) -> None:
        if self.text_width % self.heads:
            raise ValueError(f"{self.heads} heads do not divide a text width of {self.text_width}")


class CrossAttentionLayer(nn.Module):
    """One layer of eq. 3: the queries v_i attend over the picture tokens; then a feed-forward step. Both residual."""

    def __init__(self, width: int, picture_width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query_norm = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(picture_width, width, bias=False)
        self.to_v = nn.Linear(picture_width, width, bias=False)
        self.to_out = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, v: Tensor, tokens: Tensor) -> Tensor:
        """v [B, n, d], tokens [B, N, picture_width] -> [B, n, d]."""

        def split(x: Tensor) -> Tensor:
            return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, heads, length, d / heads]

        q, k, w = split(self.to_q(self.query_norm(v))), split(self.to_k(tokens)), split(self.to_v(tokens))
        attended = F.scaled_dot_product_attention(q, k, w).transpose(1, 2).flatten(2)
        v = v + self.dropout(self.to_out(attended))
        return v + self.dropout(self.feed_forward(v))


class AttentionInversion(nn.Module):
    """Multi-layer cross-attention from a painting's picture tokens to n pseudo-word vectors.

    Source: paper sec. 3.2, eq. 2-3. v_0 is the pooled picture embedding tau(y) (plus one learned offset a vector, so
    that n vectors can differ); keys and values are the image encoder's patch tokens rather than tau(y) itself: over
    one pooled token a softmax is 1, and the query and key weights would never receive a gradient.

    The result is `base + spread * f(v)`: `base` starts at a coarse word and `spread` is the typical size of an
    entry of the token table, so that a fresh network speaks at the volume of ordinary words.
    """

    base: Tensor
    spread: Tensor

    def __init__(self, config: InversionConfig) -> None:
        super().__init__()
        self.config = config
        d = config.text_width
        self.to_query = nn.Linear(config.pooled_width, d)
        self.offsets = nn.Parameter(torch.randn(config.vectors, d) * 0.5)
        self.picture_norm = nn.LayerNorm(config.picture_width)
        self.layers = nn.ModuleList(
            CrossAttentionLayer(d, config.picture_width, config.heads, config.dropout) for _ in range(config.layers)
        )
        self.words_norm = nn.LayerNorm(d)
        self.to_words = nn.Linear(d, d)
        nn.init.normal_(self.to_words.weight, std=0.2 * d**-0.5)
        nn.init.zeros_(self.to_words.bias)
        self.register_buffer("base", torch.zeros(d))
        self.register_buffer("spread", torch.ones(()))

    @torch.no_grad()
    def start_at(self, word: Tensor, table: Tensor) -> None:
        """Let a fresh network start at `word` [d] (a row of `table`), scaled to the median norm of `table` [V, d]."""
        norm = table.float().norm(dim=-1).median()
        self.base.copy_(word.float() * (norm / word.float().norm().clamp_min(1e-8)))
        self.spread.copy_(norm * table.shape[-1] ** -0.5)

    def forward(self, pooled: Tensor, tokens: Tensor) -> Tensor:
        """Compute the pseudo-word of each picture.

        Args:
            pooled: [B, pooled_width], the image encoder's projected embedding, of any scale (it is normalised).
            tokens: [B, N, picture_width], its patch tokens (last hidden state without the class token).

        Returns:
            [B, n, text_width], ready to stand in the text encoder's input embeddings.
        """
        start = F.normalize(pooled, dim=-1) * pooled.shape[-1] ** 0.5
        v = self.to_query(start).unsqueeze(1) + self.offsets
        tokens = self.picture_norm(tokens)
        for layer in self.layers:
            v = layer(v, tokens)
        return self.base + self.spread * self.to_words(self.words_norm(v))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors` (the module's dtype) into `folder`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(asdict(self.config), indent=2) + "\n")
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, folder / "model.safetensors")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> AttentionInversion:
        """Read what `save_pretrained` wrote, in fp32 and evaluation mode.

        Raises:
            InstError: a file is missing, broken, or does not fit the configuration.
        """
        folder = Path(folder)
        try:
            module = cls(InversionConfig(**json.loads((folder / "config.json").read_text())))
            module.load_state_dict({k: v.float() for k, v in load_file(folder / "model.safetensors").items()})
        except FileNotFoundError as error:
            raise InstError(f"{error.filename or folder}: the inversion module is incomplete; copy it again") from error
        except Exception as error:
            reason = " ".join(str(error).split())
            raise InstError(f"{folder}: not a usable inversion module ({reason}); copy it again") from error
        return module.eval()
