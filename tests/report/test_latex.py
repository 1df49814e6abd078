"""LaTeX of the tables: every character as itself, every row as wide as the table, and an engine that sets it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from efftx.report import latex, render
from efftx.report.items import gather
from efftx.report.model import Block, Cell, Kind, Row, Table
from efftx.report.render import item_latex
from efftx.study.experiments import load_experiments
from efftx.study.records import RecordStore

from .test_markup import nasty_table

ENGINE = shutil.which("pdflatex") or shutil.which("tectonic")
COMMANDS = {
    *("begin", "end", "centering", "caption", "label", "resizebox", "linewidth", "toprule", "midrule", "bottomrule"),
    *("multicolumn", "cmidrule", "textbf", "textit", "footnotesize", "textbackslash", "textasciicircum", "textbar"),
    *("textasciitilde", "textasciigrave", "textless", "textgreater", "textvisiblespace", "ldots"),
    *("pm", "dagger", "times", "cdot", "leq", "geq", "approx", "rightarrow", "surd", "mu"),
}
PREAMBLE = r"\documentclass{article}\usepackage{booktabs,graphicx}\extrafloats{200}\begin{document}"


@pytest.fixture(scope="module")
def shipped() -> dict[str, str]:
    store = RecordStore(Path(__file__).parents[2] / "results")
    return {id: item_latex(gather(store, experiment)) for id, experiment in load_experiments().items()}


def test_latex_shows_every_special_character_as_itself() -> None:
    assert latex.escape_latex(r"5% a_b & $ # {} ^ ~ \ ±") == (
        r"5\% a\_b \& \$ \# \{\} \textasciicircum{} \textasciitilde{} \textbackslash{} $\pm$"
    )


def test_a_raised_power_becomes_an_exponent_in_latex() -> None:
    assert latex.escape_latex("2.6×10⁻⁵") == r"2.6$\times$10$^{-}$$^{5}$"


def test_latex_has_booktabs_rules_and_one_cell_a_column() -> None:
    text = render.to_latex({"paper-table2_cpu": nasty_table()})
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == 1
    assert r"\cmidrule(lr){2-2} \cmidrule(lr){3-3}" in text
    assert r"\label{tab:paper-table2-cpu}" in text
    assert r"\textbf{81.0 $\pm$ 1.0}" in text
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0]
    for line in body.strip().splitlines():
        assert len(re.findall(r"(?<!\\)&", line)) == 2, line
        assert not re.search(r"(?<!\\)[%#_]", line), line


def test_a_wide_latex_table_is_set_in_parts_and_a_wide_part_is_scaled_to_the_line() -> None:
    cells = tuple(Cell("1", Kind.MEASURED) for _ in range(7))
    text = render.to_latex({"x": Table("s", "c", "m", tuple("abcdefg"), (Block("", (Row("a", cells),)),))})
    assert re.findall(r"\\label\{([^}]*)\}", text) == ["tab:x", "tab:x-2"]
    assert "m & a & b & c & d \\\\" in text
    assert "m & e & f & g \\\\" in text
    assert r"\resizebox" not in text
    wide = Table("s", "c", "m", ("x" * 50, "y" * 50), (Block("", (Row("a", cells[:2]),)),))
    assert r"\resizebox{\linewidth}" in render.to_latex({"x": wide})


def test_a_bracket_at_the_beginning_of_a_latex_row_is_no_option_of_the_line_end() -> None:
    rows = tuple(Row(label, (Cell("1", Kind.MEASURED),)) for label in ("[k]", "*", "a"))
    text = render.to_latex({"x": Table("s", "c", "[m]", ("x",), (Block("", rows),))})
    assert [line.strip() for line in text.splitlines() if line.strip().startswith("{}")] == [
        r"{}[m] & x \\",
        r"{}[k] & 1 \\",
        r"{}* & 1 \\",
    ]


def test_latex_keeps_a_caption_in_one_paragraph() -> None:
    text = render.to_latex({"x": Table("a\n\nb", "c|`d`", "m", (), ())})
    assert r"\caption{a b c\textbar{}\textasciigrave{}d\textasciigrave{}}" in text


def test_every_shipped_table_is_plain_latex(shipped: dict[str, str]) -> None:
    """Balanced braces and environments, commands that exist, and as many cells in a row as the table has columns."""
    for id, whole in shipped.items():
        text = re.sub(r"^%.*$", "", whole, flags=re.MULTILINE)
        assert text.isascii(), (id, sorted({c for c in text if not c.isascii()}))
        assert set(re.findall(r"\\([a-zA-Z]+)", text)) <= COMMANDS, id
        bare = re.sub(r"\\[\\{}$&#%_]", "", text)
        assert bare.count("{") == bare.count("}"), id
        assert bare.count("$") % 2 == 0, id
        opened, closed = (sorted(re.findall(rf"\\{word}\{{(\w+)", text)) for word in ("begin", "end"))
        assert opened == closed, id
        assert text.count(r"\begin{table}") == text.count(r"\end{table}") == text.count(r"\label{tab:")
        for columns, body in re.findall(r"\\begin\{tabular\}\{([lr]+)\}(.*?)\\end\{tabular\}", text, re.DOTALL):
            for line in re.findall(r"^(.*)\\\\$", body, re.MULTILINE):
                cells = len(re.findall(r"(?<!\\)&", line)) + 1
                cells += sum(int(n) - 1 for n in re.findall(r"\\multicolumn\{(\d+)\}", line))
                assert cells == len(columns) <= 7, (id, line)


@pytest.mark.skipif(ENGINE is None, reason="no TeX engine here")
def test_every_shipped_table_compiles(shipped: dict[str, str], tmp_path: Path) -> None:
    tables = "\n\\clearpage\n".join(shipped.values())
    (tmp_path / "all.tex").write_text(f"{PREAMBLE}\n{tables}\n\\end{{document}}\n")
    words = ["-interaction=nonstopmode", "-halt-on-error"] if "pdflatex" in str(ENGINE) else []
    ran = subprocess.run([str(ENGINE), *words, "all.tex"], cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stdout[-2000:]
    assert (tmp_path / "all.pdf").stat().st_size > 10_000
    assert "Overfull" not in ran.stdout or not re.search(r"Overfull \\hbox \((\d{2,})", ran.stdout)
