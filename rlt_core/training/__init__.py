"""Supervised fine-tuning and GRPO on TRL, with exact resume and one row a step."""
