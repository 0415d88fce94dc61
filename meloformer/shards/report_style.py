"""The look of a report: one style sheet, light or dark as the reader has it, wide or narrow."""

STYLE = """
:root{--paper:#fbfaf7;--ink:#20262c;--muted:#6b7378;--rule:#e2dfd7;--track:#efece4;
--first:#2f6f8f;--second:#c98a3d;--third:#a8503f}
@media(prefers-color-scheme:dark){:root{--paper:#15181b;--ink:#e4e2dc;--muted:#959a9d;
--rule:#30353a;--track:#22272b;--first:#6bacc9;--second:#dba960;--third:#d4806e}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","DejaVu Sans",sans-serif;
font-variant-numeric:tabular-nums;-webkit-text-size-adjust:100%}
main{max-width:1080px;margin:0 auto;padding:40px 20px 64px}
h1,h2,.big{font-family:"Iowan Old Style",Palatino,Georgia,"DejaVu Serif",serif;font-weight:400}
h1{font-size:30px;line-height:1.2;margin:0 0 6px;overflow-wrap:anywhere}
h2{font-size:21px;margin:52px 0 4px;padding-top:18px;border-top:1px solid var(--rule)}
h3{font-size:13px;font-weight:600;margin:0}
p{margin:0 0 12px;max-width:68ch}
.lead,.muted,figcaption{color:var(--muted)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(128px,1fr));gap:16px 24px;
margin:28px 0 0;padding:0}
.tiles div{border-top:2px solid var(--ink);padding-top:8px}
.tiles dt{color:var(--muted);font-size:13px}
.tiles dd{margin:0;font-size:25px;line-height:1.25;white-space:nowrap}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,300px),1fr));
gap:30px 36px;margin-top:20px}
.wide{grid-template-columns:repeat(auto-fill,minmax(min(100%,420px),1fr))}
figure{margin:0;min-width:0}
figcaption{font-size:13px;margin-top:2px}
.big{font-size:23px;line-height:1.3}
.big small{font:13px system-ui,sans-serif;color:var(--muted)}
svg{display:block;width:100%;max-width:430px;height:auto;margin-top:6px;overflow:visible}
svg .bars rect{fill:var(--first)}
svg rect:hover{opacity:.7}
svg .median{stroke:var(--third);stroke-width:1.2;stroke-dasharray:3 3}
svg .base{stroke:var(--muted);stroke-width:.8}
svg .grid{stroke:var(--rule);stroke-width:.8}
svg .curve{fill:none;stroke-width:2;stroke-linejoin:round}
svg .tick{fill:var(--muted);font-size:10.5px}
.legend{font-size:13px;color:var(--muted);margin:4px 0 0}
.legend span{margin-right:16px;white-space:nowrap}
.legend i{display:inline-block;width:10px;height:10px;border-radius:2px;margin-right:6px}
ul.bars{list-style:none;margin:10px 0 0;padding:0;font-size:13px}
ul.bars li{display:grid;grid-template-columns:minmax(86px,9.5em) 1fr minmax(4em,auto) 4.6em;
gap:10px;align-items:center;padding:2.5px 0}
ul.bars.long li{grid-template-columns:minmax(150px,3fr) 1fr minmax(4em,auto)}
ul.bars.long .label{white-space:normal;line-height:1.3}
ul.bars.long .share{display:none}
ul.bars .label{overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
ul.bars .track{background:var(--track);height:11px;border-radius:2px}
ul.bars .track i{display:block;height:100%;border-radius:2px;min-width:1px}
ul.bars .count{text-align:right}
ul.bars .share{text-align:right;color:var(--muted)}
.stack{display:flex;height:22px;border-radius:3px;overflow:hidden;margin:18px 0 8px;gap:1px}
.stack i{min-width:2px}
.scroll{overflow-x:auto}
table{border-collapse:collapse;margin-top:14px;font-size:14px}
th,td{text-align:right;padding:5px 0 5px 20px;border-bottom:1px solid var(--rule);
white-space:nowrap}
th{font-weight:600;font-size:13px;color:var(--muted)}
th:first-child,td:first-child{text-align:left;padding-left:0}
footer{margin-top:56px;color:var(--muted);font-size:13px}
@media(max-width:520px){main{padding-top:26px}h1{font-size:25px}.tiles dd{font-size:21px}
table{font-size:13px}th{font-size:12px}th,td{padding-left:11px}
ul.bars li{grid-template-columns:116px 1fr auto 4.2em;gap:8px}}
@media print{body{font-size:12px}h2{break-after:avoid}figure{break-inside:avoid}}
"""
