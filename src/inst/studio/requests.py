"""What can be asked of the studio, as the page and the API send it. Defaults are those of the library's functions.

Only types, and what a server must limit, are checked here. Ranges are checked where the library uses the values.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from inst.defaults import defaults_of

TRANSFER = defaults_of("inst.synthesis.from_photo", "transfer")
GENERATE = defaults_of("inst.synthesis.from_prompt", "generate")
LEARN = defaults_of("inst.learning.loop", "learn")

MOST_PAINTINGS = 16
"""Of one style."""

Prompt = Annotated[str, Field(max_length=2000)]
Name = Annotated[str, Field(max_length=200)]
Word = Annotated[str, Field(max_length=200)]
"""A choice, such as a solver. Having a limit, it also refuses half of a character, which no answer can hold."""
Whole = Annotated[int, Field(ge=-(2**63), lt=2**63)]
"""A whole number that other programs can read too."""
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class UploadRef(_Part):
    """An uploaded picture."""

    upload: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] = Field(description="The key that the upload returned.")
    name: Name = Field("", description="The picture's own name, for its record. No file gets this name.")


class StyleRef(_Part):
    """A style: one of the library, the instant style of uploaded paintings, or one in the record of a picture."""

    id: Annotated[str, Field(pattern="^[0-9a-f]{16}$")] | None = Field(None, description="A style of the library.")
    paintings: list[UploadRef] = Field(
        [], max_length=MOST_PAINTINGS, description="Paintings of one style, used without learning."
    )
    record: UploadRef | None = Field(None, description="A PNG file that was made here; it holds its styles.")
    placeholder: Name = Field("[C]", description="Which style of the record.")
    weight: float = Field(1.0, ge=0, le=100, description="Its share in a mixture.")

    @model_validator(mode="after")
    def _is_one(self) -> StyleRef:
        if sum((self.id is not None, bool(self.paintings), self.record is not None)) != 1:
            raise ValueError("give one of id, paintings and record")
        return self


class Request(_Part):
    """What all requests have.

    Attributes:
        kind: the kind of job that does it.
    """

    kind: ClassVar[str]

    def uploads(self) -> list[UploadRef]:
        """Return all uploads that the request names."""
        return [*_find(self, UploadRef)]

    def style_ids(self) -> list[str]:
        """Return the ids of all styles of the library that the request names."""
        return [style.id for style in _find(self, StyleRef) if style.id is not None]


_Wanted = TypeVar("_Wanted")


def _find(value: object, kind: type[_Wanted]) -> Iterator[_Wanted]:
    if isinstance(value, kind):
        yield value
    if isinstance(value, BaseModel):
        value = [part for _, part in value]
    if isinstance(value, list):
        for part in value:
            yield from _find(part, kind)


class _PictureRequest(Request):
    styles: list[StyleRef] = Field(
        min_length=1,
        max_length=8,
        description="The style. Several are [C1], [C2], ... if the prompt names them, otherwise they are mixed.",
    )
    negative_prompt: Prompt = ""
    seed: Seed = 0
    count: Whole = Field(1, ge=1, description="Number of pictures, with the seeds from `seed` on.")
    style_weight: float = TRANSFER["style_weight"]
    style_scale: float = TRANSFER["style_scale"]
    solver: Word = TRANSFER["solver"]
    attention_temperature: float = TRANSFER["attention_temperature"]
    attention_blocks: Word = TRANSFER["attention_blocks"]
    tile: Whole | None = TRANSFER["tile"]

    def settings(self) -> dict[str, Any]:
        """Return the keyword arguments of the library's function, without the seed."""
        return self.model_dump(exclude={"photo", "mask", "styles", "count", "seed", "strengths", "guidances"})


class TransferRequest(_PictureRequest):
    """Repaint a photo (`inst.transfer`)."""

    kind = "transfer"

    photo: UploadRef
    mask: UploadRef | None = Field(None, description="White applies the style, black keeps the photo.")
    prompt: Prompt | None = TRANSFER["prompt"]
    strength: float = TRANSFER["strength"]
    steps: Whole | None = Field(TRANSFER["steps"], le=200)
    guidance: float = TRANSFER["guidance"]
    style_attention: float = TRANSFER["style_attention"]
    query_preservation: float = TRANSFER["query_preservation"]
    tone: Word = TRANSFER["tone"]
    inversion: Word = TRANSFER["inversion"]
    spacing: Word = TRANSFER["spacing"]
    cache_interval: Whole = TRANSFER["cache_interval"]
    size: Whole | None = TRANSFER["size"]


class SheetRequest(Request):
    """One photo at several strengths and guidance scales, on one sheet (`inst sheet`)."""

    kind = "sheet"

    photo: UploadRef
    styles: list[StyleRef] = Field(min_length=1, max_length=4)
    strengths: list[float] = Field([0.3, 0.5, 0.7], min_length=1, max_length=6)
    guidances: list[float] = Field([2.0, 4.0, 6.0], min_length=1, max_length=6)
    seed: Seed = 0
    tone: Word = TRANSFER["tone"]
    style_attention: float = TRANSFER["style_attention"]
    size: Whole | None = TRANSFER["size"]


class GenerateRequest(_PictureRequest):
    """Make pictures from a prompt (`inst.generate`)."""

    kind = "generate"

    prompt: Prompt
    steps: Whole = Field(GENERATE["steps"], le=200)
    guidance: float = GENERATE["guidance"]
    style_attention: float = GENERATE["style_attention"]
    tone: Word = GENERATE["tone"]
    spacing: Word = GENERATE["spacing"]
    cache_interval: Whole = GENERATE["cache_interval"]
    size: Whole | tuple[Whole, Whole] | None = GENERATE["size"]


class LearnRequest(Request):
    """Learn a style from paintings (`inst.learn`)."""

    kind = "learn"

    paintings: list[UploadRef] = Field(min_length=1, max_length=MOST_PAINTINGS)
    name: Name = ""
    steps: Whole = Field(LEARN["steps"], ge=1)
    batch_size: int = Field(LEARN["batch_size"], ge=1, le=32)
    lr: float = LEARN["lr"]
    preview_every: Whole = Field(20, ge=0)
    seed: Seed = 0


KINDS: dict[str, type[Request]] = {
    request.kind: request for request in (TransferRequest, SheetRequest, GenerateRequest, LearnRequest)
}
"""The form of the request of each kind of job."""
