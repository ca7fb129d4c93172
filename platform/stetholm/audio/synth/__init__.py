"""Physiological synthesis of heart and breath sounds with known labels and timed events."""

from stetholm.audio.synth.devices import DEVICES, Device
from stetholm.audio.synth.heart import HEART_CONDITIONS, HEART_SITES, synthesize_heart
from stetholm.audio.synth.lung import LUNG_CONDITIONS, LUNG_SITES, synthesize_lung
from stetholm.audio.synth.waves import Synthetic

__all__ = [
    "DEVICES",
    "HEART_CONDITIONS",
    "HEART_SITES",
    "LUNG_CONDITIONS",
    "LUNG_SITES",
    "Device",
    "Synthetic",
    "synthesize_heart",
    "synthesize_lung",
]
