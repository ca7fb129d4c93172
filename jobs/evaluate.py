"""Generate over a split and print the table of each task, with control rows.

python jobs/evaluate.py --set run.name=first --set evaluate.split=test
"""

from __future__ import annotations

from stetholm.evaluation.evaluate import evaluate
from stetholm.job import run_job

if __name__ == "__main__":
    run_job("evaluate", evaluate)
