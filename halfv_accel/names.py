"""What has a name: models, by short names that all commands share, and the paper's plans (Table 9).

A short name stands for a checkpoint on the hub, for an architecture of true size that can be built with random weights,
or for both; where the paper ran the model, its row of Table 9 is there, too. The row is found by the model itself and
not by its name, so that a folder or a fine-tuned sibling has it as well.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from transformers import PreTrainedConfig

from halfv_accel.architectures import llava, llava_next, middling, qwen2_5_vl, qwen2_vl, qwen3_vl
from halfv_accel.decoder import Decoder
from halfv_accel.errors import HalfVError
from halfv_accel.methods import Facts
from halfv_accel.plan import Plan, halfv_plan
from halfv_accel.plan_text import EXAMPLE, describe_plan, parse_plan
from halfv_accel.strategies import STRATEGIES

PAPER = "paper"  # the name of a model's own row of Table 9, wherever a plan is asked for
STRATEGIES.reserve({PAPER})


@dataclass(frozen=True)
class Known:
    """What a short name stands for.

    Parameters
    ----------
    hub : str, optional
        Id of the checkpoint on the hub.
    config : callable, optional
        Makes the transformers config of the true size.
    paper : Plan, optional
        The model's row of Table 9; only with a config, by which the model is recognised.
    """

    hub: str | None = None
    config: Callable[[], PreTrainedConfig] | None = None
    paper: Plan | None = None


VICUNA_PLAN = halfv_plan(ivr_layer=3, ivr_retention=0.5, anchor_ratio=0.2, ssr_mode="freeze", ssr_layer=15)
MISTRAL_PLAN = halfv_plan(ivr_layer=2, ivr_retention=0.5, anchor_ratio=0.1, ssr_mode="freeze", ssr_layer=16)
QWEN_PLAN = halfv_plan(
    ivr_layer=2, ivr_retention=0.25, anchor_ratio=0.1, ssr_mode="sparse", ssr_layer=21, ssr_retention=0.05
)
MODELS = {
    "llava-1.5-7b": Known("llava-hf/llava-1.5-7b-hf", partial(llava, 4096, 11008, 32, 32), VICUNA_PLAN),
    "llava-1.5-13b": Known("llava-hf/llava-1.5-13b-hf", partial(llava, 5120, 13824, 40, 40), VICUNA_PLAN),
    "llava-next-mistral-7b": Known("llava-hf/llava-v1.6-mistral-7b-hf", llava_next, MISTRAL_PLAN),
    "llava-next-vicuna-7b": Known("llava-hf/llava-v1.6-vicuna-7b-hf"),
    "qwen2-vl-2b": Known("Qwen/Qwen2-VL-2B-Instruct"),
    "qwen2-vl-7b": Known("Qwen/Qwen2-VL-7B-Instruct", qwen2_vl),
    "qwen2.5-vl-3b": Known("Qwen/Qwen2.5-VL-3B-Instruct"),
    "qwen2.5-vl-7b": Known("Qwen/Qwen2.5-VL-7B-Instruct", qwen2_5_vl, QWEN_PLAN),
    "qwen3-vl-2b": Known("Qwen/Qwen3-VL-2B-Instruct"),
    "qwen3-vl-4b": Known("Qwen/Qwen3-VL-4B-Instruct", qwen3_vl),
    "qwen3-vl-8b": Known("Qwen/Qwen3-VL-8B-Instruct"),
    "video-llava-7b": Known("LanguageBind/Video-LLaVA-7B-hf"),
    "mid": Known(config=middling),
}
ALIASES = {"llava-next-7b": "llava-next-mistral-7b"}  # the paper's LLaVA-NeXT-7B is the one with Mistral


def find(name: str) -> Known | None:
    """The model of a short name, in any case, or of its hub id."""
    short = name.lower()
    by_hub = {known.hub: known for known in MODELS.values() if known.hub is not None}
    return MODELS.get(ALIASES.get(short, short)) or by_hub.get(name)


def checkpoint(name: str) -> str:
    """The hub id that a short name stands for; any other text of the form owner/name is one itself.

    Raises
    ------
    HalfVError
        Naming those that there are.
    """
    known = find(name)
    if known is None:
        if name.count("/") != 1:
            raise HalfVError(f"there is no model '{name}': {_guess(name, _with_checkpoint())}{checkpoint_advice()}")
        return name
    if known.hub is None:
        raise HalfVError(f"{name} has no checkpoint and serves with random weights only: {checkpoint_advice()}")
    return known.hub


def checkpoint_advice() -> str:
    """What `load_model` takes, for the end of an error."""
    return f"give a folder with a saved model, a hub id, or one of {', '.join(_with_checkpoint())}"


def architecture(name: str) -> Any:
    """A new transformers config of true size.

    Raises
    ------
    HalfVError
        Naming those that there are.
    """
    known = find(name)
    if known is not None and known.config is not None:
        return known.config()
    sized = [short for short, each in MODELS.items() if each.config is not None]
    if known is not None:
        raise HalfVError(f"{name} is known by its checkpoint only: with random weights give one of {', '.join(sized)}")
    guess = _guess(name, sized)
    raise HalfVError(f"there is no model '{name}' with random weights: {guess}give one of {', '.join(sized)}")


def paper_plan(model: Any) -> Plan | None:
    """The plan that the paper used for a model (Table 9), or None if it did not run it.

    A model is recognised by its class, by its language model's class and by all sizes of its decoder; its name, its
    weights and its vision tower have no say.

    Parameters
    ----------
    model : PreTrainedModel or transformers config

    Examples
    --------
    >>> from transformers import LlavaConfig
    >>> paper_plan(LlavaConfig()).stages[1].layer  # the defaults are LLaVA-1.5-7B's
    15
    """
    config = _config_of(model)
    return next((plan for reference, plan in _rows() if _kind(reference) == _kind(config)), None)


def named_plan(text: str, model: Any) -> Plan:
    """The plan that a text asks for: `paper`, the model's row of Table 9, or stages as `parse_plan` reads them.

    Parameters
    ----------
    model : PreTrainedModel or transformers config

    Raises
    ------
    HalfVError
        If the text makes no sense, or the paper has no plan for the model.
    """
    if text != PAPER:
        return parse_plan(text, Facts.of(_config_of(model)))
    plan = paper_plan(model)
    if plan is None:
        raise HalfVError(_no_row(_config_of(model)))
    return plan


def expect_paper_plan(name: str) -> None:
    """Refuse a short name whose model has no row of Table 9, before gigabytes are loaded for it.

    Raises
    ------
    HalfVError
    """
    known = find(name)
    if known is not None and known.paper is None:
        raise HalfVError(_no_row(known.config() if known.config is not None else None, name))


def _rows() -> Iterator[tuple[PreTrainedConfig, Plan]]:
    """Table 9: the config of each model, and its plan."""
    for known in MODELS.values():
        if known.config is not None and known.paper is not None:
            yield known.config(), known.paper


def _kind(config: PreTrainedConfig) -> tuple[str, str, Decoder | None]:
    return config.model_type, config.get_text_config().model_type, _sizes(config)


def _sizes(config: PreTrainedConfig) -> Decoder | None:
    try:
        return Decoder.of(config)
    except AttributeError:  # a language model of another build
        return None


def _config_of(model: Any) -> PreTrainedConfig:
    config = getattr(model, "config", model)
    if not isinstance(config, PreTrainedConfig):
        raise HalfVError(f"a {type(model).__name__} is no model: give a transformers model or its config")
    return config


def _no_row(config: PreTrainedConfig | None, name: str = "") -> str:
    """Why there is no plan of the paper, and what to do; a decoder of the same size in another model is mentioned."""
    rows = [short for short, known in MODELS.items() if known.paper is not None]
    sizes = None if config is None else _sizes(config)
    if config is not None and not name:
        depth = "" if sizes is None else f" with {sizes.layers} layers of width {sizes.hidden}"
        name = f"a {config.model_type}{depth}"
    twins = {Decoder.of(reference): plan for reference, plan in _rows()}
    text = describe_plan(twins[sizes]) if sizes in twins else EXAMPLE
    why = ", which is that of a decoder of the same size" if sizes in twins else ""
    return f"the paper has no plan for {name}, only for {', '.join(rows)}: write one out, such as {text}{why}"


def _with_checkpoint() -> list[str]:
    return [name for name, known in MODELS.items() if known.hub is not None]


def _guess(name: str, serving: list[str]) -> str:
    names = [*serving, *(alias for alias, short in ALIASES.items() if short in serving)]
    close = difflib.get_close_matches(name.lower(), names, n=1)
    return f"did you mean {close[0]}? Else " if close else ""


KNOWN_MODELS: dict[str, str] = {
    name: known.hub for name in (*MODELS, *ALIASES) if (known := find(name)) is not None and known.hub is not None
}
