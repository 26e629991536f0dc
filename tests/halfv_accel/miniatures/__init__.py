"""Random-weight models of each family, small enough to build in every test run, and prompts for them."""

from .base import IMAGE, LAYERS, VIDEO, VOCABULARY, WIDTH, Miniature, widen
from .llavas import MiniLlava, MiniLlavaNextMistral, MiniLlavaNextVicuna, MiniVideoLlava
from .qwens import MiniQwen, MiniQwen2, MiniQwen3

FAMILIES = (
    MiniLlava,
    MiniLlavaNextMistral,
    MiniLlavaNextVicuna,
    MiniQwen2,
    MiniQwen,
    MiniQwen3,
    MiniVideoLlava,
)
MINIATURES = {family.name: family() for family in FAMILIES}

__all__ = [
    "FAMILIES",
    "IMAGE",
    "LAYERS",
    "MINIATURES",
    "VIDEO",
    "VOCABULARY",
    "WIDTH",
    "MiniLlava",
    "MiniLlavaNextMistral",
    "MiniLlavaNextVicuna",
    "MiniQwen",
    "MiniQwen2",
    "MiniQwen3",
    "MiniVideoLlava",
    "Miniature",
    "widen",
]
