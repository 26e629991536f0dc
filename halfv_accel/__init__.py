"""Run a vision-language model with fewer visual tokens.

>>> from halfv_accel import accelerate
>>> with accelerate(model, "profile.json") as run:  # doctest: +SKIP
...     output = model.generate(**inputs)
"""

from halfv_accel.downsample import Downsample, shrink_pictures
from halfv_accel.engine.report import PrefillReport, StageReport
from halfv_accel.engine.run import Run, accelerate
from halfv_accel.errors import HalfVError
from halfv_accel.flops import paper_flops, prefill_flops
from halfv_accel.models import load_model
from halfv_accel.names import KNOWN_MODELS, paper_plan
from halfv_accel.plan import Plan, Stage, halfv_plan
from halfv_accel.profile import Profile
from halfv_accel.prompts import chat_inputs

__all__ = [
    "KNOWN_MODELS",
    "Downsample",
    "HalfVError",
    "Plan",
    "PrefillReport",
    "Profile",
    "Run",
    "Stage",
    "StageReport",
    "accelerate",
    "chat_inputs",
    "halfv_plan",
    "load_model",
    "paper_flops",
    "paper_plan",
    "prefill_flops",
    "shrink_pictures",
]
