"""The built-in data set: road signs drawn by code.

No download, no licence question, and every machine gets the same pictures. Each sign is
drawn once as a 96-pixel template; an image is that template under a random rotation,
scale, shear and shift over a random color background, then darkened, shadowed, blurred
and made noisy. Derived in lesson 00.

"signs" has 12 classes that a small network solves. "signs-hard" adds eight look-alike
classes and makes the signs smaller, dimmer, noisier and partly covered, so that an
honest error remains.
"""

from __future__ import annotations

import hashlib
import math
from functools import cache, partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from bdcourse import require
from bdcourse.data import DRAWINGS, Drawing, Images, _require_room, quantize

EASY = (
    "30",
    "50",
    "80",
    "stop",
    "yield",
    "priority",
    "no entry",
    "caution",
    "ahead only",
    "turn right",
    "turn left",
    "roundabout",
)
HARD = EASY + (
    "60",
    "70",
    "100",
    "no vehicles",
    "ahead or right",
    "ahead or left",
    "narrow road",
    "crossroads",
)

RED, BLUE, YELLOW = (196, 30, 38), (20, 84, 166), (250, 196, 20)
WHITE, BLACK, GRAY = (246, 246, 242), (24, 24, 26), (120, 122, 126)
SIDE = 96  # template pixels
FINAL = 32  # pixels of a side of the drawn images


def draw(n: int, *, seed: int = 0, hard: bool = False) -> Images:
    """Draw `n` labeled signs, 32x32 RGB, classes in equal shares and random order.

    The same n, seed and setting give the same images; 10,000 take a few seconds.
    """
    n, seed = require.whole("n", n, 1), require.whole("seed", seed, 0, 2**62)
    require.truth("hard", hard)
    _require_room(n * 3 * FINAL**2, f"{n} signs")
    classes = HARD if hard else EASY
    g = torch.Generator().manual_seed(seed)
    y = (torch.arange(n) % len(classes))[torch.randperm(n, generator=g)]
    sheet = templates()[: len(classes)]
    x = torch.empty(n, 3, FINAL, FINAL, dtype=torch.uint8)
    for new, part in zip(x.split(500), y.split(500), strict=True):
        new[:] = _scene(sheet[part], g, hard)
    return Images(x, y, classes)


def version() -> str:
    """Changes whenever this file does, so that stale drawings are never reused."""
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]


def _scene(sign: Tensor, g: torch.Generator, hard: bool) -> Tensor:
    """Put each template (n, 4, 96, 96) into a scene: uint8 (n, 3, 32, 32)."""
    n = len(sign)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, 1, 1, 1, generator=g)

    # Render at twice the final size, then average 2x2 pixels: smooth edges for little.
    scale = uniform(0.46, 0.92) if hard else uniform(0.62, 0.98)
    angle = uniform(-0.30, 0.30) if hard else uniform(-0.20, 0.20)
    shear = uniform(-0.15, 0.15)
    room = (1 - scale).clamp(min=0.04)
    dx, dy = uniform(-1, 1) * room, uniform(-1, 1) * room
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    row0 = torch.cat([cos, sin + shear, -(cos * dx + (sin + shear) * dy)], -1)
    row1 = torch.cat([-sin, cos, sin * dx - cos * dy], -1)
    grid = F.affine_grid(
        torch.cat([row0, row1], -2).squeeze(1), [n, 4, 64, 64], align_corners=False
    )
    small = F.avg_pool2d(sign, 2)  # 48 px: close to the drawn size, so no aliasing
    layer = F.grid_sample(small, grid, align_corners=False)
    layer = F.avg_pool2d(layer, 2)
    color, alpha = layer[:, :3], layer[:, 3:]  # color is premultiplied by alpha

    x = color + (1 - alpha) * _background(n, g)
    if hard:
        x = _cover(x, n, g)
    # Light: one brightness, one tint and one soft shadow across each image.
    x = x * (uniform(0.32, 1.1) if hard else uniform(0.55, 1.15))
    x = x * (1 + 0.10 * (torch.rand(n, 3, 1, 1, generator=g) - 0.5))
    ramp = torch.linspace(-1, 1, 32)
    turn = uniform(0, 2 * math.pi)
    side = torch.cos(turn) * ramp.view(1, 1, 1, 32) + torch.sin(turn) * ramp.view(1, 1, 32, 1)
    x = x * (1 - uniform(0, 0.5) * torch.sigmoid(6 * (side - uniform(-0.8, 0.8))))
    # A mix of sharp and blurred is a blur of random strength at the cost of one.
    kernel = torch.tensor([1.0, 2.0, 1.0]) / 4
    kernel = (kernel[:, None] * kernel).expand(3, 1, 3, 3)
    blurred = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), kernel, groups=3)
    amount = uniform(0.2, 1.0) if hard else uniform(0.0, 0.7)
    x = x + amount * (blurred - x)
    noise = torch.randn(n, 3, 32, 32, generator=g)
    x = x + noise * (uniform(0.03, 0.13) if hard else uniform(0.005, 0.035))
    return quantize(x)


def _background(n: int, g: torch.Generator) -> Tensor:
    """Smooth random colors at three scales: (n, 3, 32, 32) around mid-gray."""
    x = torch.full((n, 3, 32, 32), 0.45)
    for side, weight in ((2, 0.55), (5, 0.35), (12, 0.20)):
        blobs = torch.rand(n, 3, side, side, generator=g) - 0.5
        gray = torch.rand(n, 1, side, side, generator=g) - 0.5
        blobs = 0.5 * blobs + 0.6 * gray  # streets are mostly gray
        x = x + weight * F.interpolate(blobs, 32, mode="bilinear", align_corners=True)
    return x.clamp(0.02, 0.98)


def _cover(x: Tensor, n: int, g: torch.Generator) -> Tensor:
    """Hide a random rectangle of every other image behind one color (a branch)."""
    pos = torch.arange(32).view(1, 1, 1, 32)
    size = torch.randint(5, 13, (2, n, 1, 1, 1), generator=g)
    at = (torch.rand(2, n, 1, 1, 1, generator=g) * (33 - size)).long()
    across = (pos >= at[0]) & (pos < at[0] + size[0])
    down = (pos >= at[1]) & (pos < at[1] + size[1])
    hidden = across & down.transpose(2, 3)
    hidden = hidden & (torch.rand(n, 1, 1, 1, generator=g) < 0.5)
    return torch.where(hidden, 0.7 * torch.rand(n, 3, 1, 1, generator=g), x)


@cache
def templates() -> Tensor:
    """All sign templates, float (20, 4, 96, 96): premultiplied RGB, and alpha."""
    import numpy as np

    out = []
    for name in HARD:
        # Drawn at four times the size and averaged down: Pillow itself has no smooth
        # edge.
        big = np.asarray(_template(name, 4 * SIDE), dtype=np.float32) / 255
        t = torch.from_numpy(big).permute(2, 0, 1)
        t = torch.cat([t[:3] * t[3:], t[3:]])
        out.append(F.avg_pool2d(t, 4))
    return torch.stack(out)


def _template(name: str, s: int):
    """One sign as an RGBA Pillow image of side `s`."""
    from PIL import Image, ImageDraw

    im = Image.new("RGBA", (s, s), (0, 0, 0, 0))
    d = ImageDraw.Draw(im)

    def poly(points, fill):
        d.polygon([(px * s, py * s) for px, py in points], fill=fill)

    def disc(r, fill, cx=0.5, cy=0.5):
        box = [(cx - r) * s, (cy - r) * s, (cx + r) * s, (cy + r) * s]
        d.ellipse(box, fill=fill)

    def bar(x0, y0, x1, y1, fill):
        d.rectangle([x0 * s, y0 * s, x1 * s, y1 * s], fill=fill)

    def ring(edge):  # prohibition: white disc, red rim
        disc(0.49, edge)
        disc(0.37, WHITE)

    def ngon(k, r, turn, fill, cy=0.5):
        a = [2 * math.pi * i / k + turn for i in range(k)]
        poly([(0.5 + r * math.cos(t), cy + r * math.sin(t)) for t in a], fill)

    def triangle(up, inner=WHITE):
        if up:
            poly([(0.5, 0.03), (0.98, 0.9), (0.02, 0.9)], RED)
            poly([(0.5, 0.25), (0.80, 0.80), (0.20, 0.80)], inner)
        else:
            poly([(0.5, 0.97), (0.98, 0.1), (0.02, 0.1)], RED)
            poly([(0.5, 0.75), (0.80, 0.20), (0.20, 0.20)], inner)

    def text(words, size, fill, cy=0.5):
        d.text((0.5 * s, cy * s), words, fill=fill, font=_font(size * s), anchor="mm")

    if name.isdigit():
        ring(RED)
        text(name, 0.46 if len(name) < 3 else 0.33, BLACK)
    elif name == "stop":
        ngon(8, 0.5, math.pi / 8, WHITE)
        ngon(8, 0.46, math.pi / 8, RED)
        text("STOP", 0.27, WHITE)
    elif name == "yield":
        triangle(up=False)
    elif name == "priority":
        ngon(4, 0.5, 0, WHITE)
        ngon(4, 0.46, 0, BLACK)
        ngon(4, 0.44, 0, WHITE)
        ngon(4, 0.31, 0, YELLOW)
    elif name == "no entry":
        disc(0.49, RED)
        bar(0.14, 0.41, 0.86, 0.59, WHITE)
    elif name == "no vehicles":
        ring(RED)
    elif name == "caution":
        triangle(up=True)
        bar(0.46, 0.40, 0.54, 0.64, BLACK)
        disc(0.045, BLACK, cy=0.72)
    elif name == "narrow road":
        triangle(up=True)
        poly([(0.40, 0.76), (0.44, 0.44), (0.48, 0.44), (0.46, 0.76)], BLACK)
        poly([(0.60, 0.76), (0.56, 0.44), (0.52, 0.44), (0.54, 0.76)], BLACK)
    elif name == "crossroads":
        triangle(up=True)
        bar(0.46, 0.42, 0.54, 0.77, BLACK)
        bar(0.34, 0.58, 0.66, 0.66, BLACK)
    elif name == "roundabout":
        disc(0.49, BLUE)
        for i in range(3):
            a = 120 * i - 90
            box = [0.24 * s, 0.24 * s, 0.76 * s, 0.76 * s]
            d.arc(box, a + 22, a + 100, fill=WHITE, width=int(0.10 * s))
            t = math.radians(a + 100)
            c, n = (math.cos(t), math.sin(t)), (-math.sin(t), math.cos(t))
            tip = [(0.5 + 0.21 * c[0] + 0.16 * n[0], 0.5 + 0.21 * c[1] + 0.16 * n[1])]
            base = [(0.5 + r * c[0], 0.5 + r * c[1]) for r in (0.09, 0.33)]
            poly(tip + base, WHITE)
    else:  # blue discs with arrows
        disc(0.49, BLUE)
        up = [(0.5, 0.10), (0.70, 0.36), (0.30, 0.36)]
        right = [(0.90, 0.42), (0.64, 0.22), (0.64, 0.62)]
        if name == "ahead only":
            bar(0.44, 0.3, 0.56, 0.86, WHITE)
            poly(up, WHITE)
        elif name in ("turn right", "turn left"):
            bar(0.26, 0.36, 0.66, 0.48, WHITE)
            bar(0.26, 0.36, 0.38, 0.80, WHITE)
            poly(right, WHITE)
        else:  # ahead or right / left
            bar(0.36, 0.30, 0.47, 0.86, WHITE)
            bar(0.40, 0.54, 0.68, 0.65, WHITE)
            poly([(px - 0.085, py) for px, py in up], WHITE)
            poly([(0.88, 0.595), (0.66, 0.42), (0.66, 0.77)], WHITE)
        if name.endswith("left"):
            im = im.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return im


@cache
def _font(size: float):
    import matplotlib
    from PIL import ImageFont

    # matplotlib ships DejaVu inside its wheel, so every machine has the same letters.
    path = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans-Bold.ttf"
    return ImageFont.truetype(str(path), round(size), layout_engine=ImageFont.Layout.BASIC)


DRAWINGS.update(
    {
        name: Drawing(Images, partial(draw, hard=hard), version, FINAL, 6000, 2000, 3 * FINAL**2)
        for name, hard in (("signs", False), ("signs-hard", True))
    }
)
