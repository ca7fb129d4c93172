r"""Write instruction-response pairs from labelled recordings: by templates, an endpoint, or a local model.

python jobs/synthesize.py --set run.name=first                                     # the embedded corpus, by templates
python jobs/synthesize.py --set run.name=icbhi --set corpus.source=icbhi --set corpus.audio=/data/icbhi \
  --set synthesize.writer=openai --set synthesize.base_url=https://host/v1 --set synthesize.model=name
"""

from __future__ import annotations

from stetholm.corpus.synthesis.job import synthesize
from stetholm.job import run_job

if __name__ == "__main__":
    run_job("synthesize", synthesize)
