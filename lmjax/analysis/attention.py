"""Figures of attention: where each position of a text reads, and which source tokens a decoder reads for each target.

Attention probabilities show what a layer mixes, and are no proof of what decided a prediction (Jain and Wallace 2019,
arXiv:1902.10186, section 4).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lmjax.analysis.figures import new_figure, plain
from lmjax.analysis.inside import matching, record
from lmjax.errors import FlagError
from lmjax.inference.loaded import LoadedModel
from lmjax.inference.texts import Text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Inches of a figure's maps, which are as wide as a page, and of a token's row or column.
_WIDTH, _CELL = 9.0, 0.2


class AttentionMaps(NamedTuple):
    """The probabilities of one kind of attention in all layers and heads.

    Attributes:
        name: "self-attention", with the side before it if there are two sides; or "cross-attention".
        queries: what the rows are called: of cross-attention, the tokens that are predicted there.
        keys: what the columns are called.
        weights: `[layers, heads, queries, keys]`.
    """

    name: str
    queries: list[str]
    keys: list[str]
    weights: np.ndarray


def all_attention(loaded: LoadedModel, fields: Mapping[str, np.ndarray]) -> list[AttentionMaps]:
    """Returns the attention of every layer and head for a row, without padding; of an encoder-decoder, three kinds.

    Args:
        loaded: the model.
        fields: of the row, `[1, length]` each, as `LoadedModel.rows` makes them.
    """
    sides = [side.prefix for side in loaded.config.family.sides]
    kinds = [(side, "attention", side) for side in sides]
    if loaded.config.family.paired:
        kinds.append((sides[1], "cross_attention", sides[0]))
    weights, found = _weights(loaded, fields, kinds), []
    for (prefix, end, keys), probabilities in zip(kinds, weights, strict=True):
        rows, name = tokens_of(loaded, fields, prefix), f"{prefix.replace('_', ' ')}self-attention"
        if end == "cross_attention":
            # The position that reads a token predicts the one after it.
            rows, name = [*rows[1:], "(next)"], "cross-attention"
        found.append(AttentionMaps(name, rows, tokens_of(loaded, fields, keys), probabilities))
    return found


def self_weights(loaded: LoadedModel, fields: Mapping[str, np.ndarray], prefix: str) -> np.ndarray:
    """Returns `[layers, heads, queries, keys]`, the self-attention of a side of a row, without padding."""
    return _weights(loaded, fields, [(prefix, "attention", prefix)])[0]


def tokens_of(loaded: LoadedModel, fields: Mapping[str, np.ndarray], prefix: str) -> list[str]:
    """Returns the tokens of a side of a row, without padding."""
    real = fields[f"{prefix}segment_ids"][0] > 0
    return token_texts(loaded, fields[f"{prefix}tokens"][0][real])


def _weights(
    loaded: LoadedModel, fields: Mapping[str, np.ndarray], kinds: Sequence[tuple[str, str, str]]
) -> list[np.ndarray]:
    """Returns `[layers, heads, queries, keys]` of each kind: the side of its queries, its name, the side of its keys.

    One forward pass records all of them.
    """
    names = [f"{prefix.replace('_', '/')}layer_*/{end}/weights" for prefix, end, _ in kinds]
    found, weights = record(loaded, fields, names), []
    for name, (prefix, _, keys) in zip(names, kinds, strict=True):
        q, k = (int((fields[f"{side}segment_ids"][0] > 0).sum()) for side in (prefix, keys))
        weights.append(np.stack([found[each][0, :, :q, :k] for each in matching([name], found)]))
    return weights


def self_attention(loaded: LoadedModel, text: Text, layer: int = -1) -> Figure:
    """Returns a figure of the attention probabilities of a layer: a map for each head, with a row for each query.

    Args:
        loaded: the model; of an encoder-decoder, its encoder is shown.
        text: what it reads.
        layer: number of the layer; -1: the last.

    Raises:
        FlagError: there is no such layer, or the model cannot read the text.
    """
    found = loaded([text], output_attentions=True)
    found = found.encoder or found
    weights = _of_layer(found.attentions, layer)
    names = token_texts(loaded, found.tokens[0][found.mask[0]])
    return attention_maps(weights, names, names, [f"head {i}" for i in range(len(weights))])


def alignment(loaded: LoadedModel, source: Text, target: Text, layer: int | None = None) -> Figure:
    """Returns a figure of cross-attention: which source tokens the decoder reads to predict each target token.

    A learned alignment (Bahdanau et al. 2015, arXiv:1409.0473, section 5.2.1). The heads of a layer are averaged.

    Args:
        loaded: an encoder-decoder.
        source: what its encoder reads.
        target: what its decoder predicts.
        layer: number of a layer of the decoder; None: a map for each of them.

    Raises:
        FlagError: the model is no encoder-decoder, there is no such layer, or the model cannot read the texts.
    """
    if not loaded.config.family.paired:
        raise FlagError(f"an alignment needs an encoder-decoder, and this is a {loaded.config.family.label}")
    found = loaded([source], targets=[target], output_attentions=True)
    layers = range(len(found.cross_attentions)) if layer is None else [layer]
    # The position that reads token i predicts token i + 1, so a row is named by the token after it.
    targets = found.tokens[0][found.mask[0]][1:]
    weights = np.stack([_of_layer(found.cross_attentions, i).mean(axis=0) for i in layers])
    sources = token_texts(loaded, found.encoder.tokens[0][found.encoder.mask[0]])
    return attention_maps(weights, token_texts(loaded, targets), sources, [f"layer {i}" for i in layers])


def attention_maps(
    weights: np.ndarray, queries: Sequence[str], keys: Sequence[str], titles: Sequence[str] = ()
) -> Figure:
    """Returns a figure of maps of attention probabilities, darker where more is read; all have one scale from 0.

    Args:
        weights: `[maps, queries, keys]`; rows and columns beyond the names are padding and are left out.
        queries: the tokens of the rows.
        keys: the tokens of the columns.
        titles: of the maps.
    """
    width, height = max(1.6, _CELL * len(keys)), max(1.2, _CELL * len(queries))
    across = max(1, min(len(weights), int(_WIDTH / (width + 0.3))))
    down = -(-len(weights) // across)
    # Names are beside the first map of a row and below the last map of a column only.
    figure = new_figure(across * (width + 0.3) + 1.2, down * (height + 0.35) + 1.0)
    grid = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
    shown = np.asarray(weights, np.float32)[:, : len(queries), : len(keys)]
    for i, axes in enumerate(grid.flat):
        if i >= len(shown):
            axes.set_axis_off()
            continue
        image = axes.imshow(shown[i], cmap="Blues", vmin=0.0, vmax=shown.max(), aspect="auto")
        axes.set_xticks(range(len(keys)), plain(keys), rotation=90, fontsize=8)
        axes.set_yticks(range(len(queries)), plain(queries), fontsize=8)
        axes.tick_params(length=0, labelbottom=i + across >= len(shown), labelleft=i % across == 0)
        if titles:
            axes.set_title(titles[i], fontsize=9)
    figure.colorbar(image, ax=grid, label="attention probability", fraction=0.03, shrink=0.8)
    return figure


def token_texts(loaded: LoadedModel, ids: Sequence[int]) -> list[str]:
    """Returns the text of each token as it is shown on an axis: a special token by its role, such as [CLS]."""
    tokenizer = loaded.tokenizer
    roles = {i: f"[{role.upper()}]" for role, i in tokenizer.role_ids.items()}
    sentinels = {int(i): f"<{n}>" for n, i in enumerate(tokenizer.sentinel_ids)} if tokenizer.sentinels else {}
    texts = []
    for token in map(int, ids):
        # A model may have more rows than its tokenizer has tokens.
        piece = tokenizer.pieces[token].decode(errors="replace") if token < tokenizer.vocab_size else ""
        # A space before a word is visible as the mark of SentencePiece.
        texts.append(
            piece.replace(" ", "▁").replace("\n", "↵") or roles.get(token) or sentinels.get(token, f"<{token}>")
        )
    return texts


def _of_layer(weights: Sequence[np.ndarray], layer: int) -> np.ndarray:
    """Returns `[heads, queries, keys]` of the only text; raises FlagError if there is no such layer."""
    if not -len(weights) <= layer < len(weights):
        raise FlagError(f"layer={layer}: the model has {len(weights)} layers, from 0 to {len(weights) - 1}")
    return weights[layer][0]
