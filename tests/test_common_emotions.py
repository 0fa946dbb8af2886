import pytest

from common.emotions import CKPLUS_CODES, EMOTIONS, FER2013_CODES, canonical, find, in_class_order, relate
from common.errors import InputError

SEVEN = EMOTIONS[:7]


def test_class_order_and_codes_are_those_of_the_data_sets():
    assert EMOTIONS == ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral", "contempt")
    assert FER2013_CODES == SEVEN
    assert CKPLUS_CODES == (
        "neutral", "anger", "contempt", "disgust", "fear", "happiness", "sadness", "surprise",
    )  # fmt: skip
    assert in_class_order({"contempt", "neutral", "anger"}) == ["anger", "neutral", "contempt"]


def test_common_spellings_are_known():
    spellings = {
        "Angry": "anger", "0_anger": "anger", "3 - happy": "happiness", " SAD ": "sadness", "Surprised": "surprise",
        "fearful": "fear", "neutral_06": "neutral", "DI": "disgust", **{name: name for name in EMOTIONS},
    }  # fmt: skip
    assert {spelling: canonical(spelling) for spelling in spellings} == spellings
    assert {spelling: find(spelling) for spelling in spellings} == spellings


@pytest.mark.parametrize("word", ["grumpy", "", "3", "happy faces", "calm", "smile", "unhappy"])
def test_other_words_are_no_emotion(word):
    assert find(word) is None
    with pytest.raises(InputError, match=f"unknown emotion {word!r}"):
        canonical(word)


@pytest.mark.parametrize(
    ("model", "data", "labels", "columns", "text"),
    [
        (SEVEN, SEVEN, SEVEN, (0, 1, 2, 3, 4, 5, 6), ""),
        (EMOTIONS, SEVEN, SEVEN, (0, 1, 2, 3, 4, 5, 6), "the data has no contempt: removed from the predictions"),
        (SEVEN, EMOTIONS, SEVEN, (0, 1, 2, 3, 4, 5, 6), "the model has no contempt: those images are excluded"),
        (("neutral", "fear", "anger"), ("anger", "fear"), ("anger", "fear"), (2, 1), "the data has no neutral"),
    ],
)
def test_rule_maps_model_classes_to_data_labels(model, data, labels, columns, text):
    rule = relate(model, data)
    assert (rule.labels, rule.columns) == (labels, columns)
    assert text in rule.text if text else rule.text == ""


@pytest.mark.parametrize(
    ("model", "data"), [(("anger", "fear"), SEVEN), (("cat", "dog"), SEVEN), (SEVEN, ("anger", "boredom"))]
)
def test_labels_that_do_not_fit_are_refused(model, data):
    with pytest.raises(InputError, match="do not fit the data's"):
        relate(model, data)
