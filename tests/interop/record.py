"""Records results of transformers: for every case a checkpoint, its outputs, a loss and all gradients.

python tests/interop/record.py                # the cases that have no folder yet
python tests/interop/record.py gpt2 llama     # these, again
"""

from __future__ import annotations

import copy
import inspect
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Collection

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.interop.cases import CASES, Case

FOLDER = pathlib.Path(__file__).parent / "recorded"
# Outputs that are compared, by transformers' names.
OUTPUTS = ("logits", "prediction_logits", "seq_relationship_logits", "sop_logits")
OUTPUTS += ("start_logits", "end_logits", "pooler_output")


def build(case: Case, seed: int) -> torch.nn.Module:
    """Returns a model whose parameters are all random, without zeros or ones."""
    torch.manual_seed(seed)
    model_class = getattr(transformers, case.model)
    model = model_class(model_class.config_class(**case.config))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:  # a table of sines
                continue
            parameter.copy_(torch.randn_like(parameter) * (0.1 if parameter.ndim == 1 else 0.2))
            if parameter.ndim == 1 and "norm" in name.lower() and name.endswith("weight"):
                parameter.add_(1.0)
        if hasattr(model, "final_logits_bias"):
            model.final_logits_bias.normal_(std=0.5)
    model.tie_weights()
    if case.config.get("tie_word_embeddings") is False and model.config.tie_word_embeddings:
        # transformers 5 ties every T5 and writes that into config.json; the published files do not.
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight) * 0.2)
    return model.eval()


def rows(rng: np.random.Generator, case: Case, vocab_size: int, pad: int, *, left: bool) -> dict[str, torch.Tensor]:
    """Returns tokens and mask: a full row, five tokens, six at the row's end if `left`, the same six at its start."""
    length = case.length
    tokens, mask = np.full((4, length), pad), np.zeros((4, length), np.int64)
    # Above the special ids: some models compute positions from the padding id.
    texts = [rng.integers(5, vocab_size, n) for n in (length, 5, 6)]
    for row, text in enumerate((*texts, texts[2])):
        place = slice(length - len(text), length) if row == 2 and left else slice(0, len(text))
        tokens[row, place], mask[row, place] = text, 1
    return {"tokens": torch.tensor(tokens), "mask": torch.tensor(mask)}


def positions(case: Case, mask: torch.Tensor) -> torch.Tensor:
    """Returns the positions that the model gives the tokens."""
    places = torch.arange(mask.shape[1]).expand(mask.shape)
    return (mask.cumsum(-1) - 1).clip(min=0) if case.counted else places


def forward(case: Case, model: torch.nn.Module, batch: dict[str, torch.Tensor]):
    """Returns transformers' outputs for a recorded batch."""
    values = {"input_ids": batch["tokens"], "attention_mask": batch["mask"]}
    if "decoder_tokens" in batch:
        values |= {"decoder_input_ids": batch["decoder_tokens"], "decoder_attention_mask": batch["decoder_mask"]}
    elif case.counted and case.told and "position_ids" in inspect.signature(model.forward).parameters:
        values["position_ids"] = batch["positions"]
    if "type_ids" in batch:
        values["token_type_ids"] = batch["type_ids"]
    return model(**values, output_hidden_states=True)


def make_batch(case: Case, model: torch.nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """Returns a batch: tokens, mask, positions, and token types or a decoder's side if the model has them."""
    rng, config = np.random.default_rng(seed), model.config.get_text_config()
    pad = 0 if config.pad_token_id is None else config.pad_token_id
    batch = rows(rng, case, config.vocab_size, pad, left=case.left)
    batch["positions"] = positions(case, batch["mask"])
    if getattr(config, "type_vocab_size", 0) == 2:
        batch["type_ids"] = torch.tensor(rng.integers(0, 2, batch["tokens"].shape))
    if config.is_encoder_decoder:
        side = rows(rng, case, config.vocab_size, pad, left=False)
        batch |= {f"decoder_{name}": values for name, values in side.items()}
    return batch


def names(output: dict[str, torch.Tensor]) -> list[str]:
    """Returns the names of the outputs to compare, or of the hidden states for a model without outputs."""
    return [key for key in OUTPUTS if output.get(key) is not None] or ["last_hidden_state"]


def losses(out: dict[str, torch.Tensor], mask: torch.Tensor, rng: np.random.Generator) -> dict[str, torch.Tensor]:
    """Returns labels and weights for every output, and the loss: cross-entropies over the last axis."""
    result, total = {}, 0.0
    for name, values in out.items():
        if values.shape == mask.shape:  # a choice among the tokens
            values = values.masked_fill(mask == 0, -1e4)
            labels, weights = torch.tensor(rng.integers(0, 5, len(mask))) % mask.sum(-1), torch.ones(len(mask))
            labels = labels + mask.argmax(-1)
        else:
            labels = torch.tensor(rng.integers(0, values.shape[-1], values.shape[:-1]))
            weights = mask.float() if values.ndim == 3 else torch.ones(len(values))
        picked = torch.log_softmax(values, -1).gather(-1, labels[..., None])[..., 0]
        total = total - (picked * weights).sum() / weights.sum()
        result |= {f"label.{name}": labels, f"weight.{name}": weights}
    return result | {"loss": total}


def gradients(model: torch.nn.Module, names: Collection[str]) -> dict[str, torch.Tensor]:
    """Returns the gradients under the names of the parameters on disk, `names`."""
    # None: the loss does not depend on the parameter, such as the pooler of a model without a head.
    found = {
        key: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for key, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    if found.keys() <= set(names):
        return found
    # As of experts, one parameter here and many tensors there: saved in the parameters' place, they come out so.
    same = copy.deepcopy(model)
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        for key, parameter in same.named_parameters():
            parameter.copy_(found[key])
        same.save_pretrained(folder)
        return load_file(pathlib.Path(folder) / "model.safetensors")


def record(name: str, folder: pathlib.Path, seed: int = 0) -> None:
    """Writes the folder of a case."""
    case = CASES[name]
    model = build(case, seed)
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    batch = make_batch(case, model, seed)
    output = forward(case, model, batch)
    hidden = output.get("decoder_hidden_states") or output.get("hidden_states")
    compared = {key: output[key] for key in names(output)}
    extra = losses(compared, batch.get("decoder_mask", batch["mask"]), np.random.default_rng(seed))
    model.zero_grad()
    extra["loss"].backward()
    tensors = batch | extra | {f"out.{key}": values for key, values in compared.items()} | {"hidden": hidden[-1]}
    tensors |= {
        f"grad.{key}": gradient for key, gradient in gradients(model, load_file(folder / "model.safetensors")).items()
    }
    save_file({k: v.detach().contiguous().clone() for k, v in tensors.items()}, folder / "expected.safetensors")
    (folder / "generation_config.json").unlink(missing_ok=True)


if __name__ == "__main__":
    for wanted in sys.argv[1:] or [n for n in CASES if not (FOLDER / n).is_dir()]:
        record(wanted, FOLDER / wanted)
        print(wanted, sum(f.stat().st_size for f in (FOLDER / wanted).iterdir()) // 1024, "KiB")
