"""The workloads of the generation benchmark: a published model, prompts of random tokens, tokens to generate.

They are plain numbers, so that the workers of both sides read them without importing the other side's libraries.
"""

import dataclasses

import numpy as np
from workloads import LLAMA_1B


@dataclasses.dataclass(frozen=True)
class Workload:
    """A model, its prompts and the number of tokens to generate.

    Attributes:
        preset: the model's name in lmjax.
        family: of transformers' classes.
        batch: prompts.
        beams: beams for each prompt; 1: greedy.
        prompt: tokens of a prompt.
        new: tokens generated for it.
        peer: fields of transformers' config that differ from its defaults.
    """

    preset: str
    family: str
    batch: int = 1
    beams: int = 1
    prompt: int = 32
    new: int = 64
    peer: tuple[tuple[str, object], ...] = ()


WORKLOADS = {
    # For two CPU cores.
    "gpt2_1": Workload("gpt2", "gpt2"),
    "gpt2_8": Workload("gpt2", "gpt2", batch=8),
    "gpt2_beam5": Workload("gpt2", "gpt2", beams=5),
    # For one accelerator.
    "llama_1b_1": Workload("llama3_2_1b", "llama", prompt=512, new=256, peer=LLAMA_1B),
    "llama_1b_32": Workload("llama3_2_1b", "llama", batch=32, prompt=512, new=256, peer=LLAMA_1B),
    # For the tests of the benchmark itself.
    "tiny": Workload("nano_decoder", "gpt2", new=8, peer=(("n_layer", 2), ("n_embd", 64), ("n_head", 2))),
}


def prompt_tokens(workload: Workload, vocab_size: int) -> np.ndarray:
    """Returns int32 `[batch, prompt]` random tokens."""
    return np.random.default_rng(0).integers(5, vocab_size, (workload.batch, workload.prompt), np.int32)
