r"""Position schemes, trained on rows of 64 tokens (Press et al. 2022, arXiv:2108.12409; Kazemnejad et al. 2023).

    lmjax sweep --sweep=experiments/ablations/positions.py --workdir=sweeps/positions --run \
        --data=input.txt --config.data.split=tail
    lmjax evaluate --workdir=sweeps/positions/runs/NAME --data=tail.txt --max_length=256

The data is tiny Shakespeare, whose last tenth is held out; `tail -c 111540 input.txt > tail.txt` writes it. Evaluation
with --max_length=64, 128 and 256 shows what a scheme does with rows longer than those of training.
"""

from lmjax.sweep.space import Sweep, chain, param, product, seeds


def get_sweep() -> Sweep:
    """Returns the sweep."""
    others = param("model.positions", ["learned", "rope", "alibi", "none", "relative"])
    # Embeddings as in Vaswani et al. 2017, section 3.4: small ones drown in the sines.
    sinusoidal = product(
        param("model.positions", ["sinusoidal"]),
        param("model.embedding.scale", [True]),
        param("model.initializer", ["xavier"]),
    )
    return Sweep(
        product(chain(others, sinusoidal), seeds(3)),
        base={"objective": "next_token", "length": 64, "model.max_length": 256, "steps": 1000},
    )
