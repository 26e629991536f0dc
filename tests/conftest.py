"""Shared settings: property tests are reproducible and never judged by the clock; nothing reaches a network."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from hypothesis import settings

settings.register_profile("halfv", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("halfv")
