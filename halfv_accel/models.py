"""Load a model and its processor by a short name, a hub id or a folder, and fail in one sentence."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, RemoteEntryNotFoundError, RepositoryNotFoundError
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from halfv_accel.adapters import FAMILIES, could_fit
from halfv_accel.errors import HalfVError
from halfv_accel.names import KNOWN_MODELS, checkpoint, checkpoint_advice
from halfv_accel.processors import brief, load_processor

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
PROBE_SECONDS = 10
# Any of these, as `torch.cpu.get_capabilities` calls them, multiplies a type as it is. ARM's fp16_arith is not among
# them, because torch's products need not go through it.
NATIVE = {
    torch.bfloat16: ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"),
    torch.float16: ("avx512_fp16", "amx_fp16"),
}

_log = logging.getLogger(__name__)


def load_model(
    name: str | os.PathLike[str],
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    tell: Callable[[str], None] = _log.warning,
) -> tuple[Any, Any]:
    """Load a vision-language model, ready for inference, and its processor.

    What is small is read first: a model that HalfV cannot run is refused before its weights are downloaded. Where
    torchvision is missing, the processor of a family that also watches videos takes pictures only.

    Parameters
    ----------
    name : str or path
        A key of `halfv_accel.KNOWN_MODELS`, a hub id, or a folder with a saved model and processor.
    device : str
        "auto" takes a GPU if there is one.
    dtype : str
        "auto" takes the checkpoint's own, but float32 on a CPU that does not multiply that natively; else float32,
        bfloat16, float16 or float64.
    tell : callable
        Is given one sentence where "auto" took another dtype than the checkpoint's.

    Raises
    ------
    HalfVError
        If the device, the dtype, the name, the architecture or the files do not serve.
    """
    place, precision = find_device(device), find_dtype(dtype)
    source, local = locate(name)
    options = {"local_files_only": local}
    try:
        config = AutoConfig.from_pretrained(source, **options)
    except Exception as error:
        raise HalfVError(f"{source} holds no model that can be loaded ({brief(error)}): {_OTHER}") from error
    _check_architecture(source, config)
    processor = load_processor(source, config, **options)
    if precision == "auto" and config.dtype is not None:
        precision = _fitting(config, config.dtype, place, tell)
    model = _read_weights(source, config, precision, options)
    if precision == "auto":  # the config names no type, so the weights had to be asked
        fitting = _fitting(config, model.dtype, place, tell)
        model = model if fitting == model.dtype else _read_weights(source, config, fitting, options)
    return model.eval().to(place), processor


def is_native(dtype: torch.dtype) -> bool:
    """Does this CPU multiply a dtype as fast as its width promises? What torch does not tell counts as no.

    Where it does not, torch widens every number on its way, which takes several times as long as float32.
    """
    if dtype not in NATIVE:
        return True
    if not torch.backends.mkldnn.is_available():  # the library behind torch that uses those instructions
        return False
    try:
        able = torch.cpu.get_capabilities()
    except (AttributeError, RuntimeError):  # an older torch, or a CPU that it does not know
        return False
    return any(able.get(name, False) for name in NATIVE[dtype])


def locate(name: str | os.PathLike[str]) -> tuple[str, bool]:
    """Where to load from, and whether to stay off the network.

    Being offline is found out with one request, because transformers itself would retry for minutes.
    """
    text = os.fspath(name)
    if text.lower() not in KNOWN_MODELS and (Path(text).exists() or text.startswith((".", "/", "~"))):
        return _folder(Path(os.path.expanduser(text))), True
    source = checkpoint(text)
    try:
        with _silent("huggingface_hub"):
            get_hf_file_metadata(hf_hub_url(source, "config.json"), timeout=PROBE_SECONDS)
        return source, False
    except GatedRepoError as error:
        raise HalfVError(f"{source} is gated: accept its terms on huggingface.co and run: hf auth login") from error
    except (RepositoryNotFoundError, RemoteEntryNotFoundError) as error:
        raise HalfVError(f"the hub has no model {source}: {_OTHER}") from error
    except Exception as error:
        if isinstance(try_to_load_from_cache(source, "config.json"), str):
            return source, True
        raise HalfVError(
            f"{source} is not on this machine and the hub cannot be reached ({brief(error)}): "
            "connect, or give the folder of a downloaded model"
        ) from error


def find_device(device: str | torch.device) -> torch.device:
    """A device that exists here."""
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=device).item()  # "meta" exists everywhere, and computes nothing
        return torch.device(device)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        raise HalfVError(f"device '{device}' is not available here: choose auto, cpu or cuda (with a GPU)") from error


def find_dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    """A floating point type that models run in, or "auto"."""
    found = getattr(torch, dtype, None) if isinstance(dtype, str) and dtype != "auto" else dtype
    if found == "auto" or found in DTYPES:
        return found
    raise HalfVError(f"dtype '{dtype}' is not known: choose auto, float32, bfloat16, float16 or float64")


_OTHER = checkpoint_advice()


def _fitting(config: Any, stored: torch.dtype, place: torch.device, tell: Callable[[str], None]) -> torch.dtype:
    """What "auto" takes for weights that are stored in a type; quantized ones say themselves what they compute in."""
    if place.type != "cpu" or is_native(stored) or getattr(config, "quantization_config", None) is not None:
        return stored
    name = str(stored).removeprefix("torch.")
    tell(
        f"note: the weights are {name}, which this CPU does not multiply natively, so the model runs in float32; "
        f"dtype {name} would be slower, in half the memory"
    )
    return torch.float32


def _read_weights(source: str, config: Any, precision: str | torch.dtype, options: dict[str, bool]) -> Any:
    try:
        model, loading = AutoModelForImageTextToText.from_pretrained(
            source, config=config, dtype=precision, output_loading_info=True, **options
        )
    except Exception as error:
        raise HalfVError(f"{source} holds no model that can be loaded ({brief(error)}): {_OTHER}") from error
    if loading["missing_keys"]:
        raise HalfVError(
            f"{source} lacks {len(loading['missing_keys'])} weights, e.g. {sorted(loading['missing_keys'])[0]}: "
            "download or save the checkpoint again"
        )
    return model


def _check_architecture(source: str, config: Any) -> None:
    """Let pass what has an adapter, and what the usual adapter could drive."""
    usual = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(config.model_type)
    named = config.architectures or [usual]
    if FAMILIES.keys() & set(named):
        return
    # Original LLaVA, for one, is of a known type, but its class is not the one that transformers would build.
    if not usual or usual not in named or not _has_usual_parts(config):
        raise HalfVError(
            f"{source} is a {named[0] or config.model_type}, which is not supported: give one of "
            f"{', '.join(FAMILIES)}, or another with an image_token_id and with layers, norm and rotary_emb in its "
            "model.language_model"
        )


def _has_usual_parts(config: Any) -> bool:
    """Build the model without its weights, and look."""
    try:
        with torch.device("meta"):
            return could_fit(AutoModelForImageTextToText.from_config(config))
    except Exception:  # an odd config, a missing library, or values that are needed on the way: whatever it is, no fit
        return False


@contextmanager
def _silent(name: str) -> Iterator[None]:
    """Keep a library's logger still: what went wrong is told once, by us."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


def _folder(folder: Path) -> str:
    if not folder.is_dir():
        raise HalfVError(f"{folder} is not a folder: {_OTHER}")
    if not (folder / "config.json").is_file():
        raise HalfVError(f"{folder} has no config.json, so it holds no saved model: {_OTHER}")
    return str(folder)
