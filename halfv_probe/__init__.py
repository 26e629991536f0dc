"""Measure where a vision-language model stops needing its visual tokens.

>>> from halfv_probe import detect_stages, find_elbow, spectrum, truncated_entropy
>>> truncated_entropy(spectrum([[2.0, 0.0], [0.0, 2.0]]), k=2)      # two equal directions: log(2)
0.6931471805599453
"""

from halfv_probe.calibration import calibrate
from halfv_probe.elbow import find_elbow
from halfv_probe.entropy import truncated_entropy
from halfv_probe.lifecycle import Lifecycle, measure_lifecycle
from halfv_probe.prompts import Prompts
from halfv_probe.redundancy import layer_redundancy
from halfv_probe.spectra import spectrum
from halfv_probe.stages import Stages, detect_stages

__all__ = [
    "Lifecycle",
    "Prompts",
    "Stages",
    "calibrate",
    "detect_stages",
    "find_elbow",
    "layer_redundancy",
    "measure_lifecycle",
    "spectrum",
    "truncated_entropy",
]
