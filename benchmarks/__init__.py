"""Benchmarks: ``python -m benchmarks.run <name or group …>``, or ``make bench``."""
