"""The best decoder within 15 CPU minutes on the embedded corpus: two cores for seven and a half minutes.

Each variant adds one change to the variant before it, so that a table of them shows the effect of each change. The
first has GPT-2's choices at the size of the default run; the last is the final recipe. The number of updates is what
fits into the time at the variant's speed, which was measured on a quiet machine, so that results do not depend on other
work on the machine.

    lmjax train --config=experiments/speedrun.py:gpt2
    lmjax train --config=experiments/speedrun.py

Hardware: two CPU cores, 7.5 minutes each. Result, held-out nats per token: 3.740 (gpt2), 3.305 (rate), 3.336 (block),
3.082 (rope), 2.946 (muon); experiments/README.md has the table.
"""

from lmjax.config import Config, replace
from lmjax.data.tokenizer import TokenizerConfig
from lmjax.model.config import ModelConfig
from lmjax.objectives.task import TaskConfig
from lmjax.training.checkpoint import CheckpointConfig
from lmjax.training.evaluate import EvaluationConfig
from lmjax.training.hyperparameters import OptimizerConfig

# The change of each variant, in order, and the number of updates that then fit into the time.
STEPS = {
    "gpt2": {"steps": 1_940},
    "rate": {"optimizer.learning_rate": 4e-3},
    "block": {
        "model.norm": "rmsnorm",
        "model.biases": (),
        "model.mlp": "swiglu",
        "model.mlp_dim": 384,
        "steps": 1_680,
    },
    "rope": {"model.positions": "rope"},
    "muon": {"optimizer.name": "muon", "steps": 1_330},
}
VARIANTS = ("", "gpt2", "rate", "block", "rope", "muon")


def get_config(variant: str = "") -> Config:
    """Returns the recipe, or the earlier variant that `variant` names."""
    config = Config(
        batch_size=16,
        task=TaskConfig(objective=("next_token",), length=128),
        model=ModelConfig(
            architecture="decoder",
            vocab_size=0,
            embed_dim=128,
            num_heads=4,
            mlp_dim=512,
            num_layers=4,
            max_length=128,
            initializer="scaled",
            scan_layers=False,
        ),
        tokenizer=TokenizerConfig(vocab_size=2048),
        optimizer=OptimizerConfig(learning_rate=6e-4, warmup_steps=100, final_ratio=0.02),
        evaluation=EvaluationConfig(every=500, batches=32),
        checkpoint=CheckpointConfig(every=500),
    )
    for name, fields in STEPS.items():
        config = replace(config, fields)
        if name == variant:
            break
    return config
