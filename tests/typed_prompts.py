"""What people type for what the bundled model knows, and the scene each means: (prompt, items, relation, background).

An item is (shape, colour, count); None leaves open. Nobody looked at the captions of training when these were written.
"""

from vgt.scenes.world import Item, Request

_TYPED = [
    ("A red circle", [("circle", "red")], None, None),
    ("Red Circle", [("circle", "red")], None, None),
    ("a BLUE star on a white background", [("star", "blue")], None, "white"),
    ("green triangle, white background", [("triangle", "green")], None, "white"),
    ("a purple heart.", [("heart", "purple")], None, None),
    ("Draw a yellow square", [("square", "yellow")], None, None),
    ("an orange cross on grey", [("cross", "orange")], None, "gray"),
    ("Navy background, pink heart", [("heart", "pink")], None, "navy"),
    ("a brown star against a cream background", [("star", "brown")], None, "cream"),
    ("a red disk on white", [("circle", "red")], None, "white"),
    ("a violet circle", [("circle", "purple")], None, None),
    ("mint background with a red triangle", [("triangle", "red")], None, "mint"),
    ("a picture of one green heart", [("heart", "green")], None, None),
    ("please draw a blue square", [("square", "blue")], None, None),
    ("star", [("star", None)], None, None),
    ("A circle that is red", [("circle", "red")], None, None),
    ("a square, red", [("square", "red")], None, None),
    ("Three red circles", [("circle", "red", 3)], None, None),
    ("two stars on navy", [("star", None, 2)], None, "navy"),
    ("4 green squares", [("square", "green", 4)], None, None),
    ("a couple of pink hearts", [("heart", "pink", 2)], None, None),
    ("three triangles in blue", [("triangle", "blue", 3)], None, None),
    ("four crosses", [("cross", None, 4)], None, None),
    ("Two blue circles on a gray background.", [("circle", "blue", 2)], None, "gray"),
    ("a red circle and a blue square", [("circle", "red"), ("square", "blue")], None, None),
    ("A red circle, a blue square", [("circle", "red"), ("square", "blue")], None, None),
    ("red circle, blue square", [("circle", "red"), ("square", "blue")], None, None),
    ("a heart & a star", [("heart", None), ("star", None)], None, None),
    ("a green triangle beside a yellow star", [("triangle", "green"), ("star", "yellow")], None, None),
    ("a circle plus a cross", [("circle", None), ("cross", None)], None, None),
    ("an orange star and a purple heart on a mint background", [("star", "orange"), ("heart", "purple")], None, "mint"),
    ("a red circle on top of a blue square", [("circle", "red"), ("square", "blue")], "above", None),
    ("a blue square with a red circle above it", [("circle", "red"), ("square", "blue")], "above", None),
    ("Red circle above blue square", [("circle", "red"), ("square", "blue")], "above", None),
    ("a star underneath a heart", [("star", None), ("heart", None)], "below", None),
    ("the green heart is to the left of the pink cross", [("heart", "green"), ("cross", "pink")], "left of", None),
    ("yellow star left of a blue circle, mint background", [("star", "yellow"), ("circle", "blue")], "left of", "mint"),
    ("a square beneath a triangle on a cream background", [("square", None), ("triangle", None)], "below", "cream"),
    ("on the left a red circle, on the right a blue square", [("circle", "red"), ("square", "blue")], "left of", None),
    ("a purple cross to the right of an orange circle", [("cross", "purple"), ("circle", "orange")], "right of", None),
]  # fmt: skip

# Written when the wordings of vgt/scenes/wordings.py were done, which are not made for these.
_AFTERWARDS = [
    ("Yellow triangle", [("triangle", "yellow")], None, None),
    ("a green circle in front of a white backdrop", [("circle", "green")], None, "white"),
    ("i want a purple star", [("star", "purple")], None, None),
    ("two orange squares please", [("square", "orange", 2)], None, None),
    ("An image with a brown heart", [("heart", "brown")], None, None),
    ("pink triangle on mint", [("triangle", "pink")], None, "mint"),
    ("one red cross", [("cross", "red")], None, None),
    ("a heart under a square", [("heart", None), ("square", None)], "below", None),
    ("blue star right of green heart", [("star", "blue"), ("heart", "green")], "right of", None),
    ("A yellow circle with a red square below it", [("circle", "yellow"), ("square", "red")], "above", None),
    ("a square and a circle, navy background", [("square", None), ("circle", None)], None, "navy"),
    ("Photo of three hearts", [("heart", None, 3)], None, None),
    ("an orange triangle over a blue cross", [("triangle", "orange"), ("cross", "blue")], "above", None),
    ("gray background: a green star", [("star", "green")], None, "gray"),
    ("there is a red heart on a cream background", [("heart", "red")], None, "cream"),
    ("3 purple stars", [("star", "purple", 3)], None, None),
    ("a star to the left of a triangle", [("star", None), ("triangle", None)], "left of", None),
    ("a big red circle", [("circle", "red")], None, None),
    ("the blue square below the yellow heart", [("square", "blue"), ("heart", "yellow")], "below", None),
    ("Four Brown Circles on White", [("circle", "brown", 4)], None, "white"),
]  # fmt: skip

# Two things by their places in the picture: written with the wordings for them.
_PLACES = [
    ("a red circle on the left and a blue square on the right",
     [("circle", "red"), ("square", "blue")], "left of", None),
    ("A green star on the right, a pink heart on the left", [("star", "green"), ("heart", "pink")], "right of", None),
    ("a yellow cross at the top and a brown triangle at the bottom",
     [("cross", "yellow"), ("triangle", "brown")], "above", None),
    ("on the right a heart and on the left a circle", [("heart", None), ("circle", None)], "right of", None),
    ("a picture with an orange square on the left and a purple star on the right",
     [("square", "orange"), ("star", "purple")], "left of", None),
    ("blue circle below, red triangle above", [("circle", "blue"), ("triangle", "red")], "below", None),
]  # fmt: skip


def _request(items, relation, background):
    things = tuple(Item(*item) for item in items)
    if len(things) == 2:
        category = "two_object" if relation is None else "position"
    else:
        category = "counting" if things[0].count > 1 else "single_object"
    return Request(category, things, relation, background)


TYPED = [(prompt, _request(*meaning)) for prompt, *meaning in _TYPED]
AFTERWARDS = [(prompt, _request(*meaning)) for prompt, *meaning in _AFTERWARDS]
PLACES = [(prompt, _request(*meaning)) for prompt, *meaning in _PLACES]
