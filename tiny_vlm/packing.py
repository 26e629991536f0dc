"""Training batches: several questions about one picture in one sequence, each a true single turn.

Every question sees the picture and itself, never another question (a block mask), and its positions restart right after
the picture. So the logits of each question equal those of a sequence that holds it alone, at a fraction of the cost.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from tokenizers import Encoding
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from halfv_data.drawing import (
    COLOURS,
    GLYPH_HEIGHT,
    GLYPH_WIDTH,
    SHAPES,
    SIZE,
    Number,
    Scene,
    Split,
    Thing,
    draw_scene,
    scene_rng,
)
from halfv_data.questions import TASKS, Question, ask
from tiny_vlm.family import IMAGE_SIDE, VISUAL_TOKENS, Family

LENGTH = 304  # tokens in a packed sequence
# Questions a picture: more of the tasks that are learnt last, one of each other task.
COUNTING, EXISTENCE = 2, 3
NO_COLOUR, NO_SHAPE, NO_DIGIT = len(COLOURS), len(SHAPES), 10
TOKEN = SIZE // IMAGE_SIDE  # px


@dataclass
class Batch:
    """B sequences of L tokens. Labels are -100, and places -1, where there is nothing to learn."""

    pixels: Tensor  # as the image processor gives them
    ids: Tensor  # [B, L]
    labels: Tensor  # [B, L]
    positions: Tensor  # [1 or 3, B, L]
    segments: Tensor  # [B, L], 0 picture, 1.. questions, -1 padding
    centres: Tensor  # [B, VISUAL_TOKENS], 1 under the middle of a shape
    colours: Tensor  # [B, VISUAL_TOKENS]
    shapes: Tensor  # [B, VISUAL_TOKENS]
    digits: Tensor  # [B, VISUAL_TOKENS, 4], one for each 8 px quarter of a token
    named: Tensor  # [B, L], visual token under the thing that this word names
    target: Tensor  # [B, L], grid cell of the answer, on the last token of the question
    spans: list[list[tuple[str, int, int]]]  # per row: task, first and last + 1 answer token


class Packer:
    """Makes the batch of a step; the same (split, seed, step) gives the same batch."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self.processor = family.processor()
        self.tokenizer: PreTrainedTokenizerFast = self.processor.tokenizer
        before, after = (self._encode(text).ids for text in family.prefix)
        image = self.tokenizer.convert_tokens_to_ids(family.image_token)
        self.prefix = torch.tensor(before + [image] * VISUAL_TOKENS + after)
        self.visual = slice(len(before), len(before) + VISUAL_TOKENS)
        self.prefix_positions = family.prefix_positions(len(before), len(after))

    def batch(self, split: Split, seed: int, step: int, size: int, clutter: float = 1.0) -> Batch:
        scenes, questions = [], []
        for index in range(step * size, (step + 1) * size):
            rng = scene_rng(split, seed, index)
            scene = draw_scene(rng, clutter)
            scenes.append(scene)
            questions.append(questions_about(scene, rng))
        return self._pack(scenes, questions)

    def _encode(self, text: str) -> Encoding:
        return self.tokenizer(text, add_special_tokens=False)._encodings[0]

    def _pack(self, scenes: list[Scene], questions: list[list[Question]]) -> Batch:
        images = self.processor.image_processor([scene.image for scene in scenes], return_tensors="pt")
        size, start = len(scenes), len(self.prefix)
        batch = Batch(
            pixels=images["pixel_values"],
            ids=torch.full((size, LENGTH), self.tokenizer.pad_token_id),
            labels=torch.full((size, LENGTH), -100),
            positions=torch.zeros(self.prefix_positions.shape[0], size, LENGTH, dtype=torch.long),
            segments=torch.full((size, LENGTH), -1),
            centres=torch.stack([_centre_labels(scene) for scene in scenes]),
            colours=torch.stack([_shape_labels(scene)[0] for scene in scenes]),
            shapes=torch.stack([_shape_labels(scene)[1] for scene in scenes]),
            digits=torch.stack([_digit_labels(scene) for scene in scenes]),
            named=torch.full((size, LENGTH), -1),
            target=torch.full((size, LENGTH), -1),
            spans=[[] for _ in scenes],
        )
        batch.ids[:, :start] = self.prefix
        batch.segments[:, :start] = 0
        batch.positions[:, :, :start] = self.prefix_positions[:, None]
        for row, asked in enumerate(questions):
            end = start
            for block, question in enumerate(asked, 1):
                end = self._append(batch, row, block, end, question)
        return batch

    def _append(self, batch: Batch, row: int, block: int, start: int, question: Question) -> int:
        """Write one question behind the others; return the new end (unchanged if it does not fit)."""
        asked = self._encode(question.text + self.family.question_end)
        answer = self._encode(question.answer + self.family.answer_end).ids
        middle, end = start + len(asked.ids), start + len(asked.ids) + len(answer)
        if end > LENGTH:
            return start
        batch.ids[row, start:end] = torch.tensor(asked.ids + answer)
        batch.labels[row, middle:end] = torch.tensor(answer)
        batch.segments[row, start:end] = block
        batch.positions[:, row, start:end] = self.prefix_positions.max() + 1 + torch.arange(end - start)
        batch.spans[row].append((question.task, middle, end))
        character = 0
        for thing in question.named:
            word = thing.text if isinstance(thing, Number) else thing.shape
            character = question.text.index(word, character) + len(word)
            if (token := asked.char_to_token(character - 1)) is not None:
                batch.named[row, start + token] = _visual_token(thing)
        if question.target is not None:
            batch.target[row, middle - 1] = question.target
        return end


def questions_about(scene: Scene, rng: random.Random) -> list[Question]:
    """What a training sequence asks about a scene, in random order."""
    asked = [q for task in TASKS for q in ask(scene, task, rng)[: COUNTING if task == "counting" else 1]]
    asked += [q for _ in range(EXISTENCE - 1) for q in ask(scene, "existence", rng)]
    draws = [rng.random() for _ in asked]
    return [asked[i] for i in sorted(range(len(asked)), key=draws.__getitem__)]


def block_mask(segments: Tensor) -> Tensor:
    """Who may attend to whom, bool [B, 1, L, L]: causal, the picture for all, a question only for itself."""
    same = segments[:, None, :] == segments[:, :, None]
    picture = segments[:, None, :] == 0
    length = segments.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    itself = torch.eye(length, dtype=torch.bool, device=segments.device)  # padding must attend to something
    return (((same | picture) & causal) | itself)[:, None]


def _visual_token(thing: Thing) -> int:
    """Index of the visual token under the middle of a thing."""
    x, y = float(thing.x), float(thing.y)
    if isinstance(thing, Number):
        x, y = x + thing.scale * (GLYPH_WIDTH + 0.5), y + thing.scale * GLYPH_HEIGHT / 2
    return int(y // TOKEN) * IMAGE_SIDE + int(x // TOKEN)


def _shape_labels(scene: Scene) -> tuple[Tensor, Tensor]:
    """Colour and shape index of the thing under the middle of each visual token."""
    colours = torch.full((IMAGE_SIDE, IMAGE_SIDE), NO_COLOUR)
    shapes = torch.full((IMAGE_SIDE, IMAGE_SIDE), NO_SHAPE)
    middle = torch.arange(IMAGE_SIDE) * TOKEN + TOKEN / 2
    for thing in scene.shapes:
        covered = (middle[:, None] - thing.y) ** 2 + (middle[None] - thing.x) ** 2 < thing.radius**2
        colours[covered] = list(COLOURS).index(thing.colour)
        shapes[covered] = SHAPES.index(thing.shape)
    return colours.flatten(), shapes.flatten()


def _centre_labels(scene: Scene) -> Tensor:
    """1 at the visual tokens under the middle of a shape, [VISUAL_TOKENS]: one token a shape, whatever its size."""
    centres = torch.zeros(VISUAL_TOKENS, dtype=torch.long)
    centres[[_visual_token(thing) for thing in scene.shapes]] = 1
    return centres


def _digit_labels(scene: Scene) -> Tensor:
    """Digit under the middle of each 8 px quarter of each visual token, [VISUAL_TOKENS, 4]."""
    side = 2 * IMAGE_SIDE
    digits = torch.full((side, side), NO_DIGIT)
    middle = torch.arange(side) * (TOKEN // 2) + TOKEN / 4
    for number in scene.numbers:
        rows = (middle >= number.y) & (middle < number.y + GLYPH_HEIGHT * number.scale)
        for position, digit in enumerate(number.text):
            left = number.x + position * (GLYPH_WIDTH + 1) * number.scale
            columns = (middle >= left) & (middle < left + GLYPH_WIDTH * number.scale)
            digits[rows[:, None] & columns[None]] = int(digit)
    return digits.view(IMAGE_SIDE, 2, IMAGE_SIDE, 2).transpose(1, 2).reshape(VISUAL_TOKENS, 4)
