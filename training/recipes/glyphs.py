"""Letters and symbols rendered from many fonts, distorted: the images the mini backbones are pretrained on.

No digit is ever rendered. Two sources of shapes, all from packages in the `pretrain` extra:

* outline fonts (matplotlib's own and the `font-*` packages): filled letters and symbols;
* Hershey stroke fonts: single-line letters drawn with several pen widths, close to handwriting.

`render_bank` draws every (class, font) once at 64x64; `distort` turns a batch of those masters into 32x32 RGB
images with random geometry, pen, resolution and colour. Everything is drawn from the generator it is given.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from fontTools.ttLib import TTFont
from HersheyFonts import HersheyFonts
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

MASTER = 64
IMAGE = 32
RESOLUTIONS = (8, 8, 10, 12, 16, 20, 24, 32)  # what a scan may have kept before it was enlarged to 32x32

LATIN = "ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghijlmnqrty"  # lower-case letters shaped like their capitals are left out
GREEK = "ΓΔΘΛΞΠΣΦΨΩαβγδεζηθλμξπρσφψω"
CYRILLIC = "БДЖЗИЛЦЧШЩЪЫЬЭЮЯбвйф"
SYMBOLS = "!?@#$%&*+=<>/\\()[]{}^~|€£¥§¶†‡©®±×÷≠≤≥∞∑∏∫√∂∇∈∩∪⊂⊃∧∨¬←→↑↓↔⇒⇔∀∃∅♠♣♥♦♪♫✓✗★☆●○■□▲△▼▽◆◇☀☁☂☎☯♀♂⚓✈✉✂❄"
CHARACTERS = LATIN + GREEK + CYRILLIC + SYMBOLS

FONT_PACKAGES = (
    "font_amatic_sc", "font_caladea", "font_fjallaone", "font_fredoka_one", "font_hanken_grotesk", "font_intuitive",
    "font_lato", "font_manrope", "font_roboto", "font_source_sans_pro", "font_source_serif_pro",
)  # fmt: skip
HERSHEY_LATIN = (
    "futural", "futuram", "rowmans", "rowmand", "rowmant", "scripts", "scriptc", "timesr", "timesrb", "timesi",
    "timesib", "gothgbt", "gothgrt", "gothiceng", "gothicger", "gothicita", "gothitt",
)  # fmt: skip
HERSHEY_OWN = "japanese"  # every glyph is a class of its own
HERSHEY_OWN_CODES = [33, *range(35, 48), *range(59, 127)]  # 48 to 57 are the digits, 34 and 58 numerals in kanji
PEN_WIDTHS = (2, 4, 6)
MIN_RENDERINGS = 3


@dataclass(frozen=True)
class GlyphBank:
    """Every master image. `images` [M, 64, 64] uint8 (ink is 255), `labels` [M] int64, `names` one per class."""

    images: Tensor
    labels: Tensor
    names: tuple[str, ...]


def font_files() -> list[Path]:
    """The outline fonts, in a fixed order: matplotlib's text fonts and those of the `font-*` packages."""
    matplotlib_fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    files = [path for path in sorted(matplotlib_fonts.glob("*.ttf")) if path.name.startswith(("DejaVu", "STIXGeneral"))]
    for package in FONT_PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(f"font package {package} is missing: pip install 'cdl-deploy[pretrain]'")
        folder = Path(spec.origin).parent
        fonts = {path.stem: path for path in sorted(folder.rglob("*.[ot]tf"))}  # an .otf and its .ttf are one font
        files += [fonts[stem] for stem in sorted(fonts)]
    return files


def _centre(ink: Image.Image) -> np.ndarray | None:
    """Crop to the ink and centre it at 44 pixels on a 64x64 canvas; None where nothing was drawn."""
    box = ink.getbbox()
    if box is None:
        return None
    ink = ink.crop(box)
    scale = 44 / max(ink.size)
    size = (max(1, round(ink.width * scale)), max(1, round(ink.height * scale)))
    canvas = Image.new("L", (MASTER, MASTER))
    canvas.paste(ink.resize(size, Image.Resampling.LANCZOS), ((MASTER - size[0]) // 2, (MASTER - size[1]) // 2))
    return np.asarray(canvas)


def _outline(font: ImageFont.FreeTypeFont, character: str) -> np.ndarray | None:
    ink = Image.new("L", (320, 320))
    ImageDraw.Draw(ink).text((80, 60), character, fill=255, font=font)
    return _centre(ink)


def _strokes(font: HersheyFonts, character: str, width: int) -> np.ndarray | None:
    strokes = [list(stroke) for stroke in font.strokes_for_text(character)]
    points = [point for stroke in strokes for point in stroke]
    if not points:
        return None
    low, high = np.min(points, axis=0), np.max(points, axis=0)
    scale = 170 / max(float(np.max(high - low)), 1.0)
    ink = Image.new("L", (256, 256))
    draw = ImageDraw.Draw(ink)
    pen = width * 4
    for stroke in strokes:
        line = [tuple(40 + (np.array(point) - low) * scale) for point in stroke]
        draw.line(line, fill=255, width=pen, joint="curve")
        for x, y in line:
            draw.ellipse((x - pen / 2, y - pen / 2, x + pen / 2, y + pen / 2), fill=255)
    return _centre(ink)


def render_bank() -> GlyphBank:
    """Draw every character in every font that has it; classes with fewer than three renderings are dropped."""
    found: dict[str, list[np.ndarray]] = {}

    def add(name: str, image: np.ndarray | None) -> None:
        if image is not None:
            found.setdefault(name, []).append(image)

    for path in font_files():
        with TTFont(path, lazy=True) as table:
            supported = table.getBestCmap()
        font = ImageFont.truetype(str(path), 120)
        for character in CHARACTERS:
            if ord(character) in supported:
                add(character, _outline(font, character))
    strokes = HersheyFonts()
    for face in HERSHEY_LATIN:
        strokes.load_default_font(face)
        for character in LATIN:
            for width in PEN_WIDTHS:
                add(character, _strokes(strokes, character, width))
    strokes.load_default_font(HERSHEY_OWN)
    drawn: set[bytes] = set()
    for code in HERSHEY_OWN_CODES:
        pens = [_strokes(strokes, chr(code), width) for width in PEN_WIDTHS]
        if pens[0] is None or pens[0].tobytes() in drawn:
            continue  # the font fills unused codes with one and the same placeholder
        drawn.add(pens[0].tobytes())
        for image in pens:
            add(f"{HERSHEY_OWN}:{chr(code)}", image)

    names = tuple(name for name, images in found.items() if len(images) >= MIN_RENDERINGS)
    images = [image for name in names for image in found[name]]
    labels = [label for label, name in enumerate(names) for _ in found[name]]
    return GlyphBank(torch.from_numpy(np.stack(images)), torch.tensor(labels), names)


def sample_batch(
    bank: GlyphBank, batch_size: int, generator: torch.Generator, strength: float = 1.0
) -> tuple[Tensor, Tensor]:
    """A class-balanced batch: images [B, 3, 32, 32] in [0, 1] and labels [B]. `strength` scales the geometry."""
    classes = torch.randint(len(bank.names), (batch_size,), generator=generator)
    first = torch.searchsorted(bank.labels, torch.arange(len(bank.names)))
    count = torch.bincount(bank.labels, minlength=len(bank.names))
    offset = (torch.rand(batch_size, generator=generator) * count[classes]).long()
    return distort(bank.images[first[classes] + offset], generator, strength), classes


def distort(masters: Tensor, generator: torch.Generator, strength: float = 1.0) -> Tensor:
    """Masters [B, 64, 64] uint8 → images [B, 3, 32, 32] in [0, 1]: pen, geometry, resolution, then colour."""
    ink = masters.float().div(255).unsqueeze(1)
    ink = _scan(_warp(_pen(ink, generator), generator, strength), generator)
    return _colour(ink, generator)


def _uniform(low: float, high: float, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


def _pen(ink: Tensor, generator: torch.Generator) -> Tensor:
    """Thicken a third of the strokes, thin a sixth."""
    choice = torch.rand(len(ink), 1, 1, 1, generator=generator)
    thick = F.max_pool2d(ink, 3, 1, 1)
    thicker = F.max_pool2d(thick, 3, 1, 1)
    thin = -F.max_pool2d(-ink, 3, 1, 1)
    ink = torch.where(choice < 0.33, thick, ink)
    ink = torch.where(choice < 0.16, thicker, ink)
    return torch.where(choice > 0.84, thin, ink)


def _warp(ink: Tensor, generator: torch.Generator, strength: float) -> Tensor:
    """Random rotation, shear, scale and shift, and a smooth elastic field."""
    batch = len(ink)
    angle = strength * _uniform(-0.4, 0.4, (batch,), generator)
    shear = strength * _uniform(-0.35, 0.35, (batch,), generator)
    scale_x = 1 / (1.1 + strength * _uniform(-0.45, 0.3, (batch,), generator))
    scale_y = 1 / (1.15 + strength * _uniform(-0.25, 0.25, (batch,), generator))
    shift = strength * _uniform(-0.15, 0.15, (batch, 2), generator)
    cos, sin = angle.cos(), angle.sin()
    theta = torch.stack(
        [
            torch.stack([cos * scale_x, (shear - sin) * scale_x, shift[:, 0]], 1),
            torch.stack([sin * scale_y, cos * scale_y, shift[:, 1]], 1),
        ],
        1,
    )
    grid = F.affine_grid(theta, [batch, 1, MASTER, MASTER], align_corners=False)
    amplitude = strength * _uniform(0.0, 0.1, (batch, 1, 1, 1), generator)
    field = torch.randn(batch, 2, 5, 5, generator=generator) * amplitude
    field = F.interpolate(field, size=(MASTER, MASTER), mode="bicubic", align_corners=False)
    return F.grid_sample(ink, grid + field.permute(0, 2, 3, 1), align_corners=False)


def _scan(ink: Tensor, generator: torch.Generator) -> Tensor:
    """Average down to a random resolution and enlarge again, as a cheap scanner would have left it."""
    chunks = []
    for chunk in ink.chunk(min(4, len(ink))):
        resolution = RESOLUTIONS[int(torch.randint(len(RESOLUTIONS), (1,), generator=generator))]
        small = F.adaptive_avg_pool2d(chunk, resolution)
        chunks.append(F.interpolate(small, size=(IMAGE, IMAGE), mode="bicubic", align_corners=False))
    ink = torch.cat(chunks).clamp(0, 1)
    peak = ink.amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-3)
    gain = _uniform(0.8, 1.3, (len(ink), 1, 1, 1), generator)
    return (ink / peak * gain).clamp(0, 1)


def _colour(ink: Tensor, generator: torch.Generator) -> Tensor:
    """White on black, black on white, or two random colours at least 0.4 apart; a little noise."""
    batch = len(ink)
    choice = torch.rand(batch, 1, 1, 1, generator=generator)
    front = _uniform(0, 1, (batch, 3, 1, 1), generator)
    back = _uniform(0, 1, (batch, 3, 1, 1), generator)
    far = (front.mean(1, keepdim=True) - back.mean(1, keepdim=True)).abs() > 0.4
    plain = (choice < 0.85) | ~far
    light = (choice < 0.7) | (choice >= 0.85)
    front = torch.where(plain, light.float().expand_as(front), front)
    back = torch.where(plain, 1 - light.float().expand_as(back), back)
    image = back + (front - back) * ink
    noise = torch.randn(batch, 1, IMAGE, IMAGE, generator=generator) * _uniform(0, 0.08, (batch, 1, 1, 1), generator)
    return (image + noise).clamp(0, 1)
