"""One process of several that share a model by tensor parallelism; run by test_tensor_parallel.py.

python -m torch.distributed.run --nproc-per-node 2 divided.py JOBS OUT
"""

import sys
import warnings

import torch

JOBS = "a file of torch.save: {name: (checkpoint folder, options of from_pretrained, {case: (plan, inputs)})}"
NEW_TOKENS = 3


def load(folder, **options):
    from transformers import AutoModelForImageTextToText

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # tp_plan as an argument of its own, as most people pass it
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, **options).eval()
    model.generation_config.eos_token_id = None
    return model


def answer(model, plan, inputs):
    """What a caller sees of one batch, with a plan or without: logits, tokens, logits of each step, and kept tokens."""
    from contextlib import nullcontext

    from halfv_accel import accelerate

    options = dict(max_new_tokens=NEW_TOKENS, do_sample=False, output_logits=True, return_dict_in_generate=True)
    with torch.no_grad(), accelerate(model, plan) if plan is not None else nullcontext() as run:
        logits = model(**inputs).logits
        kept = [] if run is None else list(run.last.kept)
        out = model.generate(**inputs, **options)
        kept += [] if run is None else run.last.kept
    return {"logits": logits, "tokens": out.sequences, "steps": torch.stack(out.logits), "kept": kept}


def answers(model, cases):
    return {name: answer(model, *case) for name, case in cases.items()}


def main(jobs, out):
    rank = int(__import__("os").environ["RANK"])
    torch.set_num_threads(1)
    found = {}
    for name, (folder, options, cases) in torch.load(jobs, weights_only=False).items():
        found[name] = answers(load(folder, **options), cases)
    torch.save(found, f"{out}/{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
