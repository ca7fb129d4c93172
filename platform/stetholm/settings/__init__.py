"""The settings tree and how it is read: ``load_settings(config, overrides)``."""

from stetholm.settings.base import EMBEDDED, Section, StageName, Task
from stetholm.settings.data import AudioSettings, CorpusSettings, RunSettings, StorageSettings, SyntheticSettings
from stetholm.settings.engine import EngineKind, EngineSettings
from stetholm.settings.judging import EvaluateSettings, ExplainSettings, JudgeSettings, PreferSettings
from stetholm.settings.load import SettingsError, load_settings
from stetholm.settings.models import ExportSettings, ImportSettings, LoraSettings, ModelSettings
from stetholm.settings.pipeline import PipelineJob, PipelineSettings
from stetholm.settings.planning import PlanSettings
from stetholm.settings.probe import ProbeSettings
from stetholm.settings.serving import ServeSettings, VersionSettings
from stetholm.settings.stages import (
    AlignSettings,
    Augmentation,
    DpoLoss,
    DpoSettings,
    SftSettings,
    TrackerName,
    TrainSettings,
)
from stetholm.settings.synthesize import SynthesizeSettings
from stetholm.settings.tree import Settings

__all__ = [
    "EMBEDDED",
    "AlignSettings",
    "AudioSettings",
    "Augmentation",
    "CorpusSettings",
    "DpoLoss",
    "DpoSettings",
    "EngineKind",
    "EngineSettings",
    "EvaluateSettings",
    "ExplainSettings",
    "ExportSettings",
    "ImportSettings",
    "JudgeSettings",
    "LoraSettings",
    "ModelSettings",
    "PipelineJob",
    "PipelineSettings",
    "PlanSettings",
    "PreferSettings",
    "ProbeSettings",
    "RunSettings",
    "Section",
    "ServeSettings",
    "Settings",
    "SettingsError",
    "SftSettings",
    "StageName",
    "StorageSettings",
    "SynthesizeSettings",
    "SyntheticSettings",
    "Task",
    "TrackerName",
    "TrainSettings",
    "VersionSettings",
    "load_settings",
]
