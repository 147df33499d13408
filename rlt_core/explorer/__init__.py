"""A local, read-only page of traces, their rewards and their tokens."""
