"""How the page looks: on a screen by day and by night, on a telephone, and on paper."""

from __future__ import annotations

STYLESHEET = """\
:root {
  --paper: #ffffff; --ink: #222222; --faint: #767676; --rule: #dddddd; --shade: #f5f6f8; --link: #0b5cad;
  --dim: #00000038; --published: #345b7c; --unverified: #8a5a00;
  --good: #0a6b45; --good-back: #dff3ea; --bad: #9c2f10; --bad-back: #fbe5dd; --open: #7a5600; --open-back: #fbf0d6;
  --none: #5d6269; --none-back: #eceef0;
  --line-0: #0072b2; --line-1: #d55e00; --line-2: #009e73; --line-3: #cc79a7; --line-4: #56b4e9; --line-5: #e69f00;
  --line-6: #000000; --line-7: #882255; --line-8: #999933; --line-9: #332288; --line-10: #7f7f7f; --line-11: #661100;
  --line-12: #aa4499;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --paper: #16181c; --ink: #e6e6e6; --faint: #9aa0a8; --rule: #3a3f46; --shade: #20242a; --link: #7fb8f5;
    --dim: #ffffff45; --published: #9cc3e4; --unverified: #e3b765;
    --good: #7fdcb2; --good-back: #12382a; --bad: #ff9f80; --bad-back: #46201a; --open: #f0c766; --open-back: #3d3112;
    --none: #b4bac2; --none-back: #2c3138;
    --line-0: #4aa8e0; --line-1: #f08a45; --line-2: #35c79c; --line-3: #dd9cc0; --line-4: #8fd0f5; --line-5: #f2bd4b;
    --line-6: #e6e6e6; --line-7: #c96a9b; --line-8: #b9b952; --line-9: #8f84e8; --line-10: #a3a3a3; --line-11: #c9735f;
    --line-12: #d47fc6;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; }
body { margin: 0 auto; padding: 1.5rem 1.25rem 4rem; max-width: 68rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
header p, section > p, figcaption, .claims, section > ul { max-width: 50rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0.5rem 0; }
h2 { font-size: 1.4rem; line-height: 1.3; margin: 0 0 0.5rem; }
h3 { font-size: 1.15rem; line-height: 1.3; margin: 1.5rem 0 0.4rem; }
h4 { font-size: 1rem; margin: 1.25rem 0 0.4rem; }
h3 .id { display: block; font-size: 0.85rem; font-weight: 600; line-height: 1.5; color: var(--faint); }
h3 .id code { font-weight: 400; margin-left: 0.4rem; }
a { color: var(--link); }
section { margin-top: 2rem; }
section.paper { border-top: 3px solid var(--ink); padding-top: 1.25rem; margin-top: 3.5rem; }
section.item { border-top: 1px solid var(--rule); padding-top: 1rem; margin-top: 2.5rem; }
section.item h3 { margin-top: 0; }
/* A shadow at the side where more of a table is, and a bar that does not hide: sideways scrolling shows itself. */
.scroll { container-type: inline-size; overflow-x: auto; margin: 1rem 0 0.25rem;
  scrollbar-width: thin; scrollbar-color: var(--faint) var(--shade);
  background: linear-gradient(to right, var(--paper) 30%, transparent) left / 3rem 100% no-repeat local,
    linear-gradient(to left, var(--paper) 30%, transparent) right / 3rem 100% no-repeat local,
    linear-gradient(to right, var(--dim), transparent) left / 0.8rem 100% no-repeat scroll,
    linear-gradient(to left, var(--dim), transparent) right / 0.8rem 100% no-repeat scroll; }
table { border-collapse: collapse; font-size: 0.875rem; font-variant-numeric: tabular-nums;
  border-bottom: 1.5px solid var(--ink); }
caption { text-align: left; color: var(--ink); padding: 0 0 0.5rem; font-size: 0.9rem; }
caption span { display: block; max-width: min(46rem, 100cqw); }
thead tr:first-child th, thead tr:first-child td { border-top: 1.5px solid var(--ink); }
thead { border-bottom: 1px solid var(--ink); }
th, td { padding: 0.26rem 0.6rem; vertical-align: top; }
th { font-weight: 600; text-align: right; }
thead tr:first-child th:first-child, tbody th { text-align: left; padding-left: 0.3rem; }
tbody th[scope="row"] { font-weight: 500; min-width: 5rem; }
tbody + tbody { border-top: 1px solid var(--rule); }
tbody th.short { white-space: nowrap; }
thead th { vertical-align: bottom; }
th[scope="colgroup"] { text-align: center; border-bottom: 1px solid var(--rule); }
tr.block th { text-align: left; font-weight: 500; font-style: italic; color: var(--faint); padding-top: 0.5rem; }
td { text-align: right; white-space: nowrap; }
td.words, th.words { text-align: left; white-space: normal; }
td.words { min-width: 8rem; }
.totals td.words { min-width: 0; white-space: pre-line; }
.totals th[scope="row"] { white-space: normal; min-width: 11rem; }
.contents { width: 100%; margin-top: 1rem; }
.contents td.words { min-width: 0; overflow-wrap: anywhere; }
.contents th { text-align: left; }
.contents th[scope="row"] { white-space: normal; }
.contents .none { color: var(--faint); font-style: italic; }
td a { color: inherit; text-decoration: underline dotted var(--rule); text-underline-offset: 0.25em; }
td a:hover { text-decoration: underline; }
.contents td a { color: var(--link); }
td.published { color: var(--published); }
td.published-unverified { color: var(--unverified); font-style: italic; }
td.baseline, td.missing { color: var(--faint); }
td.missing { font-style: italic; }
tbody tr:hover :is(td, th[scope="row"]) { background: var(--shade); }
.totals th { text-align: left; }
@media (max-width: 40rem) {
  .totals, .totals caption, .totals tbody, .totals tr, .totals th[scope="row"], .totals td { display: block; }
  .totals thead { display: none; }
  .totals tr { border-top: 1px solid var(--rule); padding: 0.3rem 0; }
  .totals td::before { content: attr(data-label) ": "; color: var(--faint); }
  .totals td.words { white-space: normal; }
  .contents th, .contents td { padding: 0.26rem 0.3rem; }
}
.badges { display: inline-flex; flex-wrap: wrap; gap: 0.2rem; }
.records { font-size: 0.85rem; overflow-wrap: anywhere; }
.records ul { margin: 0.2rem 0 0.6rem; padding-left: 1.25rem; }
.records p { margin: 0.4rem 0 0; overflow-wrap: anywhere; }
.config { margin: -0.3rem 0 0.6rem; }
.config pre { columns: 19rem; margin: 0.3rem 0; font-size: 0.75rem; }
.records :target, div:target { background: var(--shade); outline: 2px solid var(--link); }
.note { font-size: 0.85rem; color: var(--faint); margin: 0.3rem 0; }
.badge { display: inline-block; border-radius: 0.3rem; padding: 0 0.45rem; font-size: 0.8rem; line-height: 1.45rem;
  font-weight: 600; white-space: nowrap; color: var(--none); background: var(--none-back); }
.badge.holds { color: var(--good); background: var(--good-back); }
.badge.fails { color: var(--bad); background: var(--bad-back); }
.badge.open { color: var(--open); background: var(--open-back); }
.trust { font-size: 0.9rem; }
.legend { list-style: none; padding: 0; display: grid; grid-template-columns: repeat(auto-fit, minmax(19rem, 1fr));
  gap: 0.4rem 1rem; font-size: 0.85rem; color: var(--faint); }
.claims { list-style: none; padding: 0; margin: 0; }
.claims li { padding: 0.45rem 0; border-top: 1px solid var(--rule); }
.claims .says { margin-left: 0.35rem; }
.claims .why { display: block; font-size: 0.9rem; color: var(--faint); overflow-wrap: anywhere; }
.claims .quote { font-style: italic; color: var(--faint); }
.test { margin: 0.1rem 0 0; font-size: 0.85rem; }
.test ul { margin: 0.2rem 0 0; padding-left: 1.25rem; color: var(--faint); }
.test li { border: 0; padding: 0.1rem 0; overflow-wrap: anywhere; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); gap: 1rem 1.5rem;
  margin: 1.5rem 0; align-items: start; }
figure { margin: 0; min-width: 0; }
figure svg { width: 100%; max-width: 34rem; height: auto; }
figcaption { font-size: 0.85rem; color: var(--faint); }
details { margin: 0.75rem 0; }
summary { cursor: pointer; color: var(--link); }
pre { font: 0.82rem/1.45 ui-monospace, "DejaVu Sans Mono", monospace; background: var(--shade); padding: 0.75rem;
  border-radius: 0.3rem; white-space: pre-wrap; overflow-wrap: anywhere; }
code { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: 0.9em; }
.top, footer { font-size: 0.85rem; color: var(--faint); }
@media print {
  body { max-width: none; font-size: 9.5pt; padding: 0; }
  h2, h3, h4 { break-after: avoid; }
  table, figure, .claims li { break-inside: avoid; }
  .scroll { overflow: visible; }
  .top { display: none; }
  details::details-content { content-visibility: visible; height: auto; }
  /* What a reader of the page unfolds to check is left to the page: a printed table is to be read. */
  .test, .records > :not(summary) { display: none; }
  .badge { border: 1px solid currentColor; }
}
"""
