"""How long it will take is told once, from what was measured, and not of what is short."""

from __future__ import annotations

import pytest

from part3_pretrain.runtime import expected_time
from part3_pretrain.runtime.expected_time import RepliesTime, TrainingTime


class Clock:
    """Shows the time that a test says."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(expected_time, "time", clock)
    return clock


@pytest.mark.parametrize(("done", "expected"), [(0, "about 25 minutes"), (450, "about 9 minutes")])
def test_a_training_is_told_from_its_first_steps_and_the_last_validation(
    done: int, expected: str, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    """5 epochs of 200 steps of 1 second and validations of 100 seconds; resumed, none is known."""
    training = TrainingTime("fine-tuning", steps=1000, epochs=5)
    told = []
    for number in range(done + 1, 1001):
        if number % 200 == 1:
            clock.now += 100
            training.epoch({"epoch": number // 200})
        clock.now += 1 if number > done + 1 else 40  # the first step compiles
        training.step(number, None)
        told.append(capsys.readouterr().out)
    assert [text for text in told if text] == [f"fine-tuning: {expected}\n"]
    assert told.index(f"fine-tuning: {expected}\n") == 5  # five seconds behind the first step


def test_a_step_that_the_machine_delayed_is_not_taken_for_all(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    training = TrainingTime("pretraining", steps=5000)
    for number in range(1, 5001):
        clock.now += 60 if number == 2 else 0.1
        training.step(number, None)
    assert capsys.readouterr().out == "pretraining: about 8 minutes\n"


def test_replies_are_told_of_from_the_first_batches(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    replies, told = RepliesTime(1280), []
    for _ in range(20):
        clock.now += 3
        replies.count(32)
        told.append(capsys.readouterr().out)
    assert told == ["", "evaluation: about 2 minutes\n", *[""] * 18]


def test_nothing_is_told_of_what_is_short(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    training, replies = TrainingTime("fine-tuning", steps=80, epochs=1), RepliesTime(80)
    for number in range(1, 81):
        clock.now += 1
        training.step(number, None)
        replies.count(1)
    assert capsys.readouterr().out == ""
