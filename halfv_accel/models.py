"""Load a model and its processor by a short name, a hub id or a folder, and fail in one sentence."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
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


def load_model(
    name: str | os.PathLike[str], device: str | torch.device = "auto", dtype: str | torch.dtype = "auto"
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
        "auto" takes the checkpoint's own; else float32, bfloat16, float16 or float64.

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
    return model.eval().to(place), processor


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
