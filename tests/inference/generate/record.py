"""Records results of transformers' `generate`: for every case a checkpoint, 200 prompts, and texts with their scores.

python tests/inference/generate/record.py                # the cases that have no folder yet
python tests/inference/generate/record.py gpt2 llama     # these, again

The texts are generated with float64 weights, from prompts of one length at a time and so without padding. A prompt for
which transformers itself gives another text in float32, in a batch of mixed lengths, is not recorded, because its text
depends on rounding.
"""

from __future__ import annotations

import json
import pathlib
import shutil
import sys
from collections.abc import Sequence

import numpy as np
import tokenizers
import torch
import transformers

from tests.inference.generate.cases import (
    CASES,
    LONGEST_PROMPT,
    NEW_TOKENS,
    PAD,
    PROMPTS,
    TEXT,
    VOCAB,
    Case,
    Run,
    runs,
)

FOLDER = pathlib.Path(__file__).parent / "recorded"
TRAINING_STEPS, TRAINED_STOP, SPARE = 600, 1, 40


def build(case: Case) -> torch.nn.Module:
    """Returns a model whose parameters are all random, without zeros or ones, unless it is to be trained."""
    torch.manual_seed(0)
    model_class = getattr(transformers, case.model)
    model = model_class(model_class.config_class(**case.config))
    if not case.trained:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if not parameter.requires_grad:  # a table of sines
                    continue
                # Large parameters and sharp attention: texts of the random models differ and do not depend on rounding.
                std = 0.1 if parameter.ndim == 1 else 0.9 if "att" in name.lower() else 0.3
                parameter.copy_(torch.randn_like(parameter) * std)
                if parameter.ndim == 1 and name.endswith("weight"):  # of a norm
                    parameter.add_(1.0)
    model.tie_weights()
    return model.eval()


def walk(rng: np.random.Generator, length: int) -> list[int]:
    """Returns a text of a small language: steps through the ids of text, which depend on the id before the last."""
    places = rng.integers(0, VOCAB - TEXT, 2).tolist()
    for _ in range(length):
        steps = ((1, 3, 7), (2, 5, 11))[places[-2] % 2]
        places.append(int(places[-1] + rng.choice(steps, p=[0.55, 0.3, 0.15])) % (VOCAB - TEXT))
    return [TEXT + i for i in places[2:]]


def ended(rng: np.random.Generator, ids: Sequence[int]) -> list[int]:
    """Returns a text that may end after every fourth id."""
    ends = (i + 1 for i, token in enumerate(ids) if token % 4 == 0 and rng.random() < 0.3)
    return [*ids[: next(ends, len(ids))], TRAINED_STOP]


def train(model: torch.nn.Module) -> None:
    """Trains a decoder on walks, and an encoder-decoder to answer a text with one that steps from each of its ids.

    The entropy of the language is about 1.1.
    """
    rng = np.random.default_rng(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(TRAINING_STEPS):
        if model.config.is_encoder_decoder:
            sources = np.array([walk(rng, length) for length in [int(rng.integers(1, LONGEST_PROMPT + 1))] * 32])
            steps = rng.choice([1, 3], size=sources.shape, p=[0.7, 0.3])
            targets = TEXT + (sources - TEXT + steps) % (VOCAB - TEXT)
            labels = np.pad(targets, ((0, 0), (0, 1)), constant_values=TRAINED_STOP)
            loss = model(input_ids=torch.tensor(sources), labels=torch.tensor(labels)).loss
        else:
            rows = [ended(rng, walk(rng, 24)) for _ in range(32)]
            tokens = torch.tensor([row + [PAD] * (25 - len(row)) for row in rows])
            loss = model(input_ids=tokens, labels=tokens.masked_fill(tokens == PAD, -100)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    print("loss", loss.item())


def padded(prompts: Sequence[Sequence[int]], *, left: bool) -> dict[str, torch.Tensor]:
    """Returns prompts as a batch."""
    width = max(map(len, prompts))
    gaps = [width - len(p) for p in prompts]
    rows = [[PAD] * n + [*p] if left else [*p] + [PAD] * n for p, n in zip(prompts, gaps, strict=True)]
    mask = [[0] * n + [1] * len(p) if left else [1] * len(p) + [0] * n for p, n in zip(prompts, gaps, strict=True)]
    return {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(mask)}


def written(
    model: torch.nn.Module, prompts: Sequence[Sequence[int]], run: Run, stop: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns ids `[prompts, num_return, NEW_TOKENS]`, lengths and scores; a stop id is the last id of its text.

    A beam's score is that of transformers; a greedy text's is the sum of its log-probabilities before penalties.
    """
    pairs = model.config.is_encoder_decoder
    batch = padded(prompts, left=not pairs)
    out = model.generate(
        **batch,
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
        eos_token_id=stop,
        num_beams=run.beams,
        length_penalty=run.length_penalty if run.beams > 1 else None,
        early_stopping=run.early_stopping if run.beams > 1 else None,
        num_return_sequences=run.num_return,
        repetition_penalty=run.repetition_penalty,
        no_repeat_ngram_size=run.no_repeat_ngram or None,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
    )
    found = out.sequences[:, 1 if pairs else batch["input_ids"].shape[1] :].numpy()
    ids = np.full((len(found), NEW_TOKENS), PAD)
    ids[:, : found.shape[1]] = found
    ends = ids == stop
    lengths = np.where(ends.any(1), 1 + ends.argmax(1), NEW_TOKENS)
    ids[np.arange(NEW_TOKENS) >= lengths[:, None]] = PAD
    if run.beams > 1:
        scores = out.sequences_scores.numpy()
    else:
        logs = torch.stack(out.logits, 1).log_softmax(-1).numpy()
        gained = np.take_along_axis(logs, ids[:, : logs.shape[1], None], axis=-1)[..., 0]
        scores = np.where(np.arange(logs.shape[1]) < lengths[:, None], gained, 0).sum(1)
    shape = (len(prompts), run.num_return)
    return ids.reshape(*shape, -1), lengths.reshape(shape), scores.reshape(shape)


def truth(
    model: torch.nn.Module, prompts: Sequence[Sequence[int]], run: Run, stop: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the texts generated without any padding."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    parts = []
    for length in sorted({len(p) for p in prompts}):
        parts.append(written(model, [prompts[i] for i in order if len(prompts[i]) == length], run, stop))
    return tuple(np.concatenate(x)[np.argsort(order)] for x in zip(*parts, strict=True))


def stop_of(model: torch.nn.Module, prompts: Sequence[Sequence[int]]) -> int:
    """Returns the id that most texts have in their middle but not earlier."""
    ids = truth(model, prompts[:60], Run(), None)[0][:, 0]
    first = np.stack([np.where((ids == i).any(1), (ids == i).argmax(1), NEW_TOKENS) for i in range(VOCAB)])
    inside = ((first > 3) & (first < NEW_TOKENS)).mean(1) - 2 * (first < 2).mean(1)
    return TEXT + int(np.argmax(inside[TEXT:]))


def save_tokenizer(folder: pathlib.Path) -> None:
    """Writes a tokenizer with one letter for each id; texts are compared as ids, but `load_model` needs a tokenizer."""
    pieces = ["<pad>", "</s>", "<s>", *"abcdefghijklmnopqrstuvwxyz0123456789."]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token="<pad>"))
    tokenizer.add_special_tokens(pieces[:TEXT])
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)


def record(name: str, folder: pathlib.Path) -> None:
    """Writes the folder of a case."""
    case = CASES[name]
    model, rng = build(case), np.random.default_rng(1)
    lengths = 1 + np.arange(PROMPTS + SPARE) % LONGEST_PROMPT
    if case.trained:
        train(model)
        prompts, stop = [walk(rng, n) for n in lengths], TRAINED_STOP
    else:
        prompts = [rng.integers(TEXT, VOCAB, n).tolist() for n in lengths]
        stop = stop_of(model.double(), prompts)
    model.float()
    model.config.eos_token_id = model.generation_config.eos_token_id = stop
    model.generation_config.forced_eos_token_id = None
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    save_tokenizer(folder)

    batches = [prompts[i : i + 20] for i in range(0, len(prompts), 20)]
    ragged = [
        tuple(np.concatenate(x) for x in zip(*(written(model, b, run, stop) for b in batches), strict=True))
        for run in runs(case)
    ]
    model.double()
    true = [truth(model, prompts, run, stop) for run in runs(case)]
    agree = [(a[0] == b[0]).all((1, 2)) for a, b in zip(true, ragged, strict=True)]
    kept = np.flatnonzero(np.all(agree, axis=0))[:PROMPTS]
    assert len(kept) == PROMPTS, f"{name}: only {len(kept)} prompts do not depend on rounding"
    tensors = {"prompts": padded([prompts[i] for i in kept], left=False)["input_ids"].numpy().astype(np.uint8)}
    for i, (ids, length, scores) in enumerate(true):
        tensors |= {f"ids.{i}": ids[kept].astype(np.uint8), f"lengths.{i}": length[kept].astype(np.uint8)}
        tensors[f"scores.{i}"] = scores[kept].astype(np.float32)
    np.savez_compressed(folder / "texts.npz", **tensors)
    undecided = [int((~a).sum()) for a in agree]
    about = {"runs": [run._asdict() for run in runs(case)], "prompts_looked_at": len(prompts), "undecided": undecided}
    (folder / "about.json").write_text(json.dumps(about, indent=1) + "\n")
    stopped = [f"{(x[1][kept] < NEW_TOKENS).mean():.2f}" for x in true]
    kinds = [len(np.unique(x[0][kept, 0], axis=0)) for x in true]
    print(name, "stop", stop, "stopped", stopped, "different texts", kinds, "undecided", undecided)


if __name__ == "__main__":
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    for wanted in sys.argv[1:] or [n for n in CASES if not (FOLDER / n).is_dir()]:
        record(wanted, FOLDER / wanted)
        print(wanted, sum(f.stat().st_size for f in (FOLDER / wanted).iterdir()) // 1024, "KiB")
