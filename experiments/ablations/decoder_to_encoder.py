"""A decoder turned into an encoder against an encoder from nothing, at equal FLOPs, with 3 seeds (arXiv:2404.05961).

    lmjax train --steps=480 --workdir=runs/decoder
    lmjax sweep --sweep=experiments/ablations/decoder_to_encoder.py --workdir=sweeps/decoder_to_encoder --run

The decoder is the default one. Its 480 updates and the 120 of masked language modelling after them, 20 % of all, spend
5.2e12 FLOPs; an encoder with the same layers spends as much in 799 updates of masked language modelling alone. The
seeds are those of the encoders; the decoder is the same for all.
"""

from lmjax.sweep.space import Sweep, chain, param, product, seeds

DECODER = "runs/decoder"


def get_sweep() -> Sweep:
    """Returns the sweep."""
    turned = product(param("init_from", [DECODER]), param("steps", [120]))
    from_nothing = product(param("preset", ["nano_decoder"]), param("tokenizer.path", [DECODER]), param("steps", [799]))
    return Sweep(
        product(chain(turned, from_nothing), seeds(3)),
        base={"objective": "mlm", "architecture": "encoder", "length": 128, "evaluation.every": 60},
    )
