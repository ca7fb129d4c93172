"""How well a checkpoint answers: labels in free text, metrics, tables, and the evaluation job."""
