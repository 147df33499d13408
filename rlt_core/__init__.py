"""The method of Reinforcement-Learned Teachers. Never imports Prefect."""

__version__ = "0.1.0"
