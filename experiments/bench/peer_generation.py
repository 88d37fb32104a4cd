"""A worker with transformers' `generate` and its cache, with random weights of the same shapes."""

import argparse
import time

from generation_workloads import WORKLOADS, Workload, prompt_tokens
from worker import serve

MODELS = {"gpt2": ("GPT2Config", "GPT2LMHeadModel"), "llama": ("LlamaConfig", "LlamaForCausalLM")}


def build(workload: Workload, dtype: str, compiled: bool, device: str):
    """Returns a function that generates texts, and one that returns facts for the first line of the benchmark."""
    import torch
    import transformers

    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    config_class, model_class = MODELS[workload.family]
    config = getattr(transformers, config_class)(**dict(workload.peer))
    model = getattr(transformers, model_class)(config).to(device=device, dtype=getattr(torch, dtype)).eval()
    inputs = torch.from_numpy(prompt_tokens(workload, config.vocab_size)).long().to(device)
    arguments = {
        "attention_mask": torch.ones_like(inputs),
        "max_new_tokens": workload.new,
        "min_new_tokens": workload.new,
        "do_sample": False,
        "num_beams": workload.beams,
        "pad_token_id": 0,
    }
    if compiled:
        arguments["cache_implementation"] = "static"
        model.forward = torch.compile(model.forward)

    class First(transformers.StoppingCriteria):
        """Records the time of the first token."""

        at = None

        def __call__(self, ids: torch.Tensor, scores: torch.Tensor, **_: object) -> torch.Tensor:
            self.at = self.at or time.perf_counter()
            return torch.zeros(ids.shape[0], dtype=torch.bool, device=ids.device)

    def run(times: int) -> float:
        firsts = []
        for _ in range(times):
            first, start = First(), time.perf_counter()
            with torch.no_grad():
                model.generate(inputs, stopping_criteria=[first], **arguments)
            if device != "cpu":
                torch.cuda.synchronize()
            firsts.append(first.at - start)
        return min(firsts)

    return run, lambda: {"versions": f"torch {torch.__version__}, transformers {transformers.__version__}"}


def main() -> None:
    """Serves the workload of the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workload", required=True, choices=WORKLOADS)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    serve(lambda: build(WORKLOADS[args.workload], args.dtype, args.compile, args.device))


if __name__ == "__main__":
    main()
