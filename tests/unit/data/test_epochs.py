"""Where epochs begin whose length is known once they are read, against a plain list of them."""

from __future__ import annotations

from itertools import accumulate

from hypothesis import given, strategies as st

from asyncstep.data.epochs import Epochs

lengths = st.lists(st.integers(1, 3), max_size=12)


def ended(lengths: list[int]) -> Epochs:
    """Epochs of these lengths have ended."""
    epochs = Epochs()
    for length in lengths:
        epochs.end(length)
    return epochs


@given(lengths=lengths, low=st.integers(0, 40))
def test_every_position_is_found_in_its_epoch(lengths: list[int], low: int) -> None:
    """The epoch of a position, its beginning and its length are known, also when what lies before was forgotten."""
    starts = [0, *accumulate(lengths)]
    epochs = ended(lengths)
    epochs.forget(low)
    for position in range(low, 42):
        epoch = max(number for number, start in enumerate(starts) if start <= position)
        assert epochs.find(position) == (epoch, starts[epoch])
        assert epochs.length(epoch) == (lengths[epoch] if epoch < len(lengths) else None)


@given(lengths=lengths)
def test_epochs_are_made_again_from_their_state(lengths: list[int]) -> None:
    """D2: what a checkpoint keeps of the epochs is all there is to them."""
    epochs = ended(lengths)
    again = Epochs(**epochs.state())
    again.end(7)
    epochs.end(7)
    assert again.state() == epochs.state()


def test_many_epochs_of_one_length_cost_as_much_as_one() -> None:
    """L9: a short source that is repeated for ever does not grow its checkpoint, even if nothing is forgotten."""
    assert len(ended([5] * 1_000)._runs) == 1
    assert len(ended([5] * 1_000 + [6] * 1_000)._runs) == 2


def test_of_epochs_that_are_done_nothing_is_kept() -> None:
    """Runs that end before a position are forgotten."""
    epochs = ended([1, 2, 3])
    epochs.forget(3)
    assert epochs.state() == {"runs": [(2, 3, 3)], "epoch": 3, "start": 6}
    epochs.forget(6)
    assert epochs.state() == {"runs": [], "epoch": 3, "start": 6}
