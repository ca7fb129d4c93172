"""Zero-shot classification by report, and linear probes on the features of audio encoders, in one table.

python jobs/probe.py --set run.name=first
python jobs/probe.py --set run.name=probes --set corpus.uri=s3://… --set probe.zero_shot=false \
  --set "probe.encoders=[cola:encoder-operaCE.ckpt, ast:MIT/ast-finetuned-audioset-10-10-0.4593, log-mel]"
"""

from __future__ import annotations

from stetholm.evaluation.probing.probe import probe
from stetholm.job import run_job

if __name__ == "__main__":
    run_job("probe", probe)
