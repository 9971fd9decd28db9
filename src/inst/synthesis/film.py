"""Transfer a style to a film, so that the strokes stay where they are.

Frame by frame, every frame would get strokes of its own, and the film would flicker. Here

- all frames have one noise field;
- the denoiser looks at two finished frames beside the painting: at the anchor, and at the one before. So what comes
  into sight gets the look of what is there already. The anchor is the first frame, or a later one, as soon as less than
  `_IN_SIGHT` of a frame is seen in it;
- what the anchor shows is taken from it, moved along with the film (`inst.pictures.motion`). Only its light, which is
  what is larger than strokes, is that of the new result. Without OpenCV, this holds for what stands still.

The third is what counts: of the flicker of frames with noise of their own, one noise leaves 81 % where a camera pans
and attention 78 %; all together leave 14 % (docs/results.md).

What was tried instead, with mini at 256 px: noise that moves along with the film does not help, because latents do not
follow a motion of less than their 8 pixels. Pulling the predicted latents to those of the moved frame halves the
flicker, but each round through the autoencoder adds to its errors, which are plain to see after 12 frames. A photo that
is blended with the moved frame before noise is added gets bolder strokes from frame to frame. A blend of the new result
and the moved frame has the contrast of neither: with 0.75 of the moved frame, the variance of the Laplacian falls to
0.57.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from inst.arguments import checked
from inst.backbone.model import Backbone
from inst.errors import InstWarning, UsageError
from inst.pictures.given import Picture, to_photo
from inst.pictures.motion import Motion, motion_between, move, warn_without_opencv
from inst.pictures.resizing import resize
from inst.pictures.tensors import to_image, to_tensor
from inst.runs import complete
from inst.styles.style import Style
from inst.synthesis.from_photo import result_size, transfer
from inst.synthesis.series import Held, Neighbour, Series

_SHARE = 0.1
"""The part of the style attention that goes to each of the two finished frames."""

_IN_SIGHT = 0.8
"""How much of a frame the anchor shows at least. Otherwise the frame before becomes the anchor."""

_STEADY = 0.5
"""How much is held of what the frame before shows and the anchor does not. With 1, what comes into sight would be put
together from stripes, one for each frame, and look smeared."""

_CUT = 0.12
"""Mean difference of two frames of `_THUMBNAIL` pixels, in [0, 1], from which on another scene begins."""

_THUMBNAIL = 16


def transfer_film(
    backbone: Backbone,
    frames: Iterable[Picture],
    style: Style | Mapping[str, Style],
    *,
    finished: Sequence[Picture] = (),
    seed: int = 0,
    **settings: Any,
) -> Iterator[Tensor]:
    """Give the frames of a film the style of a painting.

    Args:
        backbone: the frozen model.
        frames: the frames in order, all of one size (`inst.pictures.given.Picture`). They are taken one by one.
        style: as for `transfer`.
        finished: the first results of an earlier run with the same arguments, of which two are read. The run goes on
            after them, and its frames are the same to the bit.
        seed: random seed of the one noise field.
        settings: the other arguments of `transfer`, except `noise` and `series`. They are the same for all frames, a
            mask too.

    Yields:
        The results in order, [3, H', W'] on the CPU, 8-bit levels as values in [-1, 1].

    Raises:
        UsageError: an argument cannot be used. It is raised at once; for a frame of another size, when it is its turn.
        InstError: a frame cannot be read; and the errors of `transfer`.

    Warns:
        InstWarning: as `transfer`, once; or OpenCV is not installed.
    """
    seed = checked("seed", seed, "int")
    if refused := {"noise", "series"} & settings.keys():
        raise UsageError(f"A film cannot be given {' and '.join(sorted(refused))}", "give a seed")
    stream = iter(frames)
    first = next(stream, None)
    if first is None:
        raise UsageError("No frame is given", "give at least one")
    opening = to_photo(first, "frame").picture
    transfer(backbone, opening, style, seed=seed, **settings).close()  # checks the arguments, and computes nothing
    warn_without_opencv()
    size = result_size(backbone, (opening.shape[1], opening.shape[2]), settings.get("size"))
    return _run(backbone, chain([opening], stream), style, finished, {**settings, "seed": seed}, size)


def _run(
    backbone: Backbone,
    frames: Iterable[Picture],
    style: Style | Mapping[str, Style],
    finished: Sequence[Picture],
    settings: Mapping[str, Any],
    size: tuple[int, int],
) -> Iterator[Tensor]:
    series, scene, last = Series(), _Scene(), len(finished) - 1
    anchor = before = None
    shape: tuple[int, ...] = ()
    for number, given in enumerate(frames):
        frame = to_photo(given, "frame").picture
        shape = shape or frame.shape
        if frame.shape != shape:
            found, wanted = (f"{one[2]} x {one[1]} pixels" for one in (frame.shape, shape))
            raise UsageError(f"Frame {number + 1} has {found}, the first one {wanted}", "give frames of one size")
        scene.go_on(resize(frame, (size[1], size[0])))
        if number <= last:
            if number == last:
                anchor, before = (Neighbour(_read(finished[one], size)) for one in (scene.anchor, last))
            continue
        if scene.anchor == number - 1:
            anchor = before
        held = None if anchor is None or before is None else scene.hold(anchor, before)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InstWarning)  # it came when the arguments were checked
            run = transfer(backbone, frame, style, **settings, series=series.holding(held))
        result = complete(run)[0]
        # This run goes on with what a later one would read from a file.
        before = Neighbour(to_tensor(to_image(result)))
        yield before.picture


class _Scene:
    """Follows the photos of a film: which frame is the anchor, and how things moved since then.

    Attributes:
        anchor: the number of the anchor, from 0.
    """

    def __init__(self) -> None:
        self.anchor, self._number = 0, -1
        self._frame = self._anchor_frame = torch.empty(0)
        self._motion: Motion | None = None
        self._since_anchor: Motion | None = None

    def go_on(self, frame: Tensor) -> None:
        """Take the next photo, [3, H, W] in [-1, 1], in the size of the results."""
        before, self._frame = self._frame, frame
        self._number += 1
        if self._number == 0 or _difference(before, frame) > _CUT:
            self.anchor, self._anchor_frame, self._motion, self._since_anchor = self._number, frame, None, None
            return
        self._motion = motion_between(before, frame)
        if self._since_anchor is None:
            self._since_anchor = self._motion
        else:
            guess = self._motion.after(self._since_anchor)
            self._since_anchor = motion_between(self._anchor_frame, frame, guess)
        if self._since_anchor.trust.mean() < _IN_SIGHT and self.anchor < self._number - 1:
            self.anchor, self._anchor_frame, self._since_anchor = self._number - 1, before, self._motion

    def hold(self, anchor: Neighbour, before: Neighbour) -> Held | None:
        """Return what the latest frame takes over from the finished anchor and the finished frame before.

        None at the beginning of a scene.
        """
        if self._motion is None or self._since_anchor is None:
            return None
        shares = [(anchor, _SHARE), (before, _SHARE)] if anchor is not before else [(before, 2 * _SHARE)]
        # The anchor is moved once. The frame before was moved many times, and each time blurs a little.
        by_anchor = self._since_anchor.trust
        by_before = (1 - by_anchor) * self._motion.trust * _STEADY
        trust = by_anchor + by_before
        pictures = move(before.picture, self._motion.back), move(anchor.picture, self._since_anchor.back)
        return Held(shares, pictures[0].lerp(pictures[1], by_anchor / trust.clamp_min(1e-6)), trust)


def _difference(one: Tensor, other: Tensor) -> float:
    """Return the mean difference of two photos in [0, 1], as it is when both are reduced to thumbnails."""
    small = [resize(picture, (_THUMBNAIL, _THUMBNAIL)) for picture in (one, other)]
    return float((small[0] - small[1]).abs().mean()) / 2


def _read(given: Picture, size: tuple[int, int]) -> Tensor:
    """Read a finished frame. Raises UsageError unless it has `size` (width, height)."""
    picture = to_photo(given, "finished frame").picture
    width, height = picture.shape[2], picture.shape[1]
    if (width, height) != size:
        raise UsageError(
            f"A finished frame of {width} x {height} pixels does not belong to a film of {size[0]} x {size[1]}",
            "begin the film again",
        )
    return picture
