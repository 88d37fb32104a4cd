"""nanoGPT's training step on torch, written anew from its description, as a peer of the training benchmark.

    python experiments/bench/nanogpt.py --data=input.txt     # checks it: the published recipe for a CPU, 2,000 steps

nanoGPT's README gives 1.88 nats per character on the last tenth of tiny Shakespeare for that recipe: 4 layers of width
128, context 64, batch 12, no dropout, learning rate 1e-3 with 100 steps of warm-up and a cosine to 1e-4.
"""

import argparse
import math
import pathlib
import time

import torch
from torch import nn
from torch.nn import functional

WIDTH, HEADS, LAYERS, CONTEXT, BATCH = 128, 4, 4, 64, 12
PUBLISHED = 1.88
PEAK_RATE, LEAST_RATE, WARMUP = 1e-3, 1e-4, 100


class Layer(nn.Module):
    """Attention and MLP before norms without biases, as `bias=False` makes them."""

    def __init__(self):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH, bias=False) for _ in range(2))
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.up = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.down = nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns `[batch, length, width]`."""
        batch, length, _ = x.shape
        parts = self.qkv(self.norms[0](x)).split(WIDTH, dim=2)
        query, key, value = (part.view(batch, length, HEADS, -1).transpose(1, 2) for part in parts)
        y = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(y.transpose(1, 2).contiguous().view(batch, length, WIDTH))
        return x + self.down(functional.gelu(self.up(self.norms[1](x))))


class Model(nn.Module):
    """The decoder, with one table for inputs and outputs and learned positions."""

    def __init__(self, vocab_size: int):
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, WIDTH)
        self.positions = nn.Embedding(CONTEXT, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH, bias=False)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                residual = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * LAYERS) if residual else 0.02)

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Returns the mean loss in nats per token."""
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1]))
        for layer in self.layers:
            x = layer(x)
        logits = functional.linear(self.norm(x), self.tokens.weight)
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """Returns AdamW, with weight decay for matrices alone; torch's fused form is for a GPU in nanoGPT."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.99))


def update(forward: nn.Module, model: nn.Module, optimizer: torch.optim.Optimizer, batch: tuple) -> torch.Tensor:
    """Returns the loss, after one update with gradients clipped to a norm of 1."""
    loss = forward(*batch)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss


def check(path: pathlib.Path, steps: int) -> float:
    """Returns the loss on the held-out tenth after the published recipe."""
    torch.manual_seed(1337)
    text = path.read_text()
    ids = {c: i for i, c in enumerate(sorted(set(text)))}
    data = torch.tensor([ids[c] for c in text])
    parts = data[: int(0.9 * len(data))], data[int(0.9 * len(data)) :]
    model = Model(len(ids))
    optimizer = make_optimizer(model)

    def batch(part: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        starts = torch.randint(len(part) - CONTEXT, (BATCH,))
        rows = torch.stack([part[i : i + CONTEXT + 1] for i in starts])
        return rows[:, :-1], rows[:, 1:]

    start = time.perf_counter()
    for step in range(steps):
        cosine = 0.5 * (1 + math.cos(math.pi * max(step - WARMUP, 0) / (steps - WARMUP)))
        rate = LEAST_RATE + cosine * (PEAK_RATE - LEAST_RATE)
        for group in optimizer.param_groups:
            group["lr"] = PEAK_RATE * (step + 1) / (WARMUP + 1) if step < WARMUP else rate
        update(model, model, optimizer, batch(parts[0]))
    seconds = time.perf_counter() - start
    with torch.no_grad():
        loss = sum(float(model(*batch(parts[1]))) for _ in range(200)) / 200
    print(
        f"{loss:.3f} nats per character after {steps} steps, {PUBLISHED} published; {1e3 * seconds / steps:.1f} ms/step"
    )
    return loss


def main() -> None:
    """Checks the step against the published loss."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=pathlib.Path, help="tiny Shakespeare, input.txt")
    parser.add_argument("--steps", default=2000, type=int)
    args = parser.parse_args()
    check(args.data, args.steps)


if __name__ == "__main__":
    main()
