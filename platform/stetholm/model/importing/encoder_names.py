"""Names of the COLA encoder's weights: ``efficientnet_pytorch``'s, as in the published files, and ours.

The network is the same, EfficientNet-B0 behind a 1-to-3 convolution; only the names differ.
"""

from __future__ import annotations

import re

TOWER = "model.audio_tower."

_PLACES = {
    "cnn1": "stem",
    "efficientnet._conv_stem": "efficientnet.embeddings.convolution",
    "efficientnet._bn0": "efficientnet.embeddings.batchnorm",
    "efficientnet._conv_head": "efficientnet.encoder.top_conv",
    "efficientnet._bn1": "efficientnet.encoder.top_bn",
}
_BLOCK_PLACES = {
    "_expand_conv": "expansion.expand_conv",
    "_bn0": "expansion.expand_bn",
    "_depthwise_conv": "depthwise_conv.depthwise_conv",
    "_bn1": "depthwise_conv.depthwise_norm",
    "_se_reduce": "squeeze_excite.reduce",
    "_se_expand": "squeeze_excite.expand",
    "_project_conv": "projection.project_conv",
    "_bn2": "projection.project_bn",
}
_BLOCK = re.compile(r"efficientnet\._blocks\.(\d+)\.(\w+)")


def encoder_place(key: str) -> str | None:
    """Our name of ``efficientnet._blocks.0._bn1.weight``, ``cnn1.bias`` …; None if there is none."""
    layer, _, weight = key.rpartition(".")
    block = _BLOCK.fullmatch(layer)
    if block is None:
        place = _PLACES.get(layer)
        return place and f"{TOWER}{place}.{weight}"
    place = _BLOCK_PLACES.get(block[2])
    return place and f"{TOWER}efficientnet.encoder.blocks.{block[1]}.{place}.{weight}"
