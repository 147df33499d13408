"""Harnesses that kill and disturb: no committed artifact is lost. `make faults` runs them."""
