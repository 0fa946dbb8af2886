import itertools

import numpy as np
import pandas as pd
import pytest

from common.csv_text import escape, unescape
from preprocessing.tables import unescaped, write_table


def test_every_text_is_read_back_exactly():
    letters = "'=-a;\t\r\n 1"
    texts = ["".join(parts) for length in range(5) for parts in itertools.product(letters, repeat=length)]
    escaped = [escape(text) for text in texts]
    assert [unescape(text) for text in escaped] == texts
    assert len(set(escaped)) == len(texts)


@pytest.mark.parametrize("text", ["=1", "+a", "-a", "@a", "\t=1", "\r=1", " =1", "a\t@1", "'=1", "\uff1d1", "-"])
def test_no_cell_starts_like_a_formula(text):
    written = escape(text)
    cells = [cell for line in written.splitlines() for cell in line.replace("\t", ";").split(";")]
    assert not [cell for cell in cells if cell.lstrip(" ")[:1] in ("=", "+", "-", "@", "\uff1d") and cell != ""]
    assert written != text and unescape(written) == text
    for plain in ("", "a", "-1", "+4.5e-3", "images/a-b=c.png", "a, -b", "'quoted'", "x@y.z", "'"):
        assert escape(plain) == unescape(plain) == plain


def test_table_is_escaped_and_read_back(tmp_path):
    table = pd.DataFrame({"=a": ["=1", "x\ry", "n\nz", 'q",;=2', "-5", ""], "b": [1.5, -2.0, np.nan, 3, 4, 5]})
    table["c"] = pd.Categorical(["@x"] * 6)
    write_table(table, tmp_path / "t.csv")
    raw = pd.read_csv(tmp_path / "t.csv", dtype=str, keep_default_na=False)
    assert raw.columns.tolist() == ["'=a", "b", "c"] and raw["c"].tolist() == ["'@x"] * 6
    back = unescaped(raw)
    assert back["=a"].tolist() == table["=a"].tolist() and back["c"].tolist() == ["@x"] * 6
    assert back["b"].tolist() == ["1.5", "-2.0", "", "3.0", "4.0", "5.0"]
