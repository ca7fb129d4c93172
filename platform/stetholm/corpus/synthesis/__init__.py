"""Pair synthesis: instruction-response pairs from labelled recordings, each checked against the labels.

The order of reading: ``recordings`` (what is labelled), ``plan`` (which pairs), ``prompts`` (how they are asked for),
``writers`` (who answers), ``store`` (no answer is paid for twice), ``validation`` (what is kept), ``rounds`` (asking
again), ``job`` (all of it).
"""
