"""Photographs of what is written: paper with ruling, squares or boxes, on a table, under a lamp, a little blurred.

Everything that is not written is random: the surfaces, the page's edges, light, shadow and noise. Lengths are in
pixels, ink and grey levels run from 0 to 1. Tensors (B, H, W) or (B, 1, 1) hold a value for each of B pictures.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Form = tuple[float, float, float, float, float]  # tilt, x and y of a wall's top, height, share of the walls there


@dataclass
class Layout:
    """What is written on one patch or page, before it is photographed."""

    shape: tuple[int, int]
    ink: np.ndarray  # (H, W) of the digits
    other: np.ndarray  # (H, W) of words and signs
    light: bool = False  # light ink on dark paper
    page: bool = False  # whether an edge of the page may be seen
    table: bool = False  # whether there is no paper at all
    pitch: float = 0.0  # between the walls of a form's boxes; 0 without a form
    form: Form = (0, 0, 0, 0, 0)


class _Chance:
    """Random numbers for each of some pictures of one size, and the places of their pixels."""

    def __init__(self, count: int, height: int, width: int, generator: torch.Generator) -> None:
        self.count, self.height, self.width, self.generator = count, height, width, generator
        self.y = torch.arange(height).float()[None, :, None].expand(count, height, width)
        self.x = torch.arange(width).float()[None, None, :].expand(count, height, width)
        self.grain = torch.randn(count, height, width, generator=generator)
        self.coarse = F.avg_pool2d(self.grain[:, None], 5, 1, 2)[:, 0] * 4

    def number(self, low: float = 0, high: float = 1) -> Tensor:
        """A number (B, 1, 1) between two others."""
        return low + (high - low) * torch.rand(self.count, 1, 1, generator=self.generator)

    def happens(self, share: float) -> Tensor:
        """1 with this probability, else 0: (B, 1, 1)."""
        return (self.number() < share).float()

    def smooth(self, cells: int) -> Tensor:
        """Values (B, H, W) from 0 to 1 that change slowly: over a grid of so many cells each way."""
        noise = torch.rand(self.count, 1, cells, cells, generator=self.generator)
        return F.interpolate(noise, size=(self.height, self.width), mode="bilinear", align_corners=True)[:, 0]

    def beyond(self, way: Tensor, off: Tensor) -> Tensor:
        """How far (B, H, W) each pixel lies beyond a line across the direction `way`, `off` from the middle."""
        return (self.x - self.width / 2) * way.cos() + (self.y - self.height / 2) * way.sin() + off


def photograph(layouts: list[Layout], generator: torch.Generator) -> Tensor:
    """Grey pictures (B, H, W) of layouts of one shape: ink on paper, with lines, a table, light and shadow."""
    chance = _Chance(len(layouts), *layouts[0].shape, generator)
    ink = torch.from_numpy(np.stack([layout.ink for layout in layouts]))
    other = torch.from_numpy(np.stack([layout.other for layout in layouts]))
    dark, page, bare, pitch = (torch.tensor([float(getattr(layout, name)) for layout in layouts])[:, None, None]
                               for name in ("light", "page", "table", "pitch"))
    table = _table(chance)
    tone = torch.where(dark > 0, chance.number(0.04, 0.5), chance.number(0.35, 1))
    paper = tone * (1 + 0.3 * chance.number() * (chance.smooth(3) - 0.5)) + 0 * chance.x
    inside = _page(chance, ink, page) * (1 - bare)
    # the page's shadow
    rim = chance.happens(0.6) * chance.number(0, 0.6) * F.avg_pool2d(inside[:, None], 5, 1, 2)[:, 0]
    table = table * (1 - rim)
    printed, half = _printed(chance)
    forms = torch.tensor([layout.form for layout in layouts])[:, :, None, None].unbind(1)
    printed = torch.where(pitch > 0, _boxes(chance, forms, pitch.clamp_min(1), half), printed)
    paper = _written(chance, paper, tone, dark, printed, other, ink)
    view = table + inside * (paper - table)
    view = _blend(view, chance.number(0, 1), (1 - inside) * bare * chance.number(0.2, 1) * other)
    return _through_a_lens(chance, view * _light(chance))


def _blend(base: Tensor, tone: Tensor, amount: Tensor) -> Tensor:
    return base + amount * (tone - base)


def _table(chance: _Chance) -> Tensor:
    """Wood, cloth or stone."""
    turn, rate = chance.number(0, math.pi), chance.number(0.04, 0.7)
    along = chance.x * turn.cos() + chance.y * turn.sin() + 14 * chance.number() * chance.smooth(5)
    across = chance.y * turn.cos() - chance.x * turn.sin()
    wave = (rate * along).sin() * torch.where(chance.number() < 0.4, (rate * across).sin(), torch.ones(()))
    cells = ((along / (12 + 60 * chance.number())).floor() + (across / (12 + 60 * chance.number())).floor()) % 2
    return chance.number(0.1, 1) * (1 + 0.35 * chance.number() * wave
                                    + 0.25 * chance.number() * (chance.smooth(9) - 0.5)
                                    - chance.happens(0.15) * 0.6 * chance.number() * cells)


def _page(chance: _Chance, ink: Tensor, page: Tensor) -> Tensor:
    """Where the page is, from 0 to 1: it has up to two straight edges, and no digit lies beyond them."""
    inside = torch.ones_like(ink)
    for share in (1.0, 0.4):
        way, off = chance.number(0, 2 * math.pi), chance.number(-0.4, 0.5) * max(chance.height, chance.width)
        depth = chance.beyond(way, torch.zeros(()))
        needed = torch.where(ink > 0.1, -depth, -math.inf).amax((1, 2), keepdim=True)
        depth = depth + torch.maximum(off, needed + chance.number(2, 16))
        inside = inside * torch.where(chance.happens(share) * page > 0, (depth / chance.number(0.4, 1.2)).sigmoid(),
                                      torch.ones(()))
    return inside


def _printed(chance: _Chance) -> tuple[Tensor, Tensor]:
    """Ruling, squares, or boxes (B, H, W), on some pictures; and half the width of their lines."""
    tilt = chance.number(-0.3, 0.3) * chance.happens(0.7)
    u = chance.x * tilt.cos() + chance.y * tilt.sin()
    v = chance.y * tilt.cos() - chance.x * tilt.sin()
    half, pitch = chance.number(0.2, 1.2), chance.number(13, 70)

    def ruled(place: Tensor, pitch: Tensor) -> Tensor:
        place = place % pitch
        return (half + 0.5 - torch.minimum(place, pitch - place)).clamp(0, 1)

    kind = chance.number()
    level = ruled(v + chance.number(0, 70), pitch)
    upright = ruled(u + chance.number(0, 70), torch.where(chance.happens(0.5) > 0, pitch, chance.number(13, 70)))
    band = ((v - chance.number(0, chance.height)).abs() < chance.number(14, 40)).float()
    ring = (half + 0.5 - ((v - chance.number(0, chance.height)).abs() - chance.number(14, 40)).abs()).clamp(0, 1)
    printed = torch.where(kind < 0.16, level, torch.zeros_like(level))
    printed = torch.where((kind >= 0.16) & (kind < 0.28), torch.maximum(level, upright), printed)
    return torch.where((kind >= 0.28) & (kind < 0.36), torch.maximum(upright * band, ring), printed), half


def _boxes(chance: _Chance, forms: tuple[Tensor, ...], step: Tensor, half: Tensor) -> Tensor:
    """A form's boxes (B, H, W), or a comb, whose walls do not reach the top; lines are 2 · `half` wide."""
    tilt, start, top, tall, closed = forms
    u = (chance.x - start) * tilt.cos() + (chance.y - top - tall / 2) * tilt.sin()
    v = (chance.y - top - tall / 2) * tilt.cos() - (chance.x - start) * tilt.sin() + tall / 2
    gap = chance.happens(0.4) * chance.number(0.02, 0.12) * step  # between boxes
    near = (u + step / 2) % step - step / 2
    walls = (half + 0.5 - (near.abs() - gap).abs()).clamp(0, 1)
    reach = ((v > tall * (1 - closed) - half) & (v < tall + half)).float()
    foot = (half + 0.5 - (v - tall).abs()).clamp(0, 1)
    head = (half + 0.5 - v.abs()).clamp(0, 1) * (closed == 1)
    return torch.maximum(walls * reach, torch.maximum(foot, head) * (near.abs() >= gap - 0.5))


def _written(chance: _Chance, paper: Tensor, tone: Tensor, dark: Tensor, printed: Tensor, other: Tensor,
             ink: Tensor) -> Tensor:
    """Paper of a tone, with printed lines, words and signs, and digits; on dark paper the pen is light."""
    pen = torch.where(dark > 0, 1 - (1 - tone) * chance.number(0, 0.4), tone * chance.number(0, 0.55))
    weight = (0.55 + 0.45 * chance.number()) * (1 - chance.happens(0.3) * chance.number(0, 0.4) * chance.smooth(28))
    pencil = chance.happens(0.2) * chance.number(0, 0.5) * (0.5 + 0.5 * chance.grain).clamp(0, 1)
    weight = weight * (1 - pencil)
    lines = chance.number(0.12, 0.95)
    line_tone = torch.where(chance.happens(0.6) > 0, chance.number(0, 0.6) * tone, pen)
    letter_tone = torch.where(chance.happens(0.5) > 0, pen,
                              torch.where(dark > 0, chance.number(0.5, 1), chance.number(0, 0.6)))
    paper = paper * (1 + chance.happens(0.5) * chance.number(0, 0.04) * chance.coarse)
    paper = _blend(paper, line_tone, lines * printed)
    paper = _blend(paper, letter_tone, (0.6 + 0.4 * chance.number()) * other)
    return _blend(paper, pen, weight * ink)


def _light(chance: _Chance) -> Tensor:
    """A lamp, and a shadow with a hard or a soft edge."""
    light = 1 - chance.number(0, 0.5) * chance.smooth(3)
    way, off = chance.number(0, 2 * math.pi), chance.number(-0.5, 0.5) * max(chance.height, chance.width)
    depth = chance.beyond(way, off) + 12 * chance.number() * chance.smooth(4)
    return light * (1 - chance.happens(0.35) * chance.number(0.1, 0.6)
                    * (depth / torch.exp(chance.number(-0.5, 3))).sigmoid())


def _through_a_lens(chance: _Chance, view: Tensor) -> Tensor:
    """The view a little blurred, and with noise."""
    blurred = F.avg_pool2d(F.pad(view[:, None], (1, 1, 1, 1), mode="replicate"), 3, 1)[:, 0]
    soft = chance.number(0, 1.1) ** 2
    view = view * (1 - soft) + blurred * soft
    noise = torch.where(chance.happens(0.5) > 0, chance.grain, chance.coarse / 1.5)
    return (view + 0.045 * chance.number() ** 2 * noise).clamp(0, 1)
