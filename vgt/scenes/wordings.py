"""Other words for what the captions of scenes say: a tokenizer's normaliser turns them into those of training.

Each entry is (pattern, replacement): a regular expression that `tokenizers` understands, applied in this order to
lower-case text, and plain text. They lie in the model file's tokenizer.json, so nothing but the tokenizer applies them.
They change wording only; what no caption can say stays as it is and is reported as never seen.
"""

from __future__ import annotations

from .captions import BACKGROUND_WORDS, CONJUNCTIONS, NUMBERS, PREFIXES, RELATION_WORDS, plural
from .world import BACKGROUNDS, COLOURS, SHAPES

_COLOUR = "|".join(COLOURS)
_SHAPE = "|".join(SHAPES)
_GROUND = "|".join(BACKGROUNDS)
_THING = rf"(?:(?:{_COLOUR}) )?(?:{_SHAPE})\b"
_START = r"(?:\A|(?<=image: ))"
"""Of the prompt, by itself or within VGT's template."""
# A thing without an article: nothing that counts, colours or names it stands before it.
_NO_ARTICLE = "".join(rf"(?<!\b{word} )" for word in ("a", "an", "one", "1", "single", *COLOURS)) + r"(?<![\w-])"

_MIRRORED = {"above": "below", "below": "above", "left of": "right of", "right of": "left of"}
_BESIDE_IT = {
    "above": r"(?:above|over|on top of) it",
    "below": r"(?:below|under|beneath|underneath) it",
    "left of": r"(?:(?:to |on )?the left of it|left of it|(?:on|to) its left)",
    "right of": r"(?:(?:to |on )?the right of it|right of it|(?:on|to) its right)",
}

_SIDES = {"left of": "left", "right of": "right", "above": "(?:top|upper)", "below": "(?:bottom|lower)"}
_SAID_ALONE = {"left of": "left", "right of": "right", "above": "above", "below": "(?:below|underneath)"}
_AND = r"(?:,? and|,|;| with)"


def _place(relation: str) -> str:
    """A pattern for where a thing is in the picture: "on the left", "at the top of the picture", "above"."""
    side = rf"(?:on|at|to|in) (?:the )?{_SIDES[relation]}(?: side| half| part)?"
    return rf"(?:{side}(?: of the (?:picture|image))?|{_SAID_ALONE[relation]})(?! of\b)"


COMMON: tuple[tuple[str, str], ...] = (
    (r"(?<!image)[.!]+\s*\Z", ""),
    (rf"{_START}(?:please )?(?:draw|paint|make|create|show|generate)(?: me)? ", ""),
    (r"\bphotograph\b", "photo"),
    (rf"{_START}(?=(?:photo|picture|drawing) of )", "a "),
    (rf"{_START}(?=image of )", "an "),
    (r" ?& ?", " and "),
    (r"\b(?:as well as|together with)\b", "and"),
)
"""What holds whatever the pictures show."""

WORDINGS: tuple[tuple[str, str], ...] = (
    *COMMON,
    (r"\bplus\b", "and"),
    (r"\bgrey\b", "gray"),
    (r"\bviolet\b", "purple"),
    (r"[ -]colou?red\b", ""),
    (r"\bdis[ck](?=s?\b)", "circle"),
    (r"\b(?:a couple of|a pair of)\b", "two"),
    (r"\b(?:beside|alongside|near)\b", "next to"),
    *(  # a background that is named first goes to the end, where captions have it
        rule
        for ground in BACKGROUNDS
        for rule in (
            (rf"(?:\A|image: ){ground} background(?:[,:]| with) .*\K\Z", f", {ground} background"),
            (rf"{_START}{ground} background(?:[,:]| with) ", ""),
        )
    ),
    *(  # "a square with a circle above it"
        rule
        for relation, mirrored in _MIRRORED.items()
        for rule in (
            (rf"(?:,? and|,| with) (?=an? {_THING} {_BESIDE_IT[relation]}\b)", f" {mirrored} "),
            (rf" {_BESIDE_IT[relation]}\b", ""),
        )
    ),
    (r"\b(?:photo|picture|image|drawing)\K (?:with|showing)(?= )", " of"),
    (r"\b(?:on top of|atop)\b", "above"),
    (r"\b(?:underneath|beneath)\b", "below"),
    (r"\b(?:is|sits|lies) (?=(?:to |on )?the (?:left|right)|left|right|above|below|over|under)", ""),
    (r"\b(?:against|in front of)\b", "on"),
    (rf"\bon (?=(?:{_GROUND}) background)", "on a "),
    (rf"\bwith (?=(?:{_GROUND}) background)", "with a "),
    (rf"\bon an? (?=(?:{_GROUND})\b(?! background))", "on "),
    (rf"\bthe (?=orange (?:{_SHAPE})\b)", "an "),
    (rf"\bthe (?={_THING})", "a "),
    (rf"{_NO_ARTICLE}(?=orange (?:{_SHAPE})\b)", "an "),
    (rf"{_NO_ARTICLE}(?={_THING})", "a "),
    *(  # "a circle on the left and a square on the right", "on the left a circle, on the right a square"
        rule
        for relation, mirrored in _MIRRORED.items()
        for rule in (
            (
                rf"\b{_place(relation)}[:,]? (?=an? {_THING}{_AND} {_place(mirrored)}[:,]? an? {_THING})",
                "",
            ),
            (rf"an? {_THING}\K{_AND} {_place(mirrored)}[:,]? (?=an? {_THING})", f" {relation} "),
            (rf"an? {_THING}\K {_place(relation)}{_AND} (?=an? {_THING} {_place(mirrored)})", f" {relation} "),
            (rf"\b{relation} an? {_THING}\K {_place(mirrored)}", ""),
        )
    ),
    (rf",(?= an? {_THING})", " and"),
)


def words() -> tuple[str, ...]:
    """All words that a caption of a scene can hold, sorted."""
    names = [*COLOURS, *BACKGROUNDS, *SHAPES, *map(plural, SHAPES)]
    said = ["a", "an", *names, *PREFIXES, *CONJUNCTIONS, *BACKGROUND_WORDS]
    for ways in (*NUMBERS.values(), *RELATION_WORDS.values()):
        said.extend(ways)
    return tuple(sorted({word.strip("{},") for text in said for word in text.split()} - {""}))
