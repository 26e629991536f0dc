"""What the tests of calibrations share: measurements on miniatures, and the model's own log-probabilities."""

import torch

from halfv_accel import accelerate
from halfv_probe.calibration.journal import Journal
from halfv_probe.calibration.measurements import Measurements


def batches(mini):
    """Two batches, one of them ragged, with a video where the family takes one."""
    ragged = [mini.prompt(1, 2), mini.prompt(2, 1, 9, videos=int(mini.videos))]
    return [mini.batch([mini.prompt(0)]), mini.batch(ragged)]


def measurements(mini, inputs=None):
    """Of all prompts; nothing is written down."""
    return Measurements(mini.model(), inputs or batches(mini), "paper", Journal(), lambda *_: None)


@torch.no_grad()
def next_token(model, inputs, plan=None):
    """Log-probabilities of every prompt's next token, float64 [B, vocabulary]."""
    if plan is None:
        return model(**inputs).logits[:, -1].double().log_softmax(-1)
    with accelerate(model, plan):
        return next_token(model, inputs)


def mean_kl(mini, plan):
    """KL(untouched || plan) in nats, mean over all prompts, each batch accelerated by itself."""
    found = []
    for inputs in batches(mini):
        untouched, changed = next_token(mini.model(), inputs), next_token(mini.model(), inputs, plan)
        found.append((untouched.exp() * (untouched - changed)).sum(-1))
    return float(torch.cat(found).mean())
