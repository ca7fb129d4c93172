"""The page's example recordings: synthetic, made when first asked for, always the same bytes."""

from __future__ import annotations

from functools import cache

import numpy as np

from stetholm.audio.decode import Sound, encode_flac
from stetholm.audio.synth import DEVICES, HEART_CONDITIONS, LUNG_CONDITIONS, synthesize_heart, synthesize_lung

SECONDS = 7.0
EXAMPLES = {
    "heart-normal": ("heart", None, "Heart, normal"),
    "heart-murmur": ("heart", "aortic stenosis", "Heart, systolic murmur"),
    "lung-normal": ("lung", None, "Lungs, normal"),
    "lung-wheeze": ("lung", "asthma", "Lungs, wheezes"),
}
"""By name: organ, condition, and what the page calls it."""


@cache
def example(name: str) -> bytes:
    """FLAC bytes of an example.

    Raises:
        KeyError: there is none of that name.
    """
    organ, condition, _ = EXAMPLES[name]
    rng = np.random.default_rng(list(EXAMPLES).index(name))
    if organ == "heart":
        heart = HEART_CONDITIONS[condition] if condition else None
        made = synthesize_heart(heart, site="aortic area", device=DEVICES[0], rng=rng, grade=4, seconds=SECONDS)
    else:
        lung = LUNG_CONDITIONS[condition] if condition else None
        made = synthesize_lung(lung, site="posterior right chest", device=DEVICES[0], rng=rng, seconds=SECONDS)
    return encode_flac(Sound(made.samples, made.rate, 16))
