"""What one process of several computes that share a model by tensor parallelism; test_tensor_parallel.py starts them.

    python -m torch.distributed.run --nproc-per-node 2 divided.py JOBS OUT

JOBS is a file of `torch.save`, {name: Job}; every process writes what `run` found to OUT, under its own number.
"""

import os
import sys
import warnings
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

NEW_TOKENS = 3


@dataclass
class Job:
    """A checkpoint, plans to run on batches (None: untouched), and batches to ask the self-check about."""

    folder: str
    cases: dict[str, tuple[Any, dict[str, torch.Tensor]]]
    checked: list[dict[str, torch.Tensor]] = field(default_factory=list)
    tp_plan: str | dict[str, str] = "auto"


def run(job, **options):
    """By case, what a caller sees, or why it was refused; by check, whether it passed; and the fingerprint."""
    from halfv_accel import HalfVError
    from halfv_accel.identity import fingerprint
    from halfv_accel.selfcheck import selfcheck

    model = load(job.folder, **options)
    found, refused = {}, {}
    for name, case in job.cases.items():
        try:
            found[name] = answer(model, *case)
        except HalfVError as error:
            refused[name] = str(error)
    checks = selfcheck(model, *job.checked) if job.checked else []
    return {
        "cases": found,
        "refused": refused,
        "checks": {check.name: check.ok for check in checks},
        "fingerprint": fingerprint(model),
        "balance": [balance(model, inputs) for inputs in job.checked],
    }


@torch.no_grad()
def balance(model, inputs):
    """A measure of the probe that averages over all heads: its four curves."""
    from halfv_probe.measures.attention import attention_balance

    return torch.stack(list(vars(attention_balance(model, inputs)).values()))


def refusal_to_calibrate(model, inputs):
    from halfv_accel import HalfVError
    from halfv_probe import calibrate

    try:
        calibrate(model, [inputs])
    except HalfVError as error:
        return str(error)
    return None


def load(folder, **options):
    from transformers import AutoModelForImageTextToText

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # tp_plan as an argument of its own, as most people pass it
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, **options).eval()
    model.generation_config.eos_token_id = None
    return model


def answer(model, plan, inputs):
    """Tokens, the logits that chose each, and the visual tokens that every stage kept."""
    from halfv_accel import accelerate

    options = dict(max_new_tokens=NEW_TOKENS, do_sample=False, output_logits=True, return_dict_in_generate=True)
    with torch.no_grad(), nullcontext() if plan is None else accelerate(model, plan) as accelerated:
        out = model.generate(**inputs, **options)
    return {
        "tokens": out.sequences,
        "logits": torch.stack(out.logits),
        "kept": [] if plan is None else accelerated.last.kept,
    }


@dataclass(frozen=True)
class Whim:
    """A strategy of which every process has its own opinion; the first process's, and a single one's, is 0."""

    def select(self, view, budget):
        places = torch.arange(view.present.shape[1]).expand_as(view.present)
        first = int(os.environ.get("RANK", "0"))
        return view.present & (places >= first) & (places < first + budget[:, None])

    def count(self, view, least, most):
        return torch.minimum(most, least + int(os.environ.get("RANK", "0")))


def main(jobs, out):
    torch.set_num_threads(1)
    jobs = torch.load(jobs, weights_only=False)
    found = {name: run(job, tp_plan=job.tp_plan) for name, job in jobs.items()}
    for name, job in jobs.items():
        for inputs in job.checked:
            found[name]["calibration"] = refusal_to_calibrate(load(job.folder, tp_plan="auto"), inputs)
    torch.save(found, f"{out}/{os.environ['RANK']}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    import divided  # under its own name, which the pickled jobs carry

    divided.main(*sys.argv[1:])
