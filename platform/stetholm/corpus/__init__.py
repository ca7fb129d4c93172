"""Corpora: the pair schema, the readers, ingest, shards, the streaming reader and the ledger."""
