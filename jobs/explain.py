"""What answers rest on: pictures of attention and of occlusion over time, and the numbers behind them.

python jobs/explain.py --set run.name=first
python jobs/explain.py --set model.init_from=s3://… --set explain.audio=heart.wav --set "explain.question=Is it normal?"
"""

from __future__ import annotations

from stetholm.evaluation.explain import explain
from stetholm.job import run_job

if __name__ == "__main__":
    run_job("explain", explain)
