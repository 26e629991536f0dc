"""Shared settings: property tests are reproducible and never judged by the clock; nothing reaches a network."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from hypothesis import settings

torch.set_num_threads(1)  # the models are too small to share
settings.register_profile("halfv", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("halfv")
