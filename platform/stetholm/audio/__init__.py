"""Sound: bounded decoding, resampling, the log-mel front end, augmentation, degradation, synthesis (no torch)."""
