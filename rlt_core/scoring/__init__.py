"""Models → log-probs of selected tokens → rows of `scores`."""

from rlt_core.scoring.alignment import ContextBuilder, Contexts
from rlt_core.scoring.anchoring import with_anchoring
from rlt_core.scoring.logprobs import eval_mode, selected_logprobs
from rlt_core.scoring.score_traces import assign_ranks, score_contexts
from rlt_core.scoring.tokens import TokenScores, token_scores
from rlt_core.scoring.utility import with_utility
