"""Export a checkpoint for use elsewhere: the merged model, or the adapter alone, with a model card.

python jobs/export.py --set run.name=first
python jobs/export.py --set run.name=first --set export.kind=adapter --set export.to=/data/models/first
"""

from __future__ import annotations

from stetholm.job import run_job
from stetholm.model.export import export_model

if __name__ == "__main__":
    run_job("export", export_model)
