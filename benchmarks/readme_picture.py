"""Draws the picture on the front page: the worst, the median and the best test slice of
a run, with what is there, what the network found and how sure it is.

    python -m biedsnet_jax.main --config=configs/phantom.py --workdir=runs/phantom
    python benchmarks/readme_picture.py --workdir=runs/phantom --output=docs/prediction.png

It draws what training keeps for the report, `report_data.npz`, so the same slices and
masks stand in `report.html`. The phantom's slices are made up: no patient is in it. The
picture has a dark ground of its own, to be read on light and dark pages.
"""

import io
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import binary_dilation, binary_erosion

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import scripts
from biedsnet_jax.errors import BadInput, exit_code
from biedsnet_jax.prediction import overlay
from biedsnet_jax.reporting import record
from biedsnet_jax.runtime import files
from biedsnet_jax.scoring import results

# pixels
TILE, GAP, TITLE, MARGIN = 208, 10, 40, 20
GROUND, INK = (13, 17, 23), (230, 237, 243)
TRUTH = overlay.COLOURS[1]
FOUND = overlay.COLOURS[0]
HEAT = np.array(
    [(24, 16, 34), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)],
    np.float64,
)  # dark to bright


def picture(data: record.ReportData, threshold: float, rows: int) -> Image.Image:
    """Draws a row a slice, of the first class: image, truth, prediction, probability
    and uncertainty.
    """
    table = [list(_tiles(data, i, threshold)) for i in range(rows)]
    titles = [title for title, _ in table[0]]
    width = 2 * MARGIN + len(titles) * (TILE + GAP) - GAP
    sheet = Image.new(
        "RGB", (width, 2 * MARGIN + TITLE + rows * (TILE + GAP) - GAP), GROUND
    )
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=21)
    for column, title in enumerate(titles):
        left = MARGIN + column * (TILE + GAP)
        draw.text(
            (left + TILE / 2, MARGIN + TITLE / 2 - 8), title, INK, font, anchor="mm"
        )
        for row in range(rows):
            top = MARGIN + TITLE + row * (TILE + GAP)
            sheet.paste(table[row][column][1], (left, top))
            if title == "prediction":
                dice = f"Dice {data.dice[int(data.slices[row]) * data.truth.shape[-1]]:.2f}"
                draw.text(
                    (left + 8, top + TILE - 8),
                    dice,
                    INK,
                    font,
                    anchor="ls",
                    stroke_width=2,
                    stroke_fill=GROUND,
                )
    return sheet


def _tiles(data, i, threshold) -> Iterator[tuple[str, Image.Image]]:
    """(title, tile) of slice i."""
    image = _larger(np.asarray(Image.open(io.BytesIO(data.images[i])), np.float64))
    grey = np.repeat(image[..., None], 3, axis=-1)
    levels = _larger(data.probability[i, ..., 0])
    found, truth = (
        levels > threshold * record.LEVELS,
        _larger(data.truth[i, ..., 0] * 255) > 127,
    )
    yield "image", _tile(grey)
    yield "truth", _tile(_outlined(grey, truth, TRUTH))
    yield "prediction", _tile(_outlined(grey, found, FOUND))
    p = levels / record.LEVELS
    yield "probability", _tile(_heat(p))
    p = np.clip(p, 1e-6, 1 - 1e-6)
    yield "uncertainty", _tile(_heat(-(p * np.log2(p) + (1 - p) * np.log2(1 - p))))


def _larger(values):
    image = Image.fromarray(values.astype(np.float32))
    return np.asarray(image.resize((TILE, TILE), Image.Resampling.BICUBIC), np.float64)


def _outlined(grey, mask, colour):
    """Tinted inside, with a line of three pixels."""
    tinted = grey.copy()
    tinted[mask] = 0.65 * tinted[mask] + 0.35 * np.array(colour)
    tinted[binary_dilation(mask, iterations=2) & ~binary_erosion(mask)] = colour
    return tinted


def _heat(share):
    place = np.clip(share, 0, 1) * (len(HEAT) - 1)
    return np.stack(
        [np.interp(place, np.arange(len(HEAT)), HEAT[:, c]) for c in range(3)], axis=-1
    )


def _tile(rgb):
    return Image.fromarray(np.clip(rgb, 0, 255).astype(np.uint8))


def main() -> None:
    arguments = _arguments()
    run = results.load(Path(arguments.workdir))
    data = record.load(run.workdir, run.scores["dice"])
    if isinstance(data, str) or len(data.slices) < arguments.rows:
        raise BadInput(
            f"{run.workdir} has no record of {arguments.rows} slices. Score it again with "
            "--mode=evaluate, or give fewer --rows."
        )
    file = io.BytesIO()
    sheet = picture(data, run.fields.get("threshold", 0.5), arguments.rows)
    sheet.quantize(256, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    files.write_bytes(Path(arguments.output), file.getvalue())
    print(
        f"{arguments.output}: {sheet.width} x {sheet.height}, {len(file.getvalue()) // 1000} kB"
    )


def _arguments():
    parser = scripts.make_parser(__doc__)
    parser.add_argument(
        "--workdir",
        required=True,
        help="a run that was tested, or the folder of an evaluation",
    )
    parser.add_argument("--output", required=True, help="the PNG file")
    parser.add_argument(
        "--rows",
        type=int,
        choices=[1, 2, 3],
        default=3,
        help="slices: the worst, the median, the best",
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(exit_code(main))
