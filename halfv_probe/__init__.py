"""Measure where a vision-language model stops needing its visual tokens.

>>> from halfv_probe import detect_stages, find_elbow, spectrum, truncated_entropy
>>> truncated_entropy(spectrum([[2.0, 0.0], [0.0, 2.0]]), k=2)      # two equal directions: log(2)
0.6931471805599453
"""

from halfv_probe.calibration.calibrate import calibrate
from halfv_probe.calibration.journal import Journal
from halfv_probe.choice.stages import Stages, detect_stages
from halfv_probe.measures.attention import AttentionBalance, attention_balance
from halfv_probe.measures.inflow import InformationInflow, information_inflow
from halfv_probe.measures.lifecycle import Lifecycle, measure_lifecycle
from halfv_probe.measures.maturity import SemanticMaturity, semantic_maturity
from halfv_probe.measures.received import Received, received_attention
from halfv_probe.measures.redundancy import Redundancies, layer_redundancy, redundancies
from halfv_probe.measures.saliency import SaliencyFlow, saliency_flow
from halfv_probe.measures.vision import VisionAttention, vision_attention, vision_effective_rank
from halfv_probe.methods.calibrate import calibrate_method
from halfv_probe.methods.erank import EffectiveRank
from halfv_probe.methods.fitprune import FitPruneBudget
from halfv_probe.methods.shortv import ShortV
from halfv_probe.methods.vtw import VTW
from halfv_probe.states.elbow import find_elbow
from halfv_probe.states.entropy import (
    Bounds,
    effective_rank,
    full_entropy_bounds,
    participation_ratio,
    tail_mass,
    truncated_entropy,
    truncated_entropy_bounds,
)
from halfv_probe.states.geometry import curvature_energy, mean_turning, turnings
from halfv_probe.states.increments import marginal_feature_increments, marginal_information_gains
from halfv_probe.states.spectra import spectrum
from halfv_probe.trials.prompts import Prompts
from halfv_probe.trials.utility import latency_saved, marginal_utility
from halfv_probe.views.tables import frame

__all__ = [
    "VTW",
    "AttentionBalance",
    "Bounds",
    "EffectiveRank",
    "FitPruneBudget",
    "InformationInflow",
    "Journal",
    "Lifecycle",
    "Prompts",
    "Received",
    "Redundancies",
    "SaliencyFlow",
    "SemanticMaturity",
    "ShortV",
    "Stages",
    "VisionAttention",
    "attention_balance",
    "calibrate",
    "calibrate_method",
    "curvature_energy",
    "detect_stages",
    "effective_rank",
    "find_elbow",
    "frame",
    "full_entropy_bounds",
    "information_inflow",
    "latency_saved",
    "layer_redundancy",
    "marginal_feature_increments",
    "marginal_information_gains",
    "marginal_utility",
    "mean_turning",
    "measure_lifecycle",
    "participation_ratio",
    "received_attention",
    "redundancies",
    "saliency_flow",
    "semantic_maturity",
    "spectrum",
    "tail_mass",
    "truncated_entropy",
    "truncated_entropy_bounds",
    "turnings",
    "vision_attention",
    "vision_effective_rank",
]
