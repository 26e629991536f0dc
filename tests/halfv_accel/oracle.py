"""What acceleration should compute, done the slow and obvious way, sharing no code with halfv_accel.

One sample, no padding, no cache, eager attention, every layer at full length. A dropped token stays in the sequence and
is hidden from everybody by -inf; a frozen token is put back after each layer. Scores are computed head by head from the
weights, farthest points by comparing all distances. Every generated token starts again from the beginning.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

ARGUMENTS = {
    "image": ("pixel_values", "pixel_values_images", "image_grid_thw", "image_sizes"),
    "video": ("pixel_values_videos", "video_grid_thw"),
}


@torch.no_grad()
def run(miniature, prompt, plan, new_tokens=0):
    """Logits [S, V] of the prompt, greedy tokens, logits at each of them, and the visual positions kept by each stage.

    `plan` is a dict: ivr=(layer, kept, anchors), and optionally sparse=(layer, kept) or freeze=layer, in token counts;
    with reference=True, scores lack 1/sqrt(d) and farthest points are sought among normed states. `own` names the
    stages whose own layer scores, instead of the layer before.
    """
    generated, steps, first, kept = [], [], None, None
    for _ in range(new_tokens + 1):
        logits, kept = forward(miniature, prompt, generated, plan)
        first = logits if first is None else first
        steps.append(logits[-1])
        generated.append(int(logits[-1].argmax()))
    return first, generated[:-1] if new_tokens else [], steps, kept


def forward(miniature, prompt, generated, plan):
    """A prompt may hold several turns, `turns` says where each ends; `kept` is then the last one's.

    Causal attention keeps an earlier turn from seeing a later one, so all turns can be computed at once, each with its
    own last text token and its own candidates.
    """
    model = miniature.model("eager")
    text, ends = model.model.language_model, prompt.get("turns", [len(prompt["ids"])])
    hidden, rotary, stacked = embed(miniature, model, prompt, generated)
    starts, reference = [0, *ends], plan.get("reference", False)
    visual = [p for p, token in enumerate(prompt["ids"]) if token in placeholders(model).values()]
    alive = [[p for p in visual if start <= p < end] for start, end in zip(starts, ends, strict=False)]
    frozen, kept, before = [], [], None
    for index, layer in enumerate(text.layers):
        above = text.layers[index - 1]
        if index == plan["ivr"][0]:
            _, count, anchors = plan["ivr"]
            for turn, end in enumerate(ends):
                if alive[turn]:
                    scorer, seen = (layer, hidden) if "ivr" in plan.get("own", ()) else (above, before)
                    score, most = scores(scorer, seen, None, end - 1, alive[turn], reference), len(alive[turn])
                    alive[turn] = farthest(text, hidden, alive[turn], score, min(count, most), anchors, reference)
            kept.append(alive[-1])
        if "sparse" in plan and index == plan["sparse"][0]:
            for turn, end in enumerate(ends):
                if alive[turn]:
                    scorer, seen = (layer, hidden) if "sparse" in plan.get("own", ()) else (above, before)
                    score = scores(scorer, seen, rotary, end - 1, alive[turn], reference)
                    alive[turn] = sorted(sorted(alive[turn], key=lambda p: -score[p])[: plan["sparse"][1]])
            kept.append(alive[-1])
        if index == plan.get("freeze"):
            frozen = [p for turn in alive for p in turn]
            kept.append([])
        before = hidden
        mask = hide(visual, [p for turn in alive for p in turn], hidden.shape[1])
        hidden = layer(hidden, attention_mask=mask, position_embeddings=rotary)
        hidden[:, frozen] = before[:, frozen]
        if index < len(stacked):  # stands between the layers: a frozen token, put back by the layer, still gets it
            hidden = hidden + stacked[index]
    return model.lm_head(text.norm(hidden))[0], kept if visual else []


def placeholders(model):
    """The ids that stand for pictures and for videos."""
    ids = {kind: getattr(model.config, f"{kind}_token_id", None) for kind in ARGUMENTS}
    return {kind: token for kind, token in ids.items() if token is not None}


def embed(miniature, model, prompt, generated):
    """Input embeddings with visual features in place, position embeddings, and what DeepStack adds after each layer."""
    ids = torch.tensor([prompt["ids"] + generated])
    given = torch.arange(ids.shape[1]) < len(prompt["ids"])  # a generated placeholder is text
    inputs = miniature.features(prompt.get("parts", [prompt]), ids)
    states = model.get_input_embeddings()(ids)
    kinds, stacked = torch.zeros_like(ids), {}
    for kind, token in placeholders(model).items():
        arguments = {name: inputs[name] for name in ARGUMENTS[kind] if name in inputs}
        if arguments:
            places = (ids == token) & given
            kinds[places] = 1 if kind == "image" else 2
            encoded = getattr(model.model, f"get_{kind}_features")(**arguments, return_dict=True)
            states = states.masked_scatter(places[..., None], torch.cat(list(encoded.pooler_output)))
            for index, features in enumerate(getattr(encoded, "deepstack_features", None) or []):
                added = stacked.get(index, torch.zeros_like(states))
                stacked[index] = added.masked_scatter(places[..., None], torch.cat(list(features)))
    positions = torch.arange(ids.shape[1])[None]
    if hasattr(model.model, "get_rope_index"):
        positions = positions.expand(3, 1, -1)
        grids = {name: inputs[name] for name in ("image_grid_thw", "video_grid_thw") if name in inputs}
        if grids:
            positions, _ = model.model.get_rope_index(ids, mm_token_type_ids=kinds, **grids)
    return states, model.model.language_model.rotary_emb(states, positions), stacked


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
    if hasattr(attention, "q_norm"):
        query, keys = attention.q_norm(query), attention.k_norm(keys)
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
    unit = [states[0, p].double() / states[0, p].double().norm() for p in candidates]
    table = [(torch.stack(unit) - one).norm(dim=1).tolist() for one in unit]
    distance = {p: dict(zip(candidates, row, strict=True)) for p, row in zip(candidates, table, strict=True)}
    chosen = sorted(candidates, key=lambda p: -score[p])[:anchors] or [candidates[0]]
    while len(chosen) < count:
        rest = [p for p in candidates if p not in chosen]
        chosen.append(max(rest, key=lambda p: min(distance[p][c] for c in chosen)))
    return sorted(chosen[:count])
