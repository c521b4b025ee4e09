"""Saving, loading and changing a model: it comes back as it was, and settings given when it is loaded hold."""

import copy
import io
import pickle

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from heliostat.control import SMAC, AdamGradient, Gradient, Rank1
from heliostat.control.policies import MlpPolicy

NET = {"net_arch": [8]}


class Learned(BaseFeaturesExtractor):
    """A feature extractor with weights, and BatchNorm and Dropout if asked."""

    def __init__(self, observation_space, width=5, normalises=False):
        super().__init__(observation_space, width)
        size = spaces.flatdim(observation_space)
        extra = [nn.BatchNorm1d(width), nn.Dropout(0.2)] if normalises else []
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(size, width), *extra, nn.Tanh())

    def forward(self, observations):
        return self.net(observations)


class UsersPolicy(ActorCriticPolicy):
    """A class of the user's, which knows nothing of ours."""


class Deciding(ActorCriticPolicy):
    """One that sets the sharing of its extractor itself."""

    def __init__(self, observation_space, action_space, lr_schedule, use_sde=False, **kwargs):
        super().__init__(
            observation_space, action_space, lr_schedule, use_sde=use_sde, share_features_extractor=False, **kwargs
        )


def made(env="CartPole-v1", policy="MlpPolicy", num_steps=48, **settings):
    settings = {"n_steps": 16, "n_critic_updates": 1, "seed": 0, "learning_rate": 0.1, "policy_kwargs": NET, **settings}
    return SMAC(policy, env, **settings).learn(num_steps)


def state(model):
    return {name: part.clone() for name, part in model.policy.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def image_env():
    return FakeImageEnv(screen_height=36, screen_width=36, n_channels=1, discrete=True)


LEARNED = {**NET, "features_extractor_class": Learned}
NORMALISED = {**LEARNED, "features_extractor_kwargs": {"normalises": True}}
POLICIES = {
    "mlp": lambda: made(),
    "learned": lambda: made(policy_kwargs=LEARNED),
    "normalised": lambda: made(policy_kwargs=NORMALISED),
    "noise": lambda: made("Pendulum-v1", use_sde=True, learning_rate=1e-3),
    "stock class": lambda: made(policy=ActorCriticPolicy, policy_kwargs=LEARNED),
    "user's class": lambda: made(policy=UsersPolicy, policy_kwargs=LEARNED),
    "deciding class": lambda: made(policy=Deciding, policy_kwargs=LEARNED),
    "images": lambda: made(image_env(), "CnnPolicy", 16),
    "stock images": lambda: made(image_env(), ActorCriticCnnPolicy, 16),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", POLICIES)
def test_a_model_and_its_policy_come_back_without_an_environment(kind, tmp_path):
    model = POLICIES[kind]()
    seen = np.stack([model.observation_space.sample() for _ in range(8)])
    model.save(tmp_path / "model")
    model.policy.save(tmp_path / "policy")
    loaded = SMAC.load(tmp_path / "model")
    policy = type(model.policy).load(tmp_path / "policy")
    assert same(state(model), state(loaded))
    assert same(state(model), dict(policy.state_dict()))
    rows = model.policy.obs_to_tensor(seen)[0]
    for one in (model.policy, loaded.policy, policy):
        one.set_training_mode(False)
    with torch.no_grad():
        for one in (loaded.policy, policy):
            assert torch.equal(one.predict_values(rows), model.policy.predict_values(rows))
            mode = model.policy.get_distribution(rows).mode()
            assert torch.equal(one.get_distribution(rows).mode(), mode)
            expected = model.policy.get_distribution(rows).log_prob(mode)
            assert torch.equal(one.get_distribution(rows).log_prob(mode), expected)
    loaded.save(tmp_path / "again")
    assert same(state(model), state(SMAC.load(tmp_path / "again")))


def test_policy_settings_are_stored_as_the_user_gave_them(tmp_path):
    made(policy_kwargs=LEARNED).save(tmp_path / "model")
    loaded = SMAC.load(tmp_path / "model", env=gymnasium.make("CartPole-v1"), policy_kwargs=LEARNED)
    assert loaded.policy_kwargs == LEARNED
    assert not loaded.policy.share_features_extractor
    with pytest.raises(ValueError, match="policy kwargs"):
        SMAC.load(tmp_path / "model", policy_kwargs=NET)


def test_only_an_extractor_that_learns_nothing_is_shared():
    assert made(num_steps=16).policy.share_features_extractor
    with pytest.raises(ValueError, match="actor and critic share 'features_extractor"):
        made(policy_kwargs={**LEARNED, "share_features_extractor": True})


@pytest.mark.slow
@pytest.mark.parametrize(
    "direction", [Rank1(num_scores=2, ema=0.5, momentum=0.5), "eva", "sample-space", Gradient(momentum=0.9), "adam"]
)
@pytest.mark.parametrize("policy_kwargs", [NET, NORMALISED], ids=["plain", "normalised"])
def test_training_from_a_file_equals_training_on(direction, policy_kwargs, tmp_path):
    model = made(direction=direction, learning_rate=lambda left: 0.02 * left, policy_kwargs=policy_kwargs)
    model.save(tmp_path / "model")
    loaded = SMAC.load(tmp_path / "model")
    for one in (model, loaded):
        one.set_env(gymnasium.make("CartPole-v1"))
        one.set_random_seed(7)
        one.learn(32, reset_num_timesteps=False)
    assert same(state(model), state(loaded))
    assert model.num_timesteps == loaded.num_timesteps == 80
    assert model.logger.name_to_value["train/learning_rate"] == loaded.logger.name_to_value["train/learning_rate"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("other", "kind"), [("eva", "Eva"), ("adam", "Adam"), (Gradient(momentum=0.5), "SGD")], ids=str
)
def test_another_direction_starts_anew_on_the_same_weights(other, kind, tmp_path):
    model = made(direction=Rank1(num_scores=2, momentum=0.5))
    model.save(tmp_path / "model")
    with pytest.warns(UserWarning, match="belongs to direction 'rank1'.*starts anew"):
        loaded = SMAC.load(tmp_path / "model", env=gymnasium.make("CartPole-v1"), direction=other)
    assert type(loaded.actor_optimizer).__name__ == kind
    assert same(state(model), state(loaded))
    before = state(loaded)
    loaded.learn(32)
    assert not same(before, state(loaded))


def test_settings_given_to_load_hold_and_state_is_kept(tmp_path):
    model = made(direction=Rank1(num_scores=2, momentum=0.5))
    model.save(tmp_path / "model")
    given = {"direction": Rank1(num_scores=4, damping=3.0, momentum=0.25), "critic_learning_rate": 0.5}
    loaded = SMAC.load(tmp_path / "model", env=gymnasium.make("CartPole-v1"), learning_rate=0.7, batch_size=8, **given)
    (group,) = loaded.actor_optimizer.param_groups
    assert (group["damping"], group["momentum"], group["lr"]) == (3.0, 0.25, 0.7)
    assert loaded.policy.optimizer.param_groups[0]["lr"] == 0.5
    first, second = model.actor.parameters[0], loaded.actor.parameters[0]
    kept = model.actor_optimizer.state[first]["momentum_buffer"]
    assert torch.equal(loaded.actor_optimizer.state[second]["momentum_buffer"], kept)
    loaded.learn(32)
    assert loaded.logger.name_to_value["train/effective_learning_rate"] == pytest.approx(0.7 / 3)
    untouched = SMAC.load(tmp_path / "model")
    assert untouched.actor_optimizer.param_groups[0]["damping"] == 0.1
    with pytest.raises(ValueError, match="unknown direction"):
        SMAC.load(tmp_path / "model", direction="evva")


@pytest.mark.parametrize("as_file", [False, True])
def test_a_keyword_of_load_that_means_nothing_is_refused(tmp_path, as_file):
    path = tmp_path / "model.zip"
    made().save(path)
    given = io.BytesIO(path.read_bytes()) if as_file else path
    with pytest.raises(TypeError, match=r"SMAC.load has no keyword 'n_step' \(did you mean 'n_steps'\?\)"):
        SMAC.load(given, n_step=3)
    model = SMAC.load(given, n_steps=3, learning_rate=lambda left: 0.5, num_timesteps=7, n_envs=1, verbose=0)
    assert (model.n_steps, model.num_timesteps, model.lr_schedule(1.0)) == (3, 7, 0.5)


def test_a_checkpoint_of_the_middle_continues_its_schedule(tmp_path):
    def save_in_the_middle(local, above):
        if local["self"].num_timesteps == 40:
            local["self"].save(tmp_path / "middle")
        return True

    model = SMAC("MlpPolicy", "CartPole-v1", lambda left: 0.1 * left, n_steps=16, seed=0, policy_kwargs=NET)
    model.learn(64, callback=save_in_the_middle)
    loaded = SMAC.load(tmp_path / "middle", env=gymnasium.make("CartPole-v1"))
    assert (loaded.num_timesteps, loaded._n_updates) == (40, 2)
    assert loaded.actor_optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.5)


def test_parameters_travel_between_models_and_devices():
    first, second = made(seed=0), made(seed=1)
    second.set_parameters(first.get_parameters(), device="cpu")
    assert same(state(first), state(second))
    copied = copy.deepcopy(first.get_parameters())
    assert pickle.loads(pickle.dumps(copied)).keys() == {"policy", "policy.optimizer", "actor_optimizer"}
    with pytest.warns(UserWarning, match="starts anew"):
        made(direction=AdamGradient()).set_parameters(first.get_parameters())
    with pytest.raises(ValueError, match="do not match"):
        second.set_parameters({"policy": first.policy.state_dict()}, exact_match=True)
    second.set_parameters({"policy": first.policy.state_dict()}, exact_match=False)


def test_other_environments_and_what_was_left_out(tmp_path):
    model = made()
    model.save(tmp_path / "model", exclude=["direction"])
    loaded = SMAC.load(tmp_path / "model", env=make_vec_env("CartPole-v1", 3, seed=0))
    assert loaded.n_envs == 3
    assert loaded.direction == Rank1()
    loaded.learn(48, reset_num_timesteps=False)
    assert loaded.num_timesteps == 96


@pytest.mark.slow
@pytest.mark.parametrize("n_steps", [1, 2, 9])
@pytest.mark.parametrize("direction", ["rank1", "eva", "sample-space", "sgd"])
def test_short_rollouts_learn(n_steps, direction):
    model = made(n_steps=n_steps, direction=direction, num_steps=0)
    before = state(model)
    model.learn(3 * n_steps)
    after = state(model)
    assert all(torch.isfinite(part).all() for part in after.values())
    assert not torch.equal(before["action_net.weight"], after["action_net.weight"])
    assert not torch.equal(before["value_net.weight"], after["value_net.weight"])


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["rank1", Rank1(num_scores=1), "eva", "sample-space", "adam"], ids=str)
def test_batch_statistics_are_learned_in_training_and_used_in_acting(direction):
    model = made(policy_kwargs=NORMALISED, direction=direction, num_steps=0, learning_rate=0.01)
    names = [name for name in state(model) if name.startswith("features_extractor") and "net.2" in name]
    before = state(model)
    model.train, train = (lambda: None), model.train
    model.learn(32)
    assert all(torch.equal(before[name], state(model)[name]) for name in names)
    model.train = train
    model.learn(32)
    moved = [name for name in names if not torch.equal(before[name], state(model)[name])]
    assert {name.rpartition(".")[2] for name in moved} >= {"running_mean", "bias"}


def test_a_score_with_batchnorm_is_that_of_the_policy_that_acts():
    model = made(policy_kwargs=NORMALISED)
    rows, _ = model.transitions()
    model.policy.set_training_mode(True)
    found = model.actor.scores(rows.take(torch.arange(3)))
    assert model.policy.training
    model.policy.set_training_mode(False)
    for index, log_prob in enumerate(model.actor.log_prob(rows)[:3]):
        alone = torch.autograd.grad(log_prob, model.actor.parameters, retain_graph=True)
        for parameter, expected in zip(model.actor.parameters, alone, strict=True):
            torch.testing.assert_close(found[parameter][index], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_batchnorm_takes_a_left_over_row_and_refuses_a_single_one():
    for batch_size in (1, 15, 16):
        assert made(policy_kwargs=NORMALISED, batch_size=batch_size, n_steps=16)._n_updates == 3
        model = made(policy_kwargs=NORMALISED, batch_size=batch_size, num_steps=0)
        order = torch.randperm(31)
        parts = model.minibatches(order)
        assert torch.equal(torch.cat(list(parts)), order)
        assert min(map(len, parts)) > 1
    with pytest.raises(ValueError, match="BatchNorm needs at least 2 rows"):
        made(policy_kwargs=NORMALISED, n_steps=1)


@pytest.mark.slow
@pytest.mark.parametrize("direction", [Rank1(num_scores=2, momentum=0.5), "eva", "adam"], ids=str)
def test_weights_frozen_unfrozen_and_replaced_are_noticed(direction):
    model = made(policy_kwargs=LEARNED, direction=direction, learning_rate=0.01)
    extractor = model.policy.pi_features_extractor.net[1].weight
    extractor.requires_grad_(False)
    before = state(model)
    model.learn(32, reset_num_timesteps=False)
    after = state(model)
    assert torch.equal(before["features_extractor.net.1.weight"], after["features_extractor.net.1.weight"])
    assert not torch.equal(before["action_net.weight"], after["action_net.weight"])
    extractor.requires_grad_(True)
    model.learn(32, reset_num_timesteps=False)
    assert not torch.equal(after["features_extractor.net.1.weight"], state(model)["features_extractor.net.1.weight"])
    model.policy = copy.deepcopy(made(policy_kwargs=LEARNED, seed=5).policy)
    before = state(model)
    model.learn(32, reset_num_timesteps=False)
    assert not torch.equal(before["action_net.weight"], state(model)["action_net.weight"])
    assert not torch.equal(before["value_net.weight"], state(model)["value_net.weight"])


def test_a_policy_with_nothing_to_train_is_named():
    model = made()
    for parameter in model.actor.critic_parameters:
        parameter.requires_grad_(False)
    with pytest.raises(ValueError, match="value depends on no trainable parameter"):
        model.learn(16, reset_num_timesteps=False)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["foreach", "fused", "differentiable"])
def test_the_critics_optimizer_is_the_users(form):
    model = made(policy_kwargs={**NET, "optimizer_kwargs": {form: form == "foreach"}}, critic_learning_rate=0.25)
    assert model.policy.optimizer.param_groups[0]["lr"] == 0.25
    other = made(policy_kwargs={**NET, "optimizer_class": torch.optim.SGD, "optimizer_kwargs": {"momentum": 0.5}})
    assert type(other.policy.optimizer) is torch.optim.SGD


def test_the_seed_of_a_model_seeds_its_draws():
    first, second = (SMAC("MlpPolicy", "CartPole-v1", n_steps=16, policy_kwargs=NET) for _ in range(2))
    second.set_parameters(first.get_parameters())
    for model in (first, second):
        model.set_random_seed(3)
        model.learn(32)
    assert same(state(first), state(second))


def test_observations_in_float64_and_our_policies_by_class():
    class Wide(gymnasium.ObservationWrapper):
        observation_space = spaces.Box(-10.0, 10.0, (4,), np.float64)

        def observation(self, observation):
            return observation.astype(np.float64)

    model = made(Wide(gymnasium.make("CartPole-v1")), MlpPolicy)
    assert all(torch.isfinite(part).all() for part in state(model).values())


@pytest.mark.parametrize("direction", ["rank1", "sample-space"])
def test_an_extractor_under_two_names_keeps_learning_and_can_be_copied(direction):
    model = made(policy_kwargs=LEARNED, direction=direction, num_steps=16)
    parts = dict(model.policy.named_parameters())
    assert all(parts[name] is parameter for name, parameter in model.actor.named_parameters())
    before = state(model)
    copy.deepcopy(model.policy)
    model.learn(16, reset_num_timesteps=False)
    assert not torch.equal(before["features_extractor.net.1.weight"], state(model)["features_extractor.net.1.weight"])
