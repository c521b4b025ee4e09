"""prime-rl's custom loss, called as prime-rl calls it."""

import pytest
import torch

from heliostat.adapters.prime_rl import loss
from heliostat.config import ConfigError
from tests.support.prime_rl_types import RECORD, LossInputs, LossOutputs, install


@pytest.fixture(autouse=True)
def prime_rl(monkeypatch):
    install(monkeypatch)


def inputs(**changes):
    old = torch.tensor([-1.0, -2.0, -0.5, -1.5], dtype=torch.float64)
    return LossInputs(
        **{
            "trainer_logprobs": (old + 0.1).requires_grad_(),
            "inference_logprobs": old,
            "ref_logprobs": None,
            "advantages": torch.full((4,), 0.5, dtype=torch.float64),
            "loss_mask": torch.tensor([False, True, True, False]),
            **changes,
        }
    )


def test_one_sequence_by_hand():
    """tau/2 (A/tau - s)^2 with s = 0.2."""
    given = inputs()
    output = loss(given, objective="pmd-mean", tau=0.5)
    assert isinstance(output, LossOutputs)
    assert float(output.loss) == pytest.approx(0.25 * (1.0 - 0.2) ** 2)
    assert float(output.metrics["log_ratio"]) == pytest.approx(0.2)
    output.loss.backward()
    assert given.trainer_logprobs.grad.tolist() == pytest.approx([0.0, -0.4, -0.4, 0.0])


def test_it_takes_and_gives_what_the_recorded_release_does():
    assert RECORD["calls"] == ["custom_fn(inputs, **kwargs)"], "the settings are keywords, the inputs are not"
    assert {field["name"]: field["annotation"] for field in RECORD["LossInputs"]} == {
        "trainer_logprobs": "Float[Tensor, ' seq']",
        "inference_logprobs": "Float[Tensor, ' seq']",
        "ref_logprobs": "Float[Tensor, ' seq'] | None",
        "advantages": "Float[Tensor, ' seq']",
        "loss_mask": "Bool[Tensor, ' seq']",
        "loss_weights": "Float[Tensor, ' seq'] | None",
    }
    output = loss(inputs(), **{"objective": "pmd-mean", "tau": 0.5})
    told = {field["name"]: field["annotation"] for field in RECORD["LossOutputs"]}
    assert told == {"loss": "Float[Tensor, '']", "metrics": "dict[str, Tensor]"}
    assert output.loss.shape == ()
    assert {type(value) for value in output.metrics.values()} == {torch.Tensor}


def test_the_weight_of_a_component_multiplies():
    plain = loss(inputs()).loss
    assert float(loss(inputs(loss_weights=torch.full((4,), 3.0))).loss) == pytest.approx(3 * float(plain))


def test_a_sequence_that_trains_no_token_gives_no_gradient():
    given = inputs(loss_mask=torch.zeros(4, dtype=torch.bool))
    loss(given).loss.backward()
    assert not given.trainer_logprobs.grad.any()


def test_advantages_that_differ_between_tokens_are_refused():
    with pytest.raises(ValueError, match="differ between the tokens"):
        loss(inputs(advantages=torch.arange(4.0)))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"objective": "pmd-meen"}, "pmd-mean"),
        ({"tua": 1.0}, "tau"),
        ({"objective": "grpo", "truncated_is": 2.0}, "no effect"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        loss(inputs(), **settings)
