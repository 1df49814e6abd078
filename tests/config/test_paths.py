"""Whatever a path looks like, it is read as one word."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efftx.config.compose import compose, parse_overrides

PATH_CHARACTERS = st.characters(blacklist_categories=("Cc", "Cs"), blacklist_characters=",$")


@pytest.mark.parametrize(
    "path",
    [
        "~/x.txt",
        "日本.txt",
        "my (1).txt",
        "a=b",
        "[a].txt",
        "{a}",
        "it's",
        "a#b",
        "é è.txt",
        "&",
        "a;b",
        "texts/*.txt",
        "\\'",
        "2024_01_15",
        "1e3",
        "1.50",
        "+1",
        "007",
        "true",
        "nan",
        "[" * 3000,
        "9" * 5000,
    ],
    ids=lambda path: path[:12],
)
def test_a_path_is_read_as_it_is(path: str) -> None:
    config = compose(["model=reformer", "data=text", "size=smoke", f"data.path={path}"])
    assert config.data.path == path


@given(st.text(PATH_CHARACTERS, max_size=20))
def test_whatever_a_path_holds_it_is_one_word(path: str) -> None:
    (override,) = parse_overrides([f"data.path=/{path}/x"])
    assert override.value() == f"/{path}/x"
