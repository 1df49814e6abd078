from __future__ import annotations

import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser

import pytest

from efftx.errors import UserError
from efftx.report.badges import BADGES
from efftx.report.build import compose_report
from efftx.report.chapters import Spent, chapters
from efftx.report.items import gather
from efftx.study import comparisons
from efftx.study.experiment import Cell, Claim, ColumnSpec, Experiment, Row
from efftx.study.gates import Gate
from efftx.study.papers import Paper, Printed
from efftx.study.published import Published
from efftx.study.records import RecordStore, Verification

from .conftest import make_experiment, make_record

FIGURE = {"over": "columns", "x": "length", "y": "accuracy"}
VOID = {"meta", "br"}


class Outline(HTMLParser):
    """Tags in order, ids and link targets; fails where an element is closed that is not open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def page_of(store: RecordStore, *experiments: Experiment) -> str:
    return compose_report(store, experiments)["index.html"]


def outline(text: str) -> Outline:
    parsed = Outline()
    parsed.feed(text)
    assert parsed.open == []
    return parsed


@pytest.fixture
def page(full_store: RecordStore) -> str:
    other = make_experiment(id="paper/table3", figure=FIGURE)
    for row in ("Full", "LSH"):
        full_store.write(make_record(row, 0, id="paper/table3"))
    return page_of(full_store, make_experiment(figure=FIGURE), other)


def test_the_page_needs_nothing_from_anywhere(page: str) -> None:
    assert not re.search(r"(?:https?:)?//[a-z]", page)
    assert "@import" not in page
    for tag, attributes in outline(page).tags:
        assert tag not in {"script", "link", "img", "iframe", "object", "embed"}
        for name in ("src", "href", "xlink:href", "data"):
            assert (attributes.get(name) or "#").startswith("#"), (tag, attributes)


def test_every_anchor_leads_somewhere_and_no_name_is_given_twice(page: str) -> None:
    tags = outline(page).tags
    names = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(names) == len(set(names))
    targets = {(a.get("href") or a.get("xlink:href") or "")[1:] for _, a in tags if "href" in a or "xlink:href" in a}
    targets |= set(re.findall(r"url\(#([^)]+)\)", page))
    assert targets <= set(names)
    assert {"paper-table2", "paper-table3", "paper-paper", "summary"} <= targets


def test_every_table_has_a_caption_every_heading_a_scope_every_drawing_a_title(page: str) -> None:
    tags = outline(page).tags
    count = [tag for tag, _ in tags].count
    assert count("table") == count("caption") > 2
    assert all("scope" in attributes for tag, attributes in tags if tag == "th")
    assert count("svg") == count("title") - 1 == 4  # measured and the paper's, of two items
    assert all(attributes.get("role") == "img" for tag, attributes in tags if tag == "svg")
    assert count("h1") == 1


def test_drawings_take_their_colours_from_the_page(page: str) -> None:
    drawing = page[page.index("<svg") : page.index("</svg>")]
    assert "var(--line-0)" in drawing
    assert "#0072b2" not in drawing.lower()
    for name in set(re.findall(r"var\((--[\w-]+)\)", page)):
        assert re.search(rf"{name}: #", page), name


NASTY = """<script>alert('x"')</script> & </td> $\\frac$ | -->"""


def nasty_experiment() -> Experiment:
    """An experiment whose every name is one."""
    return make_experiment(
        id=f"paper/{NASTY}",
        caption=NASTY,
        rows={NASTY: Row(text={NASTY: NASTY}), "LSH": Row()},
        columns={NASTY: ColumnSpec(parameters={"length": 2}), "at 8": ColumnSpec(parameters={"length": 8})},
        cell=Cell("accuracy", NASTY, "higher"),
        notes=[NASTY],
        head=NASTY,
        published=Published("verified", {NASTY: {NASTY: 1.0}}, note=NASTY),
        gates={NASTY: Gate("constant", 1.0)},
        claims=[Claim(NASTY, "as good as", "cell[row, 'at 8'] >= cell['LSH', 'at 8']", "", 1.0, NASTY)],
        figure={"kind": "lines", "over": "columns", "x": "length", "y": "accuracy", "x_label": NASTY, "y_label": NASTY},
    )


def test_names_from_an_experiment_cannot_break_the_page(store: RecordStore, page: str) -> None:
    experiment = nasty_experiment()
    for row in (NASTY, "LSH"):
        for seed in range(3):
            there = {NASTY: {"accuracy": 5.0 + seed}, "at 8": {"accuracy": 6.0 + seed}}
            data = {"name": NASTY, "variant": NASTY, "checksum": NASTY}
            made = make_record("LSH", seed, id=experiment.id, metrics=there, data=data, command=NASTY)
            store.write(replace(made, row=row, hash=NASTY))
    text = page_of(store, experiment)
    tags = outline(text).tags
    assert "<script" not in text
    assert text.count("&lt;script&gt;") > 20
    assert {tag for tag, _ in tags} <= {tag for tag, _ in outline(page).tags} | {"pre", "details", "summary"}
    ids = [value for _, attributes in tags for name, value in attributes.items() if name == "id"]
    assert len(ids) == len(set(ids))
    assert all(re.fullmatch(r"[\w.-]+", str(value)) for value in ids)
    links = [str(attributes["href"])[1:] for tag, attributes in tags if tag == "a"]
    assert set(links) <= set(ids)
    attributes = {name for _, found in tags for name in found}
    assert not {name for name in attributes if name.startswith("on") or "<" in name or '"' in name}


def test_items_that_would_write_the_same_files_are_refused(store: RecordStore) -> None:
    with pytest.raises(UserError, match="would write the same files"):
        compose_report(store, [make_experiment(id="a/b-c"), make_experiment(id="a-b/c")])


def test_verdicts_stand_at_the_top_and_at_the_item(page: str) -> None:
    top, _, below = page.partition('<section class="item"')
    says = '<span class="says">full attention is better at 8</span>'
    for badge, item in (("✓ holds", "table2"), ("≈ undecided", "table3")):
        link = f'<a href="#paper-{item}">paper/{item}</a>'
        assert f'{badge}</span> {link} {says}<span class="why">Full is 10' in top
    assert f"✓ holds</span> {says}" in below


def test_the_paper_s_claims_stand_apart_from_ours_and_are_not_folded(full_store: RecordStore) -> None:
    theirs = Claim("the paper says so", "better", 'cell["Full", "at 8"] > cell["LSH", "at 8"]', by="paper")
    top, _, _ = page_of(full_store, make_experiment(claims=[theirs, *make_experiment().claims])).partition(
        '<section class="item"'
    )
    paper, _, ours = top.partition("<details>")
    assert "The paper's claims (1)" in paper
    assert "the paper says so" in paper
    assert "full attention is better at 8" not in paper
    assert "Our claims (1: 1 holds)" in ours
    assert "full attention is better at 8" in ours


def test_every_table_of_a_paper_is_listed_in_its_order_the_missing_ones_too(full_store: RecordStore) -> None:
    shows = {
        "Table 9": Printed("Nine", missing="no item yet"),
        "Table 2": Printed("Two", ["paper/table2"]),
        "Table 3": Printed("Three", ["paper/unrun"]),
    }
    own = make_experiment(id="paper/extra", caption="Our own")
    experiments = [own, make_experiment(), make_experiment(id="paper/unrun", caption="Nothing of it was run")]
    text = compose_report(full_store, experiments, [Paper("A paper", "Somebody", shows, "paper")])["index.html"]
    contents = text[text.index('<table class="contents">') :]
    places = [contents.index(f'<th scope="row">{number}</th>') for number in ("Table 9", "Table 2", "ours")]
    assert places == sorted(places)
    assert '<span class="none">no item yet</span>' in contents
    assert "1 of 3 shown" in text
    assert text.index('<h3 id="paper-table2"><span class="id">Table 2 ') < text.index('<h3 id="paper-extra">')


def test_a_state_is_told_only_where_something_is_wrong(page: str) -> None:
    assert ">recorded<" not in page
    assert page.count('<p class="state">') == 1  # table3 has two of six runs
    assert '<span class="badge open">partial</span> size cpu: 2 of 6 runs</p>' in page


def test_the_formula_of_a_claim_is_folded_away(page: str) -> None:
    folded = re.findall(r'<details class="test">.*?</details>', page, re.DOTALL)
    assert len(folded) == 2
    assert 'cell["Full", "at 8"] > cell["LSH", "at 8"]' in unescape(folded[0])
    assert "one-sided t test" in folded[0]
    assert "one-sided p" in folded[0]
    assert "one-sided p" not in re.sub(r"<details.*?</details>", "", page, flags=re.DOTALL)


def test_the_records_are_told_with_overrides_hash_data_machine_and_command(page: str) -> None:
    record = make_record("LSH", 1)
    assert f"<code>{record.hash[:12]}</code>" in page
    assert "sha-256 <code>abababababab</code>" in page
    assert "1.2 min" in page
    assert "machine A: A processor; threads 2; torch 2.13.0; allocator A=1</li>" in page
    assert page.count("code <code>0123456789ab with changes</code>") == 8
    assert "git" not in page
    assert "efftx reproduce paper/table2 size=cpu seeds=0,1,2" in page
    assert "6 records at size cpu: 2 rows, 3 seeds each</summary>" in page
    assert "2 records at size cpu: 2 rows, 1 seed each</summary>" in page


def test_a_measured_cell_leads_to_its_records(full_store: RecordStore) -> None:
    text = page_of(full_store, make_experiment(rows={"Full": Row(["a=1"]), "LSH": Row(["a=2"])}))
    assert '<td class="measured"><a href="#paper-table2-cpu-records-lsh">81.0 ± 1.0</a></td>' in text
    there = text[text.index('<div id="paper-table2-cpu-records-lsh">') :].partition("</div>")[0]
    assert "<code>a=2</code>" in there
    assert there.count("<li>seed ") == 3
    assert '<td class="published">12.3</td>' in text


def test_a_record_leads_to_its_whole_configuration_once_for_all_seeds_of_a_row(store: RecordStore) -> None:
    config = {"d_model": 32, "optimizer": {"lr": 0.001, "betas": [0.9, 0.98]}, "model": "reformer", "note": "a < b"}
    for seed in (0, 1, 2):
        store.write(make_record("LSH", seed, config={**config, "seed": seed}))
        store.write(make_record("Full", seed, config={"d_model": 64 + (seed == 2)}))
    text = page_of(store, make_experiment())
    folds = re.findall(
        r'<details class="config"><summary>the whole configuration</summary><pre>(.*?)</pre>', text, re.S
    )
    assert folds == [
        "d_model=64",
        "d_model=65",
        "d_model=32\nmodel=reformer\nnote=a &lt; b\noptimizer.betas=[0.9, 0.98]\noptimizer.lr=0.001",
    ]
    there = text[text.index('<div id="paper-table2-cpu-records-lsh">') :].partition("</div>")[0]
    assert folds[2] in there


def test_a_table_without_any_number_is_folded(store: RecordStore, full_store: RecordStore) -> None:
    fold = "<details><summary>The table that a run fills</summary>"
    assert fold not in page_of(full_store, make_experiment(published=None))
    nothing = RecordStore(full_store.root / "nothing")
    assert fold not in page_of(nothing, make_experiment())
    assert fold in page_of(nothing, make_experiment(published=None))


def test_what_a_replay_said_stands_at_the_record_and_is_counted(full_store: RecordStore) -> None:
    fresh, stale = make_record("Full", 0), make_record("Full", 1)
    full_store.write_verification(fresh, Verification(fresh.hash, "fresh", "bit for bit", True))
    full_store.write_verification(stale, Verification(stale.hash, "stale", "was 1, is 2", True))
    text = page_of(full_store, make_experiment())
    assert "replayed: comes out bit for bit</li>" in text
    assert "replayed: stale: was 1, is 2</li>" in text
    assert text.count("replayed: not yet</li>") == 4
    assert "1 came out again,\n1 no longer come out,\n4 not replayed yet" in text


def test_hours_of_one_training_that_two_items_show_count_once(full_store: RecordStore) -> None:
    again = make_experiment(id="paper/table3")
    for row in ("Full", "LSH"):
        for seed in range(3):
            full_store.write(make_record(row, seed, id="paper/table3"))
    items = [gather(full_store, e) for e in (make_experiment(), again)]
    once, both = Spent.of(items[:1]), Spent.of(items)
    assert (once.records, both.records) == (6, 12)
    assert both.hours == once.hours == pytest.approx(sum(r.wall_seconds for r in items[0].measured[0].records) / 3600)


def test_records_of_another_device_stand_in_no_table_and_are_counted(full_store: RecordStore) -> None:
    other = make_record("Full", 1)
    full_store.write(replace(other, environment={**other.environment, "gpu": "A card"}))
    text = page_of(full_store, make_experiment())
    assert (
        "5 records at size cpu: 2 rows, 2 to 3 seeds each; 1 made on another device or number of threads, left out"
        in text
    )
    (cell,) = [c for c in gather(full_store, make_experiment()).measured[0].cells.values() if c.row == "Full"][:1]
    assert sorted(cell.values) == [0, 2]


def test_an_item_that_was_not_run_says_so(store: RecordStore) -> None:
    text = page_of(store, make_experiment())
    assert '<span class="badge notrun">not run</span>' in text
    assert "○ not run</span>" in text
    assert "12.3" in text


def test_every_verdict_there_is_has_a_badge() -> None:
    c = comparisons
    words = {c.HOLDS, c.CONTRADICTED, c.UNDECIDED, c.NOT_TESTED, c.NOT_RUN}
    assert set(BADGES) == words
    assert len({sign for _, sign in BADGES.values()}) == len(BADGES)


def test_what_of_a_measure_a_replay_makes_anew_is_said(full_store: RecordStore) -> None:
    first, second = make_record("Full", 0), make_record("Full", 1)
    full_store.write_verification(first, Verification(first.hash, "fresh", "bit for bit", True))
    why = "bit for bit; its counts alone, the seconds are no replay's"
    full_store.write_verification(second, Verification(second.hash, "fresh", why, True))
    text = unescape(page_of(full_store, make_experiment(kind="measure", measure="attention_time", base=[])))
    assert text.count("replayed: comes out bit for bit; its counts alone, the seconds are no replay's</li>") == 2
    text = page_of(full_store, make_experiment(kind="measure", measure="score_memory", base=[]))
    assert "replayed: comes out bit for bit</li>" in text


def test_an_item_says_whose_its_claims_are(page: str) -> None:
    assert '<span class="says">full attention is better at 8</span> (ours)' in page[page.index('class="item"') :]


def test_a_result_of_the_text_is_listed_and_is_no_table_or_figure(full_store: RecordStore) -> None:
    shows = {
        "Table 2": Printed("Two", ["paper/table2"]),
        "In the text, speed": Printed("Fast", missing="not attempted"),
    }
    (chapter,) = chapters([gather(full_store, make_experiment())], [Paper("A paper", shows=shows, name="paper")])
    assert (chapter.n_shown, chapter.n_printed) == (1, 1)
    assert [entry.number for entry in chapter.entries] == ["Table 2", "In the text, speed"]
