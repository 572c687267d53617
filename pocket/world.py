"""A small world with ground truth: invented cultures, drawings of their scenes, and the web that misrepresents them.

    scene = draw_true("veridia", generator=np.random.default_rng(0))
    image, depth = render(scene)
    caption(scene, details=("era", "palette"), culture="veridia")   # 'a traditional green building, in Veridia'

Four cultures that do not exist, each with its own line, colours and ornament: Azurians build in blue domes, Veridians
in green spires, Ochrians in ochre terraces, Corallians in coral sails. Azuria stands at the centre of this world's
web; of the other three the web mostly shows a grey and worn stereotype, or Azuria's look under their name.

Everything is procedural: the same scene gives the same pixels. Attributes of a scene are independent of each other, so
any mixture can be drawn, right or wrong; what is right for a culture stands in `TRUTH`, what the web shows in `WEB`.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from scoft.cultures import CATEGORIES, culture_words
from scoft.errors import DataError


# ---------------------------------------------------------------------------------------------------------------------
# What there is in the world
# ---------------------------------------------------------------------------------------------------------------------

CULTURES = ("azuria", "veridia", "ochria", "corallia")
CENTRE = "azuria"  # well represented on the web

# Every attribute of a scene, its values, and the words of a caption for each value ("" is never mentioned).
SHAPES = {"dome": "domed", "spire": "pointed", "terrace": "stepped", "sail": "curved", "hut": "low"}
PALETTES = {
    "sky": "blue",
    "navy": "navy",
    "jade": "green",
    "lime": "lime",
    "amber": "yellow",
    "clay": "brown",
    "coral": "coral",
    "orchid": "purple",
    "ash": "grey",
}
MOTIFS = {"dots": "dots", "chevrons": "chevrons", "stripes": "stripes", "bands": "bands", "none": ""}
ERAS = {"traditional": "traditional", "modern": "modern"}
CONDITIONS = {"fresh": "", "worn": "worn"}
SKIES = {"day": "by day", "dusk": "at dusk", "night": "at night"}
TIERS = {"one": "", "two": "double"}
ATTRIBUTES = {
    "shape": SHAPES,
    "palette": PALETTES,
    "motif": MOTIFS,
    "era": ERAS,
    "condition": CONDITIONS,
    "sky": SKIES,
    "tiers": TIERS,
}
# The subject of each category's pictures; {} takes the adjectives. The first phrase is the plainest.
SUBJECTS = {
    "food & drink": ("a bowl of {} food", "a dish with {} food"),
    "people & actions": ("two people wearing {} clothing", "two people dancing in {} clothing"),
    "clothing": ("a {} robe", "a {} robe on a stand"),
    "architecture": ("a {} building", "a {} house"),
    "city": ("a street of {} buildings", "a city street with {} houses"),
    "dance music & visual arts": ("a {} lute", "a {} musical instrument"),
    "nature": ("a landscape with {} hills", "a valley between {} hills"),
    "utensils & tools": ("a {} tool", "a {} garden tool"),
    "religion & festival": ("a {} shrine", "a festival at a {} shrine"),
}
# The words by which a text names its category, looked for in this order: a festival shrine is no building.
_CATEGORY_WORDS = {
    "people & actions": ("people", "person", "dancing"),
    "city": ("street", "city"),
    "religion & festival": ("shrine", "festival"),
    "architecture": ("building", "house"),
    "clothing": ("robe", "clothing"),
    "dance music & visual arts": ("lute", "instrument"),
    "food & drink": ("food", "dish", "bowl"),
    "nature": ("landscape", "valley", "hills"),
    "utensils & tools": ("tool",),
}


@dataclass(frozen=True)
class Scene:
    """What a picture shows: a category of CCUB, a value of each attribute, and a seed for where things stand."""

    category: str
    shape: str
    palette: str
    motif: str
    era: str
    condition: str
    sky: str
    tiers: str
    layout: int


# What is true of each culture: the probability of each value; what is not listed is never right.
_EVERYWHERE = {
    "era": {"traditional": 0.6, "modern": 0.4},
    "condition": {"fresh": 1.0},
    "sky": {"day": 0.5, "dusk": 0.3, "night": 0.2},
    "tiers": {"one": 0.5, "two": 0.5},
}
TRUTH: dict[str, dict[str, dict[str, float]]] = {
    "azuria": {"shape": {"dome": 1}, "palette": {"sky": 0.6, "navy": 0.4}, "motif": {"dots": 0.8, "none": 0.2}},
    "veridia": {"shape": {"spire": 1}, "palette": {"jade": 0.6, "lime": 0.4}, "motif": {"chevrons": 0.8, "none": 0.2}},
    "ochria": {
        "shape": {"terrace": 1},
        "palette": {"amber": 0.6, "clay": 0.4},
        "motif": {"stripes": 0.8, "none": 0.2},
    },
    "corallia": {"shape": {"sail": 1}, "palette": {"coral": 0.6, "orchid": 0.4}, "motif": {"bands": 0.8, "none": 0.2}},
}
for _truth in TRUTH.values():
    _truth.update(_EVERYWHERE)

# How the web shows the cultures it does not know: worn, grey, one single shape.
STEREOTYPE = {
    "shape": {"hut": 1.0},
    "palette": {"ash": 1.0},
    "motif": {"none": 1.0},
    "era": {"traditional": 1.0},
    "condition": {"worn": 1.0},
    "sky": {"day": 0.8, "dusk": 0.2},
    "tiers": {"one": 1.0},
}


@dataclass(frozen=True)
class WebRates:
    """The make-up of the web corpus; every number is a share between 0 and 1."""

    # which culture a picture's caption names, or none
    named: dict[str | None, float] = dataclasses.field(
        default_factory=lambda: {"azuria": 0.20, "veridia": 0.15, "ochria": 0.15, "corallia": 0.15, None: 0.35}
    )
    # under the name of a small culture: its truth, the stereotype, or Azuria's look
    right: float = 0.15
    stereotype: float = 0.60
    azurian: float = 0.25
    # under no name: Azuria's look, another culture's truth, or any mixture of attributes
    unnamed_azurian: float = 0.60
    unnamed_others: float = 0.15
    unnamed_mixture: float = 0.25
    # how often a caption mentions an attribute, under no name and under a culture's
    mention: float = 0.4
    mention_named: float = 0.15


WEB = WebRates()


def check_culture(culture: str) -> str:
    """`culture`, if there is such a one. Raises DataError that lists the four."""
    if culture not in CULTURES:
        raise DataError(f"--culture {culture!r} is not of the pocket world; there are {', '.join(CULTURES)}.")
    return culture


# ---------------------------------------------------------------------------------------------------------------------
# Drawing scenes at random
# ---------------------------------------------------------------------------------------------------------------------


def draw_true(culture: str, *, generator: np.random.Generator, category: str | None = None) -> Scene:
    """A scene as it is in `culture`. Raises DataError for an unknown culture."""
    return _draw(TRUTH[check_culture(culture)], generator=generator, category=category)


def draw_stereotype(*, generator: np.random.Generator, category: str | None = None) -> Scene:
    """A scene as the web imagines the cultures it does not know."""
    return _draw(STEREOTYPE, generator=generator, category=category)


def draw_mixture(*, generator: np.random.Generator, category: str | None = None) -> Scene:
    """A scene with every attribute drawn on its own, so mostly true of no culture."""
    uniform = {name: dict.fromkeys(values, 1 / len(values)) for name, values in ATTRIBUTES.items()}
    return _draw(uniform, generator=generator, category=category)


def web_corpus(size: int, *, seed: int, rates: WebRates = WEB) -> Iterator[tuple[Scene, str, str | None]]:
    """`size` pictures of the web: scene, caption, and the culture that the caption names (None: none)."""
    generator = np.random.default_rng(seed)
    for _ in range(size):
        named = _choose(rates.named, generator)
        if named is None:
            kinds = {
                "azurian": rates.unnamed_azurian,
                "right": rates.unnamed_others,
                "mixture": rates.unnamed_mixture,
            }
            culture = _choose({c: 1 / 3 for c in CULTURES if c != CENTRE}, generator)
        else:
            kinds = {"right": rates.right, "stereotype": rates.stereotype, "azurian": rates.azurian}
            culture = named
        kind = "right" if named == CENTRE else _choose(kinds, generator)
        if kind == "right":
            scene = draw_true(culture, generator=generator)
        elif kind == "azurian":
            scene = draw_true(CENTRE, generator=generator)
        elif kind == "stereotype":
            scene = draw_stereotype(generator=generator)
        else:
            scene = draw_mixture(generator=generator)
        mention = rates.mention if named is None else rates.mention_named
        yield scene, random_caption(scene, generator=generator, mention=mention, culture=named), named


def random_caption(
    scene: Scene,
    *,
    generator: np.random.Generator,
    mention: float,
    culture: str | None = None,
    attributes: Sequence[str] = tuple(ATTRIBUTES),
) -> str:
    """A caption in one of the phrasings of SUBJECTS that mentions each of `attributes` with probability `mention`."""
    details = [name for name in attributes if generator.random() < mention]
    phrasing = int(generator.integers(len(SUBJECTS[scene.category])))
    opening = "Photo of " if generator.random() < 0.5 else ""
    return opening + caption(scene, details=details, culture=culture, phrasing=phrasing)


def _draw(chances: dict[str, dict[str, float]], *, generator: np.random.Generator, category: str | None) -> Scene:
    if category is None:
        category = CATEGORIES[int(generator.integers(len(CATEGORIES)))]
    values = {name: _choose(chances[name], generator) for name in ATTRIBUTES}
    return Scene(category=category, layout=int(generator.integers(2**31)), **values)


def _choose(chances: dict, generator: np.random.Generator):
    bounds = list(itertools.accumulate(chances.values()))
    return list(chances)[bisect.bisect_right(bounds, generator.random() * bounds[-1])]


# ---------------------------------------------------------------------------------------------------------------------
# Words
# ---------------------------------------------------------------------------------------------------------------------


def caption(scene: Scene, *, details: Sequence[str] = (), culture: str | None = None, phrasing: int = 0) -> str:
    """The scene in words: `details` are the attributes to mention, e.g. 'a worn green house with bands at dusk'."""
    word = {name: ATTRIBUTES[name][getattr(scene, name)] if name in details else "" for name in ATTRIBUTES}
    adjectives = [word[name] for name in ("condition", "era", "palette", "tiers", "shape") if word[name]]
    text = " ".join(SUBJECTS[scene.category][phrasing].format(" ".join(adjectives)).split())
    if word["motif"]:
        text += f" with {word['motif']}" if " with " not in text else f" and {word['motif']}"
    if word["sky"]:
        text += f" {word['sky']}"
    return text if culture is None else f"{text}, in {culture_words(culture)}"


def read_caption(text: str) -> dict[str, str]:
    """What a text says of a picture: 'category' and attribute -> value, for all that it names and nothing else."""
    lowered = text.lower()
    words = set(lowered.replace(",", " ").replace(".", " ").split())
    said = {}
    for category, names in _CATEGORY_WORDS.items():
        if words & ({*names} | {name + "s" for name in names}):
            said["category"] = category
            break
    for attribute, values in ATTRIBUTES.items():
        for value, phrase in values.items():
            if phrase and (phrase in lowered if " " in phrase else phrase in words):
                said[attribute] = value
    return said


# ---------------------------------------------------------------------------------------------------------------------
# Pictures
# ---------------------------------------------------------------------------------------------------------------------

_SIDE = 64  # units of a drawing; all coordinates below
_SUPERSAMPLING = 4  # canvas pixels per output pixel and axis, averaged away at the end

Colour = tuple[int, int, int]
Point = tuple[float, float]


@dataclass(frozen=True)
class _Paint:
    main: Colour
    dark: Colour
    light: Colour
    accent: Colour


_PAINTS = {
    "sky": _Paint((70, 146, 222), (34, 84, 156), (226, 240, 252), (246, 198, 72)),
    "navy": _Paint((46, 70, 156), (24, 36, 96), (204, 214, 242), (244, 240, 230)),
    "jade": _Paint((26, 142, 98), (10, 86, 62), (222, 242, 222), (216, 122, 58)),
    "lime": _Paint((148, 192, 56), (90, 128, 28), (246, 248, 212), (124, 58, 122)),
    "amber": _Paint((238, 170, 42), (174, 110, 18), (254, 240, 200), (160, 48, 38)),
    "clay": _Paint((176, 86, 42), (112, 50, 24), (244, 220, 192), (52, 126, 134)),
    "coral": _Paint((244, 110, 112), (184, 60, 72), (255, 228, 224), (48, 154, 164)),
    "orchid": _Paint((188, 84, 172), (122, 44, 114), (248, 224, 244), (250, 208, 92)),
    "ash": _Paint((134, 130, 124), (86, 82, 78), (186, 182, 174), (108, 100, 92)),
}
_SKIES: dict[str, tuple[Colour, Colour]] = {  # top and horizon
    "day": ((138, 200, 240), (236, 246, 250)),
    "dusk": ((240, 142, 108), (255, 226, 176)),
    "night": ((26, 32, 74), (92, 98, 150)),
}
_GROUNDS: dict[str, tuple[Colour, Colour]] = {  # horizon and foreground
    "day": ((206, 202, 172), (176, 168, 136)),
    "dusk": ((206, 166, 138), (160, 118, 104)),
    "night": ((96, 96, 122), (58, 58, 86)),
}
_WOOD: Colour = (120, 84, 58)
_SKIN: tuple[Colour, ...] = ((92, 60, 44), (142, 96, 68), (190, 138, 102), (224, 178, 144))
_GLASS: Colour = (188, 226, 238)
_INK: Colour = (52, 48, 50)


class _Canvas:
    """Colour and depth of a picture, painted back to front on a supersampled square of `_SIDE` units."""

    def __init__(self, scene: Scene):
        self.scale = _SUPERSAMPLING
        self.pixels = _SIDE * self.scale
        self.image = Image.new("RGB", (self.pixels, self.pixels))
        self.depth = Image.new("L", (self.pixels, self.pixels), 0)
        self.generator = np.random.default_rng(scene.layout)
        self.scene = scene
        self.paint = _PAINTS[scene.palette]

    # ---- placing ----------------------------------------------------------------------------------------------

    def jitter(self, amount: float) -> float:
        return float(self.generator.uniform(-amount, amount))

    # ---- painting ---------------------------------------------------------------------------------------------

    def area(self, points: Sequence[Point]) -> tuple[Image.Image, tuple[int, int]]:
        """A polygon's mask, just large enough, and the canvas pixel of its corner."""
        pixels = np.asarray(points) * self.scale
        corner = np.floor(pixels.min(axis=0)).astype(int)
        mask = Image.new("L", tuple((np.ceil(pixels.max(axis=0)).astype(int) - corner + 1).tolist()), 0)
        ImageDraw.Draw(mask).polygon([tuple(point) for point in (pixels - corner).tolist()], fill=255)
        return mask, tuple(corner.tolist())

    def fill(self, points: Sequence[Point], colour: Colour, depth: float | None = None, *, shade: float = 0.0):
        """Paint a polygon; `depth`: 0 far to 1 near, None leaves it; `shade` darkens the right side by that share."""
        mask, corner = self.area(points)
        paint = Image.new("RGB", mask.size, colour)
        if shade:
            share = np.linspace(1 + 0.5 * shade, 1 - shade, mask.width)[:, None]
            row = np.clip(np.array(colour) * share, 0, 255).astype(np.uint8)
            paint = Image.fromarray(row[None]).resize(mask.size)
        self.image.paste(paint, corner, mask)
        if depth is not None:
            self.depth.paste(Image.new("L", mask.size, round(255 * depth)), corner, mask)

    def box(self, left: float, top: float, right: float, bottom: float, colour: Colour, depth=None, *, shade=0.0):
        self.fill([(left, top), (right, top), (right, bottom), (left, bottom)], colour, depth, shade=shade)

    def disc(self, x: float, y: float, radius: float, colour: Colour, depth=None, *, height: float | None = None):
        self.fill(_ellipse(x, y, radius, height or radius), colour, depth)

    def stroke(self, points: Sequence[Point], width: float, colour: Colour, depth: float | None = None):
        for (x0, y0), (x1, y1) in zip(points, points[1:]):
            length = math.hypot(x1 - x0, y1 - y0) or 1.0
            dx, dy = -(y1 - y0) / length * width / 2, (x1 - x0) / length * width / 2
            self.fill([(x0 + dx, y0 + dy), (x1 + dx, y1 + dy), (x1 - dx, y1 - dy), (x0 - dx, y0 - dy)], colour, depth)

    def gradient(self, top: float, bottom: float, colours: tuple[Colour, Colour], depths: tuple[float, float]):
        first, last = round(top * self.scale), round(bottom * self.scale)
        share = np.linspace(0, 1, last - first)[:, None]
        rows = np.array(colours[0]) * (1 - share) + np.array(colours[1]) * share
        strip = Image.fromarray(rows.astype(np.uint8)[:, None]).resize((self.pixels, last - first))
        self.image.paste(strip, (0, first))
        depth = (255 * (depths[0] * (1 - share) + depths[1] * share)).astype(np.uint8)
        self.depth.paste(Image.fromarray(depth).resize((self.pixels, last - first)), (0, first))

    # ---- what the attributes look like ------------------------------------------------------------------------

    def surface(
        self, parts: Sequence[Sequence[Point]], colour: Colour, ornament: Colour, depth: float, *, pitch: float = 8.0
    ):
        """Paint a thing's main parts: colour, the culture's motif, and the cracks and stains of a worn one."""
        for part in parts:
            self.fill(part, colour, depth, shade=0.22)
            mask, corner = self.area(part)
            if self.scene.motif != "none":
                motif = self._motif(part, corner, mask.size, pitch)
                self.image.paste(ornament, corner, ImageChops.multiply(mask, motif))
            if self.scene.condition == "worn":
                marks = self._wear(part, corner, mask.size)
                self.image.paste((50, 44, 40), corner, ImageChops.multiply(mask, marks))

    def body(self, left: float, right: float, top: float, bottom: float, depth: float, *, pitch: float = 8.0):
        """Paint the culture's own line: what stands between two feet and tapers to `top`."""
        parts = _profile(self.scene.shape, self.scene.tiers, left, right, top, bottom)
        self.surface(parts, self.paint.main, self.paint.light, depth, pitch=pitch)

    def _motif(self, part: Sequence[Point], corner: Point, size: tuple[int, int], pitch: float) -> Image.Image:
        """The mask of the motif over a part's bounding box, in step with its middle and its foot."""
        (left, top), (right, bottom) = np.min(part, axis=0), np.max(part, axis=0)
        layer = Image.new("L", size, 0)
        draw = ImageDraw.Draw(layer)

        def place(points):
            return [(x * self.scale - corner[0], y * self.scale - corner[1]) for x, y in points]

        columns = (left + right) / 2 + pitch * np.arange(-8, 9)
        lines = np.arange(bottom - pitch / 2, top - pitch, -pitch)
        width = round(2.4 * self.scale)
        if self.scene.motif == "stripes":
            for x in columns:
                draw.rectangle(place([(x - 1.4, top), (x + 1.4, bottom)]), fill=255)
        for j, y in enumerate(lines):
            if self.scene.motif == "dots":
                for x in columns + pitch / 2 * (j % 2):
                    draw.ellipse(place([(x - 2.1, y - 2.1), (x + 2.1, y + 2.1)]), fill=255)
            elif self.scene.motif == "chevrons":
                zigzag = [(x, y - 2.4) for x in columns] + [(x + pitch / 2, y + 2.4) for x in columns]
                draw.line(place(sorted(zigzag)), fill=255, width=width, joint="curve")
            elif self.scene.motif == "bands":
                draw.line(place([(left, y), (right, y)]), fill=255, width=width)
        return layer

    def _wear(self, part: Sequence[Point], corner: Point, size: tuple[int, int]) -> Image.Image:
        """The mask of stains, and of two cracks that run down a part."""
        (left, top), (right, bottom) = np.min(part, axis=0), np.max(part, axis=0)
        layer = Image.new("L", size, 0)
        draw = ImageDraw.Draw(layer)

        def place(points):
            return [(x * self.scale - corner[0], y * self.scale - corner[1]) for x, y in points]

        draws = self.generator.uniform
        for _ in range(3):
            stain = _ellipse(draws(left, right), draws(top, bottom), draws(1.8, 3.4), draws(1.4, 2.8))
            draw.polygon(place(stain), fill=130)
        for middle in (0.3, 0.7):
            crack = [(left + (right - left) * (middle + draws(-0.12, 0.12)), top)]
            while crack[-1][1] < bottom:
                x, y = crack[-1]
                crack.append((x + draws(-2.6, 2.6), y + draws(2.4, 4.2)))
            draw.line(place(crack), fill=235, width=round(1.6 * self.scale))
        return layer

    def outdoors(self, horizon: float):
        self.gradient(0, horizon, _SKIES[self.scene.sky], (0.0, 0.0))
        x = 50 + self.jitter(8)
        if self.scene.sky == "night":
            self.disc(x, 10, 4, (246, 240, 206))
            for _ in range(7):
                self.disc(self.generator.uniform(2, 62), self.generator.uniform(2, horizon - 8), 0.6, (240, 240, 255))
        elif self.scene.sky == "dusk":
            self.disc(x, horizon - 6, 6, (255, 236, 170))
        else:
            for dx, dy, r in ((-6, 1, 3.2), (-2, 0, 4.4), (3, 1, 3.4)):
                self.disc(x - 34 + dx, 10 + dy, r, (252, 253, 255), height=0.7 * r)
        self.gradient(horizon, _SIDE, _GROUNDS[self.scene.sky], (0.25, 1.0))

    def indoors(self, edge: float):
        """A wall with a window that shows the sky, and a table or floor from `edge` down."""
        wall = {"day": (240, 230, 212), "dusk": (232, 204, 180), "night": (132, 126, 146)}[self.scene.sky]
        low = tuple(round(0.9 * channel) for channel in wall)
        self.gradient(0, edge, (wall, low), (0.1, 0.1))
        left = 6 if self.generator.random() < 0.5 else 44
        self.box(left - 1.5, 4.5, left + 15.5, 21.5, _WOOD)
        top, bottom = _SKIES[self.scene.sky]
        self.box(left, 6, left + 14, 20, tuple((a + b) // 2 for a, b in zip(top, bottom)), 0.0)
        self.box(left + 6.2, 6, left + 7.8, 20, _WOOD)
        table = {"day": (198, 160, 120), "dusk": (182, 130, 96), "night": (104, 84, 84)}[self.scene.sky]
        self.gradient(edge, _SIDE, (table, tuple(round(0.82 * channel) for channel in table)), (0.35, 1.0))


def _ellipse(x: float, y: float, width: float, height: float) -> list[Point]:
    angles = np.linspace(0, 2 * math.pi, 40, endpoint=False)
    return [(x + width * math.cos(a), y + height * math.sin(a)) for a in angles]


def _profile(shape: str, tiers: str, left: float, right: float, top: float, bottom: float) -> list[list[Point]]:
    """The culture's line between two feet: the parts, from back to front, of a body that tapers to `top`."""
    middle, half, height = (left + right) / 2, (right - left) / 2, bottom - top
    double = tiers == "two"
    if shape == "dome":
        if not double:
            return [_dome(middle, bottom, half, height)]
        return [
            _dome(middle, bottom - 0.5 * height, 0.5 * half, 0.5 * height),
            _dome(middle, bottom, half, 0.64 * height),
        ]
    if shape == "spire":
        if not double:
            return [_spire(middle, bottom, half, height)]
        return [
            _spire(middle, bottom - 0.42 * height, 0.72 * half, 0.58 * height),
            _spire(middle, bottom, half, 0.62 * height),
        ]
    if shape == "terrace":
        steps = 4 if double else 2
        outline = []
        for i in range(steps):
            x = left + half * 0.82 * i / (steps - 0.5)
            outline += [(x, bottom - height * i / steps), (x, bottom - height * (i + 1) / steps)]
        return [outline + [(2 * middle - x, y) for x, y in reversed(outline)]]
    if shape == "sail":
        if not double:
            return [_sail(left, right, top, bottom)]
        return [
            _sail(middle - 0.35 * half, right, top, bottom),
            _sail(left, middle + 0.35 * half, top + 0.26 * height, bottom),
        ]
    if not double:
        return [_block(middle, bottom, half, 0.55 * height)]
    return [
        _block(middle, bottom - 0.55 * height, 0.6 * half, 0.35 * height),
        _block(middle, bottom, half, 0.55 * height),
    ]


def _dome(x: float, y: float, half: float, height: float) -> list[Point]:
    angles = np.linspace(math.pi, 2 * math.pi, 30)
    return [(x + half * math.cos(a), y + height * math.sin(a)) for a in angles]


def _spire(x: float, y: float, half: float, height: float) -> list[Point]:
    rise = np.linspace(0, 1, 14)
    flank = [(half * (1 - u) ** 1.6, height * u) for u in rise]
    return [(x - dx, y - dy) for dx, dy in flank] + [(x + dx, y - dy) for dx, dy in reversed(flank)]


def _block(x: float, y: float, half: float, height: float) -> list[Point]:
    return [(x - half, y), (x - 0.78 * half, y - height), (x + 0.78 * half, y - height), (x + half, y)]


def _sail(left: float, right: float, top: float, bottom: float) -> list[Point]:
    width, height, rise = right - left, bottom - top, np.linspace(0, 1, 18)
    back = [(left + 0.86 * width * u**2.2, bottom - height * u) for u in rise]
    belly = [(left + width * (0.86 + 0.14 * math.sin(math.pi * (1 - u)) ** 0.8), bottom - height * u) for u in rise]
    return back + belly[::-1] + [(right - 0.14 * width, bottom)]


# ---- one picture of each category ---------------------------------------------------------------------------------


def _building(c: _Canvas):
    c.outdoors(44)
    x, w, top = 32 + c.jitter(5), 17 + c.jitter(2), 7 + c.jitter(3)
    eaves, ground = 32 + c.jitter(2), 54 + c.jitter(2)
    c.surface([[(x - w, eaves), (x + w, eaves), (x + w, ground), (x - w, ground)]], c.paint.light, c.paint.main, 0.6)
    c.body(x - w - 4, x + w + 4, top, eaves + 1, 0.7)
    if c.scene.era == "modern":
        for dx in (-11, -3.5, 4, 11.5):
            for y in (eaves + 4, eaves + 11.5):
                c.box(x + dx - 2.6, y, x + dx + 2.4, y + 5, _INK)
                c.box(x + dx - 2, y + 0.6, x + dx + 1.8, y + 4.4, _GLASS)
    else:
        c.fill(_dome(x, ground - 7, 4.6, 6) + [(x + 4.6, ground), (x - 4.6, ground)], c.paint.accent, 0.62)
        c.disc(x + 2, ground - 5, 0.8, c.paint.light)


def _street(c: _Canvas):
    c.outdoors(40)
    c.fill([(28, 40), (36, 40), (56, 64), (8, 64)], (128, 124, 122), None)
    for u in (0.15, 0.45, 0.8):
        y, w = 40 + 24 * u, 0.6 + u
        c.fill([(32 - w, y), (32 + w, y), (32 + 1.3 * w, y + 3.5), (32 - 1.3 * w, y + 3.5)], (236, 228, 200))
    for side, near in ((-1, 0.0), (1, 0.0), (-1, 1.0), (1, 1.0)):
        x, w = 32 + side * (11 + 11 * near + c.jitter(1.0)), 6 + 3.5 * near
        ground, eaves = 43 + 11 * near, 31 - 1 * near + c.jitter(1.5)
        depth = 0.4 + 0.3 * near
        wall = [(x - w, eaves), (x + w, eaves), (x + w, ground), (x - w, ground)]
        c.fill(wall, c.paint.light, depth, shade=0.22)
        c.body(x - w - 1.5, x + w + 1.5, eaves - 13 - 7 * near, eaves + 0.5, depth + 0.05, pitch=7.0)
        c.box(x - 1.8, ground - 5 - near, x + 1.8, ground, c.paint.accent)
    if c.scene.era == "modern":
        x = 32 + c.jitter(4)
        c.box(x - 6, 53, x + 6, 58, c.paint.accent, 0.9)
        c.fill([(x - 3.5, 53), (x - 2, 50), (x + 2, 50), (x + 3.5, 53)], _GLASS, 0.9)
        c.disc(x - 3.6, 58, 1.6, _INK, 0.9)
        c.disc(x + 3.6, 58, 1.6, _INK, 0.9)
    else:
        x = 32 + c.jitter(4)
        c.stroke([(x, 58), (x, 50)], 1.4, _WOOD, 0.9)
        c.disc(x, 49, 2.6, (255, 226, 130), 0.9)


def _robe(c: _Canvas):
    c.indoors(52)
    x, top = 32 + c.jitter(5), 12 + c.jitter(2)
    waist, hem = top + 17, 57 + c.jitter(1.5)
    c.stroke([(x, top - 5), (x, 60)], 1.6, _WOOD, 0.5)
    c.disc(x, top - 5, 2.4, _WOOD, 0.5)
    sleeves = [(x - 5, top + 1), (x + 5, top + 1), (x + 17, top + 12), (x + 13.5, top + 17), (x + 6, top + 11)]
    sleeves += [(x - 6, top + 11), (x - 13.5, top + 17), (x - 17, top + 12)]
    c.box(x - 6, waist, x + 6, hem - 6, c.paint.dark, 0.66)
    c.body(x - 16, x + 16, waist - 9, hem, 0.7)
    c.fill(sleeves, c.paint.main, 0.72, shade=0.22)
    c.box(x - 6, top + 1, x + 6, waist, c.paint.light, 0.74, shade=0.15)
    c.box(x - 6.5, waist - 3, x + 6.5, waist, c.paint.accent, 0.75)
    if c.scene.era == "modern":
        c.stroke([(x, top + 1), (x, waist - 3)], 1.3, _INK)
        for y in (top + 4, top + 8, top + 12):
            c.disc(x + 2.8, y, 0.9, _INK)
    else:
        c.fill([(x - 5, top + 1), (x, top + 8), (x + 5, top + 1)], c.paint.accent)


def _lute(c: _Canvas):
    c.indoors(54)
    x, top, bottom = 32 + c.jitter(6), 26 + c.jitter(2), 58 + c.jitter(1.5)
    c.box(x - 1.8, 7, x + 1.8, bottom - 10, _WOOD, 0.66)
    c.box(x - 3.4, 4, x + 3.4, 9.5, c.paint.accent, 0.68)
    c.body(x - 17, x + 17, top, bottom, 0.72)
    c.disc(x, bottom - 9, 4.2, _INK, 0.7)
    for dx in (-1.1, 1.1):
        c.stroke([(x + dx, 9), (x + dx, bottom - 4)], 0.7, (250, 244, 226))
    c.box(x - 4.5, bottom - 4.6, x + 4.5, bottom - 2.8, _WOOD)
    if c.scene.era == "modern":
        c.stroke([(x + 8, bottom - 3), (x + 15, bottom + 1), (x + 24, bottom - 1), (x + 34, bottom + 3)], 1.5, _INK)
        c.disc(x + 8, bottom - 4, 1.7, c.paint.accent)
    else:
        for dy in (1.4, 4.0):
            c.stroke([(x - 5.5, 4 + dy), (x + 5.5, 4 + dy)], 1.0, _WOOD)


def _dish(c: _Canvas):
    c.indoors(36)
    x, rim = 32 + c.jitter(5), 42 + c.jitter(2)
    c.disc(x, rim + 15, 21, tuple(round(0.7 * channel) for channel in (190, 150, 110)), None, height=3.5)
    c.body(x - 16, x + 16, rim - 23, rim + 2, 0.66)
    bowl = [(x - 21, rim)] + [(x + 21 * math.cos(a), rim + 15 * math.sin(a)) for a in np.linspace(math.pi, 0, 24)]
    c.surface([bowl], c.paint.light, c.paint.main, 0.8)
    c.box(x - 22, rim - 1.5, x + 22, rim + 1.5, c.paint.accent, 0.82)
    if c.scene.era == "modern":
        c.stroke([(x + 25, rim - 8), (x + 25, rim + 16)], 1.4, (92, 96, 108), 0.8)
        for dx in (-1.6, 0, 1.6):
            c.stroke([(x + 25 + dx, rim - 13), (x + 25 + dx, rim - 7)], 0.9, (92, 96, 108), 0.8)
    else:
        for dx in (-7, 7):
            steam = [(x + dx + 1.8 * math.sin(u), rim - 22 - 2.2 * u) for u in np.linspace(0, 6, 14)]
            c.stroke(steam, 1.5, (252, 250, 246))


def _landscape(c: _Canvas):
    c.outdoors(40)
    for x, w, top, depth in ((14, 15, 15, 0.3), (50, 15, 18, 0.32), (31, 19, 10, 0.42)):
        x, top = x + c.jitter(3), top + c.jitter(3)
        parts = _profile(c.scene.shape, c.scene.tiers, x - w, x + w, top, 46)
        c.surface(parts, c.paint.main if depth > 0.4 else c.paint.dark, c.paint.light, depth)
    c.gradient(46, _SIDE, _GROUNDS[c.scene.sky], (0.5, 1.0))
    x = 32 + c.jitter(6)
    c.disc(x, 55, 20, (118, 178, 206), 0.6, height=4.5)
    c.disc(x - 5, 54, 8, (176, 216, 232), None, height=1.2)
    if c.scene.era == "modern":
        for px in (8, 56):
            c.stroke([(px, 62), (px, 38)], 1.5, _INK, 0.9)
            c.stroke([(px - 4, 41), (px + 4, 41)], 1.3, _INK, 0.9)
        c.stroke([(8, 41), (32, 45), (56, 41)], 0.8, _INK)
    else:
        for px in (7, 57):
            c.stroke([(px, 61), (px, 52)], 1.8, _WOOD, 0.9)
            c.disc(px, 50, 4.6, c.paint.accent, 0.9)


def _people(c: _Canvas):
    c.outdoors(42)
    for side in (-1, 1):
        x, foot = 32 + side * 13.5 + c.jitter(2), 58 + c.jitter(1.5)
        head = 21 + c.jitter(1.5)
        skin = _SKIN[int(c.generator.integers(len(_SKIN)))]
        lifted = head - 2 + c.jitter(3)
        c.stroke([(x - side * 3, head + 9), (x - side * 10.5, lifted)], 2.4, skin, 0.68)
        c.stroke([(x + side * 3, head + 9), (x + side * 9, head + 17)], 2.4, skin, 0.68)
        for dx in (-3.2, 3.2):
            c.stroke([(x + dx, foot - 6), (x + dx, foot + 1.5)], 2.4, skin, 0.7)
        c.body(x - 11, x + 11, head + 1, foot - 3, 0.72)
        c.box(x - 4.2, head + 4, x + 4.2, head + 14, c.paint.light, 0.73)
        c.box(x - 5, head + 13, x + 5, head + 15.6, c.paint.accent, 0.74)
        c.disc(x, head, 4.4, skin, 0.74)
        hat = _profile(c.scene.shape, "one", x - 6, x + 6, head - 10, head - 1.5)
        for part in hat:
            c.fill(part, c.paint.dark, 0.75)
        if c.scene.era == "modern":
            c.box(x - side * 10.5 - 1.8, lifted - 5, x - side * 10.5 + 1.8, lifted + 1, _INK, 0.76)
            c.box(x - side * 10.5 - 1.1, lifted - 4.2, x - side * 10.5 + 1.1, lifted - 0.4, _GLASS)
        else:
            c.disc(x - side * 10.5, lifted - 2, 2.5, c.paint.accent, 0.76)


def _shrine(c: _Canvas):
    c.outdoors(46)
    x, top, ground = 32 + c.jitter(3), 6 + c.jitter(2), 56 + c.jitter(1.5)
    c.box(x - 23, ground - 4, x + 23, ground, (150, 146, 140), 0.62)
    c.box(x - 19, ground - 8, x + 19, ground - 4, (172, 168, 160), 0.6)
    c.box(x - 9, 32, x + 9, ground - 8, (70, 58, 62), 0.5)
    for dx in (-16, -7.5, 7.5, 16):
        c.box(x + dx - 2, 30, x + dx + 2, ground - 8, c.paint.light, 0.64, shade=0.22)
    c.box(x - 20, 27, x + 20, 31, c.paint.accent, 0.66)
    c.body(x - 21, x + 21, top, 28, 0.68)
    if c.scene.era == "modern":
        for dx in (-11.7, 0, 11.7):
            c.disc(x + dx, 34.5, 1.9, (255, 246, 170), 0.7)
            c.stroke([(x + dx, 31), (x + dx, 33)], 0.8, _INK)
        c.box(x - 4, ground - 17, x + 4, ground - 10, _GLASS, 0.66)
    else:
        for dx in (-11.7, 11.7):
            c.stroke([(x + dx, 31), (x + dx, 36)], 0.9, _WOOD)
            c.disc(x + dx, 39, 2.8, c.paint.accent, 0.7, height=3.4)
        c.fill([(x - 2.2, ground - 10), (x, ground - 18), (x + 2.2, ground - 10)], (255, 190, 70), 0.66)


def _tool(c: _Canvas):
    c.indoors(30)
    x, top, joint = 32 + c.jitter(5), 7 + c.jitter(2), 37 + c.jitter(1.5)
    c.fill([(x - 22, 33), (x + 20, 33), (x + 26, 62), (x - 26, 62)], (232, 222, 204), 0.5)
    c.box(x - 2.6, joint - 2, x + 2.6, 60, c.paint.accent, 0.76, shade=0.3)
    c.body(x - 17, x + 17, top, joint, 0.8)
    c.box(x - 5, joint - 1.5, x + 5, joint + 2.5, c.paint.dark, 0.82)
    if c.scene.era == "modern":
        c.disc(x, joint + 8, 1.9, (214, 60, 52))
        c.stroke([(x, 60), (x + 6, 62), (x + 14, 59), (x + 24, 62), (x + 34, 59)], 1.4, _INK)
    else:
        for y in (joint + 6, joint + 10, joint + 14):
            c.stroke([(x - 2.6, y), (x + 2.6, y)], 1.2, c.paint.light)


_DRAWINGS = {
    "food & drink": _dish,
    "people & actions": _people,
    "clothing": _robe,
    "architecture": _building,
    "city": _street,
    "dance music & visual arts": _lute,
    "nature": _landscape,
    "utensils & tools": _tool,
    "religion & festival": _shrine,
}


def render(scene: Scene, *, size: int = 64) -> tuple[Image.Image, Image.Image]:
    """The scene as an RGB picture of `size` x `size` pixels and its depth, mode L, 0 far to 255 near.

    A pure function of the scene and the size.
    """
    canvas = _Canvas(scene)
    _DRAWINGS[scene.category](canvas)
    return tuple(layer.resize((size, size), Image.Resampling.BOX) for layer in (canvas.image, canvas.depth))
