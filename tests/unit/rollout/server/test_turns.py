"""Several turns on a server: one request a turn by token ids, and the first turn of a group as one request."""

import numpy as np
import pytest

from heliostat.models.checks.reference_forward import reference_log_probs
from heliostat.rollout import DecodeLimits, SampleRequest, SamplingSettings, Server, ServerEngine, Vllm
from heliostat.rollout.in_process.scripted import Scripted, script
from heliostat.types import StopReason
from tests.support.fake_server import FakeServer, serving
from tests.support.nano import make_nano, make_prompts


@pytest.mark.slow
def test_every_turn_goes_on_from_all_ids_so_far(nano, tmp_path):
    state = FakeServer(make_nano())
    prompts, size = make_prompts(nano, 3), 2
    dialogues = [[Scripted(script(range(30, 60), 2, 1 + member), 7) for member in range(size)] for _ in prompts]
    with serving(state) as url:
        server = Server(url, timeout_s=20.0, num_retries=1, first_pause_s=0.01)
        engine = ServerEngine(nano, DecodeLimits(60), server, Vllm(), tmp_path / "sync", num_requests=2, max_gap=1e-3)
        request = SampleRequest(prompts, size, SamplingSettings(), seed=3, policy_step=0, dialogues=dialogues)
        groups = engine.sample(request)
    sent = [body for body in state.bodies if isinstance(body, dict) and "max_tokens" in body]
    firsts = [body for body in sent if body["n"] == size]
    assert {tuple(body["prompt"]) for body in firsts} == {prompt.context_ids for prompt in prompts}
    completions = [(group, one) for group in groups for one in group.completions]
    further = {tuple(body["prompt"]) for body in sent if body["n"] == 1}
    for group, one in completions:
        for turn in one.turns[1:]:
            assert (*group.prompt.context_ids, *one.token_ids[: turn.start]) in further
        assert all(turn.num_tokens <= 7 for turn in one.turns)
        truth = reference_log_probs(nano, group.prompt.context_ids, one.token_ids, 1.0).numpy()
        places = [place for start, end in one.spans for place in range(start, end)]
        np.testing.assert_allclose(one.logp_gen, truth[places], atol=1e-3)
    reasons = {one.stop_reason for _, one in completions}
    assert StopReason.ENVIRONMENT_DONE in reasons
    assert reasons <= {StopReason.ENVIRONMENT_DONE, StopReason.TURN_TRUNCATED}
    assert all(dialogue.has_ended for group in dialogues for dialogue in group)
