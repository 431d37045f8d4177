"""The look of a report: one column that suits a phone, pairs of charts where there is room, light or dark as the reader's
system is."""

CSS = """
:root{--page:#f6f7f9;--card:#fff;--ink:#1a202c;--soft:#556070;--line:#dde2e9;--rule:#e8ecf1;--was:#a3adba;--now:#1f66c1;
--hot:#c2410c;--limit:#0f766e;--good:#166534;--goodbg:#e4f5e9;--bad:#a51d1d;--badbg:#fdeaea;--finebg:#e7f0fb;
--p0:#94a3b8;--p1:#7dabdc;--p2:#b39ddb;--p3:#8cc2a4;--p4:#c9a96a;--p5:#e0a3bd}
@media (prefers-color-scheme:dark){:root{--page:#12161c;--card:#1a2029;--ink:#e6eaf0;--soft:#9aa7b8;--line:#313b48;
--rule:#28313d;--was:#6b7686;--now:#6ea8f5;--hot:#f58a4b;--limit:#3fbfae;--good:#86e0a3;--goodbg:#15301f;--bad:#ff9b9b;
--badbg:#3a1b1d;--finebg:#182a42;--p0:#64748b;--p1:#4f7fb3;--p2:#8571b5;--p3:#579272;--p4:#997b43;--p5:#a8617f}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
header,main{max-width:1080px;margin:0 auto;padding:0 16px}
header{padding-top:24px}h1{font-size:26px;line-height:1.2;margin:0;overflow-wrap:anywhere}header p{color:var(--soft);margin:4px 0 0}
h2{font-size:18px;margin:0 0 10px}h3{font-size:15px;margin:16px 0 6px}
p{margin:8px 0;overflow-wrap:anywhere}ul{margin:8px 0;padding-left:22px}li{overflow-wrap:anywhere}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:16px;margin:14px 0}
dl{display:grid;grid-template-columns:max-content minmax(0,1fr);gap:4px 14px;margin:8px 0}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
pre,code{font:12.5px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
pre{background:var(--page);border:1px solid var(--line);border-radius:6px;padding:10px;margin:8px 0;overflow:auto;max-height:70vh}
pre.command{white-space:pre-wrap;overflow-wrap:anywhere}code{overflow-wrap:anywhere}
.banner{border-radius:8px;padding:10px 14px;background:var(--finebg)}
.banner.good{background:var(--goodbg);color:var(--good)}.banner.bad{background:var(--badbg);color:var(--bad)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:10px;margin:12px 0}
.tile{border:1px solid var(--line);border-radius:8px;padding:10px 12px}
.tile span,.tile small{display:block;color:var(--soft);font-size:12.5px;line-height:1.35}
.tile strong{display:block;font-size:18px;line-height:1.35;font-weight:650;white-space:nowrap}
.scroll{overflow-x:auto;margin:8px 0}table{border-collapse:collapse;font-size:13.5px;min-width:100%}
th{color:var(--soft);font-weight:500;text-align:left;white-space:nowrap}td,th{padding:4px 14px 4px 0;border-bottom:1px solid var(--rule);vertical-align:top}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}thead tr:has(th:empty:first-child):has(th:empty:last-child){display:none}
.state{white-space:nowrap}.state.ran{color:var(--good)}.state.failed{color:var(--bad);font-weight:600}.state.skipped{color:var(--soft)}
details{border-top:1px solid var(--rule);padding:6px 0}summary{cursor:pointer}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr));gap:18px 26px}
figure{margin:8px 0;min-width:0}figcaption{font-size:13.5px;margin-bottom:6px}
.note{font-size:13px;color:var(--soft);margin:4px 0 0}
.plot{display:grid;font-size:12px;line-height:1;color:var(--soft);column-gap:6px}
.plot>.ytitle{grid-column:1/-1;padding-bottom:7px}.plot>.area{grid-column:2;min-width:0}
.plot>.x{grid-column:2;position:relative;height:20px}.plot>.xtitle{grid-column:2;text-align:right}
.y,.right{position:relative}.y span,.right span{position:absolute;transform:translateY(-50%);white-space:nowrap}
.y span{right:0}.right span{left:0;font-weight:600}.x span{position:absolute;top:5px;transform:translateX(-50%);white-space:nowrap}
svg{display:block;overflow:visible}.area>svg{border-left:1px solid var(--line);border-bottom:1px solid var(--line)}
.cells,.strip img{image-rendering:pixelated}
.rule{stroke:var(--rule)}.edge{stroke:var(--soft);stroke-opacity:.45;stroke-dasharray:2 3}
.ring{fill:none;stroke:var(--ink);stroke-width:1.6}.o{display:inline-block;width:9px;height:9px;border:1.6px solid var(--ink);border-radius:50%;margin-right:6px}
.h{fill:transparent}.h:hover{fill:var(--ink);fill-opacity:.16}
.curve{fill:none;stroke-width:2;vector-effect:non-scaling-stroke;stroke-linejoin:round}
.level{stroke-width:1.6;stroke-dasharray:6 4}
.curve.was,.level.was{stroke:var(--was)}.curve.now,.level.now{stroke:var(--now)}.curve.hot{stroke:var(--hot)}
.curve.limit,.level.limit{stroke:var(--limit)}.curve.limit{stroke-dasharray:6 4}
.fill.was{fill:var(--was);fill-opacity:.6}.fill.now{fill:var(--now)}
.fill.phase0{fill:var(--p0)}.fill.phase1{fill:var(--p1)}.fill.phase2{fill:var(--p2)}.fill.phase3{fill:var(--p3)}.fill.phase4{fill:var(--p4)}.fill.phase5{fill:var(--p5)}
b.was,span.was{color:var(--soft)}b.now,span.now{color:var(--now)}b.hot,span.hot{color:var(--hot)}b.limit,span.limit{color:var(--limit)}
.key{display:flex;flex-wrap:wrap;gap:2px 12px;align-items:start;font-size:12px;color:var(--soft);margin-top:5px;line-height:1.2}
.strip{position:relative;flex:1 1 200px;max-width:300px;height:26px}.strip img{width:100%;height:10px;display:block;border:1px solid var(--line)}
.strip span{position:absolute;top:13px;transform:translateX(-50%);white-space:nowrap}.strip .low{transform:none}.strip .high{transform:translateX(-100%)}
.sequence{display:flex;flex-wrap:wrap;gap:2px 14px;margin-top:4px;color:var(--soft)}.sequence b{color:var(--ink);font-weight:500}
.swatch{display:inline-block;width:10px;height:10px;border-radius:2px;margin-right:5px}
.swatch.now{background:var(--now)}.swatch.phase0{background:var(--p0)}.swatch.phase1{background:var(--p1)}.swatch.phase2{background:var(--p2)}
.swatch.phase3{background:var(--p3)}.swatch.phase4{background:var(--p4)}.swatch.phase5{background:var(--p5)}
.lying{display:grid;grid-template-columns:max-content minmax(0,1fr) max-content;gap:6px 10px;align-items:center;font-size:13.5px;margin:8px 0}
.track{background:var(--rule);border-radius:3px}.bar{display:block;height:16px;border-radius:3px;min-width:2px;background:var(--now)}
.bar.was{background:var(--was)}.bar.limit{background:var(--limit)}.lying .n{font-variant-numeric:tabular-nums}
.picture{width:100%;height:auto;border-radius:6px;background:#fff}
@media (max-width:520px){dl{grid-template-columns:1fr;gap:0}dd{margin-bottom:6px}section{padding:12px}header,main{padding-left:10px;padding-right:10px}.tile:first-child{grid-column:1/-1}.lying{font-size:12.5px}}
@media print{body{background:#fff}section{break-inside:avoid}}
"""
