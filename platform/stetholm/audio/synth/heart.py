"""Heart sounds: S1, S2, murmurs, clicks and snaps, beat by beat.

Acoustics modelled:

- Rate: respiratory sinus arrhythmia and the slower Mayer wave near 0.1 Hz, as in McSharry, Clifford, Tarassenko
  & Smith, "A dynamical model for generating synthetic electrocardiogram signals", IEEE Trans Biomed Eng 50 (2003).
- Systole: electromechanical systole shortens with the rate, QS2 = 546 - 2.1 bpm ms (Weissler, Harris & Schoenfeld,
  Circulation 37, 1968), less about 60 ms from Q to S1.
- S1 and S2, and how A2 and P2 split in inspiration: Leatham, "Splitting of the first and second heart sounds",
  Lancet (1954), and his Auscultation of the Heart and Phonocardiography.
- Murmurs: time, shape and pitch as in Leatham's ejection and regurgitant murmurs; intensity in grades after
  Freeman & Levine, Ann Intern Med 6 (1933). What amplitude a grade has, and how it falls off between sites, are
  our choices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from stetholm.audio.synth.devices import Device, record
from stetholm.audio.synth.noise import add_rubbing, band, coloured, falling, rms, room
from stetholm.audio.synth.waves import Synthetic, Track, Wave, thump

HEART_SITES = ("aortic area", "pulmonic area", "tricuspid area", "mitral area")

_SOUND_GAIN = {  # S1 and S2 at a site: S2 is louder at the base, S1 at the apex
    "aortic area": (0.65, 1.0),
    "pulmonic area": (0.7, 0.95),
    "tricuspid area": (0.95, 0.75),
    "mitral area": (1.0, 0.65),
}
_GRADE_LEVEL = {1: 0.04, 2: 0.08, 3: 0.16, 4: 0.3, 5: 0.5, 6: 0.8}  # peak RMS of the murmur, S1's peak = 1


@dataclass(frozen=True)
class Beat:
    """One heartbeat in seconds: onset of S1, of A2, and of the next S1; the split of P2 behind A2."""

    s1: float
    s2: float
    end: float
    split: float


@dataclass(frozen=True)
class HeartCondition:
    """A valve disease as it sounds.

    Attributes:
        name: the diagnosis.
        label: of the murmur's events.
        span: start and end of the murmur in a beat, seconds.
        shape: amplitude over the murmur's course, (0..1) -> (0..1).
        low: lower edge of the murmur's band, Hz.
        high: upper edge, Hz.
        s1: gain of S1.
        s2: gain of S2.
        heard: loudness of the murmur at each of HEART_SITES.
        extra: an extra sound at the murmur's start: its label, Hz, and amplitude.
    """

    name: str
    label: str
    span: Callable[[Beat], tuple[float, float]]
    shape: Callable[[Wave], Wave]
    low: float
    high: float
    s1: float
    s2: float
    heard: tuple[float, float, float, float]
    extra: tuple[str, float, float] | None = None

    def sites(self) -> list[str]:
        """HEART_SITES from where it is heard best to where it is heard least."""
        return sorted(HEART_SITES, key=lambda site: -self.heard[HEART_SITES.index(site)])


def _plateau(course: Wave) -> Wave:
    return np.clip(np.minimum(course, 1.0 - course) / 0.08, 0.0, 1.0)


def _diamond(course: Wave) -> Wave:
    return np.sin(np.pi * course**0.9) ** 1.3


def _decrescendo(course: Wave) -> Wave:
    return np.minimum(course / 0.04, 1.0) * (1.0 - course) ** 1.2


def _crescendo(course: Wave) -> Wave:
    return (0.35 + 0.65 * course) * np.minimum((1.0 - course) / 0.08, 1.0)


def _rumble(course: Wave) -> Wave:
    """Loudest after the snap, low in mid-diastole, rising again with the atrial kick."""
    early = np.minimum(course / 0.06, 1.0) * np.exp(-2.2 * course)
    presystolic = 0.9 * np.exp(-(((course - 0.9) / 0.12) ** 2))
    return np.clip((early + presystolic) * np.minimum((1.0 - course) / 0.04, 1.0), 0.0, 1.0)


_CONDITIONS = (
    HeartCondition(
        "mitral regurgitation", "holosystolic murmur",
        lambda b: (b.s1 + 0.02, b.s2 + 0.02), _plateau, 150.0, 500.0, 0.8, 1.0, (0.4, 0.45, 0.65, 1.0),
    ),
    HeartCondition(
        "aortic stenosis", "ejection systolic murmur",
        lambda b: (b.s1 + 0.05, b.s2 - 0.02), _diamond, 80.0, 400.0, 0.95, 0.65, (1.0, 0.8, 0.5, 0.55),
    ),
    HeartCondition(
        "aortic regurgitation", "early diastolic murmur",
        lambda b: (b.s2 + 0.02, b.s2 + 0.02 + 0.75 * (b.end - b.s2)), _decrescendo, 200.0, 650.0,
        0.9, 0.9, (0.95, 0.8, 1.0, 0.5),
    ),
    HeartCondition(
        "mitral stenosis", "diastolic rumble",
        lambda b: (b.s2 + 0.09, b.end - 0.01), _rumble, 60.0, 190.0, 1.3, 1.0, (0.3, 0.3, 0.55, 1.0),
        ("opening snap", 230.0, 0.5),
    ),
    HeartCondition(
        "mitral valve prolapse", "late systolic murmur",
        lambda b: (b.s1 + 0.5 * (b.s2 - b.s1), b.s2 + 0.01), _crescendo, 180.0, 550.0,
        1.0, 1.0, (0.4, 0.45, 0.65, 1.0), ("click", 320.0, 0.6),
    ),
)  # fmt: skip
HEART_CONDITIONS: dict[str, HeartCondition] = {condition.name: condition for condition in _CONDITIONS}
"""By diagnosis; "normal" is the absence of one."""


def synthesize_heart(
    condition: HeartCondition | None,
    *,
    site: str,
    device: Device,
    rng: np.random.Generator,
    grade: int = 3,
    seconds: float = 7.0,
) -> Synthetic:
    """A heart recording at ``device.heart_rate`` Hz with S1, S2 and the signs of ``condition`` as events.

    Args:
        condition: one of HEART_CONDITIONS; None is a normal heart.
        site: one of HEART_SITES.
        device: what it is recorded with.
        rng: all randomness.
        grade: Levine grade of the murmur, 1 to 6, where it is heard best.
        seconds: duration.
    """
    track = Track(seconds, device.heart_rate)
    beats = heartbeats(rng, rng.uniform(58.0, 98.0), seconds)
    first, second = _SOUND_GAIN[site]
    gains = (first * condition.s1, second * condition.s2) if condition else (first, second)
    add_valve_sounds(track, beats, rng, gains)
    level = rms(track.samples)
    if condition is not None:
        amplitude = _GRADE_LEVEL[grade] * condition.heard[HEART_SITES.index(site)]
        _add_murmur(track, beats, condition, amplitude, rng)
    _add_disturbances(track, rng, level)
    return Synthetic(record(track.samples, device, track.rate, rng), track.rate, track.sorted_events())


def heartbeats(rng: np.random.Generator, bpm: float, seconds: float) -> list[Beat]:
    """Beats that cover ``seconds``, the first and the last reaching beyond; ``bpm`` is the mean rate."""
    breathing, phase, slow = rng.uniform(0.2, 0.32), rng.uniform(0, 2 * np.pi, 2), rng.uniform(0.005, 0.02)
    arrhythmia, mean = rng.uniform(0.01, 0.05), 60.0 / bpm
    systole = (546.0 - 2.1 * bpm - 60.0) / 1000.0 * rng.uniform(0.95, 1.05)
    beats, onset = [], -mean * rng.random()
    while onset < seconds:
        breath = np.sin(2 * np.pi * breathing * onset + phase[0])
        mayer = np.sin(2 * np.pi * 0.1 * onset + phase[1])
        length = mean * (1.0 - arrhythmia * breath + slow * mayer + 0.006 * rng.standard_normal())
        # P2 lags behind A2 in inspiration, when the rate rises too.
        split = 0.022 + 0.016 * breath
        beats.append(Beat(onset, onset + systole * (length / mean) ** 0.3, onset + length, split))
        onset += length
    return beats


def add_valve_sounds(track: Track, beats: list[Beat], rng: np.random.Generator, gains: tuple[float, float]) -> None:
    """Put S1 (mitral, tricuspid and a brief higher part) and S2 (A2, P2) of ``beats`` into ``track``."""
    rate, pitch = track.rate, rng.uniform(0.88, 1.12)
    mitral, tricuspid = thump(rate, 0.13, 75 * pitch, 42 * pitch), thump(rate, 0.11, 95 * pitch, 55 * pitch, 1.0)
    snap = thump(rate, 0.06, 240 * pitch, 140 * pitch)
    aortic, pulmonic = thump(rate, 0.09, 190 * pitch, 75 * pitch), thump(rate, 0.08, 140 * pitch, 60 * pitch)
    first = 0.75 * mitral
    first[: len(snap)] += 0.4 * snap
    for beat in beats:
        s1, s2 = np.array(gains) * np.exp(0.06 * rng.standard_normal(2))
        track.add(beat.s1, s1 * first)
        track.add(beat.s1 + 0.028, 0.45 * s1 * tricuspid)
        track.add(beat.s2, 0.7 * s2 * aortic)
        track.add(beat.s2 + max(beat.split, 0.004), 0.4 * s2 * pulmonic)
        track.mark(beat.s1, beat.s1 + 0.12, "S1")
        track.mark(beat.s2, beat.s2 + 0.10, "S2")


def _add_murmur(
    track: Track, beats: list[Beat], condition: HeartCondition, amplitude: float, rng: np.random.Generator
) -> None:
    """Shaped noise in every beat, behind the click or snap that announces it."""
    noise = coloured(rng, len(track.samples), track.rate, band(condition.low, condition.high, order=3))
    time = np.arange(len(noise)) / track.rate
    envelope = np.zeros(len(noise))
    for beat in beats:
        start, end = condition.span(beat)
        inside = (time >= start) & (time < end)
        loudness = amplitude * np.exp(0.1 * rng.standard_normal())
        envelope[inside] = loudness * condition.shape((time[inside] - start) / (end - start))
        track.mark(start, end, condition.label)
        if condition.extra:
            _add_extra(track, start, condition.extra, amplitude)
    track.samples += envelope * noise


def _add_extra(track: Track, murmur_start: float, extra: tuple[str, float, float], amplitude: float) -> None:
    """A click or snap of 30 ms just before the murmur; clear even when the murmur is soft."""
    label, pitch, loudness = extra
    start = murmur_start - 0.03
    track.add(start, loudness * (0.5 + amplitude) * thump(track.rate, 0.045, pitch * 1.15, pitch))
    track.mark(start, start + 0.03, label)


def _add_disturbances(track: Track, rng: np.random.Generator, level: float) -> None:
    """Room noise 15 to 30 dB below the valve sounds' RMS, faint breathing, now and then rubbing."""
    count = len(track.samples)
    ratio = 10.0 ** (-rng.uniform(15.0, 30.0) / 20.0)
    track.samples += level * ratio * room(rng, count, track.rate)
    breathing = 1.0 + np.sin(2 * np.pi * rng.uniform(0.2, 0.32) * np.arange(count) / track.rate + rng.uniform(0, 6.28))
    faint = coloured(rng, count, track.rate, falling(180.0, 2.0, low=80.0))
    track.samples += level * rng.uniform(0.01, 0.04) * breathing * faint
    add_rubbing(track, rng, level * rng.uniform(0.2, 0.7))
