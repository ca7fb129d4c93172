"""The synthesiser: seeded, bounded, with events where the sound says so."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from stetholm.audio.features import log_mel
from stetholm.audio.resample import resample
from stetholm.audio.synth import (
    DEVICES,
    HEART_CONDITIONS,
    HEART_SITES,
    LUNG_CONDITIONS,
    LUNG_SITES,
    Device,
    Synthetic,
    synthesize_heart,
    synthesize_lung,
)


def heart(name: str, seed: int = 0, grade: int = 4, device: Device = DEVICES[0], site: str | None = None) -> Synthetic:
    condition = HEART_CONDITIONS.get(name)
    site = site or (condition.sites()[0] if condition else "mitral area")
    return synthesize_heart(condition, site=site, device=device, rng=np.random.default_rng(seed), grade=grade)


def lung(name: str, seed: int = 0, device: Device = DEVICES[0], severity: float = 1.2) -> Synthetic:
    rng = np.random.default_rng(seed)
    return synthesize_lung(LUNG_CONDITIONS.get(name), site=LUNG_SITES[1], device=device, rng=rng, severity=severity)


ALL = [(heart, name) for name in ("normal", *HEART_CONDITIONS)] + [
    (lung, name) for name in ("normal", *LUNG_CONDITIONS)
]


def labels(sound: Synthetic) -> set[str]:
    return {event.label for event in sound.events}


@pytest.mark.parametrize(("make", "name"), ALL, ids=[f"{m.__name__} {n}" for m, n in ALL])
@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.name)
def test_waveform_and_events_are_sound(make: object, name: str, device: Device) -> None:
    sound = make(name, device=device)  # type: ignore[operator]
    rate = device.heart_rate if make is heart else device.lung_rate
    assert sound.rate == rate and len(sound.samples) == 7 * rate and sound.samples.dtype == np.float32
    assert 0.2 < np.abs(sound.samples).max() <= 1.0
    assert all(0.0 <= event.start < event.end <= 7.0 for event in sound.events)
    assert [event.start for event in sound.events] == sorted(event.start for event in sound.events)
    again = make(name, device=device)  # type: ignore[operator]
    np.testing.assert_array_equal(again.samples, sound.samples)
    assert not np.array_equal(make(name, device=device, seed=1).samples, sound.samples)  # type: ignore[operator]


def test_normal_sounds_hold_only_normal_events() -> None:
    for seed in range(5):
        assert labels(heart("normal", seed)) - {"rubbing"} == {"S1", "S2"}
        assert labels(lung("normal", seed)) - {"rubbing"} == {"inspiration", "expiration"}


@pytest.mark.parametrize("name", HEART_CONDITIONS)
def test_every_beat_has_its_murmur_in_the_right_half(name: str) -> None:
    sound = heart(name)
    condition = HEART_CONDITIONS[name]
    onsets = {label: [e.start for e in sound.events if e.label == label] for label in ("S1", "S2")}
    murmurs = [event for event in sound.events if event.label == condition.label and event.end - event.start > 0.1]
    assert len(murmurs) >= 5
    for murmur in murmurs[1:-1]:
        last_s1 = max(s for s in onsets["S1"] if s <= murmur.start + 0.01)
        last_s2 = max((s for s in onsets["S2"] if s <= murmur.start + 0.01), default=-1.0)
        assert (last_s1 > last_s2) == ("systolic" in condition.label), murmur
    if condition.extra:
        assert condition.extra[0] in labels(sound)


def test_beats_alternate_at_a_human_rate_that_varies() -> None:
    for seed in range(5):
        sound = heart("normal", seed)
        starts = np.array([event.start for event in sound.events if event.label == "S1" and event.start > 0])
        lengths = np.diff(starts)
        assert 0.5 < lengths.mean() < 1.2 and lengths.std() > 0.002
        order = [event.label for event in sound.events if event.label in ("S1", "S2")]
        assert all(a != b for a, b in itertools.pairwise(order))


def band_level(sound: Synthetic, start: float, end: float, low: float, high: float) -> float:
    """RMS of one band within a stretch of a recording."""
    part = sound.samples[round(start * sound.rate) : round(end * sound.rate)]
    spectrum = np.abs(np.fft.rfft(part)) ** 2
    frequencies = np.fft.rfftfreq(len(part), 1 / sound.rate)
    return float(np.sqrt(spectrum[(frequencies > low) & (frequencies < high)].sum())) / len(part)


def systole_over_diastole(sound: Synthetic) -> float:
    """Level of 200-450 Hz in mid-systole relative to late diastole, median over the beats."""
    s1 = [event.start for event in sound.events if event.label == "S1" and event.start > 0]
    s2 = [event.start for event in sound.events if event.label == "S2" and s1[0] < event.start < s1[-1]]
    ratios = [
        band_level(sound, first + 0.13, second - 0.01, 200, 450)
        / band_level(sound, after - 0.17, after - 0.02, 200, 450)
        for first, second, after in zip(s1, s2, s1[1:], strict=False)
    ]
    return float(np.median(ratios))


def test_a_murmur_is_heard_in_systole_and_grows_with_its_grade() -> None:
    normal = np.median([systole_over_diastole(heart("normal", seed)) for seed in range(4)])
    levels = [
        np.median([systole_over_diastole(heart("mitral regurgitation", seed, grade)) for seed in range(4)])
        for grade in (2, 3, 5)
    ]
    assert normal < 2.0 < levels[0] < levels[1] < levels[2]


def test_a_murmur_is_softer_away_from_its_site() -> None:
    best, worst = (
        systole_over_diastole(heart("mitral regurgitation", 3, site=site)) for site in ("mitral area", "aortic area")
    )
    assert best > 1.3 * worst


def test_crackles_fall_where_they_belong() -> None:
    phases = {}
    for name, label in (("pulmonary fibrosis", "fine crackle"), ("pneumonia", "coarse crackle")):
        sound = lung(name)
        inspirations = [e for e in sound.events if e.label == "inspiration" and e.start > 0]
        crackles = [e for e in sound.events if e.label == label]
        assert len(crackles) >= 8
        longest = max(e.end - e.start for e in crackles)
        assert longest <= (0.006 if label == "fine crackle" else 0.015) + 1e-9
        inside = [
            (e.start - p.start) / (p.end - p.start)
            for e in crackles
            for p in inspirations
            if p.start <= e.start < p.end
        ]
        phases[label] = (min(inside), max(inside), len(inside) / len(crackles))
    assert phases["fine crackle"][0] >= 0.5
    assert phases["coarse crackle"][1] <= 0.5 and phases["coarse crackle"][2] < 1.0


def test_wheezes_last_and_are_mostly_expiratory() -> None:
    wheezes, expiratory = 0, 0
    for seed in range(10):
        sound = lung("asthma", seed)
        out = [e for e in sound.events if e.label == "expiration"]
        for event in (e for e in sound.events if e.label == "wheeze" and e.start > 0 and e.end < 7):
            assert event.end - event.start >= 0.1
            wheezes += 1
            expiratory += any(p.start - 1e-6 <= event.start and event.end <= p.end + 1e-6 for p in out)
    assert expiratory > 0.6 * wheezes > 0


def test_abnormal_signs_show_in_the_log_mel() -> None:
    """The same seed with and without the disease: everything else is drawn alike, so the difference is the sign."""
    for name in HEART_CONDITIONS:
        site = HEART_CONDITIONS[name].sites()[0]
        sick, well = (heart(n, 2, grade=3, site=site) for n in (name, "normal"))
        images = [log_mel(resample(sound.samples, sound.rate)) for sound in (sick, well)]
        assert np.abs(images[0] - images[1]).mean() > 0.02, name
    assert set(HEART_SITES) == set(HEART_CONDITIONS["aortic stenosis"].sites())
