"""What the jobs of the studio do: the library's own functions, with their steps, previews and files."""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inst.errors import InstError, UsageError
from inst.files.csv_tables import to_csv
from inst.files.provenance import SourceFile
from inst.files.writing import write_bytes_atomically
from inst.studio.job_store import Progress
from inst.studio.jobs import Interrupted, Steps, Task, Wish, Work
from inst.studio.library import Library
from inst.studio.limits import Limits
from inst.studio.requests import GenerateRequest, LearnRequest, SheetRequest, StyleRef, TransferRequest, UploadRef
from inst.studio.uploads import Uploads

if TYPE_CHECKING:
    from torch import Tensor

    from inst.backbone.model import Backbone
    from inst.pictures.reading import Photo
    from inst.styles.style import Style

STATE, STYLE, CURVE = "state.safetensors", "style.safetensors", "loss.csv"
"""Names of the files of a learning: what it resumes from, the style, and the loss after every step."""

_PREVIEW_SIDE = 320
_PREVIEW_SECONDS = 0.7  # between two previews at least,
_PREVIEW_SHARE = 10  # and this many times what one takes, so that they slow a picture little
_LONGEST = 4  # long sides of results at most, as a multiple of the largest short side
_CHECKPOINT_SECONDS = 15.0
_INSTANT_STYLES = 16  # kept in memory


class Workshop:
    """The work of every kind of job.

    Args:
        load: returns the backbone; called in the thread of the jobs.
        library: learned styles are added to it.
        uploads: the pictures that requests name.
        limits: see `Limits`.
    """

    def __init__(self, load: Callable[[], Backbone], library: Library, uploads: Uploads, limits: Limits) -> None:
        self._load = load
        self._library = library
        self._uploads = uploads
        self._limits = limits
        self._instant: OrderedDict[tuple[str, ...], Style] = OrderedDict()

    def works(self) -> dict[str, Work]:
        """Return the work by kind of job."""
        return {"transfer": self.transfer, "sheet": self.sheet, "generate": self.generate, "learn": self.learn}

    def warm_up(self) -> None:
        """Make a tiny picture, so that the first one of a person does not wait for imports and for weights on the disk.

        Failures are left to the first job, which reports them.
        """
        import torch

        from inst.learning.instant import instant_style
        from inst.pictures.reading import Photo
        from inst.runs import complete
        from inst.synthesis.painter import paint

        with contextlib.suppress(Exception):
            backbone = self._load()
            grey = Photo(torch.zeros(3, backbone.size_multiple, backbone.size_multiple))
            style = instant_style(backbone, grey)
            complete(paint(backbone, {"[C]": style}, {"steps": 1, "size": backbone.size_multiple}, photo=grey))

    def transfer(self, task: Task) -> Steps:
        """Repaint a photo, once for each seed."""
        from inst.pictures.masks import read_mask_file
        from inst.pictures.reading import reading_size

        request = TransferRequest.model_validate(task.request)
        self._check_size(request.size, request.count)
        backbone = self._load()
        photo = self._photo(request.photo, reduce_to=reading_size(request.size))
        self._check_result(backbone, photo, request.size)
        mask = None
        if request.mask is not None:
            height, width = photo.picture.shape[1:]
            region, source = read_mask_file(self._uploads.find(request.mask.upload), (height, width))
            mask = region, SourceFile(request.mask.name or "mask.png", source.sha256)
        return (yield from self._paint(task, backbone, request, photo=photo, mask=mask))

    def generate(self, task: Task) -> Steps:
        """Make pictures from a prompt, one for each seed."""
        request = GenerateRequest.model_validate(task.request)
        sides = request.size if isinstance(request.size, tuple) else (request.size,)
        self._check_size(max((side for side in sides if side is not None), default=None), request.count)
        return (yield from self._paint(task, self._load(), request))

    def sheet(self, task: Task) -> Steps:
        """Repaint a photo at several strengths and guidance scales, on one sheet."""
        from inst.pictures.reading import reading_size
        from inst.synthesis.sheet import paint_sheet

        request = SheetRequest.model_validate(task.request)
        self._check_size(request.size, 1)
        backbone = self._load()
        photo = self._photo(request.photo, flattened=True, reduce_to=reading_size(request.size))
        self._check_result(backbone, photo, request.size)
        styles = [self._style(backbone, style) for style in request.styles]
        settings = request.model_dump(exclude={"photo", "styles"})
        run = paint_sheet(backbone, photo, styles, settings)
        painted, _ = yield from _followed(run, lambda step: Progress(step.pictures, step.total), backbone)
        return {"files": [painted.save(task.folder / "sheet.png").name]}

    def learn(self, task: Task) -> Steps:
        """Learn a style, add it to the library, and write it, its previews and its losses into the job's folder.

        It continues from the last checkpoint, if there is one. Interrupted, it saves one. The style has an id of the
        job's own, so that a job whose end was not saved puts it in its own place when it runs again.
        """
        from inst.learning.loop import learn
        from inst.learning.run import LearningDiverged
        from inst.learning.state import LearningState
        from inst.pictures.writing import save_picture

        request = LearnRequest.model_validate(task.request)
        if request.steps > self._limits.learning_steps:
            raise UsageError(f"{request.steps} steps are too many", f"give at most {self._limits.learning_steps}")
        style_file, state_file, curve_file = task.folder / STYLE, task.folder / STATE, task.folder / CURVE
        if style_file.exists():  # the server was killed between the end of the learning and that of the job
            return self._learned(task)
        backbone = self._load()
        paintings = [self._photo(painting, flattened=True) for painting in request.paintings]
        state = LearningState.load(state_file) if state_file.exists() else None
        curve = [] if state is None else [row for row in read_curve(curve_file) if row[0] <= state.progress.step]
        settings = request.model_dump(exclude={"paintings", "name"})
        run = learn(backbone, paintings, name=request.name.strip() or None, resume=state, **settings)
        # Previews of before stay on show.
        previews = _previews_in(task.folder) if state else ()
        step, saved_at = None, time.monotonic()

        def checkpoint() -> None:
            assert step is not None
            _write_curve(curve_file, curve)
            step.state().save(state_file)

        try:
            while True:
                step = next(run)
                curve.append((step.step, step.loss, step.smoothed, step.validation))
                preview = None
                if step.preview is not None:
                    path = task.folder / f"preview-{step.step:06d}.png"
                    save_picture(step.preview, path)
                    previews = (*previews, path.name)
                    preview = _webp(step.preview)
                if time.monotonic() - saved_at > _CHECKPOINT_SECONDS:
                    checkpoint()
                    saved_at = time.monotonic()
                elif step.step % 5 == 0 or step.preview is not None:
                    _write_curve(curve_file, curve)
                yield Progress(step.step, step.total, step.remaining, step.smoothed, previews, preview)
        except StopIteration as end:
            style = end.value
        except LearningDiverged as diverged:
            style = diverged.last_good
        except Interrupted as interruption:
            assert step is not None
            if interruption.wish in (Wish.PAUSE, Wish.STOP):
                checkpoint()
                raise
            style = step.best_style()
        finally:
            run.close()
        _write_curve(curve_file, curve)
        style.save(style_file)
        return self._learned(task)

    def _learned(self, task: Task) -> dict[str, Any]:
        """Add the style of a learning that has come to its end to the library."""
        from inst.styles.style import Style

        id = hashlib.sha256(f"{task.id}\0{task.created}".encode()).hexdigest()[:16]
        entry = self._library.add(Style.load(task.folder / STYLE), id)
        (task.folder / STATE).unlink(missing_ok=True)  # not before: the style is on the disk now
        return {"files": [STYLE, CURVE, *_previews_in(task.folder)], "style": entry.id, "name": entry.name}

    def _paint(
        self,
        task: Task,
        backbone: Backbone,
        request: TransferRequest | GenerateRequest,
        photo: Photo | None = None,
        mask: tuple[Tensor, SourceFile] | None = None,
    ) -> Steps:
        from inst.synthesis.painter import paint

        styles = self._styles(backbone, request.styles, f"{request.prompt} {request.negative_prompt}")
        files: tuple[str, ...] = ()
        for k in range(request.count):
            path, last = task.folder / f"picture-{k + 1}.png", Progress(k + 1, request.count)
            if not path.exists():  # it does if the server was stopped after it was written
                settings = {**request.settings(), "seed": request.seed + k}
                run = paint(backbone, styles, settings, photo=photo, mask=mask)
                progress = partial(_picture_progress, k, request.count, files)
                painted, last = yield from _followed(run, progress, backbone)
                painted.save(path)
            files = (*files, path.name)
            if k + 1 < request.count:  # here, nothing is under way, and another job may go first
                yield replace(last, files=files, preview=None)
        return {"files": list(files)}

    def _check_size(self, size: int | None, count: int) -> None:
        if size is not None and size > self._limits.side:
            raise UsageError(f"{size} pixels are too large for this studio", f"give at most {self._limits.side}")
        if count > self._limits.count:
            raise UsageError(f"{count} pictures are too many for one job", f"give at most {self._limits.count}")

    def _check_result(self, backbone: Backbone, photo: Photo, size: int | None) -> None:
        """Refuse a result that is very long: its short side alone does not say how large it is."""
        from inst.pictures.resizing import fit_size

        height, width = photo.picture.shape[1:]
        # As the library chooses it: at most twice as large as the photo.
        short = size or max(backbone.size_multiple, min(backbone.default_size, 2 * min(height, width)))
        if short < 1:
            return  # the library says what is wrong with it
        long = max(fit_size(width, height, short))
        if long > _LONGEST * self._limits.side:
            raise UsageError(
                f"The result would be {long} pixels long, and {_LONGEST * self._limits.side} are possible",
                "crop the photo, or choose a smaller size",
            )

    def _photo(self, upload: UploadRef, *, flattened: bool = False, reduce_to: int | None = None) -> Photo:
        """Read an upload under the name that the person gave it."""
        from inst.pictures.reading import read_photo

        path = self._uploads.find(upload.upload)
        try:
            photo = read_photo(path, flattened=flattened, reduce_to=reduce_to or self._limits.side)
        except InstError as error:
            raise InstError(error.problem.replace(str(path), "The picture"), *error.remedy) from None
        return replace(photo, name=SourceFile(upload.name or "picture.png", "").name)

    def _styles(self, backbone: Backbone, refs: Sequence[StyleRef], prompts: str) -> dict[str, Style]:
        """Return the styles by placeholder: several by [C1], [C2], ..., or one mixture as [C]."""
        from inst.styles.style import Style

        styles = [self._style(backbone, ref) for ref in refs]
        if len(styles) == 1:
            return {refs[0].placeholder if refs[0].record else "[C]": styles[0]}
        if len({ref.placeholder for ref in refs}) == len(refs):  # they have names, as the styles of a record
            return {ref.placeholder: style for ref, style in zip(refs, styles, strict=True)}
        if "[C1]" in prompts:
            return {f"[C{number}]": style for number, style in enumerate(styles, start=1)}
        return {"[C]": Style.mix([(style, ref.weight) for style, ref in zip(styles, refs, strict=True)])}

    def _style(self, backbone: Backbone, ref: StyleRef) -> Style:
        from inst.learning.instant import instant_style
        from inst.synthesis.record import read_record

        if ref.id is not None:
            return self._library.style(ref.id)
        if ref.record is not None:
            record = read_record(self._uploads.find(ref.record.upload))
            if ref.placeholder not in record.styles:
                raise UsageError(
                    f"The picture holds no style {ref.placeholder}", f"it holds {', '.join(record.styles)}"
                )
            return record.styles[ref.placeholder]
        key = tuple(painting.upload for painting in ref.paintings)
        if key not in self._instant:
            self._instant[key] = instant_style(backbone, [self._photo(one, flattened=True) for one in ref.paintings])
            if len(self._instant) > _INSTANT_STYLES:
                self._instant.popitem(last=False)
        self._instant.move_to_end(key)
        return self._instant[key]


def _previews_in(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(path.name for path in folder.glob("preview-*.png")))


def read_curve(path: Path) -> list[tuple[int, float, float, float | None]]:
    """Read the losses of a learning: step, loss, smoothed loss, and validation loss or None.

    Without file there are none. A damaged file gives the rows before the damage.
    """
    rows: list[tuple[int, float, float, float | None]] = []
    with contextlib.suppress(OSError, ValueError):
        for line in path.read_bytes().splitlines()[1:]:
            step, loss, smoothed, val = line.decode("ascii").split(",")
            rows.append((int(step), float(loss), float(smoothed), float(val) if val else None))
    return rows


def _write_curve(path: Path, curve: Sequence[tuple[int, float, float, float | None]]) -> None:
    rows = [
        ("step", "loss", "smoothed", "validation"),
        *((*row[:3], "" if row[3] is None else row[3]) for row in curve),
    ]
    write_bytes_atomically(path, to_csv(rows).encode())


def _picture_progress(number: int, count: int, files: tuple[str, ...], step: Any) -> Progress:
    return Progress(number * step.total + step.index + 1, count * step.total, files=files)


def _followed(
    run: Generator[Any, None, Any], progress: Callable[[Any], Progress], backbone: Backbone
) -> Generator[Progress, None, tuple[Any, Progress]]:
    """Run a transfer, a generation or a sheet to its end, and yield its progress with previews of the picture.

    Returns its result, and the last progress.
    """
    import torch

    next_at, last = -math.inf, Progress(1, 1)
    try:
        while True:
            try:
                step = next(run)
            except StopIteration as end:
                return end.value, last
            last = progress(step)
            begin = time.monotonic()
            # After the last step, the picture itself is there almost as soon.
            if step.clean is not None and begin > next_at and last.step < last.total:
                with torch.no_grad():
                    last = replace(last, preview=_webp(_preview(backbone, step.clean)))
                now = time.monotonic()
                next_at = now + max(_PREVIEW_SECONDS, _PREVIEW_SHARE * (now - begin))
            yield last
    finally:
        run.close()


def _preview(backbone: Backbone, latents: Tensor) -> Tensor:
    """Decode latents [B, C, h, w] to a small picture [3, H, W] in [-1, 1]."""
    import torch.nn.functional as F

    height, width = latents.shape[2:]
    scale = _PREVIEW_SIDE // backbone.downscale / max(height, width)
    if scale < 1:
        size = max(1, round(height * scale)), max(1, round(width * scale))
        latents = F.interpolate(latents[:1], size, mode="area")
    return backbone.decode(latents[:1])[0]


def _webp(picture: Tensor) -> bytes:
    from inst.pictures.tensors import to_image

    image, data = to_image(picture.cpu()), io.BytesIO()
    image.thumbnail((_PREVIEW_SIDE, _PREVIEW_SIDE))
    image.save(data, "WEBP", quality=80, method=0)
    return data.getvalue()
