"""How a picture is drawn: the plan of a run, its steps, and the loop that walks them."""
