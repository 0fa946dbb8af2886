import numpy as np
import pytest

from configuration import SmoothingConfig
from realtime.smoothing import TemporalSmoother

# A change of 1 never happens.
PLAIN = SmoothingConfig(fast_seconds=0.3, slow_seconds=2.0, margin=0.0, change_threshold=1.0)


def smoothed(smoother, rows, rate=30.0):
    return [smoother.update([1], np.array([row]), index / rate)[0] for index, row in enumerate(rows)]


def test_average_is_exponential_after_plain_start():
    rows = np.random.default_rng(5).dirichlet([1, 1, 1], 40)
    means = [prediction.probabilities for prediction in smoothed(TemporalSmoother(options=PLAIN), rows, rate=10)]
    decay = np.exp(-0.1 / 2.0)
    expected = rows[0]
    for count, row in enumerate(rows[1:], start=2):
        new = max(1 - decay, 1 / count)
        expected = (1 - new) * expected + new * row
        np.testing.assert_allclose(means[count - 1], expected, atol=1e-9)
    np.testing.assert_allclose(means[1], rows[:2].mean(axis=0))
    np.testing.assert_allclose([mean.sum() for mean in means], 1)


@pytest.mark.parametrize("rate", [5, 15, 30, 120])
def test_change_shows_after_same_time_at_any_frame_rate(rate):
    before, after = [0.9, 0.1], [0.1, 0.9]
    predictions = smoothed(TemporalSmoother(), [before] * 3 * rate + [after] * 2 * rate, rate)
    first = [prediction.index for prediction in predictions].index(1) - 3 * rate
    assert 0.15 <= (first + 1) / rate <= 0.4 + 1 / rate
    assert all(prediction.index == 1 for prediction in predictions[3 * rate + first :])


def test_label_changes_only_by_margin():
    rows = [[0.6, 0.4]] * 30 + [[0.45, 0.55]] * 60 + [[0.3, 0.7]] * 60
    predictions = smoothed(TemporalSmoother(options=SmoothingConfig(0.1, margin=0.2)), rows)
    assert {prediction.index for prediction in predictions[:90]} == {0} and predictions[-1].index == 1


def test_unsure_exactly_below_threshold():
    rows = np.random.default_rng(4).dirichlet([1.6, 1.3, 1.0], 2000)
    for threshold in (0.4, 0.45, 0.5):
        predictions = smoothed(TemporalSmoother(threshold), rows)
        assert [each.unsure for each in predictions] == [each.probabilities.max() < threshold for each in predictions]
        for each in predictions:
            assert each.unsure or each.probabilities[each.index] >= threshold, "the label shown reaches it, too"
        assert 0 < sum(each.unsure for each in predictions) < len(rows)


def test_label_below_threshold_changes_without_margin():
    predictions = smoothed(
        TemporalSmoother(0.35, SmoothingConfig(0.1, slow_seconds=0.1, margin=0.2)),
        [[0.5, 0.3, 0.2]] * 30 + [[0.34, 0.4, 0.26]] * 60,
    )
    assert (predictions[-1].index, predictions[-1].unsure) == (1, False)


def test_new_track_does_not_flicker():
    rows = [[0.58, 0.42], [0.15, 0.85], [0.72, 0.28], [0.33, 0.67], [0.7, 0.3], [0.65, 0.35]]
    shown = {}
    for factor in (1.0, 3.0):
        smoother = TemporalSmoother(0.0, SmoothingConfig(new_track_margin_factor=factor, margin=0.1))
        shown[factor] = [prediction.index for prediction in smoothed(smoother, rows)]
    assert len(set(shown[1.0])) > 1  # else the rows would show nothing
    assert set(shown[3.0]) == {0}


def test_tracks_are_independent_and_expire():
    smoother = TemporalSmoother()
    for index in range(30):
        first, second = smoother.update([7, 8], np.array([[0.9, 0.1], [0.2, 0.8]]), index / 30)
    assert (first.index, second.index) == (0, 1)
    (back,) = smoother.update([7], np.array([[0.3, 0.7]]), 60.0)
    np.testing.assert_allclose(back.probabilities, [0.3, 0.7])
    assert back.index == 1
