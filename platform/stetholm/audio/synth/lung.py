"""Breath sounds: the vesicular murmur of both phases, and adventitious sounds in their places.

Acoustics modelled:

- Vesicular sound: noise whose spectrum falls steeply above 100 to 200 Hz, louder with flow, louder and higher in
  inspiration than in expiration (Gavriely, Palti & Alroy, J Appl Physiol 50, 1981; Pasterkamp, Kraman & Wodicka,
  "Respiratory sounds", Am J Respir Crit Care Med 156, 1997).
- Wheezes (harmonic, above 100 Hz, longer than 80 to 100 ms, mono- or polyphonic, mostly expiratory), rhonchi
  (low-pitched, rich in harmonics), fine crackles (two-cycle duration about 5 ms, late inspiratory) and coarse
  crackles (above 10 ms, early inspiratory and expiratory): Sovijarvi et al., "Definition of terms for
  applications of respiratory sounds", Eur Respir Rev 10 (2000), the CORSA guidelines; Murphy, Holford &
  Knowler, N Engl J Med 296 (1977), for the crackles.
- How loud the signs are relative to the breath is our choice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from stetholm.audio.synth.devices import Device, record
from stetholm.audio.synth.heart import add_valve_sounds, heartbeats
from stetholm.audio.synth.noise import add_rubbing, coloured, falling, rms, room
from stetholm.audio.synth.waves import Synthetic, Track, Wave, crackle, tone

LUNG_SITES = tuple(
    f"{aspect} {side} chest" for aspect in ("anterior", "lateral", "posterior") for side in ("left", "right")
)


@dataclass(frozen=True)
class Breath:
    """One breath in seconds: begin of inspiration, its end (where expiration begins), end of expiration."""

    start: float
    turn: float
    end: float


def synthesize_lung(
    condition: LungCondition | None,
    *,
    site: str,
    device: Device,
    rng: np.random.Generator,
    severity: float = 1.0,
    seconds: float = 7.0,
) -> Synthetic:
    """A lung recording at ``device.lung_rate`` Hz with phases and the signs of ``condition`` as events.

    Args:
        condition: one of LUNG_CONDITIONS; None is a normal lung.
        site: one of LUNG_SITES (over the left chest the heart is heard more).
        device: what it is recorded with.
        rng: all randomness.
        severity: factor on the loudness of the adventitious sounds.
        seconds: duration.
    """
    track = Track(seconds, device.lung_rate)
    breaths = breathing(rng, rng.uniform(13.0, 24.0), seconds)
    _add_vesicular(track, breaths, rng)
    level = rms(track.samples)
    if condition is not None:
        for breath in breaths:
            condition.add(track, breath, level * severity, rng)
    _add_disturbances(track, rng, level, site)
    return Synthetic(record(track.samples, device, track.rate, rng), track.rate, track.sorted_events())


def breathing(rng: np.random.Generator, rate: float, seconds: float) -> list[Breath]:
    """Breaths that cover ``seconds`` at ``rate`` a minute; inspiration : expiration is 1 : 1.2 to 1 : 2."""
    mean, share, pause = 60.0 / rate, 1.0 / (1.0 + rng.uniform(1.2, 2.0)), rng.uniform(0.03, 0.1)
    breaths, start = [], -mean * rng.random()
    while start < seconds:
        length = mean * np.exp(0.05 * rng.standard_normal())
        active = length * (1.0 - pause)
        breaths.append(Breath(start, start + share * active, start + active))
        start += length
    return breaths


def _add_vesicular(track: Track, breaths: list[Breath], rng: np.random.Generator) -> None:
    """The breath itself: noise that follows the flow, expiration softer, lower and dying early."""
    count, corner, slope = len(track.samples), rng.uniform(160.0, 260.0), rng.uniform(1.7, 2.2)
    expiratory = rng.uniform(0.35, 0.6)
    inhaled, exhaled = np.zeros(count), np.zeros(count)
    time = np.arange(count) / track.rate
    for breath in breaths:
        depth = np.exp(0.1 * rng.standard_normal())
        for flow, start, end, label in (
            (inhaled, breath.start, breath.turn, "inspiration"),
            (exhaled, breath.turn, breath.end, "expiration"),
        ):
            inside = (time >= start) & (time < end)
            course = (time[inside] - start) / (end - start)
            flow[inside] = depth * np.sin(np.pi * (course if flow is inhaled else course**0.7)) ** 1.2
            track.mark(start, end, label)
    track.samples += inhaled * coloured(rng, count, track.rate, falling(corner, slope))
    track.samples += expiratory * exhaled * coloured(rng, count, track.rate, falling(0.75 * corner, slope))


def _add_wheezes(track: Track, breath: Breath, level: float, rng: np.random.Generator) -> None:
    """One wheeze of one to three unrelated tones in expiration, in one breath of four also in inspiration."""
    phases = [(breath.turn, breath.end)] + ([(breath.start, breath.turn)] if rng.random() < 0.25 else [])
    for begin, end in phases:
        length = max(0.12, (end - begin) * rng.uniform(0.4, 0.8))
        start = begin + (end - begin - length) * rng.uniform(0.1, 0.9)
        wave: Wave = np.zeros(round(length * track.rate))
        for _ in range(int(rng.integers(1, 4))):
            frequency = float(np.exp(rng.uniform(np.log(180.0), np.log(800.0))))
            wave += tone(
                track.rate, length, frequency, rng.uniform(-0.15, 0.1), (1.0, 0.35, 0.12), rng.uniform(0, 6.28)
            )
        track.add(start, level * rng.uniform(0.5, 1.2) * wave)
        track.mark(start, start + length, "wheeze")


def _add_rhonchi(track: Track, breath: Breath, level: float, rng: np.random.Generator) -> None:
    """A snoring tone below 150 Hz with many harmonics in expiration, in every second breath in both phases."""
    phases = [(breath.turn, breath.end)] + ([(breath.start, breath.turn)] if rng.random() < 0.5 else [])
    harmonics = tuple(k**-0.8 for k in range(1, 8))
    for begin, end in phases:
        length = max(0.15, (end - begin) * rng.uniform(0.5, 0.85))
        start = begin + (end - begin - length) * rng.uniform(0.0, 0.6)
        wave = tone(track.rate, length, rng.uniform(85.0, 145.0), rng.uniform(-0.1, 0.1), harmonics, 0.0)
        track.add(start, level * rng.uniform(0.9, 1.8) * wave)
        track.mark(start, start + length, "rhonchus")


def _add_fine_crackles(track: Track, breath: Breath, level: float, rng: np.random.Generator) -> None:
    """A shower of fine crackles in the second half of inspiration."""
    length = breath.turn - breath.start
    _add_crackles(track, breath.start + 0.5 * length, breath.turn, int(rng.integers(7, 17)),
                  (0.004, 0.006), (8.0, 18.0), level, "fine crackle", rng)  # fmt: skip


def _add_coarse_crackles(track: Track, breath: Breath, level: float, rng: np.random.Generator) -> None:
    """A few coarse crackles early in inspiration and some in expiration."""
    half = breath.start + 0.5 * (breath.turn - breath.start)
    for begin, end, count in (
        (breath.start, half, int(rng.integers(3, 8))),
        (breath.turn, breath.end, int(rng.integers(2, 6))),
    ):
        _add_crackles(track, begin, end, count, (0.010, 0.015), (8.0, 18.0), level, "coarse crackle", rng)


def _add_crackles(
    track: Track,
    begin: float,
    end: float,
    count: int,
    two_cycles: tuple[float, float],
    loudness: tuple[float, float],
    level: float,
    label: str,
    rng: np.random.Generator,
) -> None:
    for start in rng.uniform(begin, end, count):
        duration = rng.uniform(*two_cycles)
        sign = rng.choice((-1.0, 1.0))
        track.add(start, sign * level * rng.uniform(*loudness) * crackle(track.rate, duration))
        track.mark(start, start + duration, label)


def _add_disturbances(track: Track, rng: np.random.Generator, level: float, site: str) -> None:
    """Room noise 15 to 30 dB below the breath's RMS, the heart beneath, now and then rubbing."""
    ratio = 10.0 ** (-rng.uniform(15.0, 30.0) / 20.0)
    track.samples += level * ratio * room(rng, len(track.samples), track.rate)
    heart = Track(track.seconds, track.rate)
    loudness = level * rng.uniform(0.2, 0.7) * (1.6 if "left" in site else 1.0)
    add_valve_sounds(heart, heartbeats(rng, rng.uniform(60.0, 100.0), track.seconds), rng, (loudness, 0.8 * loudness))
    track.samples += heart.samples
    add_rubbing(track, rng, level * rng.uniform(0.3, 1.0))


@dataclass(frozen=True)
class LungCondition:
    """A lung disease as it sounds: the diagnosis, its events' label, and what puts one breath's into a track."""

    name: str
    label: str
    add: Callable[[Track, Breath, float, np.random.Generator], None]


LUNG_CONDITIONS: dict[str, LungCondition] = {
    "asthma": LungCondition("asthma", "wheeze", _add_wheezes),
    "chronic bronchitis": LungCondition("chronic bronchitis", "rhonchus", _add_rhonchi),
    "pulmonary fibrosis": LungCondition("pulmonary fibrosis", "fine crackle", _add_fine_crackles),
    "pneumonia": LungCondition("pneumonia", "coarse crackle", _add_coarse_crackles),
}
"""By diagnosis; "normal" is the absence of one."""
