"""Going back: in the same tensors, whatever was written, replaced, added or removed meanwhile."""

import torch

from heliostat.optim.base.snapshot import Snapshot, stays_finite


def test_everything_is_put_back_in_the_tensors_that_held_it():
    one, two = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.zeros(2))
    mean, gone = torch.full((3,), 2.0), torch.full((1,), 3.0)
    state = {one: {"mean": mean, "gone": gone, "steps": 4, "parts": [torch.ones(1)]}}
    before = Snapshot([one, two], state)
    with torch.no_grad():
        one.add_(5)
        two.fill_(float("nan"))
    mean.mul_(7)
    state[one]["parts"][0].fill_(9)
    state[one].update({"mean": torch.zeros(3), "steps": 5, "more": torch.ones(1)})
    del state[one]["gone"]
    state[two] = {"steps": 1}
    before.restore()
    assert torch.equal(one, torch.ones(3))
    assert torch.equal(two, torch.zeros(2))
    assert list(state) == [one]
    assert state[one]["mean"] is mean
    assert state[one]["gone"] is gone
    assert torch.equal(mean, torch.full((3,), 2.0))
    assert (state[one]["steps"], state[one]["parts"], list(state[one])) == (
        4,
        [torch.ones(1)],
        ["mean", "gone", "steps", "parts"],
    )


def test_one_number_that_is_not_finite_is_found_wherever_it_is():
    weight = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    held = {
        "mean": torch.ones(2),
        "flag": torch.tensor([True]),
        "count": 3,
        "empty": torch.ones(0),
        "parts": [torch.ones(2)],
    }
    assert stays_finite([weight], {weight: held})
    for bad in (float("nan"), float("inf"), -float("inf")):
        assert not stays_finite([weight], {weight: {**held, "mean": torch.tensor([1.0, bad])}})
        assert not stays_finite([weight], {weight: {**held, "parts": [torch.tensor([bad])]}})
        assert not stays_finite([torch.full((2,), bad)], {weight: held})
