"""What people type for what the bundled model knows, and the scene each means: (prompt, things, relation, background).

A thing is a name of tests/fixtures/drawings, or (name, count). Nobody looked at the captions of training when these
were written.
"""

from vgt.scenes.world import Item, Request

_TYPED = [
    ("a fox", ["fox"], None, None),
    ("Fox", ["fox"], None, None),
    ("a PENGUIN on a white background", ["penguin"], None, "white"),
    ("rocket, blue background", ["rocket"], None, "blue"),
    ("a butterfly.", ["butterfly"], None, None),
    ("Draw a cactus", ["cactus"], None, None),
    ("an octopus on grey", ["octopus"], None, "gray"),
    ("Navy background, guitar", ["guitar"], None, "navy"),
    ("a mushroom against a cream background", ["mushroom"], None, "cream"),
    ("an apple", ["red apple"], None, None),
    ("a strawberry on mint", ["strawberry"], None, "mint"),
    ("a pumpkin", ["jack-o-lantern"], None, None),
    ("a picture of a hamburger", ["hamburger"], None, None),
    ("a burger please", ["hamburger"], None, None),
    ("please draw a castle", ["castle"], None, None),
    ("pineapple", ["pineapple"], None, None),
    ("A key", ["key"], None, None),
    ("a light bulb, black background", ["light bulb"], None, "black"),
    ("a crown", ["crown"], None, None),
    ("one balloon", ["balloon"], None, None),
    ("a christmas tree", ["christmas tree"], None, None),
    ("a smiling face with sunglasses", ["smiling face with sunglasses"], None, None),
    ("a carrot with a pink background", ["carrot"], None, "pink"),
    ("a bus in front of a yellow backdrop", ["bus"], None, "yellow"),
    ("a sailboat on sky blue", ["sailboat"], None, "sky blue"),
    ("a donut on lavender", ["doughnut"], None, "lavender"),
    ("an image with a doughnut", ["doughnut"], None, None),
    ("Three strawberries", [("strawberry", 3)], None, None),
    ("two carrots", [("carrot", 2)], None, None),
    ("4 mushrooms", [("mushroom", 4)], None, None),
    ("a pair of foxes", [("fox", 2)], None, None),
    ("two balloons on a white background", [("balloon", 2)], None, "white"),
    ("a fox and a mushroom", ["fox", "mushroom"], None, None),
    ("A strawberry, a pineapple", ["strawberry", "pineapple"], None, None),
    ("a penguin next to a bus", ["penguin", "bus"], None, None),
    ("a rocket to the left of a castle", ["rocket", "castle"], "left of", None),
    ("a key right of a crown", ["key", "crown"], "right of", None),
    ("a butterfly above a cactus", ["butterfly", "cactus"], "above", None),
    ("a carrot below a fox", ["carrot", "fox"], "below", None),
    ("a balloon on the left and a guitar on the right", ["balloon", "guitar"], "left of", None),
]


def _request(things, relation, background):
    items = tuple(Item(thing) if isinstance(thing, str) else Item(thing[0], None, thing[1]) for thing in things)
    if len(items) == 2:
        category = "two" if relation is None else "position"
    else:
        category = "counting" if items[0].count > 1 else "drawing"
    return Request(category, items, relation, background)


TYPED = [(prompt, _request(*meaning)) for prompt, *meaning in _TYPED]
