"""What the networks of a study find in a few test images, below what stands there."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from PIL import Image

from lsa_study.analysis.plots import style
from lsa_study.analysis.rows import Row
from lsa_study.by_image import BEST
from lsa_study.config.names import counted
from lsa_study.config.study import Study

Pixels = npt.NDArray[np.uint8]
COLOURS = 256
"""Of a strip, so that figures and the pages that hold them stay small."""


def seen(study: Study, rows: Sequence[Row]) -> Figure | None:
    """Draw a line of pictures for the truth and for each row, of its first seed.

    None where no row has pictures.
    """
    found = {row.name: strips for row in rows if (strips := _strips(row)) is not None}
    if not found:
        return None
    truth = next(iter(found.values()))[0]
    lines = {"Truth": truth, **{name: answer for name, (_, answer, _) in found.items()}}
    height = truth.shape[0] / truth.shape[1] * 5.4
    drawn = style.figure(8.2, 0.9 + height * len(lines), study=study)
    every = drawn.subplots(len(lines), 1, squeeze=False)[:, 0]
    for axes, (name, pixels) in zip(every, lines.items(), strict=True):
        axes.imshow(pixels, interpolation="none")
        axes.set_ylabel(style.short(name, 28), rotation=0, ha="right", va="center")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    what = "classes of pixels, the first of which keeps the picture's own colours"
    if rows[0].metric == "box_ap":
        of_best = {best for *_, best in found.values()}
        what = "objects of high scores" if len(of_best) > 1 else "objects of a score of 0.5 or more"
        if of_best == {True}:
            what = (
                "the objects of the highest scores, in each image at most as many as it truly "
                "holds, with the score beside each box"
            )
    drawn.set_label(
        "The first test images with what stands in them (above) and, of "
        f"{counted(len(found), 'row')} by their first seed, {what}; colours are classes."
    )
    return drawn


def _strips(row: Row) -> tuple[Pixels, Pixels, bool] | None:
    """The truth and the answers of a row's first run that has pictures; damaged ones are none.

    And whether they show the best objects, as many as there are.
    """
    for run in row.done:
        if run.seen is None:
            continue
        try:
            with Image.open(io.BytesIO(run.seen), formats=["JPEG"]) as picture:
                few = picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
                pixels = np.asarray(few.convert("RGB"))
                best = picture.info.get("comment") == BEST
        except (OSError, ValueError, Image.DecompressionBombError):
            continue
        half = pixels.shape[0] // 2
        return pixels[:half], pixels[half : 2 * half], best
    return None
