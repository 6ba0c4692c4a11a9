"""Gradients averaged in buckets: which are sent when, and what a process that fails still sends."""

import itertools

import pytest
import torch
from safetensors.torch import load_file
from test_ranks import together
from torch import nn

from lsa_study.training import buckets as module
from lsa_study.training import train, trainer
from lsa_study.training.buckets import Buckets
from lsa_study.training.distributed import Distributed


class Echo(Distributed):
    """Two processes, the other of which sends three times the same."""

    def __init__(self):
        super().__init__(0, 2)
        object.__setattr__(self, "sent", [])

    def begin_sum(self, tensor):
        self.sent.append(tensor.numel())
        tensor *= 4
        return lambda: None


def layers(count=4):
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(3, 3) for _ in range(count)))


def backward(network, buckets, *, last=True):
    with buckets.sending(last):
        network(torch.ones(2, 3)).sum().backward()


def test_full_buckets_are_sent_in_backward_and_the_last_one_with_what_comes_with_it():
    network, plain, ranks = layers(), layers(), Echo()
    buckets = Buckets(network.parameters(), ranks, size=12 * 4)
    backward(network, buckets)
    assert ranks.sent == [12, 12, 12], "a layer's weight and bias each"
    loss, mean = torch.tensor(5.0), torch.tensor([1.0, 2.0])
    buckets.finish([loss, mean])
    assert ranks.sent == [12, 12, 12, 15]
    assert (loss.item(), mean.tolist()) == (10.0, [2.0, 4.0])
    plain(torch.ones(2, 3)).sum().backward()
    for mine, theirs in zip(network.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine.grad, 2 * theirs.grad)


def test_only_the_last_part_of_a_step_sends():
    network, ranks = layers(), Echo()
    buckets = Buckets(network.parameters(), ranks, size=1)
    backward(network, buckets, last=False)
    assert ranks.sent == []
    backward(network, buckets)
    buckets.finish([])
    assert ranks.sent == [3, 9] * 4, "from the output on, each too large for a bucket of its own"


def test_what_has_no_gradient_is_waited_for_and_left_without():
    """Every process then sends the same buckets, whichever of them had no use for a layer."""
    network, ranks = layers(), Echo()
    idle = nn.Parameter(torch.ones(5))
    buckets = Buckets([*network.parameters(), idle], ranks, size=12 * 4)
    backward(network, buckets)
    assert ranks.sent == [], "the bucket of the idle one comes first, and nothing overtakes it"
    buckets.finish([])
    assert sum(ranks.sent) == 4 * 12 + 5
    assert idle.grad is None


class Fails(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise KeyError("in backward")


def test_after_a_failure_in_backward_all_buckets_are_sent_all_the_same():
    network, ranks = layers(), Echo()
    buckets = Buckets(network.parameters(), ranks, size=12 * 4)
    with pytest.raises(KeyError), buckets.sending(True):
        network[2:](Fails.apply(network[:2](torch.ones(2, 3)))).sum().backward()
    assert ranks.sent == [12, 12]
    for parameter in network.parameters():
        parameter.grad = None
    buckets.finish([torch.zeros(())])
    buckets.finish([torch.zeros(())])
    assert ranks.sent == [12, 12, 12, 13] * 2, "and in every step until all know"


def test_one_process_alone_sends_nothing():
    network = layers()
    buckets = Buckets(network.parameters(), Distributed(), size=1)
    backward(network, buckets)
    before = [p.grad.clone() for p in network.parameters()]
    buckets.finish([torch.zeros(())])
    assert all(torch.equal(p.grad, b) for p, b in zip(network.parameters(), before, strict=True))


# -- real processes ------------------------------------------------------------------------------


def small_buckets():
    size = 20_000
    module.Buckets.__init__.__kwdefaults__["size"] = size


@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_get_the_same_bits_from_any_buckets(make_run, start, accumulate):
    hard = {"model__drop_path": 0.3, "runtime__accumulate": accumulate, "train__epochs": 1}
    one, many = make_run("one", **hard), make_run("many", **hard)
    assert together(start, one) == [0, 0]
    assert together(start, many, prepare=(small_buckets, small_buckets)) == [0, 0]
    first, second = load_file(one.weights), load_file(many.weights)
    assert all(torch.equal(first[name], second[name]) for name in first)


def fail_in_the_second_backward():
    from lsa_study.ops.unified import UnifiedSpatialOp

    small_buckets()
    calls = itertools.count()
    original = UnifiedSpatialOp.forward

    def failing(self, *arguments):
        out = original(self, *arguments)
        return Fails.apply(out) if next(calls) == 4 else out

    UnifiedSpatialOp.forward = failing


def test_a_failure_in_backward_is_raised_in_all_at_the_next_vote(make_run, start):
    """The others' buckets are on their way then; the epoch's last step is the next vote."""
    assert trainer.VOTE_SECONDS > 0
    folder = make_run(data__train_limit=192)
    prepare = (small_buckets, fail_in_the_second_backward)
    assert together(start, folder, prepare=prepare) == [11, 11]
    assert folder.status().cause == "bug"
    assert "KeyError: 'in backward'" in folder.status().message
    assert folder.metrics() == []
    assert not folder.last_checkpoint.exists(), "weights that lack a process's share are not kept"
    assert train(folder) == "done"
