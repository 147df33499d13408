"""Profiles: functions that return a whole config. `paper-*` holds the paper's every number."""

from collections.abc import Callable

from rlt_core.config import Config
from rlt_core.profiles.own_data import laptop, single_gpu, teach
from rlt_core.profiles.paper import on_1k, paper_7b, paper_32b
from rlt_core.profiles.toy import smoke, smol_science, tiny, tiny_science

PROFILES: dict[str, Callable[[], Config]] = {
    "smoke": smoke,
    "tiny": tiny,
    "tiny-science": tiny_science,
    "laptop": laptop,
    "smol-science": smol_science,
    "single-gpu": single_gpu,
    "teach": teach,
    "paper-7b": paper_7b,
    "paper-7b-1k": lambda: on_1k(paper_7b()),
    "paper-32b": paper_32b,
    "paper-32b-1k": lambda: on_1k(paper_32b()),
}
