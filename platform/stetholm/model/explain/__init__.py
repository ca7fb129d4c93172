"""What an answer rests on: attention of its tokens, and occlusion of the recording second by second.

    from stetholm.model.explain import attention, occlusion

    found = attention(model, processor, "Is this heart sound normal?", ["heart.wav"])
    found.weights  # (generated tokens, positions); found.spans are the borders
    found = occlusion(model, processor, "Is this heart sound normal?", ["heart.wav"])
    found.recordings[0].evidence  # nats that the answer loses without each window

:mod:`stetholm.model.explain.draw` makes pictures of both; it needs matplotlib, so import it late.
"""

from stetholm.model.explain.asking import Span
from stetholm.model.explain.attending import Attention, attention
from stetholm.model.explain.clip import Clip
from stetholm.model.explain.occluding import Occlusion, Timeline, occlusion

__all__ = ["Attention", "Clip", "Occlusion", "Span", "Timeline", "attention", "occlusion"]
