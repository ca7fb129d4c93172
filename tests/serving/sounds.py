"""Recordings as bytes."""

import io

import numpy as np
import soundfile


def wav(seconds: float = 2.0, rate: int = 8000, level: float = 0.2, format: str = "WAV") -> bytes:
    """A tone."""
    buffer = io.BytesIO()
    tone = level * np.sin(2 * np.pi * 220 * np.arange(round(seconds * rate)) / rate)
    soundfile.write(buffer, tone, rate, format=format)
    return buffer.getvalue()
