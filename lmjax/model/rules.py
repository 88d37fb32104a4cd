"""The rules between fields of different groups of a ModelConfig, each with the error message for a broken one.

A rule about the fields of one group is a validator of that group, in groups.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmjax.model.codes import FORMS
from lmjax.model.positions import SCHEMES

if TYPE_CHECKING:
    from lmjax.model.config import ModelConfig

Rules = tuple[tuple[bool, str], ...]


def problems(config: ModelConfig) -> Rules:
    """Returns every rule between fields as (whether it is broken, error message)."""
    return (*_sizes(config), *_positions(config), *_layers(config), *_ends(config), *_codes(config))


# A model with more parameters fits on no machine, and its shapes overflow 32 bits.
_MOST_PARAMETERS = 10**14


def _sizes(config: ModelConfig) -> Rules:
    """Returns the rules on sizes, on heads and on the number of layers."""
    return (
        (
            config.least_parameters > _MOST_PARAMETERS,
            f"vocab_size={config.vocab_size}, embed_dim={config.embed_dim}, num_heads={config.num_heads},"
            f" mlp_dim={config.mlp_dim} and num_layers={config.num_layers} make at least"
            f" {config.least_parameters:.1e} parameters, more than any machine holds; lower the largest of them",
        ),
        (
            config.head_dim is None and config.embed_dim % config.num_heads != 0,
            f"embed_dim={config.embed_dim} is not a multiple of num_heads={config.num_heads}; change one, or head_dim",
        ),
        (
            config.num_heads % config.kv_heads != 0,
            f"num_heads={config.num_heads} is not a multiple of num_kv_heads={config.num_kv_heads}; change one of them",
        ),
        (
            config.num_decoder_layers is not None and not config.family.paired,
            f"num_decoder_layers={config.num_decoder_layers} is for architecture=encoder_decoder; with"
            f" architecture={config.architecture} set num_layers",
        ),
    )


def _positions(config: ModelConfig) -> Rules:
    """Returns the rules on positions: those of every scheme, and those on positions of a decoder."""
    own = (rule for scheme in SCHEMES.values() for rule in scheme.problems(config, scheme in config.schemes))
    return (
        *own,
        (
            not config.family.paired and (config.decoder_positions is not None or config.cross_positions != "none"),
            f"decoder_positions={config.decoder_positions} and cross_positions={config.cross_positions} are for"
            f" architecture=encoder_decoder; with architecture={config.architecture} set positions",
        ),
    )


def _layers(config: ModelConfig) -> Rules:
    """Returns the rules on the structure and the initialisation of a layer."""
    moe, attention = config.moe, config.attention
    return (
        (
            config.family.continues and (attention.global_tokens or attention.global_block),
            f"attention.global_tokens={attention.global_tokens} and attention.global_block={attention.global_block} are"
            " for encoders, because a token of a decoder sees no later one; set attention.sink_tokens",
        ),
        (
            not attention.decoder_window and not config.family.paired,
            f"attention.decoder_window=False is for architecture=encoder_decoder, not {config.architecture}; set it to"
            " True",
        ),
        (
            attention.global_block > 0 and attention.global_every > 0 and config.scan_layers,
            f"attention.global_block={attention.global_block} gives layers with a window more parameters than those"
            f" without one (attention.global_every={attention.global_every}), which cannot be scanned; set"
            " scan_layers=False",
        ),
        (
            config.block == "parallel" and config.norm_position == "post",
            "norm_position=post normalises after a single branch, and block=parallel adds several; use another"
            " norm_position",
        ),
        (
            config.block == "parallel_shared" and not config.pre_norm,
            f"block=parallel_shared shares the norm before its branches, and norm_position={config.norm_position} has"
            " none; use pre or sandwich",
        ),
        (
            not config.first_norm
            and (not config.pre_norm or config.block != "sequential" or config.scan_layers or config.share_layers),
            "first_norm=False leaves out one norm, that before the attention of the first layer, which is not possible"
            f" with block={config.block}, norm_position={config.norm_position}, scan_layers={config.scan_layers} and"
            f" share_layers={config.share_layers}; set block=sequential, norm_position=pre, scan_layers=False and"
            " share_layers=False",
        ),
        (
            config.norm_offset and not config.norm_scale,
            "norm_offset=True needs a learned scale, which norm_scale=False leaves out; change one of them",
        ),
        (
            config.share_layers and config.initializer == "depth_scaled",
            "initializer=depth_scaled initialises each layer differently, and share_layers=True has one layer for all;"
            " change one of them",
        ),
        (
            moe.num_experts > 0 and moe.every > 1 and (config.scan_layers or config.share_layers),
            f"moe.every={moe.every} gives layers of different shapes, which cannot be scanned or shared; set"
            " scan_layers=False and share_layers=False",
        ),
    )


def _ends(config: ModelConfig) -> Rules:
    """Returns the rules on embeddings and outputs."""
    return (
        (
            0 < config.vocab_size <= config.embedding.padding,
            f"embedding.padding={config.embedding.padding} leaves none of the vocab_size={config.vocab_size} rows for"
            " tokens; lower it",
        ),
        (
            config.embedding.types > 0 and not config.family.token_types,
            f"embedding.types={config.embedding.types}: an {config.family.label} has no token types; set"
            " embedding.types=0",
        ),
        (
            config.head.transform and not config.family.vocabulary_heads,
            f"head.transform=True is for architecture=encoder, not {config.architecture}; set head.transform=False",
        ),
        (
            config.family.causal and (config.head.classifier, config.head.pooling) != ("tanh", "first"),
            f"head.classifier={config.head.classifier} and head.pooling={config.head.pooling} are for"
            f" architecture=encoder, not {config.architecture}; set tanh and first",
        ),
    )


def _codes(config: ModelConfig) -> Rules:
    """Returns the rules on kernels in few bits."""
    chosen = config.quantization
    if chosen.weights == "none":
        return ()
    group = chosen.group or 1
    unit = 2 if FORMS[chosen.weights].bits == 4 else 1
    return tuple(
        rule
        for name, width in kernel_widths(config).items()
        for rule in (
            (
                width % group != 0,
                f"quantization.group={group} does not divide {name}={width}; choose a divisor of all widths, or 0",
            ),
            (
                width % unit != 0,
                f"quantization.weights={chosen.weights} keeps two codes in a byte, and {name}={width} is odd; take"
                " int8",
            ),
        )
    )


def kernel_widths(config: ModelConfig) -> dict[str, int]:
    """Returns the numbers of inputs of the kernels in layers, by the fields that they follow from."""
    moe = config.moe
    return {
        "embed_dim": config.embed_dim,
        "num_heads * head_dim": config.num_heads * config.width_of_head,
        "mlp_dim": config.mlp_dim if moe.mlp_dim is None or not moe.num_experts else moe.mlp_dim,
    }
