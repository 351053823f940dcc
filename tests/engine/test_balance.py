from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mnv2det.engine.balance import TaskBalance
from mnv2det.structures import Target

NEEDS = {"det": ("boxes", "labels"), "seg": ("mask",)}
BOXES: Target = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
MASK: Target = {"mask": torch.zeros(2, 2, dtype=torch.int64)}


def weights_of(balance: TaskBalance) -> dict[str, float]:
    return {task: float(weight.detach()) for task, weight in balance.weights().items()}


def total(balance: TaskBalance, losses: dict[str, Tensor], targets: list[Target]) -> Tensor:
    """What the trainer lowers."""
    weights = balance.weights()
    return torch.stack([weights[task] * loss for task, loss in losses.items()]).sum() + balance.penalty(targets)


def test_the_value_is_the_formulas() -> None:
    balance = TaskBalance({"det": 1.0, "seg": 0.5}, NEEDS)
    assert weights_of(balance) == pytest.approx({"det": 1.0, "seg": 0.5})
    losses, logs = {"det": torch.tensor(3.0), "seg": torch.tensor(0.7)}, {"det": -0.4, "seg": 1.3}
    with torch.no_grad():
        for task, log in logs.items():
            balance.log_variances[task].fill_(log)
    wanted = sum(math.exp(-logs[task]) * float(losses[task]) + logs[task] / 2 for task in logs)
    for targets in ([{**BOXES, **MASK}], [BOXES, MASK]):
        assert float(total(balance, losses, targets).detach()) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("targets", "taught"),
    [
        ([MASK], {"seg"}),
        ([MASK, {}], {"seg"}),
        ([BOXES, BOXES], {"det"}),
        ([{}, {}], set()),
        ([], set()),
        ([{"boxes": torch.zeros(0, 4)}], set()),
        ([BOXES, MASK], {"det", "seg"}),
    ],
    ids=["masks", "one mask", "boxes", "nothing", "no images", "boxes without labels", "both"],
)
def test_a_task_that_the_batch_does_not_teach_keeps_its_weight(targets: list[Target], taught: set[str]) -> None:
    balance = TaskBalance({"det": 2.0, "seg": 0.25}, NEEDS)
    before = weights_of(balance)
    optimizer = torch.optim.SGD(balance.parameters(), 0.1)
    # what a head gives where nothing is annotated: zero with a gradient
    parameter = torch.ones((), requires_grad=True)
    losses = {task: parameter * (5.0 if task in taught else 0.0) for task in before}
    total(balance, losses, targets).backward()
    assert all(value.grad is not None for value in balance.log_variances.values()), "processes average all of them"
    optimizer.step()
    assert {task for task, weight in weights_of(balance).items() if weight != before[task]} == taught


def test_the_penalty_of_nothing_is_zero_with_a_gradient() -> None:
    balance = TaskBalance({"det": 2.0, "seg": 0.25}, NEEDS)
    penalty = balance.penalty([{}])
    penalty.backward()
    assert float(penalty.detach()) == 0
    assert [float(value.grad) for value in balance.log_variances.values()] == [0, 0]


def test_constant_losses_lead_to_weights_inverse_to_them() -> None:
    losses = {"det": 4.0, "seg": 0.3}
    balance = TaskBalance({"det": 1.0, "seg": 1.0}, NEEDS)
    optimizer = torch.optim.SGD(balance.parameters(), 0.2)
    for _ in range(400):
        optimizer.zero_grad()
        total(balance, {task: torch.tensor(loss) for task, loss in losses.items()}, [{**BOXES, **MASK}]).backward()
        optimizer.step()
    assert weights_of(balance) == pytest.approx({task: 1 / (2 * loss) for task, loss in losses.items()}, rel=1e-3)


def test_weights_pass_their_gradient_on_to_the_model() -> None:
    balance, parameter = TaskBalance({"det": 3.0, "seg": 1.0}, NEEDS), torch.ones((), requires_grad=True)
    total(balance, {"det": parameter * 2, "seg": parameter * 0}, [BOXES]).backward()
    assert float(parameter.grad) == pytest.approx(6.0)


def test_the_state_goes_through_a_checkpoint() -> None:
    balance, other = TaskBalance({"det": 3.0, "seg": 1.0}, NEEDS), TaskBalance({"det": 1.0, "seg": 1.0}, NEEDS)
    other.load_state_dict(balance.state_dict())
    assert weights_of(other) == pytest.approx({"det": 3.0, "seg": 1.0})
