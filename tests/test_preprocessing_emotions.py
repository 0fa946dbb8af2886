import pytest

from common.emotions import CKPLUS_CODES, EMOTIONS, FER2013_CODES, canonical, find, in_class_order, relate
from common.errors import InputError


def test_class_order_and_codes_are_those_of_the_data_sets():
    assert EMOTIONS == ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral", "contempt")
    assert [FER2013_CODES.index(name) for name in ("anger", "happiness", "neutral")] == [0, 3, 6]
    assert [CKPLUS_CODES.index(name) for name in ("neutral", "contempt", "happiness", "surprise")] == [0, 2, 5, 7]
    assert set(CKPLUS_CODES) == set(EMOTIONS)


@pytest.mark.parametrize(
    ("spelling", "emotion"),
    [
        ("anger", "anger"),
        ("Angry", "anger"),
        ("0_anger", "anger"),
        ("3 - happy", "happiness"),
        (" SAD ", "sadness"),
        ("Surprised", "surprise"),
        ("fearful", "fear"),
        ("neutral_06", "neutral"),
        ("DI", "disgust"),
        ("contemptuous", "contempt"),
    ],
)
def test_common_spellings_are_understood(spelling, emotion):
    assert find(spelling) == canonical(spelling) == emotion


@pytest.mark.parametrize("word", ["grumpy", "", "3", "happy faces", "unhappiness", "calm", "smile", "unhappy"])
def test_other_words_are_no_emotion(word):
    assert find(word) is None
    with pytest.raises(InputError, match=f"unknown emotion {word!r}"):
        canonical(word)


def test_every_canonical_name_is_its_own_spelling():
    assert [find(name) for name in EMOTIONS] == list(EMOTIONS)


def test_class_order_ignores_the_order_given():
    assert in_class_order({"contempt", "neutral", "anger"}) == ["anger", "neutral", "contempt"]


SEVEN = EMOTIONS[:7]


@pytest.mark.parametrize(
    ("model", "data", "labels", "columns", "said"),
    [
        (SEVEN, SEVEN, SEVEN, (0, 1, 2, 3, 4, 5, 6), ""),
        (EMOTIONS, SEVEN, SEVEN, (0, 1, 2, 3, 4, 5, 6), "the data has no contempt"),
        (SEVEN, EMOTIONS, SEVEN, (0, 1, 2, 3, 4, 5, 6), "the model does not know contempt"),
        (SEVEN, ("fear", "anger"), ("anger", "fear"), (0, 2), "taken out of the model's answer"),
        (("neutral", "fear", "anger"), ("anger", "fear"), ("anger", "fear"), (2, 1), "the data has no neutral"),
        (EMOTIONS[:6], (*EMOTIONS[:6], "neutral"), EMOTIONS[:6], (0, 1, 2, 3, 4, 5), "does not know neutral"),
    ],
)
def test_related_label_sets_are_mapped_and_the_rule_is_told(model, data, labels, columns, said):
    rule = relate(model, data)
    assert (rule.labels, rule.columns) == (labels, columns)
    assert [model[column] for column in rule.columns] == list(labels)
    assert said in rule.text if said else rule.text == ""


@pytest.mark.parametrize(
    ("model", "data"),
    [
        (("anger", "fear"), SEVEN),
        (("cat", "dog"), SEVEN),
        (SEVEN, ("anger", "boredom")),
        (SEVEN, ("anger",)),
        (("anger", "fear"), ("neutral", "contempt")),
    ],
)
def test_unrelated_label_sets_are_refused(model, data):
    with pytest.raises(InputError, match="do not fit the data's"):
        relate(model, data)
