"""The committed report in a browser: nothing is cut, missing or of one colour, at a desk or on a telephone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from efftx.report.build import compose_report
from efftx.report.figures import SMALL
from efftx.study.experiments import load_experiments
from efftx.study.papers import load_papers
from efftx.study.records import RecordStore

from .browser import BROWSER, look_at

WIDTHS = (1280, 800, 390)
Looked = tuple[dict[int, dict[str, Any]], list[str]]

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium here to look at the page with")


@pytest.fixture(scope="module")
def files() -> dict[str, str]:
    store = RecordStore(Path(__file__).parents[2] / "results")
    return compose_report(store, load_experiments().values(), load_papers())


@pytest.fixture(scope="module")
def looked(files: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Looked:
    return look_at(files["index.html"], tmp_path_factory.mktemp("page"), WIDTHS)


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_cut_and_sideways_scrolling_shows(looked: Looked, width: int) -> None:
    found = looked[0][width]
    assert found["overflow"] <= 0
    assert found["cut"] == []
    assert all(shows for _, shows in found["scrolling"])
    if width == 1280:
        assert found["scrolling"] == []


@pytest.mark.parametrize("width", WIDTHS)
def test_every_figure_is_there_whole_and_legible(looked: Looked, files: dict[str, str], width: int) -> None:
    drawn = {name: (scale, inside) for name, scale, inside, _ in looked[0][width]["drawn"]}
    assert set(drawn) == {name.removesuffix(".svg") for name in files if name.endswith(".svg")}
    assert [name for name, (_, inside) in drawn.items() if not inside] == []
    assert [name for name, (scale, _) in drawn.items() if scale * SMALL < 9] == []  # pixels


def test_lines_of_a_figure_have_colours_of_their_own(looked: Looked) -> None:
    found = looked[0][1280]
    assert found["colours"] == []
    assert sum(n_lines > 1 for *_, n_lines in found["drawn"]) > 5


def test_the_browser_has_nothing_to_complain_of(looked: Looked) -> None:
    assert all(found["errors"] == [] for found in looked[0].values())
    assert looked[1] == []


def test_what_is_wrong_with_a_page_is_seen(tmp_path: Path) -> None:
    svg = (
        '<figure id="f"><svg viewBox="0 0 100 100"><g><g id="f.row-0-a"><path d="M0 0h50" style="stroke:#f00"/></g>'
        '<g id="f.row-1-a"><path d="M0 9h150" style="stroke:#f00"/></g></g></svg></figure>'
    )
    wide = (
        '<div class="scroll" style="overflow:hidden"><table><tr><td style="min-width:2000px">x</td></tr></table></div>'
    )
    page = f'<!doctype html><body><p style="width:600px">wide</p>{wide}{svg}<script>nothing.there()</script></body>'
    found, console = look_at(page, tmp_path, (390,))
    one = found[390]
    assert one["overflow"] > 0
    assert one["cut"] == ["P wide"]
    assert [shows for _, shows in one["scrolling"]] == [False]
    assert one["colours"] == ["f"]
    assert one["drawn"][0][2:] == [False, 2]
    assert any("nothing is not defined" in line for line in console)
