"""A worker with transformers' model (or nanoGPT's) and torch's AdamW, no dropout, gradients clipped as in lmjax."""

import argparse

from worker import serve
from workloads import WORKLOADS, Workload, random_tokens

MODELS = {
    "gpt2": ("GPT2Config", "GPT2LMHeadModel"),
    "llama": ("LlamaConfig", "LlamaForCausalLM"),
    "bert": ("BertConfig", "BertForMaskedLM"),
    "t5": ("T5Config", "T5ForConditionalGeneration"),
}
NO_DROPOUT = {
    "gpt2": ("resid_pdrop", "embd_pdrop", "attn_pdrop"),
    "llama": ("attention_dropout",),
    "bert": ("hidden_dropout_prob", "attention_probs_dropout_prob"),
    "t5": ("dropout_rate",),
}


def build_nanogpt(workload: Workload, compiled: bool):
    """Returns what `build` returns, for nanoGPT's step."""
    import nanogpt
    import torch

    torch.manual_seed(0)
    vocab_size = int(dict(workload.fields)["model.vocab_size"])
    model = nanogpt.Model(vocab_size)
    optimizer, forward = nanogpt.make_optimizer(model), torch.compile(model) if compiled else model
    tokens = torch.from_numpy(random_tokens(workload, vocab_size)["source"]).long()
    batch = tokens, tokens.roll(-1, dims=1)

    def run(steps: int) -> float:
        for _ in range(steps):
            loss = nanogpt.update(forward, model, optimizer, batch)
        return float(loss.detach())

    facts = {"parameters": sum(p.numel() for p in model.parameters()), "versions": f"torch {torch.__version__}"}
    return run, lambda: facts


def build(workload: Workload, dtype: str, compiled: bool, device: str, attention: str):
    """Returns a function that runs steps, and one that returns facts for the first line of the benchmark."""
    if workload.family == "nanogpt":
        return build_nanogpt(workload, compiled)
    import torch
    import transformers

    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    config_class, model_class = MODELS[workload.family]
    fields = dict(workload.peer) | dict.fromkeys(NO_DROPOUT[workload.family], 0.0)
    config = getattr(transformers, config_class)(**fields)
    model = getattr(transformers, model_class)._from_config(config, attn_implementation=attention)
    model = model.to(device).train()
    model.config.use_cache = False
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    tokens = {k: torch.from_numpy(v).long().to(device) for k, v in random_tokens(workload, config.vocab_size).items()}
    batch = {"input_ids": tokens["source"], "labels": tokens["source"]}
    if workload.target_length:
        batch["labels"] = tokens["target"]
    elif workload.mask_rate:
        masked = torch.zeros_like(tokens["source"], dtype=torch.bool).scatter_(1, tokens["masked"], value=True)
        batch["input_ids"] = torch.where(masked, 4, tokens["source"])
        batch["labels"] = torch.where(masked, tokens["source"], -100)

    forward = torch.compile(model) if compiled else model

    def step() -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = forward(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    def run(steps: int) -> float:
        for _ in range(steps):
            loss = step()
        return float(loss.detach())

    return run, lambda: {
        "parameters": sum(p.numel() for p in model.parameters()),
        "versions": f"torch {torch.__version__}, transformers {transformers.__version__}",
    }


def main() -> None:
    """Serves the workload of the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workload", required=True, choices=WORKLOADS)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--attention", default="sdpa")
    args = parser.parse_args()
    serve(lambda: build(WORKLOADS[args.workload], args.dtype, args.compile, args.device, args.attention))


if __name__ == "__main__":
    main()
