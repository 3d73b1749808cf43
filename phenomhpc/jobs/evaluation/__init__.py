"""What jobs/evaluate.py composes: annotations and wells as arrays, scores of maps, the sections of the report."""
