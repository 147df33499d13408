"""Numbers of the paper (arXiv 2506.08388), in percent. They are only quoted beside ours: its
answers to each question are not known, so no test can compare with them."""

TASKS = ("aime24", "math_500", "gpqa_diamond")
MEAN = "mean"
"""Mean over `TASKS`, each counting the same."""

_ROWS: dict[str, tuple[float, float, float, float]] = {
    "QwQ-32B": (50.0, 90.6, 54.5, 65.03),
    "DeepSeek-R1": (79.8, 97.3, 71.5, 82.87),
    "Qwen2.5-7B-Instruct": (10.0, 74.2, 33.3, 39.17),
    "Bespoke-7B-1K": (13.3, 80.0, 33.8, 42.37),
    "RLT-7B-1K": (20.0, 80.4, 41.9, 47.43),
    "Bespoke-7B": (20.0, 82.0, 37.8, 46.60),
    "RLT-7B": (23.3, 82.8, 42.4, 49.50),
    "Qwen2.5-32B-Instruct": (26.7, 84.0, 49.0, 53.23),
    "s1-32B + budget forcing": (56.7, 93.0, 59.6, 69.77),
    "Bespoke-32B-1K": (46.7, 92.6, 57.5, 65.60),
    "RLT-32B-1K": (60.0, 94.0, 60.1, 71.37),
    "Sky-T1-32B": (43.3, 82.4, 56.8, 60.83),
    "Bespoke-32B": (63.3, 93.0, 58.1, 71.47),
    "RLT-32B": (66.7, 93.4, 59.6, 73.23),
    "RL, no cold-start (7B)": (13.3, 74.2, 34.8, 40.77),
    "RL cold-start (raw) + RL": (10.0, 71.0, 34.8, 38.60),
    "RL cold-start (GPT) + RL": (16.7, 78.2, 36.9, 43.93),
    "Bespoke-7B + RL": (16.7, 82.8, 45.4, 48.30),
    "RLT-7B + RL": (26.7, 84.0, 40.9, 50.53),
}
NUMBERS: dict[str, dict[str, float]] = {
    row: dict(zip((*TASKS, MEAN), numbers, strict=True)) for row, numbers in _ROWS.items()
}
"""Row -> task or `mean` -> percent."""

FROM_OTHERS = frozenset({"QwQ-32B", "DeepSeek-R1", "s1-32B + budget forcing", "Sky-T1-32B"})
"""Rows that the paper itself quotes from prior work."""

REPOSITORIES: dict[str, str] = {
    "Qwen/QwQ-32B": "QwQ-32B",
    "deepseek-ai/DeepSeek-R1": "DeepSeek-R1",
    "Qwen/Qwen2.5-7B-Instruct": "Qwen2.5-7B-Instruct",
    "Qwen/Qwen2.5-32B-Instruct": "Qwen2.5-32B-Instruct",
    "bespokelabs/Bespoke-Stratos-7B": "Bespoke-7B",
    "bespokelabs/Bespoke-Stratos-32B": "Bespoke-32B",
    "SakanaAI/RLT-7B": "RLT-7B",
    "SakanaAI/RLT-32B": "RLT-32B",
    "NovaSky-AI/Sky-T1-32B-Preview": "Sky-T1-32B",
}
"""Model on the hub -> its row. s1-32B has none: its row is forced, how often is not known."""
S1 = "s1-32B + budget forcing"

TEACHER = "Qwen/Qwen2.5-7B-Instruct"
STUDENTS = {"Qwen/Qwen2.5-7B-Instruct": "7B", "Qwen/Qwen2.5-32B-Instruct": "32B"}
"""Model that its students start from -> its size in the rows' names."""
DATA = "hub:bespokelabs/Bespoke-Stratos-17k"
SKY_T1 = "hub:NovaSky-AI/Sky-T1_data_17k"
S1K = "hub:simplescaling/s1K"
SUBSET = 1000
"""Questions of its `-1K` rows."""

OVERLAP = (("countdown-base+rl", "countdown-dataset"), "> 98.5%")
"""Overlap of the problems solved by direct RL and by the data set's student; the paper does not say
by which measure."""
PEARSON = "> 0.89"
"""Correlation of reward rank and student score."""
RANK_1_SHARE = "90%"
"""Share of the R1 pipeline's gain that students of rank 1 alone reach."""
