"""Every family imports, and its log-probs, in scoring and in training, are the model's own."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM
from trl.trainer.utils import add_fused_lm_head

from rlt_core.config import FolderModel
from rlt_core.models import import_model, load_model, load_tokenizer, save_model
from rlt_core.prompts.format import load_format
from rlt_core.prompts.renderer import Renderer
from rlt_core.scoring import selected_logprobs
from tests.rlt_core.families import FAMILIES, Family, write_family


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_family_is_imported_scored_and_prompted(family: Family, tmp_path: Path) -> None:
    write_family(family, tmp_path / "published")
    found = import_model(FolderModel(path=str(tmp_path / "published")), tmp_path / "model")
    assert found["system_turns"] == float(family.system)
    tokenizer, model = load_tokenizer(tmp_path / "model"), load_model(tmp_path / "model")
    own = AutoModelForCausalLM.from_pretrained(tmp_path / "published", dtype=torch.float32).eval()
    own.config.output_router_logits = False

    renderer = Renderer(load_format(family.format), tokenizer)
    token = tokenizer.convert_tokens_to_ids
    assert renderer.end_of_turn == token(family.end)
    assert set(renderer.stop_ids) == {token(family.end), token("<eos>"), *map(token, family.eos)}
    row = renderer.student_sft_row("1+2", renderer.encode("a thought"), "3")
    text = tokenizer.decode(row.input_ids)
    assert text.count(renderer.format.thought_open) == 1 + renderer.format.student_system.count(
        renderer.format.thought_open
    )
    assert renderer.format.student_system in text

    rows = [renderer.student_context("1+2", renderer.encode(t), "3") for t in ("long one", "b")]
    ids, spans = [each.ids for each in rows], [[(2, len(each.ids))] for each in rows]
    got = selected_logprobs(model, ids, spans, 0.7, 10_000)
    for each, (logprobs,) in zip(ids, got, strict=True):
        np.testing.assert_allclose(logprobs, logprobs_of(own, each, 0.7)[1:], atol=1e-4)

    add_fused_lm_head(own, temperature=0.7)  # GRPO's path
    one = torch.tensor([ids[0]])
    with torch.no_grad():
        fused = own(input_ids=one, labels=one, fused_lm_head=True).log_probs[0]
    np.testing.assert_allclose(fused, logprobs_of(model, ids[0], 0.7), atol=1e-4)

    save_model(model, tokenizer, tmp_path / "saved")  # as a checkpoint does


def logprobs_of(model: torch.nn.Module, ids: list[int], temperature: float) -> np.ndarray:
    """Of every token but the first, from all logits of the model's own forward pass."""
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, :-1].float() / temperature
    return logits.log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0].numpy()
