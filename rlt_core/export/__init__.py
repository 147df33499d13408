"""Artifacts in the layout of the Hugging Face hub: model folders and data sets, with a card."""
