import torch
from torch.nn import functional as F
from torch.testing import assert_close

from mnv2det.ops.losses import anchor_class_loss, hardest


def test_sigmoid_loss_is_cross_entropy_of_every_channel():
    logits, classes = torch.randn(2, 7, 4).double(), torch.randint(0, 4, (2, 7))
    wanted = F.binary_cross_entropy_with_logits(logits, F.one_hot(classes, 4).double(), reduction="none").sum(-1)
    assert_close(anchor_class_loss(logits, classes, softmax=False), wanted)


def test_softmax_loss():
    logits, classes = torch.randn(2, 7, 4).double(), torch.randint(0, 4, (2, 7))
    wanted = -logits.log_softmax(-1).gather(-1, classes[..., None])[..., 0]
    assert_close(anchor_class_loss(logits, classes, softmax=True), wanted)


def test_hardest_takes_the_largest_candidates_of_each_row():
    loss = torch.tensor([[5.0, 1, 4, 3], [1.0, 2, 3, 4]])
    candidates = torch.tensor([[False, True, True, True], [True, True, True, True]])
    chosen = hardest(loss, candidates, torch.tensor([2, 1]))
    assert chosen.tolist() == [[False, False, True, True], [False, False, False, True]]


def test_hardest_asks_for_more_than_there_are():
    chosen = hardest(torch.ones(1, 3), torch.tensor([[True, False, True]]), torch.tensor([9]))
    assert chosen.tolist() == [[True, False, True]]
