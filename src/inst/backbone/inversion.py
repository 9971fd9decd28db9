"""From the picture tokens of a painting to the vectors of its pseudo-word (paper eq. 2-3), in three forms by name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import Tensor, nn

from inst.arguments import check_choice
from inst.errors import InstError, UsageError
from inst.files.writing import write_bytes_atomically

VARIANTS = ("attention", "pooled", "direct")
"""The forms of the module. "attention": the pooled picture embedding asks, the patch tokens answer. "pooled": it asks
itself, as in the paper's text. "direct": no network, free vectors (textual inversion, Gal et al. 2022)."""

FREE_RATE = 1000.0
"""The learning rate of the free parts of the vectors, in units of that of the network's weights. A free part is one
number to one entry of a vector; of the network's weights, hundreds act together on each."""


@dataclass(frozen=True)
class InversionConfig:
    """Sizes of an inversion module.

    Attributes:
        picture_width: width of the image encoder's patch tokens; 0 where the variant is "direct".
        pooled_width: width of its pooled (projected) embedding; 0 where the variant is "direct".
        text_width: width d of the text encoder's token embeddings.
        vectors: number n of pseudo-word vectors.
        layers: number of cross-attention layers.
        heads: attention heads of each layer.
        dropout: dropout rate in every layer (0.05 in the paper, sec. 3.2).
        variant: one of `VARIANTS`.
        free: whether each vector has a free part beside what the network says; "direct" has nothing else.

    Raises:
        UsageError: a value that no module can have.
    """

    picture_width: int
    pooled_width: int
    text_width: int
    vectors: int = 8
    layers: int = 3
    heads: int = 8
    dropout: float = 0.05
    variant: str = "attention"
    free: bool = False

    def __post_init__(self) -> None:
        check_choice("variant", self.variant, VARIANTS)
        if self.vectors < 1:
            raise UsageError(f"A pseudo-word of {self.vectors} vectors is none", "give at least 1")
        if self.variant != "direct" and self.layers < 1:
            raise UsageError(f"{self.layers} layers are too few", "give at least 1, or the variant direct")
        if not 0 <= self.dropout < 1:
            raise UsageError(f"A dropout of {self.dropout} is out of range", "give 0 (off) or more, below 1")
        if self.text_width % self.heads:
            raise UsageError(f"{self.heads} heads do not divide a text width of {self.text_width}.")


class Dropout(nn.Module):
    """Dropout that draws from `generator`, a generator on the CPU, where one is set; else as PyTorch's.

    Every draw of a run can so come from one seed, which neither the device nor other users of PyTorch's default
    generator change, and its state can be kept for an exact resume.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.generator is None or not self.training or self.rate == 0:
            return F.dropout(x, self.rate, self.training)
        kept = torch.rand(x.shape, generator=self.generator) >= self.rate
        return x * kept.to(x) / (1 - self.rate)


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
        self.dropout = Dropout(dropout)

    def forward(self, v: Tensor, tokens: Tensor) -> Tensor:
        """v [B, n, d], tokens [B, N, picture_width] -> [B, n, d]."""

        def split(x: Tensor) -> Tensor:
            return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, heads, length, d / heads]

        q, k, w = split(self.to_q(self.query_norm(v))), split(self.to_k(tokens)), split(self.to_v(tokens))
        attended = F.scaled_dot_product_attention(q, k, w).transpose(1, 2).flatten(2)
        v = v + self.dropout(self.to_out(attended))
        return v + self.dropout(self.feed_forward(v))


class Inversion(nn.Module):
    """What the variants share: the coarse word that they start at, the free part of each vector, and their files.

    The result is `base + spread * (f + moved)`: `base` starts at a coarse word, f is what the network says, and
    `spread` is the typical size of an entry of the token table, so that a fresh module speaks at the volume of ordinary
    words and a learning rate means the same in every text space. Two text encoders have tables of different sizes:
    each has its own `spread` in its part of the vectors.

    `moved` [n, d], zero at first, is there for learning a painting: a fresh network moves all n vectors alike, and what
    it ends with are n copies of one (measured with mini, 200 steps from scratch: cosine 1.00 between them, also where
    their queries start far apart), while free parts, learned `FREE_RATE` times faster, let each go its own way (0.5).
    """

    base: Tensor
    spread: Tensor
    moved: nn.Parameter | None

    def __init__(self, config: InversionConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("base", torch.zeros(config.text_width))
        self.register_buffer("spread", torch.ones(config.text_width))
        self.register_load_state_dict_pre_hook(_spread_to_all)
        free = config.free or config.variant == "direct"
        self.moved = nn.Parameter(torch.zeros(config.vectors, config.text_width)) if free else None

    @property
    def device(self) -> torch.device:
        """Where the module is; diffusers' pipelines ask their components."""
        return self.base.device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the module's numbers."""
        return self.base.dtype

    @torch.no_grad()
    def start_at(self, word: Tensor, table: Tensor, widths: Sequence[int] | None = None) -> None:
        """Let a fresh module start at a word, scaled to the median norm of the token table.

        Args:
            word: [d], such as a row of the table.
            table: [V, d].
            widths: those of the text encoders' parts, which sum to d, to be scaled each by itself; None is one part.
        """
        parts = [len(word)] if widths is None else list(widths)
        for base, spread, own_word, own_table in zip(
            *(whole.split(parts, dim=-1) for whole in (self.base, self.spread, word.float(), table.float())),
            strict=True,
        ):
            norm = own_table.norm(dim=-1).median().to(own_word.device)
            base.copy_(own_word * (norm / own_word.norm().clamp_min(1e-8)))
            spread.fill_(norm * len(own_word) ** -0.5)

    def draw_dropout_from(self, generator: torch.Generator) -> None:
        """Let every layer's dropout draw from `generator`, on the CPU."""
        for part in self.modules():
            if isinstance(part, Dropout):
                part.generator = generator

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors` (the module's dtype) into `folder`, each complete or not at all.

        Raises:
            InstError: the folder cannot be made or written to, or the disk is full.
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InstError(f"{folder} cannot be made ({error.strerror or error})", "choose another place") from None
        write_bytes_atomically(
            folder / "model.safetensors", save({k: v.contiguous() for k, v in self.state_dict().items()})
        )
        write_bytes_atomically(folder / "config.json", f"{json.dumps(asdict(self.config), indent=2)}\n".encode())

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Read what `save_pretrained` wrote, in fp32 and evaluation mode.

        Raises:
            InstError: a file is missing, broken, does not fit the configuration, or holds another kind of module.
        """
        folder = Path(folder)
        try:
            module = build_inversion(json.loads((folder / "config.json").read_text()))
            module.load_state_dict({k: v.float() for k, v in load_file(folder / "model.safetensors").items()})
        except FileNotFoundError as error:
            raise InstError(
                f"{error.filename or folder}: the inversion module is incomplete", "copy it again"
            ) from error
        except Exception as error:
            reason = " ".join(str(error).split())
            raise InstError(f"{folder}: not a usable inversion module ({reason})", "copy it again") from error
        if not isinstance(module, cls):
            raise InstError(f"{folder}: an inversion module of the variant {module.config.variant}, not of attention")
        return module.eval()


def _spread_to_all(module: Inversion, state: dict[str, Any], prefix: str, *rest: object) -> None:
    """Read one number for all entries, too: modules for one text encoder have been stored so."""
    key = f"{prefix}spread"
    if key in state and state[key].dim() == 0:
        state[key] = state[key].expand(module.config.text_width)


class AttentionInversion(Inversion):
    """Multi-layer cross-attention from a painting's picture tokens to n pseudo-word vectors.

    Source: paper sec. 3.2, eq. 2-3. v_0 is the pooled picture embedding tau(y), plus one learned offset a vector, so
    that n vectors can differ. Keys and values are the image encoder's patch tokens rather than tau(y) itself: over one
    pooled token a softmax is 1, and the query and key weights never receive a gradient. The variant "pooled" is the
    paper's text all the same, for comparison.
    """

    def __init__(self, config: InversionConfig) -> None:
        super().__init__(config)
        d = config.text_width
        attended = config.pooled_width if config.variant == "pooled" else config.picture_width
        self.to_query = nn.Linear(config.pooled_width, d)
        self.offsets = nn.Parameter(torch.randn(config.vectors, d) * 0.5)
        self.picture_norm = nn.LayerNorm(attended)
        self.layers = nn.ModuleList(
            CrossAttentionLayer(d, attended, config.heads, config.dropout) for _ in range(config.layers)
        )
        self.words_norm = nn.LayerNorm(d)
        self.to_words = nn.Linear(d, d)
        nn.init.normal_(self.to_words.weight, std=0.2 * d**-0.5)
        nn.init.zeros_(self.to_words.bias)

    def forward(self, pooled: Tensor, tokens: Tensor) -> Tensor:
        """Compute the pseudo-word of each picture.

        Args:
            pooled: [B, pooled_width], the image encoder's projected embedding, of any scale (it is normalised).
            tokens: [B, N, picture_width], its patch tokens (last hidden state without the class token); "pooled" does
                not look at them.

        Returns:
            [B, n, text_width], ready to stand in the text encoder's input embeddings.
        """
        start = F.normalize(pooled, dim=-1) * pooled.shape[-1] ** 0.5
        v = self.to_query(start).unsqueeze(1) + self.offsets
        tokens = self.picture_norm(start.unsqueeze(1) if self.config.variant == "pooled" else tokens)
        for layer in self.layers:
            v = layer(v, tokens)
        words = self.to_words(self.words_norm(v))
        return self.base + self.spread * (words if self.moved is None else words + self.moved)


class DirectInversion(Inversion):
    """No network: n free vectors, each started at the coarse word (textual inversion, Gal et al. 2022)."""

    moved: nn.Parameter

    def forward(self, pooled: Tensor, tokens: Tensor) -> Tensor:
        """pooled [B, any], tokens [B, any, any], of which only the number of pictures B counts -> [B, n, d]."""
        return (self.base + self.spread * self.moved).expand(len(pooled), -1, -1)


def build_inversion(config: InversionConfig | Mapping[str, Any]) -> AttentionInversion | DirectInversion:
    """Make the module that a configuration, or its entries, describes; its weights are random. Raises UsageError."""
    config = config if isinstance(config, InversionConfig) else InversionConfig(**config)
    return DirectInversion(config) if config.variant == "direct" else AttentionInversion(config)
