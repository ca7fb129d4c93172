"""Zero-shot classification by report, and linear probes on the features of audio encoders."""
