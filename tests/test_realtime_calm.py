import numpy as np
import pytest

from configuration import Calm
from realtime.calm import Steadier

PLAIN = Calm(smoothing=0.3, margin=0.0, unsure_margin=0.0)


def follow(steadier, rows, rate=30.0):
    return [steadier.update([1], np.array([row]), index / rate)[0] for index, row in enumerate(rows)]


def test_the_average_is_exponential_in_seconds_after_a_plain_beginning():
    rows = np.random.default_rng(5).dirichlet([1, 1, 1], 40)
    means = [verdict.probabilities for verdict in follow(Steadier(options=PLAIN), rows, rate=10)]
    decay = np.exp(-0.1 / 0.3)
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
    verdicts = follow(Steadier(), [before] * 3 * rate + [after] * 2 * rate, rate)
    shows = [verdict.index for verdict in verdicts].index(1) - 3 * rate
    assert 0.15 <= (shows + 1) / rate <= 0.4 + 1 / rate
    assert all(verdict.index == 1 for verdict in verdicts[3 * rate + shows :])


def test_a_label_stays_until_another_is_better_by_the_margin():
    close, clear = [0.45, 0.55], [0.3, 0.7]
    verdicts = follow(Steadier(options=Calm(0.1, 0.2, 0.0)), [[0.6, 0.4]] * 30 + [close] * 60 + [clear] * 60)
    assert {verdict.index for verdict in verdicts[:90]} == {0}
    assert verdicts[-1].index == 1


def test_unsure_begins_below_the_threshold_and_ends_above_it_by_the_margin():
    steadier = Steadier(0.5, Calm(0.1, 0.0, 0.1))
    rows = [[0.6, 0.2, 0.2]] * 30 + [[0.45, 0.35, 0.2]] * 30 + [[0.55, 0.25, 0.2]] * 30 + [[0.65, 0.2, 0.15]] * 30
    unsure = [verdict.unsure for verdict in follow(steadier, rows)]
    assert [unsure[29], unsure[59], unsure[89], unsure[119]] == [False, True, True, False]


def test_a_face_just_seen_is_named_at_once_where_it_is_clear_and_else_a_moment_later():
    options = Calm(smoothing=0.3, margin=0.1, unsure_margin=0.05, newcomer=3.0)
    clear, faint = [0.7, 0.3], [0.6, 0.4]  # 0.5 + 3 x 0.05 lies between them
    assert not follow(Steadier(0.5, options), [clear])[0].unsure
    unsure = [verdict.unsure for verdict in follow(Steadier(0.5, options), [faint] * 30)]
    named = unsure.index(False)
    assert all(unsure[:named]) and not any(unsure[named:])
    assert 0.1 < named / 30 <= 0.2  # 0.05 x 0.3 / age comes down to 0.1 after 0.15 s
    assert not any(verdict.unsure for verdict in follow(Steadier(0.0, options), [faint] * 3))


def test_the_first_frames_of_a_face_do_not_flicker():
    rows = [[0.58, 0.42], [0.35, 0.65], [0.62, 0.38], [0.33, 0.67], [0.6, 0.4], [0.55, 0.45]]
    shown = {
        newcomer: [None if verdict.unsure else verdict.index for verdict in follow(steadier, rows)]
        for newcomer in (1.0, 3.0)
        for steadier in [Steadier(0.5, Calm(newcomer=newcomer, unsure_margin=0.05, margin=0.1))]
    }
    assert len(set(shown[1.0])) > 1  # else the rows would show nothing
    assert set(shown[3.0]) == {None}


def test_noise_changes_the_label_a_tenth_as_often_as_raw():
    rows = np.random.default_rng(1).dirichlet([3.0, 2.7, 1.0], 3000)
    raw, calm = rows.argmax(axis=1), [verdict.index for verdict in follow(Steadier(), rows)]
    changes = [int(np.count_nonzero(np.diff(indices))) for indices in (raw, calm)]
    assert changes[1] <= changes[0] / 10


def test_faces_do_not_mix_and_one_that_was_away_long_begins_anew():
    steadier = Steadier()
    for index in range(30):
        first, second = steadier.update([7, 8], np.array([[0.9, 0.1], [0.2, 0.8]]), index / 30)
    assert (first.index, second.index) == (0, 1)
    (back,) = steadier.update([7], np.array([[0.3, 0.7]]), 60.0)
    np.testing.assert_allclose(back.probabilities, [0.3, 0.7])
    assert back.index == 1


def test_a_clock_that_goes_back_begins_anew():
    steadier = Steadier()
    steadier.update([1], np.array([[0.9, 0.1]]), 5.0)
    assert steadier.update([1], np.array([[0.1, 0.9]]), 0.0)[0].index == 1


def test_faces_that_are_gone_are_forgotten():
    import tracemalloc

    steadier, row = Steadier(), np.array([[0.5, 0.5]])

    def pass_by(first, last):
        for number in range(first, last):
            steadier.update([number], row, number / 30)

    pass_by(0, 200)
    tracemalloc.start()
    pass_by(200, 400)
    before = tracemalloc.get_traced_memory()[0]
    pass_by(400, 3000)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 20_000
