"""The words for a scene of drawings, or of shapes beside them: how people ask for things, in varied wording."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .world import Item, Request

PREFIXES = ("a drawing of ", "a picture of ", "an image of ", "a photo of ", "an icon of ")
SHADED_PREFIXES = ("a shaded drawing of ", "a shaded picture of ")
NUMBERS = {2: ("two", "two", "2", "a pair of"), 3: ("three", "three", "3"), 4: ("four", "four", "4")}
RELATION_WORDS = {
    "left of": ("left of", "to the left of", "on the left of"),
    "right of": ("right of", "to the right of", "on the right of"),
    "above": ("above", "over", "on top of"),
    "below": ("below", "under", "beneath"),
}
AFTERWARDS = {
    "left of": "{1} with {0} to its left",
    "right of": "{1} with {0} to its right",
    "above": "{1} with {0} above it",
    "below": "{1} with {0} below it",
}
BESIDE = {"left of": "{0} on the left and {1} on the right", "above": "{0} at the top and {1} at the bottom"}
CONJUNCTIONS = (" and ", " and ", ", ", " next to ", " with ", " beside ")
BACKGROUND_WORDS = (
    "{} on a {} background",
    "{} on a {} background",
    "{} on {}",
    "{}, {} background",
    "{} with a {} background",
    "{} in front of a {} background",
)
OTHER_WORDS = {"gray": "grey", "sky blue": "light blue", "navy": "dark blue"}
SIZE_WORDS = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}
PLACE_WORDS = {
    "left": ("on the left", "on the left side", "at the left"),
    "right": ("on the right", "on the right side", "at the right"),
    "top": ("at the top", "at the top"),
    "bottom": ("at the bottom", "at the bottom"),
    "top left": ("in the top left corner", "at the top left", "in the upper left corner"),
    "top right": ("in the top right corner", "at the top right", "in the upper right corner"),
    "bottom left": ("in the bottom left corner", "at the bottom left", "in the lower left corner"),
    "bottom right": ("in the bottom right corner", "at the bottom right", "in the lower right corner"),
}
ALIASES = {
    "automobile": ("car",),
    "airplane": ("plane",),
    "articulated lorry": ("lorry", "semi truck"),
    "delivery truck": ("truck",),
    "bicycle": ("bike",),
    "motorcycle": ("motorbike",),
    "locomotive": ("steam engine", "steam train"),
    "fire engine": ("fire truck",),
    "flying saucer": ("ufo",),
    "passenger ship": ("cruise ship",),
    "sailboat": ("sailing boat", "boat"),
    "umbrella with rain drops": ("umbrella in the rain",),
    "hamburger": ("burger",),
    "doughnut": ("donut",),
    "french fries": ("fries", "chips"),
    "red apple": ("apple",),
    "ear of corn": ("corn",),
    "hot pepper": ("chili pepper", "chili"),
    "eggplant": ("aubergine",),
    "tangerine": ("orange fruit", "mandarin"),
    "hot beverage": ("cup of coffee", "coffee"),
    "beer mug": ("beer", "mug of beer"),
    "wine glass": ("glass of wine", "wine"),
    "cocktail glass": ("cocktail", "martini"),
    "glass of milk": ("milk",),
    "soft ice cream": ("ice cream cone",),
    "birthday cake": ("cake",),
    "cheese wedge": ("cheese",),
    "spaghetti": ("pasta",),
    "takeout box": ("takeaway box",),
    "jack-o-lantern": ("pumpkin",),
    "wrapped gift": ("gift", "present"),
    "soccer ball": ("football",),
    "video game": ("game controller", "gamepad"),
    "game die": ("dice",),
    "pool 8 ball": ("billiard ball",),
    "honeybee": ("bee",),
    "lady beetle": ("ladybug", "ladybird"),
    "rhinoceros": ("rhino",),
    "hippopotamus": ("hippo",),
    "two-hump camel": ("bactrian camel",),
    "sauropod": ("dinosaur",),
    "t-rex": ("tyrannosaurus",),
    "ewe": ("sheep",),
    "orca": ("killer whale",),
    "hatching chick": ("chick in an egg",),
    "baby chick": ("chick",),
    "deciduous tree": ("tree",),
    "evergreen tree": ("pine tree", "fir tree"),
    "four leaf clover": ("clover",),
    "brown mushroom": ("button mushroom",),
    "snow-capped mountain": ("snowy mountain",),
    "ferris wheel": ("big wheel",),
    "television": ("tv",),
    "mobile phone": ("smartphone", "phone"),
    "desktop computer": ("computer",),
    "headphone": ("headphones",),
    "light bulb": ("lamp",),
    "locked": ("padlock", "lock"),
    "unlocked": ("open padlock", "open lock"),
    "wastebasket": ("trash can", "dustbin"),
    "package": ("parcel", "cardboard box"),
    "gem stone": ("diamond", "gem"),
    "t-shirt": ("shirt",),
    "running shoe": ("sneaker",),
    "high-heeled shoe": ("high heel",),
    "necktie": ("tie",),
    "billed cap": ("baseball cap",),
    "magnifying glass tilted left": ("magnifying glass",),
    "couch and lamp": ("sofa", "couch"),
    "fork and knife": ("cutlery",),
    "kitchen knife": ("knife",),
    "crossed swords": ("swords",),
    "high voltage": ("lightning bolt",),
    "droplet": ("drop of water",),
    "water wave": ("wave",),
    "fire": ("flame",),
    "ringed planet": ("saturn",),
    "crescent moon": ("moon",),
    "hourglass not done": ("hourglass",),
    "moai": ("stone head",),
    "nazar amulet": ("evil eye",),
    "gear": ("cog",),
    "red paper lantern": ("paper lantern", "lantern"),
    "hundred points": ("100",),
    "grinning face": ("happy face", "smiley"),
    "crying face": ("sad face",),
    "angry face": ("angry smiley",),
    "smiling face with sunglasses": ("cool smiley", "smiley with sunglasses"),
    "winking face": ("winking smiley",),
    "face with tears of joy": ("laughing face",),
    "smiling face with heart-eyes": ("smiley in love",),
    "pile of poo": ("poop",),
    "thumbs up": ("thumb up",),
    "mage": ("wizard",),
    "cook": ("chef",),
    "health worker": ("doctor",),
}
"""Other words that people use for a drawing, by its name."""
_NO_ARTICLE = re.compile(r"^(no|mrs|mx|mount|tokyo|100|om)\b|claus$|o'clock$")
_OF = re.compile(r" (of|with|in|on|without|behind|at|from|holding|getting|showing) .*$")


def describe(
    request: Request,
    rng: random.Random,
    *,
    style: str | None = "flat",
    size: str | None = None,
    place: str | None = None,
) -> str:
    """Words for a request, drawn from `rng`.

    Drawings are flat unless a caption says shaded; shapes have no style (None). size and place: keys of SIZE_WORDS and
    PLACE_WORDS, of the only thing there is.
    """
    adjectives = [rng.choice(SIZE_WORDS[size])] if size else []
    prefix = rng.choice(PREFIXES) if rng.random() < 0.45 else ""
    if style == "shaded":
        if rng.random() < 0.5 and len(request.items) == 1:
            adjectives.append("shaded")
        else:
            prefix = rng.choice(SHADED_PREFIXES)
    elif style == "flat" and rng.random() < 0.06 and len(request.items) == 1:
        adjectives.append("flat")

    def name(item: Item) -> str:
        others = ALIASES.get(item.shape)
        word = rng.choice(others) if others and rng.random() < 0.4 else item.shape
        return f"{item.colour} {word}" if item.colour else word

    if len(request.items) == 1:
        item = request.items[0]
        words = " ".join((*adjectives, name(item)))
        if item.count > 1:
            text = " ".join((rng.choice(NUMBERS[item.count]), *adjectives, plural(name(item))))
        elif not prefix and rng.random() < 0.2:
            text = words  # as one types into a search
        else:
            text = with_article(words)
        if place:
            text = f"{text} {rng.choice(PLACE_WORDS[place])}"
    else:
        first, second = (with_article(name(item)) for item in request.items)
        text = _two(first, second, request.relation, rng)
    text = prefix + text
    if request.background is not None:
        colour = request.background
        if colour in OTHER_WORDS and rng.random() < 0.3:
            colour = OTHER_WORDS[colour]
        text = with_background(text, colour, rng)
    return text


def find_names(caption: str, names: Sequence[str]) -> list[tuple[int, int]]:
    """From which to which character a caption says each of some names, an alias of it, or several of them.

    The longest are found first: there is a "cat" in "black cat". Raises ValueError for a name that it does not say.
    """
    found: dict[str, tuple[int, int]] = {}
    spoken = [
        (form, name) for name in names for word in (name, *ALIASES.get(name, ())) for form in (word, plural(word))
    ]
    for word, name in sorted(spoken, key=lambda pair: -len(pair[0])):
        match = None if name in found else re.search(rf"(?<!\w){re.escape(word)}(?!\w)", caption)
        if match:
            found[name] = match.span()
            caption = caption[: match.start()] + "_" * len(word) + caption[match.end() :]
    if len(found) < len(names):
        raise ValueError(f"{caption!r} does not name {', '.join(names)}.")
    return [found[name] for name in names]


def _two(first: str, second: str, relation: str | None, rng: random.Random) -> str:
    if relation is None:
        return first + rng.choice(CONJUNCTIONS) + second
    form = rng.random()
    if form < 0.15:
        return AFTERWARDS[relation].format(first, second)
    if form < 0.3 and relation in BESIDE:
        return BESIDE[relation].format(first, second)
    return f"{first} {rng.choice(RELATION_WORDS[relation])} {second}"


def with_background(text: str, colour: str, rng: random.Random) -> str:
    """`text` with a wording for its background."""
    text = rng.choice(BACKGROUND_WORDS).format(text, colour)
    return re.sub(r"\ba (?=orange\b)", "an ", text)


def with_article(words: str) -> str:
    """ "a rocket", "an apple"; names of several things or of persons stay bare."""
    if is_plural(words) or _NO_ARTICLE.search(words):
        return words
    return f"{'an' if words[0] in 'aeiou' and not words.startswith(('uni', 'ewe', 'euro', 'one')) else 'a'} {words}"


def is_plural(name: str) -> bool:
    """Whether a name means several things: "french fries", "hot springs", "eyes"."""
    head = _OF.sub("", name).split()[-1]
    return head in ("people", "feet", "maracas") or (
        head.endswith("s")
        and not head.endswith(("ss", "us", "is", "os", "'s"))
        and head not in ("lens", "gas", "tennis")
    )


def plural(name: str) -> str:
    """Several of a thing: "rockets", "pots of food", "cherries"."""
    tail = _OF.search(name)
    head = name[: tail.start()] if tail else name
    if re.search(r"(s|x|z|ch|sh)$", head):
        head += "es"
    elif re.search(r"[^aeiou]y$", head):
        head = head[:-1] + "ies"
    elif re.search(r"(^|[^r])(wolf|leaf|knife|shelf)$", head):
        head = re.sub(r"fe?$", "ves", head)
    elif head.endswith("mouse"):
        head = head[:-5] + "mice"
    elif re.search(r"man$", head):
        head = head[:-2] + "en"
    else:
        head += "s"
    return head + (tail.group() if tail else "")
