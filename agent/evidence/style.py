# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: E501 - a style sheet
"""The style sheet of exported pages: plain, readable on paper and in the dark."""

STYLE = """
:root{--ink:#1b1f24;--soft:#5b6470;--line:#d9dee4;--back:#fff;--card:#f7f8fa;--allow:#1a7f37;--deny:#c62828;--hold:#9a6700;--mask:#8250df;--tunnel:#0b7285}
@media (prefers-color-scheme:dark){:root{--ink:#e6e9ed;--soft:#9aa4b0;--line:#343b44;--back:#14171b;--card:#1c2026;--allow:#4ac26b;--deny:#ff7b72;--hold:#e3b341;--mask:#c297ff;--tunnel:#56d4dd}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:72rem;padding:1.5rem;font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--back)}
h1{font-size:1.5rem;margin:0}h2{font-size:1.1rem;margin:2rem 0 .6rem;border-bottom:1px solid var(--line)}
h3{font-size:1rem;margin:0 0 .3rem}h4{font-size:.8rem;margin:.8rem 0 .2rem;text-transform:uppercase;letter-spacing:.05em;color:var(--soft)}
small,time,.none,.why,footer{color:var(--soft);font-weight:normal}time{float:right;font-size:.85rem}
.counts span{display:inline-block;margin-right:1.2rem}li,p{overflow-wrap:anywhere}.counts b{font-size:1.1rem}
table{border-collapse:collapse}td,th{text-align:left;vertical-align:top;padding:.15rem .8rem .15rem 0;overflow-wrap:anywhere}
.facts th{color:var(--soft);font-weight:normal;white-space:nowrap;min-width:9rem}
.facts td,pre,.hits td{font-family:ui-monospace,Menlo,Consolas,monospace;font-size:.85rem}
.hits{width:100%;margin-bottom:.6rem}.hits th:first-child{width:20%}.hits .num{white-space:nowrap;overflow-wrap:normal}.hits td,.hits th{border-bottom:1px solid var(--line)}.num{text-align:right}
article{border:1px solid var(--line);border-left:4px solid var(--soft);background:var(--card);padding:.8rem 1rem;margin:.8rem 0;border-radius:4px}
article.allow{border-left-color:var(--allow)}article.deny{border-left-color:var(--deny)}article.hold,article.unknown{border-left-color:var(--hold)}article.tunnel{border-left-color:var(--tunnel)}
.n{color:var(--soft)}.tag{border:1px solid currentColor;border-radius:3px;padding:0 .4em;font-size:.8rem;font-weight:normal}
.allow>b,.tag.allow,.good{color:var(--allow)}.deny>b,.tag.deny,.bad{color:var(--deny)}.hold>b,.tag.hold{color:var(--hold)}.mask>b,.tag.mask{color:var(--mask)}.tag.tunnel{color:var(--tunnel)}
.proof{font-size:1.1rem;font-weight:bold;margin:.3rem 0}.outcome{margin:0}.bad{font-weight:bold}
pre{white-space:pre-wrap;overflow-wrap:anywhere;margin:.4rem 0;padding:.6rem;border:1px solid var(--line);background:var(--back)}
summary{cursor:pointer;color:var(--soft)}.hashes{border-top:1px dashed var(--line);margin-top:.6rem;padding-top:.3rem}
.strip{position:relative;height:2rem;border:1px solid var(--line);background:var(--card)}
.strip a{position:absolute;top:0;bottom:0;width:3px;background:var(--hold)}.strip a.allow{background:var(--allow)}.strip a.deny{background:var(--deny)}.strip a.tunnel{background:var(--tunnel)}
.ends{display:flex;justify-content:space-between;color:var(--soft);font-size:.85rem}
@media print{:root{--ink:#000;--soft:#444;--line:#bbb;--back:#fff;--card:#fff;--allow:#1a7f37;--deny:#c62828;--hold:#9a6700;--mask:#8250df;--tunnel:#0b7285}
body{padding:0;max-width:none;font-size:10pt}h3,h4,summary{break-after:avoid}tr,.strip{break-inside:avoid}
details::details-content{content-visibility:visible;block-size:auto}*{print-color-adjust:exact}@page{margin:1.5cm}}
"""
