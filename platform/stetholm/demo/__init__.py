"""``make demo``: the whole path on one machine, through the same jobs that ``ray job submit`` runs."""
