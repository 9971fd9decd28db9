"""The inversion module: from a painting's picture tokens to the vectors of its pseudo-word (paper eq. 2-3)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import Tensor, nn

from inst.arguments import check_at_least, check_choice, checked
from inst.errors import Argument, InstError, UsageError, first_line
from inst.files.git_lfs import refuse_pointer
from inst.files.reading import check_regular, read_json
from inst.files.writing import write_bytes_atomically

VARIANTS = ("attention", "pooled", "direct")
"""The variants of the module. "attention": the queries come from the pooled picture embedding, keys and values from the
patch tokens. "pooled": keys and values also come from the pooled embedding, as in the paper's text. "direct": only free
vectors, no network (textual inversion, Gal et al. 2022)."""

FREE_RATE = 1000.0
"""The learning rate of the free parts of the vectors, as a multiple of the network's learning rate. A number of a free
part changes one entry of a vector, while hundreds of the network's weights act together on each entry."""

MOST_VECTORS, MOST_LAYERS = 1_000, 100
"""Largest sizes of a module: a prompt has fewer tokens, and the paper's module has far fewer layers."""


@dataclass(frozen=True)
class InversionConfig:
    """Sizes of an inversion module.

    Attributes:
        picture_width: width of the image encoder's patch tokens; 0 if the variant is "direct".
        pooled_width: width of its pooled (projected) embedding; 0 if the variant is "direct".
        text_width: width d of the text encoder's token embeddings.
        vectors: number n of pseudo-word vectors, up to `MOST_VECTORS`.
        layers: number of cross-attention layers, up to `MOST_LAYERS`.
        heads: attention heads of each layer.
        dropout: dropout rate in every layer (0.05 in the paper, sec. 3.2).
        variant: one of `VARIANTS`.
        free: whether each vector has a free part in addition to the network's output; "direct" has only free parts.

    Raises:
        UsageError: a value is not possible for a module.
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
        for size in fields(self):
            value = checked(size.name.replace("_", " "), getattr(self, size.name), str(size.type))
            object.__setattr__(self, size.name, value)
        check_choice("variant", self.variant, VARIANTS)
        direct = self.variant == "direct"
        check_at_least(1, heads=self.heads, text_width=self.text_width)
        check_at_least(0 if direct else 1, picture_width=self.picture_width, pooled_width=self.pooled_width)
        if not 1 <= self.vectors <= MOST_VECTORS:
            raise UsageError(f"A pseudo-word of {self.vectors} vectors is not possible", f"give 1 to {MOST_VECTORS}")
        if self.layers < (0 if direct else 1):
            raise UsageError(f"{self.layers} layers are too few", "give at least 1, or ", Argument("variant", "direct"))
        if self.layers > MOST_LAYERS:
            raise UsageError(f"{self.layers} layers are too many", f"give {MOST_LAYERS} at most")
        if not 0 <= self.dropout < 1:
            raise UsageError(f"A dropout of {self.dropout} is out of range", "give 0 (off) or more, below 1")
        if self.text_width % self.heads:
            raise UsageError(
                f"{self.heads} heads do not divide the text width of {self.text_width}", "give a divisor of the width"
            )

    @classmethod
    def of(cls, entries: Mapping[str, Any]) -> Self:
        """Make a configuration from a mapping of its entries, which may come from a file. Raises UsageError."""
        try:
            return cls(**entries)
        except TypeError as error:  # an entry is missing or unknown
            raise UsageError(f"The sizes of an inversion module cannot be used ({first_line(error)})") from None


class CrossAttentionLayer(nn.Module):
    """One layer of eq. 3: the queries v_i attend to the picture tokens, then a feed-forward step; both are residual."""

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
        self.dropout = dropout

    def forward(self, v: Tensor, tokens: Tensor, kept: Tensor | None = None) -> Tensor:
        """Compute the queries of the next layer: v [B, n, d], tokens [B, N, picture_width] -> [B, n, d].

        `kept` [2, B, n, d] says which entries the dropout after attention and after the feed-forward step keeps.
        Without it, a module in training draws them from PyTorch's default generator.
        """

        def drop(x: Tensor, place: int) -> Tensor:
            if kept is None:
                return F.dropout(x, self.dropout, self.training)
            return x * kept[place].to(x) / (1 - self.dropout)

        def split(x: Tensor) -> Tensor:
            return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, heads, length, d / heads]

        q, k, w = split(self.to_q(self.query_norm(v))), split(self.to_k(tokens)), split(self.to_v(tokens))
        attended = F.scaled_dot_product_attention(q, k, w).transpose(1, 2).flatten(2)
        v = v + drop(self.to_out(attended), 0)
        return v + drop(self.feed_forward(v), 1)


class Inversion(nn.Module):
    """Base class of all variants: the coarse word to start from, the free part of each vector, and the files.

    The result is `base + spread * (f + moved)`. `base` starts as a coarse word, and f is the network's output. `spread`
    is the typical size of an entry of the token table: the vectors of a new module are as large as those of ordinary
    words, and a learning rate has the same effect in every text space. Two text encoders have tables with entries of
    different sizes, so each has its own `spread` in its part of the vectors.

    `moved` [n, d] holds the free parts, which start at zero and help to learn a painting. A new network moves all n
    vectors in the same way, so they end as n copies of one vector (measured with mini, 200 steps from scratch: cosine
    1.00 between them, even if their queries start far apart). Free parts learn `FREE_RATE` times faster and let the
    vectors differ (cosine 0.5).
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
        """The device of the module; diffusers' pipelines read it from their components."""
        return self.base.device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the module's weights."""
        return self.base.dtype

    @torch.no_grad()
    def start_at(self, word: Tensor, table: Tensor, widths: Sequence[int] | None = None) -> None:
        """Set the start of a new module to a word, scaled to the median norm of the token table.

        Args:
            word: the word's vector [d], such as a row of the table.
            table: the token table [V, d].
            widths: widths of the text encoders' parts, which sum to d. Each part is scaled on its own. None means one
                part.
        """
        parts = [len(word)] if widths is None else list(widths)
        for base, spread, own_word, own_table in zip(
            *(whole.split(parts, dim=-1) for whole in (self.base, self.spread, word.float(), table.float())),
            strict=True,
        ):
            norm = own_table.norm(dim=-1).median().to(own_word.device)
            base.copy_(own_word * (norm / own_word.norm().clamp_min(1e-8)))
            spread.fill_(norm * len(own_word) ** -0.5)

    def draw_dropout(self, pictures: int, generator: torch.Generator) -> Tensor | None:
        """Draw which entries dropout keeps in a call with B pictures, [layers, 2, B, n, d] on the CPU.

        So all random numbers of a run come from one seed. They do not depend on the device or on other code that uses
        PyTorch's default generator, and the generator's state can be saved for an exact resume.

        Returns:
            What `forward` takes; None if there is no dropout.
        """
        config = self.config
        if config.variant == "direct" or config.dropout == 0:
            return None
        shape = config.layers, 2, pictures, config.vectors, config.text_width
        return torch.rand(shape, generator=generator) >= config.dropout

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors` (in the module's dtype) to `folder`, completely or not at all.

        Raises:
            InstError: the folder cannot be created or is not writable, or the disk is full.
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InstError(
                f"{folder} cannot be created ({error.strerror or error})", "choose another folder"
            ) from None
        write_bytes_atomically(
            folder / "model.safetensors", save({k: v.contiguous() for k, v in self.state_dict().items()})
        )
        write_bytes_atomically(folder / "config.json", f"{json.dumps(asdict(self.config), indent=2)}\n".encode())

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Load a module of `save_pretrained`, in fp32 and evaluation mode.

        Raises:
            InstError: a file is missing or broken, does not fit the configuration, or contains another variant.
        """
        folder = Path(folder)
        config, weights = folder / "config.json", folder / "model.safetensors"
        for path in (config, weights):
            refuse_pointer(path)
            if not path.exists():
                raise InstError(f"The inversion module is incomplete ({path} is missing)", "copy it again")
            check_regular(path)
        try:
            # Nothing is allocated for the sizes of the configuration: the module takes the tensors of the file.
            with torch.device("meta"):
                module = build_inversion(read_json(config))
            # Copies, because tensors in fp32 would stay parts of the file.
            tensors = {key: one.contiguous().to(torch.float32, copy=True) for key, one in load_file(weights).items()}
            module.load_state_dict(tensors, assign=True)
        except Exception as error:
            reason = " ".join(str(error).split())
            raise InstError(f"{folder} has no usable inversion module ({reason})", "copy it again") from error
        if not isinstance(module, cls):
            raise InstError(
                f"{folder} has an inversion module of the variant {module.config.variant}, not attention",
                "give another folder",
            )
        return module.eval()


def _spread_to_all(module: Inversion, state: dict[str, Any], prefix: str, *rest: object) -> None:
    """Accept a single number for all entries: older modules for one text encoder are stored like this."""
    key = f"{prefix}spread"
    if key in state and state[key].dim() == 0:
        state[key] = state[key].repeat(module.config.text_width)


class AttentionInversion(Inversion):
    """Multi-layer cross-attention from a painting's picture tokens to n pseudo-word vectors.

    Source: paper sec. 3.2, eq. 2-3. v_0 is the pooled picture embedding tau(y) plus one learned offset per vector, so
    that the n vectors can differ. Keys and values come from the image encoder's patch tokens and not from tau(y): over
    one pooled token the softmax is always 1, so the query and key weights never get a gradient. The variant "pooled"
    follows the paper's text, for comparison.
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

    def forward(self, pooled: Tensor, tokens: Tensor, kept: Tensor | None = None) -> Tensor:
        """Compute the pseudo-word of each picture.

        Args:
            pooled: [B, pooled_width], the image encoder's projected embedding, of any scale (it is normalised).
            tokens: [B, N, picture_width], its patch tokens (last hidden state without the class token); ignored by the
                variant "pooled".
            kept: from `draw_dropout`. Without it, a module in training draws its dropout from the default generator.

        Returns:
            [B, n, text_width], vectors for the text encoder's input embeddings.
        """
        start = F.normalize(pooled, dim=-1) * pooled.shape[-1] ** 0.5
        v = self.to_query(start).unsqueeze(1) + self.offsets
        tokens = self.picture_norm(start.unsqueeze(1) if self.config.variant == "pooled" else tokens)
        for number, layer in enumerate(self.layers):
            v = layer(v, tokens, None if kept is None else kept[number])
        words = self.to_words(self.words_norm(v))
        return self.base + self.spread * (words if self.moved is None else words + self.moved)


class DirectInversion(Inversion):
    """n free vectors without a network; each starts at the coarse word (textual inversion, Gal et al. 2022)."""

    moved: nn.Parameter

    def forward(self, pooled: Tensor, tokens: Tensor, kept: Tensor | None = None) -> Tensor:
        """Return the same vectors for each of B pictures, [B, n, d]. Only the batch size of the arguments is used."""
        return (self.base + self.spread * self.moved).expand(len(pooled), -1, -1)


def build_inversion(config: InversionConfig | Mapping[str, Any]) -> AttentionInversion | DirectInversion:
    """Make a module with random weights from a configuration or a dict of its entries. Raises UsageError."""
    config = config if isinstance(config, InversionConfig) else InversionConfig.of(config)
    return DirectInversion(config) if config.variant == "direct" else AttentionInversion(config)
