"""Ranks hold copies of one model: the documented loops under DDP, what else may differ between ranks, and refusals."""

import os
import re
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from optimizer_rows import ROWS, Classifier, batch, drawn, mean_loss, train_step, weights
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from heliostat.optim import Rank1NaturalGradient, RKalman
from heliostat.optim.distributed.replicas import ReplicasDisagree, is_due, ranks_of
from heliostat.optim.master_weights import with_master_weights
from heliostat.optim.precision.master_copies import MASTER
from tests.conformance.test_distributed_optimizers import free_port

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "optimizers.md"
BY_NAME = {row.name: row for row in ROWS}


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory):
    """What every function of ``FUNCTIONS`` returns, by name, from each of two processes; started once for all."""
    folder = tmp_path_factory.mktemp("ranks")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mp.spawn(_worker, (free_port(), str(folder)), nprocs=2)
    both = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    return {name: [one[name] for one in both] for name in both[0]}


def _worker(rank, port, folder):
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    torch.save({function.__name__: function(rank) for function in FUNCTIONS}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


# -- the loops of the documentation, word for word ----------


def documented():
    """The Python blocks of the page: the classifier that all continue, and one loop for each optimizer."""
    section = PAGE.read_text(encoding="utf-8").partition("## Six lines for each")[2].partition("\n## ")[0]
    first, *loops = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    same = [loop.replace("KroneckerProduct", "KroneckerSum") for loop in loops if "KroneckerProduct" in loop]
    return first, loops + same  # "Kronecker-sum (KroneckerSum, same arguments)"


def likeliest(logits, generator=None):
    """In place of a random label the likeliest one: the same on one process and on two."""
    return torch.log_softmax(logits, -1).max(-1).values.sum()


def run_documented(loop, wrap, rank=None, likelihood=None):
    """Run one loop on this rank's half of the rows, or on all of them; its model and optimizer."""
    names = {}
    exec(documented()[0], names)
    if rank is not None:
        own = slice(32 * rank, 32 * rank + 32)
        names["x"], names["y"] = names["x"][own], names["y"][own]
        names["x"] = torch.cat([names["x"], names["x"]])  # rows 32 to 49 are scored once more
        names["y"] = torch.cat([names["y"], names["y"]])
    if likelihood is not None:
        names["sampled_log_likelihood"] = likelihood
    plain = names["new_model"]

    def new_model():
        torch.manual_seed(0)
        model = wrap(plain().double())
        torch.manual_seed(1 + (rank or 0))
        return model

    names |= {"new_model": new_model, "x": names["x"].double()}
    exec(loop, names)
    return names["model"], names["optimizer"]


def few_steps(loop):
    """Eigenvectors of factors without full rank are anybody's: rounding, multiplied by 50 steps, shows in them."""
    assert "range(50)" in loop
    return loop.replace("range(50)", "range(5)")


def train_as_documented(rank):
    found = {}
    for loop in documented()[1]:
        model, optimizer = run_documented(loop, DistributedDataParallel, rank)
        found[type(optimizer).__name__] = weights(model)
        if type(optimizer).__name__ not in ("Rank1NaturalGradient", "RKalman"):
            model, _ = run_documented(few_steps(loop), DistributedDataParallel, rank, likeliest)
            found[type(optimizer).__name__ + "-fixed"] = weights(model)
    return found


def test_the_documented_loops_keep_ranks_equal_and_equal_one_process(on_two_ranks):
    ranks = on_two_ranks["train_as_documented"]
    assert {name for name in ranks[0] if "-" not in name} == {
        *("Rank1NaturalGradient", "Eva", "RING", "RENG", "RKalman", "KroneckerProduct", "KroneckerSum")
    }
    for name, one in ranks[0].items():
        assert torch.equal(one, ranks[1][name]), name
    for loop in documented()[1]:
        model, optimizer = run_documented(few_steps(loop), lambda plain: plain, likelihood=likeliest)
        name = f"{type(optimizer).__name__}-fixed"
        if name in ranks[0]:
            assert torch.allclose(ranks[0][name], weights(model), atol=1e-7), name


# -- what else may differ between ranks ----------


class TwoPaths(Classifier):
    """One of two last layers, as a mixture's experts; each rank may use its own."""

    def __init__(self, use_expert=False):
        super().__init__()
        self.use_expert = use_expert
        torch.manual_seed(1)
        self.expert = nn.Linear(4, 3, dtype=torch.float64)

    def forward(self, inputs):
        hidden = torch.tanh(self.hidden(self.norm(self.embedding(inputs))))
        return self.expert(hidden) if self.use_expert else self.head(hidden)


def accumulated(optimizer, model, inputs, labels):
    """A step over two micro-batches, of which DDP averages after the second only."""
    optimizer.zero_grad()
    with model.no_sync() if isinstance(model, DistributedDataParallel) else torch.enable_grad():
        (mean_loss(model, inputs[:3], labels[:3]) / 2).backward()
    (mean_loss(model, inputs[3:], labels[3:]) / 2).backward()
    if optimizer.extra_pass == "scores":
        for k in range(optimizer.num_scores):
            with optimizer.score():
                (-mean_loss(model, inputs[k : k + 1], labels[k : k + 1])).backward()
    if optimizer.extra_pass == "statistics" and not optimizer.empirical:
        with optimizer.statistics():
            logits = model(inputs)
            nn.functional.cross_entropy(logits, drawn(logits, inputs), reduction="sum").backward()
    optimizer.step()


STATISTICAL = ["rank1", "rank1-four", "eva", "ring", "ring-empirical", "rkalman", "kronecker-product"]


def train_with_ragged_ranks(rank):
    """Weights after steps with accumulation, DDP's views, uneven batches, and layers that one rank does not use."""
    found = {}
    for name in STATISTICAL:
        make = BY_NAME[name].make
        for kind in ("accumulated", "views", "uneven", "unused"):
            model = TwoPaths(rank == 1) if kind == "unused" else Classifier()
            optimizer = make(model)
            options = {"gradient_as_bucket_view": kind == "views", "find_unused_parameters": kind == "unused"}
            parallel = DistributedDataParallel(model, **options)
            for step in range(3):
                inputs, labels = batch(seed=step)
                own = slice(0, 4) if (rank, kind) == (0, "uneven") else slice(6 * rank, 6 * rank + 6)
                inputs, labels = inputs[own], labels[own]
                if kind == "accumulated":
                    accumulated(optimizer, parallel, inputs, labels)
                else:
                    train_step(optimizer, parallel, inputs, labels)
            assert optimizer.num_skipped == 0
            found[f"{name}-{kind}"] = weights(model)
    return found


def joint_steps(name):
    """One process on the rows and the scored samples of both ranks."""
    model = Classifier()
    optimizer = BY_NAME[name].make(model)
    scored = [*range(getattr(optimizer, "num_scores", 0)), *range(6, 6 + getattr(optimizer, "num_scores", 0))]
    optimizer.num_scores = len(scored)
    for step in range(3):
        train_step(optimizer, model, *batch(seed=step), scored=scored)
    return weights(model)


def test_ranks_stay_equal_whatever_each_of_them_sees(on_two_ranks):
    ranks = on_two_ranks["train_with_ragged_ranks"]
    assert len(ranks[0]) == 4 * len(STATISTICAL)
    assert [name for name in ranks[0] if not torch.equal(ranks[0][name], ranks[1][name])] == []
    for name in STATISTICAL:
        one = joint_steps(name)
        for kind in ("accumulated", "views"):
            assert torch.allclose(ranks[0][f"{name}-{kind}"], one, atol=1e-9), (name, kind)


# -- R-Kalman's other measurements ----------


def kalman_steps(model, share=slice(None)):
    plain = getattr(model, "module", model)
    outputs, losses = RKalman(plain.parameters(), covariance=0.1, noise_ema=0.9), None
    for step in range(3):
        inputs, labels = batch(seed=step)
        inputs, targets = inputs[share], labels[share].double()
        outputs.step(measurement=lambda: (model(inputs)[:, 0], targets))  # noqa: B023
    losses = RKalman(plain.parameters(), covariance=0.1, noise_ema=0.9)
    for step in range(3):
        inputs, labels = batch(seed=step)
        losses.zero_grad()
        loss = mean_loss(model, inputs[share], labels[share])
        loss.backward()
        losses.step(loss=loss.item())
    assert outputs.noise != 1.0
    return weights(plain)


def kalman_on_two(rank):
    return {"weights": kalman_steps(DistributedDataParallel(Classifier()), slice(6 * rank, 6 * rank + 6))}


def test_outputs_and_losses_of_all_ranks_are_one_measurement(on_two_ranks):
    ranks = on_two_ranks["kalman_on_two"]
    assert torch.equal(ranks[0]["weights"], ranks[1]["weights"])
    assert torch.allclose(ranks[0]["weights"], kalman_steps(Classifier()), atol=1e-9)


# -- groups, and what is refused ----------


def alone_and_in_subgroups(rank):
    """Two models of two ranks: each trained alone, in a group of its own, and in no group at all."""
    groups = [dist.new_group([other]) for other in (0, 1)]
    found = {}
    for kind, group in (("alone", "alone"), ("own", groups[rank])):
        for name in STATISTICAL:
            model = Classifier()
            optimizer = BY_NAME[name].make(model, process_group=group)
            for step in range(3):
                train_step(optimizer, model, *batch(seed=10 * rank + step))
            found[f"{name}-{kind}"] = weights(model)
    with pytest.raises(ValueError, match="this rank"):
        ranks_of(groups[1 - rank])
    return found


def one_alone(name, rank):
    model = Classifier()
    optimizer = BY_NAME[name].make(model)
    for step in range(3):
        train_step(optimizer, model, *batch(seed=10 * rank + step))
    return weights(model)


def test_a_rank_may_train_a_model_of_its_own(on_two_ranks):
    for rank, found in enumerate(on_two_ranks["alone_and_in_subgroups"]):
        for name in STATISTICAL:
            for kind in ("alone", "own"):
                # In float64; matrix products may round by where memory begins, which differs between processes.
                assert torch.allclose(found[f"{name}-{kind}"], one_alone(name, rank), rtol=0, atol=1e-11), (name, kind)


NOT_COPIES = {
    "gradients": "average gradients over ranks before step",
    "weights": "process_group='alone'",
    "parameters": "name the ranks that hold copies",
}


def refusals(rank):
    """What is said of ranks that hold no copies, with the weights as they were; every rank says it."""
    plain = {name: (Classifier(), BY_NAME[name].make, "gradients") for name in (*STATISTICAL, "kronecker-sum")}
    different = Classifier()
    with torch.no_grad():
        different.head.weight.add_(0.01 * rank)
    plain["other weights"] = (different, BY_NAME["kronecker-sum"].make, "weights")
    plain["other model"] = (Classifier() if rank else TwoPaths(), BY_NAME["eva"].make, "parameters")
    for name, (model, make, what) in plain.items():
        before, optimizer = weights(model), make(model)
        with pytest.raises(ReplicasDisagree, match=what) as caught:
            train_step(optimizer, model, *(part[6 * rank : 6 * rank + 6] for part in batch()))
        assert NOT_COPIES[what] in str(caught.value), name
        assert torch.equal(weights(model), before), name
    return "refused"


def late_refusal(rank):
    """Ranks that part later are found out at the next comparison."""
    model = Classifier()
    optimizer, parallel = BY_NAME["eva"].make(model), DistributedDataParallel(model)
    for step in range(2):
        train_step(optimizer, parallel, *batch(seed=step))
    with torch.no_grad():
        model.hidden.weight.mul_(1 + 0.01 * rank)
    train_step(optimizer, parallel, *batch(seed=2))
    with pytest.raises(ReplicasDisagree, match="weights"):
        train_step(optimizer, parallel, *batch(seed=3))
    return "refused"


def lonely_score(rank):
    """One rank brings no score: both say so, and none waits."""
    model = Classifier()
    parallel = DistributedDataParallel(model)
    optimizer = Rank1NaturalGradient(model.parameters(), lr=0.1)
    inputs, labels = batch()
    mean_loss(parallel, inputs, labels).backward()
    if rank == 0:
        with optimizer.score():
            mean_loss(model, inputs[:1], labels[:1]).backward()
    with pytest.raises(RuntimeError, match="got 1, 0 on the ranks"):
        optimizer.step()
    return "refused"


def steps_inside_join(optimizer, model, done, num_steps, **settings):
    with model.join(**settings):
        for step in range(num_steps):
            train_step(optimizer, model, *batch(seed=step))
            done.append(step)


def inside_join(rank):
    """A rank that runs out of rows would leave the others waiting: said at the first step, before anything moves."""
    for name in (*STATISTICAL, "kronecker-sum"):
        model = Classifier()
        optimizer, parallel = BY_NAME[name].make(model), DistributedDataParallel(model)
        before = weights(model)
        with pytest.raises(RuntimeError, match=r"join\(\) a rank without rows takes no part"):
            steps_inside_join(optimizer, parallel, [], 2 + rank)
        assert torch.equal(weights(model), before), name
    return "refused"


def joined_in_the_end(rank):
    """The form of join() that ends all ranks with the first that has no rows is as good as equal numbers of batches."""
    model = Classifier()
    optimizer, parallel = BY_NAME["kronecker-sum"].make(model), DistributedDataParallel(model)
    done = []
    with pytest.raises(RuntimeError, match="exhausted"):
        steps_inside_join(optimizer, parallel, done, 2 + rank, throw_on_early_termination=True)
    return weights(model), len(done)


def test_ranks_may_run_out_of_rows_together(on_two_ranks):
    (first, steps), (second, others) = on_two_ranks["joined_in_the_end"]
    assert torch.equal(first, second)
    assert steps == others == 2


def test_ranks_that_hold_no_copies_are_refused(on_two_ranks):
    """Each function asserts it on its own rank; an error in one would have ended the processes."""
    for function in (refusals, late_refusal, lonely_score, inside_join):
        assert on_two_ranks[function.__name__] == ["refused", "refused"]


def test_copies_are_compared_at_first_and_then_ever_less_often():
    assert [call for call in range(1, 4097) if is_due(call)] == [
        *(2**power for power in range(11)),
        *range(2048, 4097, 1024),
    ]


def test_a_group_that_is_none_is_refused():
    assert ranks_of(None) is None
    with pytest.raises(ValueError, match="alone"):
        ranks_of("lonely")


# -- bfloat16 weights on float32 copies ----------


def adamw_with_masters(model, **_):
    groups = [{"params": list(model.parameters())}]
    return with_master_weights(groups, lambda own: torch.optim.AdamW(own, lr=0.02, fused=True))


def copies(model, optimizer):
    return torch.cat([optimizer.state[parameter][MASTER].reshape(-1) for parameter in model.parameters()])


def short_weights(rank):
    """Copies after steps with uneven batches or accumulation; of copies that differ it is said which."""
    found = {}
    for name in (*STATISTICAL, "kronecker-sum", "masters"):
        for kind in ("accumulated", "uneven"):
            model = Classifier(torch.bfloat16)
            optimizer = (BY_NAME[name].make if name in BY_NAME else adamw_with_masters)(model)
            parallel = DistributedDataParallel(model)
            for step in range(3):
                inputs, labels = batch(seed=step)
                own = slice(0, 4) if (rank, kind) == (0, "uneven") else slice(6 * rank, 6 * rank + 6)
                (accumulated if kind == "accumulated" else train_step)(optimizer, parallel, inputs[own], labels[own])
            found[f"{name}-{kind}"] = copies(model, optimizer)
    optimizer = adamw_with_masters(model)
    train_step(optimizer, parallel, *batch())
    optimizer.masters[model.hidden.weight].mul_(1 + 2.0**-11 * rank)  # below the spacing of the weights
    with pytest.raises(ReplicasDisagree, match=r"MasterWeights.*different weights"):
        train_step(optimizer, parallel, *batch())
    return found


def test_copies_of_bfloat16_weights_are_the_same_on_every_rank(on_two_ranks):
    ranks = on_two_ranks["short_weights"]
    assert len(ranks[0]) == 2 * (len(STATISTICAL) + 2)
    assert [name for name in ranks[0] if not torch.equal(ranks[0][name], ranks[1][name])] == []


# -- weights that are sharded within, and copied across, hosts (HSDP) ----------


def hybrid(rank):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("copy", "shard"))
    found = {}
    for name in ("eva", "ring-empirical", "kronecker-sum", "rank1"):
        model = Classifier()
        fully_shard(model, mesh=mesh)
        optimizer = BY_NAME[name].make(model)
        for step in range(3):
            inputs, labels = batch(seed=step)
            own = slice(6 * rank, 6 * rank + 6)
            optimizer.zero_grad()
            if name == "rank1":
                with optimizer.score():  # of the same sample on every rank: gradients are averaged over them
                    mean_loss(model, inputs[:1], labels[:1]).backward()
            mean_loss(model, inputs[own], labels[own]).backward()
            optimizer.step()
        found[name] = torch.cat([p.full_tensor().detach().reshape(-1) for p in model.parameters()])
    model = Classifier()
    fully_shard(model, mesh=mesh)
    with pytest.raises(ValueError, match="finite-difference"):
        train_step(BY_NAME["reng-double"].make(model), model, *batch())
    return found


def test_copies_of_sharded_weights_equal_one_process(on_two_ranks):
    ranks = on_two_ranks["hybrid"]
    for name, found in ranks[0].items():
        assert torch.equal(found, ranks[1][name]), name
        model = Classifier()
        optimizer = BY_NAME[name].make(model)
        for step in range(3):
            train_step(optimizer, model, *batch(seed=step), scored=[0])
        assert torch.allclose(found, weights(model), atol=1e-9), name


FUNCTIONS = [
    *(train_as_documented, train_with_ragged_ranks, kalman_on_two, alone_and_in_subgroups),
    *(refusals, late_refusal, lonely_score, inside_join, joined_in_the_end, short_weights, hybrid),
]
