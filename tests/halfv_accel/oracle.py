"""What acceleration should compute, done the slow and obvious way, sharing no code with halfv_accel.

One sample, no padding, no cache, eager attention, every layer at full length. A dropped token stays in the sequence and
is hidden from everybody by -inf; a frozen token is put back after each layer. Scores are computed head by head from the
weights, farthest points by comparing all distances. Every generated token starts again from the beginning.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F


@torch.no_grad()
def run(miniature, prompt, plan, new_tokens=0):
    """Logits [S, V] of the prompt, greedy tokens, logits at each of them, and the visual positions kept by each stage.

    `plan` is a dict: ivr=(layer, kept, anchors), and optionally sparse=(layer, kept) or freeze=layer, in token counts;
    with reference=True, scores lack 1/sqrt(d) and farthest points are sought among normed states.
    """
    generated, steps, first, kept = [], [], None, None
    for _ in range(new_tokens + 1):
        logits, kept = forward(miniature, prompt, generated, plan)
        first = logits if first is None else first
        steps.append(logits[-1])
        generated.append(int(logits[-1].argmax()))
    return first, generated[:-1] if new_tokens else [], steps, kept


def forward(miniature, prompt, generated, plan):
    model = miniature.model("eager")
    text, length = model.model.language_model, len(prompt["ids"])
    hidden, rotary = embed(miniature, model, prompt, generated)
    visual = [position for position, token in enumerate(prompt["ids"]) if token == miniature.image]
    reference = plan.get("reference", False)
    alive, frozen, kept, before = list(visual), [], [], None
    for index, layer in enumerate(text.layers):
        if index == plan["ivr"][0] and visual:
            _, count, anchors = plan["ivr"]
            score = scores(text.layers[index - 1], before, None, length - 1, alive, reference)
            alive = farthest(text, hidden, alive, score, min(count, len(alive)), anchors, reference)
            kept.append(sorted(alive))
        if "sparse" in plan and index == plan["sparse"][0] and visual:
            score = scores(text.layers[index - 1], before, rotary, length - 1, alive, reference)
            alive = sorted(sorted(alive, key=lambda p: -score[p])[: plan["sparse"][1]])
            kept.append(alive)
        if index == plan.get("freeze") and visual:
            frozen = list(alive)
            kept.append([])
        before = hidden
        hidden = layer(hidden, attention_mask=hide(visual, alive, hidden.shape[1]), position_embeddings=rotary)
        hidden[:, frozen] = before[:, frozen]
    return model.lm_head(text.norm(hidden))[0], kept


def embed(miniature, model, prompt, generated):
    """Input embeddings with visual features in place, and position embeddings."""
    ids = torch.tensor([prompt["ids"] + generated])
    placeholders = (ids == miniature.image) & (torch.arange(ids.shape[1]) < len(prompt["ids"]))
    inputs = miniature.features([prompt], torch.where(placeholders, ids, 5))
    states = model.get_input_embeddings()(ids)
    if "pixel_values" in inputs:
        arguments = {name: inputs[name] for name in ("pixel_values", "image_grid_thw") if name in inputs}
        features = torch.cat(list(model.model.get_image_features(**arguments, return_dict=True).pooler_output))
        states = states.masked_scatter(placeholders[..., None], features)
    positions = torch.arange(ids.shape[1])[None]
    if "image_grid_thw" in inputs:
        kinds = placeholders.long()
        ids = torch.where(placeholders | (ids != miniature.image), ids, 5)
        positions, _ = model.model.get_rope_index(ids, mm_token_type_ids=kinds, image_grid_thw=inputs["image_grid_thw"])
    elif miniature.name.startswith("qwen"):
        positions = positions.expand(3, 1, -1)
    return states, model.model.language_model.rotary_emb(states, positions)


def hide(visual, alive, length):
    """Causal float mask that hides dropped tokens from everyone but themselves (an empty row would be NaN)."""
    mask = torch.full((length, length), -math.inf).triu(1)
    for position in set(visual) - set(alive):
        mask[:, position] = -math.inf
        mask[position, position] = 0.0
    return mask[None, None]


def scores(layer, states, rotary, last, candidates, reference):
    """Mean over heads of softmax(q k / sqrt(d)), for reference softmax(q k), of the last text token, by position."""
    attention = layer.self_attn
    states = layer.input_layernorm(states)[0]
    size = attention.head_dim
    query = F.linear(states[last], attention.q_proj.weight, attention.q_proj.bias).view(-1, size)
    keys = F.linear(states, attention.k_proj.weight, attention.k_proj.bias).view(len(states), -1, size)
    total = dict.fromkeys(candidates, 0.0)
    for head in range(len(query)):
        group = head * keys.shape[1] // len(query)
        products = []
        for position in candidates:
            q, k = query[head], keys[position, group]
            if rotary is not None:
                q, k = rotate(q, rotary, last), rotate(k, rotary, position)
            products.append(float(q @ k) / (1.0 if reference else math.sqrt(size)))
        top = max(products)
        weights = [math.exp(product - top) for product in products]
        for position, weight in zip(candidates, weights, strict=True):
            total[position] += weight / sum(weights) / len(query)
    return total


def rotate(vector, rotary, position):
    cos, sin = (table[0, position] for table in rotary)
    half = len(vector) // 2
    return vector * cos + torch.cat([-vector[half:], vector[:half]]) * sin


def farthest(text, hidden, candidates, score, count, anchors, reference):
    """Eq. 5, word by word: the candidate whose nearest chosen token is farthest away."""
    states = text.norm(hidden) if reference else hidden
    unit = {p: states[0, p].double() / states[0, p].double().norm() for p in candidates}
    distance = {p: {c: float((unit[p] - unit[c]).norm()) for c in candidates} for p in candidates}
    chosen = sorted(candidates, key=lambda p: -score[p])[:anchors] or [candidates[0]]
    while len(chosen) < count:
        rest = [p for p in candidates if p not in chosen]
        chosen.append(max(rest, key=lambda p: min(distance[p][c] for c in chosen)))
    return sorted(chosen[:count])
