"""Train an embedded model: ``python -m tiny_vlm.train tiny-qwen2.5-vl --out runs/qwen``.

The schedule is warm-up, constant, linear decay. In its second part most batches carry an image-swap prefix: in the
first d decoder layers the text sees the visual tokens of ANOTHER picture, from layer d on the right ones. What is read
in those layers is then worthless, so the reading moves deeper, where pruning can be studied. The swap is one roll of
the visual rows; it is exact, because the visual prefix never depends on the text behind it.

``tiny-qwen2.5-vl-sparse`` starts from the weights of ``tiny-qwen2.5-vl`` and keeps its vision tower. Most of its
batches hold a lesson about the deep layers (see ``tiny_vlm.lessons``).

A run writes ``log.csv`` (losses), ``accuracy.csv`` (validation), and ``state.pt``, from which it resumes by itself.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from tiny_vlm import load
from tiny_vlm.family import Family
from tiny_vlm.lessons import GAZE_LAYER, answers_of_others, gaze, gaze_loss, keep_few
from tiny_vlm.llava import TinyLlava
from tiny_vlm.objectives import WEIGHTS, AuxiliaryHeads
from tiny_vlm.packing import Batch, Packer, block_mask
from tiny_vlm.qwen import TinyQwen

SPARSE = "tiny-qwen2.5-vl-sparse"
FAMILIES: dict[str, type[Family]] = {"tiny-qwen2.5-vl": TinyQwen, "tiny-llava": TinyLlava, SPARSE: TinyQwen}


@dataclass(frozen=True)
class Lesson:
    """What a batch teaches besides its answers. At most one of the two is given.

    ``stale`` is the layer from which on visual rows are frozen, ``few`` the one from which on a question sees few.
    """

    stale: int | None = None
    few: int | None = None


PLAIN = Lesson()


@dataclass(frozen=True)
class Recipe:
    """One training run; every field is written into the log."""

    model: str
    steps: int
    batch_size: int = 16
    muon_rate: float = 2.5e-3
    adam_rate: float = 1.5e-3
    warmup: int = 80
    swap_after: int = 1300  # steps; from then on batches are swapped
    swap_depths: tuple[tuple[int, float], ...] = ((0, 0.15), (2, 0.60), (3, 0.25))  # depth d, probability
    decay_from: float = 0.8
    clutter_steps: int = 400  # clutter grows from 0.2 to 1 over these
    seed: int = 0
    evaluate_every: int = 250
    autocast: bool = True  # bfloat16 matrix products, float32 weights
    start: str = ""  # embedded model whose weights the run starts from, its tower kept; empty: random weights
    lessons: tuple[tuple[str, int, float], ...] = ()  # field of Lesson, layer, probability; the rest are plain batches

    def rate(self, step: int) -> float:
        """Learning rate as a share of its peak."""
        decay = (1 - step / self.steps) / (1 - self.decay_from)
        return min((step + 1) / self.warmup, 1.0, max(decay, 0.02))

    def swap_depth(self, step: int) -> int:
        if step < self.swap_after:
            return 0
        depths, probabilities = zip(*self.swap_depths, strict=True)
        return random.Random(f"{self.seed}/{step}").choices(depths, probabilities)[0]

    def lesson(self, step: int) -> Lesson:
        draw = random.Random(f"{self.seed}/{step}/lesson").random()
        for name, layer, probability in self.lessons:
            if draw < probability:
                return Lesson(**{name: layer})
            draw -= probability
        return PLAIN


RECIPES = {
    "tiny-qwen2.5-vl": Recipe("tiny-qwen2.5-vl", 4000),
    "tiny-llava": Recipe("tiny-llava", 4000),
    SPARSE: Recipe(
        SPARSE,
        steps=1500,
        muon_rate=1e-3,
        adam_rate=6e-4,
        warmup=40,
        swap_after=0,
        swap_depths=((0, 0.3), (2, 0.3), (3, 0.4)),
        decay_from=0.65,
        clutter_steps=1,
        seed=1,  # other pictures than those of the first steps of tiny-qwen2.5-vl
        start="tiny-qwen2.5-vl",
        lessons=(("stale", 6, 0.10), ("stale", 7, 0.15), ("stale", 8, 0.15), ("few", 7, 0.30), ("few", 8, 0.15)),
    ),
}


def decode(
    model: PreTrainedModel,
    batch: Batch,
    features: Tensor,
    visual: slice,
    swap: int = 0,
    blind: int | None = None,
    lesson: Lesson = PLAIN,
) -> list[Tensor]:
    """Run the decoder over a packed batch.

    Parameters
    ----------
    features : Tensor
        [B, V, D], what stands at the visual positions.
    swap : int
        The first ``swap`` layers see the neighbouring row's picture.
    blind : int, optional
        From this layer on the text no longer attends to the picture.
    lesson : Lesson
        Which visual rows the deep layers change and show.

    Returns
    -------
    list of Tensor
        Output of each layer, [B, L, D]; the last one is normalised.
    """
    lm = model.model.language_model
    embedded = lm.embed_tokens(batch.ids)

    def with_picture(states: Tensor, picture: Tensor) -> Tensor:
        return torch.cat([states[:, : visual.start], picture, states[:, visual.stop :]], dim=1)

    states = before = with_picture(embedded, features.roll(1, 0) if swap else features)
    rotary = rotary_of(model, states, batch)
    mask = block_mask(batch.segments)
    outputs = []
    for index, layer in enumerate(lm.layers):
        if swap and index == swap:
            states = with_picture(states, states[:, visual].roll(-1, 0))
        if index == blind:
            mask = mask.clone()
            mask[:, :, visual.stop :, visual] = False
        if index == lesson.few:
            mask = keep_few(mask, gaze(model, index - 1, before, rotary, batch, visual), batch, visual)
        before, states = states, layer(states, attention_mask=mask, position_embeddings=rotary)
        if lesson.stale is not None and index >= lesson.stale:
            states = with_picture(states, before[:, visual])
        outputs.append(states)
    outputs.append(lm.norm(states))
    return outputs


def rotary_of(model: PreTrainedModel, states: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the positions, [B or 1, L, head_dim]."""
    positions = batch.positions if len(batch.positions) == 3 else batch.positions[0]
    return model.model.language_model.rotary_emb(states, positions)


@torch.no_grad()
def validate(family: Family, model: PreTrainedModel, packer: Packer, images: int, blind: int | None = None) -> dict:
    """Share of questions answered exactly (teacher-forced argmax), per task and macro, on the validation split."""
    correct = defaultdict(list)
    device = next(model.parameters()).device
    for step in range(images // 16):
        batch = to_device(packer.batch("validation", 0, step, 16), device)
        with torch.autocast(device.type, torch.bfloat16):
            states = decode(model, batch, family.features(model, batch.pixels), packer.visual, blind=blind)[-1]
            predicted = model.lm_head(states).argmax(-1)
        for row, spans in enumerate(batch.spans):
            for task, start, end in spans:
                correct[task].append(torch.equal(predicted[row, start - 1 : end - 1], batch.ids[row, start:end]))
    scores = {task: sum(hits) / len(hits) for task, hits in sorted(correct.items())}
    return {**scores, "macro": sum(scores.values()) / len(scores), "questions": sum(map(len, correct.values()))}


def to_device(batch: Batch, device: torch.device) -> Batch:
    moved = {name: value.to(device) for name, value in vars(batch).items() if isinstance(value, Tensor)}
    return replace(batch, **moved)  # type: ignore[arg-type]


def optimizers(recipe: Recipe, model: nn.Module, heads: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of both stacks, AdamW for embeddings, heads, norms and biases."""
    matrices: list[nn.Parameter] = []
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        table = "embed" in name or "lm_head" in name
        (plain if parameter.ndim < 2 else matrices if parameter.ndim == 2 and not table else decayed).append(parameter)
    groups = [
        {"params": decayed + list(heads.parameters()), "weight_decay": 0.05},
        {"params": plain, "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups, recipe.adam_rate, betas=(0.9, 0.98))
    muon = torch.optim.Muon(
        matrices, recipe.muon_rate, weight_decay=0.05, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    for optimizer in (adam, muon):
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return [adam, muon]


class Trainer:
    """One run in one folder."""

    def __init__(self, recipe: Recipe, out: Path, device: str) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.out, self.device = recipe, out, torch.device(device)
        self.family = FAMILIES[recipe.model]()
        self.packer = Packer(self.family)
        self.model = self.family.build().to(self.device).train()
        if recipe.start:
            self.model.load_state_dict(load(recipe.start)[0].state_dict())
        self.heads = AuxiliaryHeads(self.model.config.text_config.hidden_size).to(self.device)
        self.optimizers = optimizers(recipe, self.model, self.heads)
        self.step, self.seconds = 0, 0.0
        out.mkdir(parents=True, exist_ok=True)
        if self.state_file.exists():
            self.resume()
        else:
            (out / "recipe.json").write_text(json.dumps(asdict(recipe), indent=2) + "\n")
        self.family.speed_up(self.model)

    @property
    def state_file(self) -> Path:
        return self.out / "state.pt"

    def save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "heads": self.heads.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "seconds": self.seconds,
        }
        partial = self.state_file.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, self.state_file)

    def resume(self) -> None:
        """Go on from the last state; the recipe must be the one that the run was started with."""
        begun = json.loads((self.out / "recipe.json").read_text())
        asked = json.loads(json.dumps(asdict(self.recipe)))
        changed = [
            f"{name} was {begun.get(name)}, now {asked[name]}" for name in asked if begun.get(name) != asked[name]
        ]
        if changed:
            raise ValueError(f"{self.out} holds a run of another recipe ({'; '.join(changed)}): use an empty folder")
        state = torch.load(self.state_file, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.seconds = state["step"], state["seconds"]
        for name in ("log.csv", "accuracy.csv"):
            _drop_rows_after(self.out / name, self.step)

    def train_step(self) -> dict[str, float]:
        recipe, step = self.recipe, self.step
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * recipe.rate(step)
        clutter = min(1.0, 0.2 + 0.8 * step / recipe.clutter_steps)
        batch = to_device(self.packer.batch("training", recipe.seed, step, recipe.batch_size, clutter), self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=recipe.autocast):
            losses = self.losses(batch, recipe.swap_depth(step), recipe.lesson(step))
        share = 1 - 0.7 * step / recipe.steps  # the auxiliary losses fade to 0.3 of their weight
        auxiliary = sum(weight * losses[name] for name, weight in WEIGHTS.items() if name in losses)
        (losses["stale" if "stale" in losses else "answer"] + share * auxiliary).backward()
        nn.utils.clip_grad_norm_([*self.model.parameters(), *self.heads.parameters()], 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return {name: loss.item() for name, loss in losses.items()}

    def losses(self, batch: Batch, swap: int, lesson: Lesson) -> dict[str, Tensor]:
        """Cross-entropy of the answers and of every auxiliary head, in nats; a stale batch has others' answers only."""
        visual = self.packer.visual
        with torch.set_grad_enabled(not self.recipe.start):
            features = self.family.features(self.model, batch.pixels)
        states = decode(self.model, batch, features, visual, swap, lesson=lesson)
        answers = batch.labels[:, 1:] >= 0
        logits = self.model.lm_head(states[-1][:, :-1][answers])
        if lesson.stale is not None:
            return {"stale": F.cross_entropy(logits, answers_of_others(batch)[:, 1:][answers])}
        losses = {"answer": F.cross_entropy(logits, batch.labels[:, 1:][answers])}
        if not self.recipe.start:
            losses |= self.heads.feature_losses(features, batch)
        losses |= self.heads.layer_losses(states, visual, batch)
        if self.recipe.lessons:
            seen = states[GAZE_LAYER - 1]
            looks = gaze(self.model, GAZE_LAYER, seen, rotary_of(self.model, seen, batch), batch, visual)
            losses["gaze"] = gaze_loss(looks, batch)
        return losses

    def run(self) -> None:
        window: list[dict[str, float]] = []
        while self.step < self.recipe.steps:
            started = time.perf_counter()
            window.append(self.train_step())
            self.step += 1
            self.seconds += time.perf_counter() - started
            if self.step % 25 == 0:
                names = {name: None for row in window for name in row}
                means = {name: fmean(row[name] for row in window if name in row) for name in names}
                self.log("log.csv", {"step": self.step, "minutes": self.seconds / 60, **means})
                window.clear()
            if self.step % self.recipe.evaluate_every == 0 or self.step == self.recipe.steps:
                self.validate(64)
                self.save()
        self.export()

    def validate(self, images: int) -> None:
        middle = self.model.config.text_config.num_hidden_layers // 2
        for blind in (None, 2, middle):
            scores = validate(self.family, self.model, self.packer, images, blind)
            self.log("accuracy.csv", {"step": self.step, "blind_from": "" if blind is None else blind, **scores})

    def export(self) -> None:
        """Checkpoint folder in bfloat16 with tokenizer, processor and chat template."""
        folder = self.out / "checkpoint"
        clean = self.family.build()
        clean.load_state_dict(self.model.state_dict())
        clean = clean.to(torch.bfloat16)
        tokenizer = self.packer.tokenizer
        clean.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(self.family.answer_end)
        clean.generation_config.pad_token_id = tokenizer.pad_token_id
        clean.save_pretrained(folder)
        self.packer.processor.save_pretrained(folder)

    def log(self, name: str, row: dict) -> None:
        row = {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}
        path = self.out / name
        new = not path.exists()
        columns = list(row) if new else _columns(path)
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, columns, restval="")
            if new:
                writer.writeheader()
            writer.writerow(row)
        print(json.dumps(row), flush=True)


def _columns(path: Path) -> list[str]:
    with path.open(newline="") as file:
        return next(csv.reader(file))


def _drop_rows_after(path: Path, step: int) -> None:
    if path.exists():
        header, *rows = path.read_text().splitlines()
        kept = [row for row in rows if int(row.split(",")[0]) <= step]
        path.write_text("\n".join([header, *kept]) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=list(FAMILIES))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, help="default: as the recipe says")
    parser.add_argument("--seed", type=int, help="default: as the recipe says")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves PyTorch's own choice")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    changes = {name: getattr(args, name) for name in ("steps", "seed") if getattr(args, name) is not None}
    Trainer(replace(RECIPES[args.model], **changes), args.out, args.device).run()


if __name__ == "__main__":
    main()
