"""Make preference pairs: candidates of the fine-tuned model, scored against the reference answers.

python jobs/prefer.py --set run.name=first --set prefer.pairs=2400
"""

from __future__ import annotations

from stetholm.job import run_job
from stetholm.preference.prefer import prefer

if __name__ == "__main__":
    run_job("prefer", prefer)
