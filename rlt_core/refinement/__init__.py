"""Traces refined by an LLM behind an OpenAI-compatible endpoint."""
