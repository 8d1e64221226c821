"""The style of the page: system fonts, colours for colour-blind readers, light and dark."""

CSS = """
:root { color-scheme: light dark; --font: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
  --page: #f6f7f9; --card: #ffffff; --ink: #1b2330; --soft: #5b6675; --line: #e0e4ea; --tint: #eef3fa;
  --c1: #0072b2; --c2: #d55e00; --c3: #009e73; --c4: #aa4499; --good: #00795a; --warn: #a85f00; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root {
  --page: #10141a; --card: #191f28; --ink: #e8ecf2; --soft: #a2adbb; --line: #2d3541; --tint: #1f2a39;
  --c1: #56b4e9; --c2: #f0914a; --c3: #35c9a0; --c4: #d98cc8; --good: #45d0a3; --warn: #f2b04d; --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 var(--font); }
main { max-width: 1120px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 44px 0 4px; letter-spacing: -.005em; }
h3 { font-size: .95rem; margin: 0 0 4px; }
p { margin: 6px 0 12px; max-width: 92ch; }
.soft, figcaption { color: var(--soft); font-size: .875rem; line-height: 1.45; }
.kicker { color: var(--soft); font-size: .8rem; letter-spacing: .06em; text-transform: uppercase; margin: 0 0 2px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 16px 18px; margin: 0; }
.verdict { --tone: var(--c1); border-left: 6px solid var(--tone); margin-top: 18px; }
.verdict b { color: var(--tone); font-size: 1.15rem; }
.verdict p { margin: 4px 0 0; max-width: none; } .when { margin: 4px 0 0; }
.verdict.learning { --tone: var(--good); } .verdict.copying { --tone: var(--warn); }
.verdict.collapsed { --tone: var(--bad); }
.verdict.undecided { --tone: var(--soft); }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); gap: 10px; margin: 14px 0; }
.facts div { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 9px 14px; }
.facts b { display: block; font-size: 1.2rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
.facts span { color: var(--soft); font-size: .8rem; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 320px), 1fr)); gap: 14px; }
.grid figcaption { margin-top: 6px; }
.at { opacity: 0; } .at:hover { opacity: 1; } .at rect { fill: transparent; pointer-events: all; }
.at path { stroke: var(--soft); stroke-width: .7; } .at text { fill: var(--soft); font: 9.5px var(--font); }
.at .s1 { fill: var(--c1); } .at .s2 { fill: var(--c2); } .at .s3 { fill: var(--c3); } .at .s4 { fill: var(--c4); }
.at tspan { font-weight: 600; }
.card svg { display: block; width: 100%; height: auto; }
.chips { display: flex; flex-wrap: wrap; gap: 2px 14px; font-size: .8rem; color: var(--soft); min-height: 1.5em; }
.chip b { color: var(--ink); font-variant-numeric: tabular-nums; }
.chip i { display: inline-block; width: 20px; height: 0; border-top: 3px solid var(--c); vertical-align: middle;
  margin-right: 5px; }
.chip i.d1 { border-top-style: dashed; }
.chip i.d2 { border-top-style: dotted; } .chip i.d3 { border-top-style: double; }
.bars { display: grid; grid-template-columns: max-content 1fr; gap: 7px 12px; align-items: center; margin: 8px 0 4px; }
.bars span { font-size: .875rem; } .bars .bar { position: relative; height: 22px; background: var(--tint);
  border-radius: 5px; overflow: hidden; }
.bars .bar i { position: absolute; inset: 0 auto 0 0; width: var(--w); background: var(--c); border-radius: 5px; }
.bars .value { display: flex; align-items: center; gap: 10px; } .bars .value .bar { flex: 1; }
.bars .value b { min-width: 4.2em; text-align: right; font-variant-numeric: tabular-nums; font-size: .9rem; }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 430px), 1fr)); gap: 14px;
  margin: 12px 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 11px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; } th:first-child, td:first-child { text-align: left; }
td.left, th.left { text-align: left; } td.wrap { white-space: normal; text-align: left; min-width: 260px; }
td.cell { background: color-mix(in srgb, var(--c1) calc(var(--v) * 42%), transparent); text-align: center; }
td.best { outline: 2.5px solid var(--c2); outline-offset: -2px; font-weight: 700; border-radius: 4px; }
details { margin: 12px 0; } summary { cursor: pointer; font-weight: 600; font-size: .9rem; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 12px 16px; overflow-x: auto;
  font-size: .8rem; line-height: 1.45; }
.note { border-left: 4px solid var(--line); padding: 2px 0 2px 14px; color: var(--soft); }
.hidden { position: absolute; width: 0; height: 0; }
image, .patch { image-rendering: pixelated; }
.tile { display: block; width: 100%; height: auto; border-radius: 6px; }
.tile.dim use { filter: grayscale(1) brightness(.5); } .tile.dim .over { mix-blend-mode: screen; }
.tile.dim { isolation: isolate; background: #000; }
.veil { fill: var(--card); opacity: .78; }
.mark { fill: none; stroke-width: .16; } .mark.next { stroke: #e8590c; stroke-width: .2; }
.mark.current { stroke: #1c7ed6; stroke-dasharray: .22 .14; } .mark.query { stroke: #00a5e0; stroke-width: .2; }
.strips { display: grid; gap: 14px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr)); }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 8px; } .pair + p { margin: 6px 0 0; font-size: .8rem;
  color: var(--soft); line-height: 1.4; }
.attention { display: grid; gap: 6px; align-items: center; min-width: 720px; }
.attention .name { font-size: .75rem; color: var(--soft); text-align: center; }
.inside { display: grid; gap: 7px; } .inside .name { font-size: .75rem; color: var(--soft); text-align: center;
  align-self: end; line-height: 1.25; } .inside .side { align-self: center; }
.read { display: block; width: 100%; height: auto; border-radius: 6px; image-rendering: pixelated; }
ul.soft { padding-left: 1.2em; margin: 8px 0 0; max-width: 100ch; }
.found { display: grid; grid-template-columns: minmax(72px, 1.6fr) minmax(40px, 1fr) 6px repeat(6, minmax(36px, 1fr));
  gap: 7px; align-items: center; min-width: 420px; }
.found .wide { grid-column: span 6; text-align: left; }
.found .name { font-size: .75rem; color: var(--soft); text-align: center; align-self: end; }
.patch { display: block; width: 100%; aspect-ratio: 1; border-radius: 5px; border: 1px solid var(--line); }
.patch.true { outline: 3px solid #e8590c; outline-offset: -1px; }
.key { display: inline-block; width: .8em; height: .8em; border: 3px solid; border-radius: 2px; }
.key.next { border-color: #e8590c; } .key.query { border-color: #00a5e0; } .key.current { border: 2px dashed #1c7ed6; }
.ramp { display: inline-block; width: 74px; height: .75em; border-radius: 3px; vertical-align: -.05em; }
.viridis { background: linear-gradient(90deg, #440154, #3b528b, #21918c, #5ec962, #fde725); }
.inferno { background: linear-gradient(90deg, #000004, #57106e, #bc3754, #f98e09, #fcffa4); }
.swatch { display: inline-block; width: .85em; height: .85em; border-radius: 3px; background: var(--c);
  vertical-align: -.08em; margin-right: 6px; } .chip i.swatch { width: .85em; height: .85em; border: 0; }
.legend { margin: 4px 0 14px; gap: 4px 16px; }
.segments { display: grid; gap: 14px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 480px), 1fr)); }
.four { display: grid; grid-template-columns: repeat(4, 1fr); gap: 8px; } .four figure { margin: 0; }
.four img { display: block; width: 100%; border-radius: 6px; image-rendering: pixelated; }
.four figcaption { font-size: .75rem; text-align: center; } .four + p { margin: 6px 0 0; font-size: .8rem;
  color: var(--soft); }
footer { margin-top: 48px; }
.headline { display: grid; grid-template-columns: max-content 1fr; gap: 6px 34px; align-items: center; margin-top: 18px;
  border-left: 6px solid var(--c1); }
.headline b { font-size: 3.1rem; line-height: 1; letter-spacing: -.03em; font-variant-numeric: tabular-nums; }
.headline .soft { display: block; } .headline p { grid-column: 1 / -1; margin: 6px 0 0; max-width: none; }
@media (max-width: 640px) { .headline { grid-template-columns: 1fr; } }
.scale { display: block; width: 100%; height: auto; overflow: visible; font: 11px var(--font); fill: var(--soft); }
.scale .track { fill: var(--tint); } .scale .range { fill: var(--c1); opacity: .35; } .scale .top { fill: var(--c1); }
.scale .guess { stroke: var(--c2); stroke-width: 2.5; } .scale .guessed { fill: var(--c2); }
.classes { display: grid; grid-template-columns: max-content 1fr max-content; gap: 6px 12px; align-items: center;
  font-size: .875rem; }
.classes .bar { position: relative; height: 18px; background: var(--tint); border-radius: 5px; }
.classes .bar i { position: absolute; inset: 0 auto 0 0; width: var(--w); background: var(--c1); border-radius: 5px; }
.classes .bar u { position: absolute; top: 7.5px; height: 3px; left: var(--l); width: var(--r); background: var(--ink);
  opacity: .55; border-radius: 2px; }
.classes .value { font-variant-numeric: tabular-nums; text-align: right; }
.classes .value span { color: var(--soft); }
.matrix { display: block; width: 100%; height: auto; font: 11.5px var(--font); fill: var(--ink); }
.matrix .cell { stroke: var(--card); stroke-width: 1.5; } .matrix .name { fill: var(--soft); }
.matrix .right { fill: color-mix(in srgb, var(--c1) var(--v), var(--tint)); }
.matrix .wrong { fill: color-mix(in srgb, var(--c2) var(--v), var(--tint)); } .matrix .none { fill: var(--tint); }
.matrix .on { fill: #fff; } .key.right { border-color: var(--c1); background: var(--c1); }
.key.wrong { border-color: var(--c2); background: var(--c2); }
.mistakes { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 14px; margin: 12px 0; }
.mistakes .card { padding: 10px; } .mistakes img { display: block; width: 100%; border-radius: 6px;
  image-rendering: pixelated; border: 1px solid var(--line); }
.mistakes p { margin: 8px 0 0; font-size: .8rem; line-height: 1.4; overflow-wrap: anywhere; }
.mistakes .is { color: var(--good); font-weight: 600; } .mistakes .called { color: var(--c2); font-weight: 600; }
.trained td:last-child { text-align: left; white-space: normal; }
.spoken { display: grid; grid-template-columns: repeat(auto-fill, minmax(190px, 1fr)); gap: 14px; margin: 12px 0; }
.spoken .card { padding: 12px; } .spoken img { width: 64px; height: 64px; object-fit: contain; border-radius: 6px;
  border: 1px solid var(--line); image-rendering: pixelated; margin-right: 6px; }
.spoken p { margin: 6px 0 0; font-size: .875rem; line-height: 1.4; overflow-wrap: anywhere; }
.spoken .said { font-weight: 600; } .spoken .same { color: var(--good); }
"""
