"""How the page looks: on a screen by day and by night, on a telephone, and on paper."""

from __future__ import annotations

STYLESHEET = """\
:root {
  --paper: #ffffff; --ink: #222222; --faint: #767676; --rule: #dddddd; --shade: #f5f6f8; --link: #0b5cad;
  --published: #345b7c; --unverified: #8a5a00;
  --good: #0a6b45; --good-back: #dff3ea; --bad: #9c2f10; --bad-back: #fbe5dd; --open: #7a5600; --open-back: #fbf0d6;
  --none: #5d6269; --none-back: #eceef0;
  --line-0: #0072b2; --line-1: #d55e00; --line-2: #009e73; --line-3: #cc79a7; --line-4: #56b4e9; --line-5: #e69f00;
  --line-6: #000000;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --paper: #16181c; --ink: #e6e6e6; --faint: #9aa0a8; --rule: #3a3f46; --shade: #20242a; --link: #7fb8f5;
    --published: #9cc3e4; --unverified: #e3b765;
    --good: #7fdcb2; --good-back: #12382a; --bad: #ff9f80; --bad-back: #46201a; --open: #f0c766; --open-back: #3d3112;
    --none: #b4bac2; --none-back: #2c3138;
    --line-0: #4aa8e0; --line-1: #f08a45; --line-2: #35c79c; --line-3: #dd9cc0; --line-4: #8fd0f5; --line-5: #f2bd4b;
    --line-6: #e6e6e6;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; }
body { margin: 0 auto; padding: 1.5rem 1.25rem 4rem; max-width: 68rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
header p, section > p, figcaption, .claims, section > ul { max-width: 46rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0.5rem 0; }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 0 0 0.5rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 0.4rem; }
h2 .id { display: block; font: 500 0.85rem/1.4 ui-monospace, "DejaVu Sans Mono", monospace; color: var(--faint); }
a { color: var(--link); }
section { margin-top: 2rem; }
section.item { border-top: 1px solid var(--rule); padding-top: 1.75rem; margin-top: 2.75rem; }
.scroll { overflow-x: auto; margin: 1rem 0 0.25rem; }
table { border-collapse: collapse; font-size: 0.875rem; font-variant-numeric: tabular-nums;
  border-bottom: 1.5px solid var(--ink); }
caption { text-align: left; color: var(--ink); padding: 0 0 0.5rem; font-size: 0.9rem; max-width: 46rem; }
thead tr:first-child th, thead tr:first-child td { border-top: 1.5px solid var(--ink); }
thead { border-bottom: 1px solid var(--ink); }
th, td { padding: 0.26rem 0.6rem; vertical-align: top; }
th { font-weight: 600; text-align: right; }
thead tr:first-child th:first-child, tbody th { text-align: left; padding-left: 0.3rem; }
tbody th[scope="row"] { font-weight: 500; white-space: nowrap; }
tbody + tbody { border-top: 1px solid var(--rule); }
thead th { vertical-align: bottom; }
th[scope="colgroup"] { text-align: center; border-bottom: 1px solid var(--rule); }
tr.block th { text-align: left; font-weight: 500; font-style: italic; color: var(--faint); padding-top: 0.5rem; }
td { text-align: right; white-space: nowrap; }
td.words, th.words { text-align: left; white-space: normal; }
td.words { min-width: 8rem; }
.overview td.words { min-width: 0; }
td.published { color: var(--published); }
td.published-unverified { color: var(--unverified); font-style: italic; }
td.baseline, td.missing { color: var(--faint); }
td.missing { font-style: italic; }
tbody tr:hover :is(td, th[scope="row"]) { background: var(--shade); }
.overview { width: 100%; }
.overview th { text-align: left; white-space: nowrap; }
.overview .badges { display: inline-flex; flex-wrap: wrap; gap: 0.2rem; }
.records td, .records th { text-align: left; font-size: 0.85rem; }
.note { font-size: 0.85rem; color: var(--faint); margin: 0.3rem 0; }
.badge { display: inline-block; border-radius: 0.3rem; padding: 0 0.45rem; font-size: 0.8rem; line-height: 1.45rem;
  font-weight: 600; white-space: nowrap; color: var(--none); background: var(--none-back); }
.badge.holds { color: var(--good); background: var(--good-back); }
.badge.fails { color: var(--bad); background: var(--bad-back); }
.badge.open { color: var(--open); background: var(--open-back); }
.legend { list-style: none; padding: 0; display: grid; grid-template-columns: repeat(auto-fit, minmax(19rem, 1fr));
  gap: 0.4rem 1rem; font-size: 0.85rem; color: var(--faint); }
.claims { list-style: none; padding: 0; margin: 0; }
.claims li { padding: 0.45rem 0; border-top: 1px solid var(--rule); }
.claims .says { margin-left: 0.35rem; }
.claims .why { font-size: 0.85rem; color: var(--faint); overflow-wrap: anywhere; }
figure { margin: 1.5rem 0; }
figure svg { width: 100%; max-width: 36rem; height: auto; }
figcaption { font-size: 0.85rem; color: var(--faint); }
details { margin: 0.75rem 0; }
summary { cursor: pointer; color: var(--link); }
pre { font: 0.82rem/1.45 ui-monospace, "DejaVu Sans Mono", monospace; background: var(--shade); padding: 0.75rem;
  border-radius: 0.3rem; white-space: pre-wrap; overflow-wrap: anywhere; }
code { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: 0.9em; }
.top, footer { font-size: 0.85rem; color: var(--faint); }
@media print {
  body { max-width: none; font-size: 9.5pt; padding: 0; }
  section.item { break-before: auto; }
  table, figure, .claims li { break-inside: avoid; }
  .scroll { overflow: visible; }
  .top { display: none; }
  details::details-content { content-visibility: visible; height: auto; }
  .badge { border: 1px solid currentColor; }
}
"""
