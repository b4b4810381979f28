"""The model that comes with the pack, and the size that it recommends. Another model: its name, here."""

from host import ROOT
from vgt.files.reading import read_checkpoint

NAME = "vgt-drawings.safetensors"
PATH = ROOT / "models" / NAME
# A checkout without it draws with a fixture, whose pictures are of this size.
SIDE = read_checkpoint(PATH).recommended.width if PATH.is_file() else 224
