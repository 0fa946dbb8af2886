import numpy as np
import pytest

from configuration import SmoothingConfig
from realtime.smoothing import TemporalSmoother

PLAIN = SmoothingConfig(smoothing=0.3, slow=2.0, margin=0.0, change=1.0)  # a change of 1 never happens


def follow(smoother, rows, rate=30.0):
    return [smoother.update([1], np.array([row]), index / rate)[0] for index, row in enumerate(rows)]


def test_the_average_is_exponential_in_seconds_after_a_plain_beginning():
    rows = np.random.default_rng(5).dirichlet([1, 1, 1], 40)
    means = [verdict.probabilities for verdict in follow(TemporalSmoother(options=PLAIN), rows, rate=10)]
    decay = np.exp(-0.1 / 2.0)
    expected = rows[0]
    for count, row in enumerate(rows[1:], start=2):
        new = max(1 - decay, 1 / count)
        expected = (1 - new) * expected + new * row
        np.testing.assert_allclose(means[count - 1], expected, atol=1e-9)
    np.testing.assert_allclose(means[1], rows[:2].mean(axis=0))
    np.testing.assert_allclose([mean.sum() for mean in means], 1)


@pytest.mark.parametrize("rate", [5, 15, 30, 120])
def test_a_change_shows_in_the_same_time_at_any_frame_rate(rate):
    before, after = [0.9, 0.1], [0.1, 0.9]
    verdicts = follow(TemporalSmoother(), [before] * 3 * rate + [after] * 2 * rate, rate)
    shows = [verdict.index for verdict in verdicts].index(1) - 3 * rate
    assert 0.15 <= (shows + 1) / rate <= 0.4 + 1 / rate
    assert all(verdict.index == 1 for verdict in verdicts[3 * rate + shows :])


def test_noise_is_averaged_over_two_seconds_and_a_change_over_a_third_of_one():
    random = np.random.default_rng(2)
    before, after = (random.dirichlet(weights, 600) for weights in ([30, 14, 6], [14, 30, 6]))
    shown = np.array([verdict.probabilities for verdict in follow(TemporalSmoother(), [*before, *after])])
    decay, expected = np.exp(-1 / 60), before[:60].mean(axis=0)  # of the slow average alone, started late
    for row in before[60:]:
        expected = decay * expected + (1 - decay) * row
    np.testing.assert_allclose(shown[599], expected, atol=0.01)
    there = np.abs(shown[600:] - after.mean(axis=0)).max(axis=1) < 0.1
    assert there.argmax() < 30 and there[30:].all(), "within a second the new probabilities are shown"


def test_a_label_stays_until_another_is_better_by_the_margin():
    close, clear = [0.45, 0.55], [0.3, 0.7]
    verdicts = follow(
        TemporalSmoother(options=SmoothingConfig(0.1, margin=0.2)), [[0.6, 0.4]] * 30 + [close] * 60 + [clear] * 60
    )
    assert {verdict.index for verdict in verdicts[:90]} == {0}
    assert verdicts[-1].index == 1


def test_a_face_is_unsure_exactly_where_no_smoothed_probability_reaches_the_threshold():
    rows = np.random.default_rng(4).dirichlet([1.6, 1.3, 1.0], 2000)
    for threshold in (0.4, 0.45, 0.5):
        verdicts = follow(TemporalSmoother(threshold), rows)
        assert [each.unsure for each in verdicts] == [each.probabilities.max() < threshold for each in verdicts]
        for each in verdicts:
            assert each.unsure or each.probabilities[each.index] >= threshold, "the label shown reaches it, too"
        assert 0 < sum(each.unsure for each in verdicts) < len(rows)


def test_without_a_threshold_no_face_is_unsure():
    rows = np.random.default_rng(4).dirichlet([1.0] * 8, 100)
    assert not any(verdict.unsure for verdict in follow(TemporalSmoother(0.0), rows))


def test_a_label_below_the_threshold_gives_way_to_one_above_it_without_the_margin():
    verdicts = follow(
        TemporalSmoother(0.35, SmoothingConfig(0.1, slow=0.1, margin=0.2)),
        [[0.5, 0.3, 0.2]] * 30 + [[0.34, 0.4, 0.26]] * 60,
    )
    assert (verdicts[-1].index, verdicts[-1].unsure) == (1, False)


def test_the_first_frames_of_a_face_do_not_flicker():
    rows = [[0.58, 0.42], [0.15, 0.85], [0.72, 0.28], [0.33, 0.67], [0.7, 0.3], [0.65, 0.35]]
    shown = {
        new_track_margin_factor: [
            verdict.index
            for verdict in follow(
                TemporalSmoother(0.0, SmoothingConfig(new_track_margin_factor=new_track_margin_factor, margin=0.1)),
                rows,
            )
        ]
        for new_track_margin_factor in (1.0, 3.0)
    }
    assert len(set(shown[1.0])) > 1  # else the rows would show nothing
    assert set(shown[3.0]) == {0}


def test_noise_changes_the_label_a_tenth_as_often_as_raw():
    rows = np.random.default_rng(1).dirichlet([3.0, 2.7, 1.0], 3000)
    raw, calm = rows.argmax(axis=1), [verdict.index for verdict in follow(TemporalSmoother(), rows)]
    changes = [int(np.count_nonzero(np.diff(indices))) for indices in (raw, calm)]
    assert changes[1] <= changes[0] / 10


def test_faces_do_not_mix_and_one_that_was_away_long_begins_anew():
    smoother = TemporalSmoother()
    for index in range(30):
        first, second = smoother.update([7, 8], np.array([[0.9, 0.1], [0.2, 0.8]]), index / 30)
    assert (first.index, second.index) == (0, 1)
    (back,) = smoother.update([7], np.array([[0.3, 0.7]]), 60.0)
    np.testing.assert_allclose(back.probabilities, [0.3, 0.7])
    assert back.index == 1


def test_a_clock_that_goes_back_begins_anew():
    smoother = TemporalSmoother()
    smoother.update([1], np.array([[0.9, 0.1]]), 5.0)
    assert smoother.update([1], np.array([[0.1, 0.9]]), 0.0)[0].index == 1


def test_faces_that_are_gone_are_forgotten():
    import tracemalloc

    smoother, row = TemporalSmoother(), np.array([[0.5, 0.5]])

    def pass_by(first, last):
        for number in range(first, last):
            smoother.update([number], row, number / 30)

    pass_by(0, 200)
    tracemalloc.start()
    pass_by(200, 400)
    before = tracemalloc.get_traced_memory()[0]
    pass_by(400, 3000)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 20_000
