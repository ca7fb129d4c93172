"""The typed settings tree: one class a component, one field a setting.

Every value has a default that runs on a laptop with nothing configured (the embedded defaults of
docs/architecture.md). The published setting is the same tree with other values.
"""

from __future__ import annotations

from stetholm.settings.base import Section, StageName
from stetholm.settings.data import AudioSettings, CorpusSettings, RunSettings, StorageSettings
from stetholm.settings.engine import EngineSettings
from stetholm.settings.judging import EvaluateSettings, ExplainSettings, PreferSettings
from stetholm.settings.models import ExportSettings, ImportSettings, ModelSettings
from stetholm.settings.pipeline import PipelineSettings
from stetholm.settings.planning import PlanSettings
from stetholm.settings.probe import ProbeSettings
from stetholm.settings.serving import ServeSettings
from stetholm.settings.stages import AlignSettings, DpoSettings, SftSettings, TrainSettings
from stetholm.settings.synthesize import SynthesizeSettings


class Settings(Section):
    """The whole tree."""

    storage: StorageSettings = StorageSettings()
    run: RunSettings = RunSettings()
    pipeline: PipelineSettings = PipelineSettings()
    corpus: CorpusSettings = CorpusSettings()
    synthesize: SynthesizeSettings = SynthesizeSettings()
    audio: AudioSettings = AudioSettings()
    model: ModelSettings = ModelSettings()
    train: TrainSettings = TrainSettings()
    align: AlignSettings = AlignSettings()
    sft: SftSettings = SftSettings()
    dpo: DpoSettings = DpoSettings()
    prefer: PreferSettings = PreferSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    explain: ExplainSettings = ExplainSettings()
    probe: ProbeSettings = ProbeSettings()
    import_weights: ImportSettings = ImportSettings()
    export: ExportSettings = ExportSettings()
    engine: EngineSettings = EngineSettings()
    serve: ServeSettings = ServeSettings()
    plan: PlanSettings = PlanSettings()

    def stage(self, name: StageName) -> TrainSettings:
        """Settings of one stage: its own explicit keys, then explicit ``train`` keys, then its defaults.

        Raises:
            UserError: they contradict each other.
        """
        stage: TrainSettings = getattr(self, name)
        shared = {key: getattr(self.train, key) for key in self.train.model_fields_set - stage.model_fields_set}
        resolved = stage.model_copy(update=shared)
        resolved.require_consistent(name)
        return resolved
