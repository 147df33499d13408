"""Questions and traces: read, generated, checked, split."""
