"""Models whose visual features say where they come from, and prompts that say it to them.

Pixels of a patch are [100 * picture + part, row, column]. A coded model passes them on as they are, through its own
packing, permuting and scattering, so that the embeddings of its prompt tell the places of all visual tokens. Nothing
of halfv_accel is used.
"""

import copy
from contextlib import contextmanager

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .miniatures import WIDTH
from .miniatures.llavas import PICTURES

PATCH = 4  # side of a patch in all miniatures
PIXELS = {"image": ("pixel_values", PICTURES), "video": ("pixel_values_videos",)}


def coded_model(miniature, attention="sdpa"):
    """Features of a token: code, row and column of its place, and which entry of the tower's output it is."""
    model = copy.deepcopy(miniature.model(attention))
    core = model.model
    if hasattr(core, "visual"):
        tower = core.visual
        tower.patch_embed.forward = lambda pixels: pixels[:, : tower.config.hidden_size if wide(tower) else 16].clone()
        for block in tower.blocks:
            block.forward = lambda states, **_: states
        tower.merger.forward = lambda states: nn.functional.pad(states.view(-1, 4, 16).mean(1), (0, WIDTH - 16))
        for merger in getattr(tower, "deepstack_merger_list", ()):
            merger.forward = lambda states: states.new_zeros(len(states) // 4, WIDTH)
        if hasattr(tower, "pos_embed"):
            nn.init.zeros_(tower.pos_embed.weight)
        return model
    core.multi_modal_projector.forward = lambda states: states
    if hasattr(core, "image_newline"):
        core.image_newline.data.fill_(-1)
    for name in ("vision_tower", "image_tower", "video_tower"):
        if hasattr(core, name):
            getattr(core, name).forward = coded_clip
    return model


def wide(tower):
    """Is hidden_size the tower's own width? In Qwen2-VL it is the merger's."""
    return not hasattr(tower.config, "embed_dim")


def coded_clip(pixels, **_):
    """A tower's output: CLS is all -1, a patch is its pixels and its number."""
    codes = pixels[:, :, ::PATCH, ::PATCH].flatten(2).transpose(1, 2)
    pictures, patches, _ = codes.shape
    numbers = torch.arange(pictures * patches).view(pictures, patches, 1)
    states = nn.functional.pad(torch.cat([codes, numbers], dim=-1), (0, WIDTH - 4, 1, 0))
    states[:, 0] = -1
    return BaseModelOutputWithPooling(last_hidden_state=states, hidden_states=(states,) * 3)


def code(prompt):
    """Put the places of all patches into a prompt's pixels; videos come first in a miniature's prompt."""
    videos = len(prompt.get("video_grid_thw", prompt.get("pixel_values_videos", ())))
    for kind, first in (("video", 0), ("image", videos)):
        for name in PIXELS[kind]:
            grids = prompt.get(f"{kind}_grid_thw")
            if name in prompt and grids is not None:
                prompt[name] = coded_patches(grids, first)
            elif name in prompt:
                prompt[name] = coded_pixels(prompt[name], first)
    return prompt


def coded_pixels(pixels, first):
    """[pictures, (parts,) 3, height, width]"""
    pixels = pixels.clone()
    for picture, group in enumerate(pixels):
        for part, one in enumerate(group if group.ndim == 4 else group[None]):
            one[0] = 100 * (first + picture) + part
            one[1] = (torch.arange(one.shape[1]) // PATCH)[:, None]
            one[2] = torch.arange(one.shape[2]) // PATCH
    return pixels


def coded_patches(grids, first):
    """Patches of Qwen, two by two: the rows and columns are those of the tokens, the number is still to come."""
    rows = []
    for picture, (frames, height, width) in enumerate(grids.tolist()):
        for frame in range(frames):
            for row in range(height // 2):
                for column in range(width // 2):
                    rows += [[100 * (first + picture) + frame, row, column] + [0.0] * 93] * 4
    return torch.tensor(rows).view(-1, 96)


@contextmanager
def embeddings(model):
    """The list of what the language model gets, prompt by prompt."""
    seen = []

    def hook(module, args, kwargs):
        if kwargs["inputs_embeds"].shape[1] > 1:
            seen.append(kwargs["inputs_embeds"].clone())

    handle = model.model.language_model.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()
