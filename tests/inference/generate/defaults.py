"""Files of generation settings like those of published models, with which recorded models generate.

`python tests/inference/generate/defaults.py` records transformers' texts with them again, in `defaults.npz` of the
recorded models; it needs torch and transformers.
"""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any

import numpy as np

from tests.inference.generate.cases import PAD, START, TEXT

FOLDER = pathlib.Path(__file__).parent / "recorded"
COUNT = 60
_IDS = {"pad_token_id": PAD, "bos_token_id": START, "eos_token_id": 1}
# A decoder's text ids go from 3 to 39; trained decoders step through them by 1, 3 or 7.
_DECODER: tuple[dict[str, Any], ...] = (
    {"max_new_tokens": 12, "repetition_penalty": 1.4, "no_repeat_ngram_size": 2},
    {"max_new_tokens": 12, "suppress_tokens": [*range(TEXT, TEXT + 9)], "begin_suppress_tokens": [20, 21, 22, 1]},
    {"max_new_tokens": 12, "bad_words_ids": [[10], [15, 16], [18, 21], [21, 24, 27], [1], [30, 31, 32, 33]]},
    {"max_new_tokens": 9, "forced_eos_token_id": 1, "min_new_tokens": 5},
    {"max_new_tokens": 14, "min_length": 14, "forced_eos_token_id": [1, 5]},
    {"max_new_tokens": 10, "num_beams": 4, "length_penalty": 2.0, "early_stopping": True, "forced_eos_token_id": 1}
    | {"bad_words_ids": [[15, 16], [18, 21]], "suppress_tokens": [7]},
    # With top_k=1, sampling has only one id to draw.
    {"max_new_tokens": 10, "do_sample": True, "top_k": 1, "temperature": 0.6, "top_p": 0.9},
    {"max_new_tokens": 10, "do_sample": False, "temperature": 0.6, "top_p": 0.9, "typical_p": 0.9},
)
_PAIRS: tuple[dict[str, Any], ...] = (
    {"max_length": 8, "forced_eos_token_id": 1, "forced_bos_token_id": START},
    {"max_length": 12, "min_length": 9, "num_beams": 3, "early_stopping": True, "length_penalty": 2.0}
    | {"forced_eos_token_id": 1, "no_repeat_ngram_size": 3},
    {"max_length": 12, "begin_suppress_tokens": [*range(TEXT, TEXT + 9)], "forced_bos_token_id": START},
    {"max_length": 10, "bad_words_ids": [[START, 10], [10, 11], [PAD]], "num_beams": 4, "forced_eos_token_id": 1},
)
# As in all published translation models.
_MARIAN = {"max_length": 12, "num_beams": 4, "renormalize_logits": True, "forced_eos_token_id": 1}
_MARIAN |= {"bad_words_ids": [[PAD], [20], [21], [22], [9, 10]]}
SETTINGS = {
    "gpt2_trained": _DECODER,
    "llama": _DECODER[:4],
    "bart_trained": _PAIRS,
    "marian_trained": (_PAIRS[1], _MARIAN),
}


def settings(name: str) -> list[dict[str, Any]]:
    """Returns the contents of generation_config.json for each group of settings of a model."""
    config = json.loads((FOLDER / name / "config.json").read_text())
    ids = {key: config[key] for key in (*_IDS, "decoder_start_token_id") if config.get(key) is not None}
    return [_IDS | ids | each for each in SETTINGS[name]]


def prompts(name: str) -> list[list[int]]:
    """Returns the recorded model's first prompts."""
    with np.load(FOLDER / name / "texts.npz") as texts:
        return [row[row != PAD].tolist() for row in texts["prompts"][:COUNT]]


def record(name: str) -> None:
    """Writes the padded texts `[settings, prompts, tokens]` of a model; none of them depends on rounding."""
    import torch
    import transformers

    torch.set_num_threads(1)
    config = json.loads((FOLDER / name / "config.json").read_text())
    model = getattr(transformers, config["architectures"][0]).from_pretrained(FOLDER / name).eval()
    found = np.full((len(SETTINGS[name]), COUNT, 40), PAD, np.uint8)
    for i, values in enumerate(settings(name)):
        for j, prompt in enumerate(prompts(name)):
            written = []
            for dtype in (torch.float32, torch.float64):
                model.to(dtype).generation_config = transformers.GenerationConfig(**values)
                torch.manual_seed(0)
                out = model.generate(input_ids=torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)).long())
                written.append(out[0, 1 if config.get("is_encoder_decoder") else len(prompt) :].tolist())
            found[i, j, : len(written[1])] = written[1]
            assert written[0] == written[1], (name, values, prompt)
        print(name, i, len(np.unique(found[i], axis=0)), "different texts")
    np.savez_compressed(FOLDER / name / "defaults.npz", ids=found)


if __name__ == "__main__":
    for each in sys.argv[1:] or SETTINGS:
        record(each)
