"""Charts and style of report.html: a few lines of SVG and CSS, so that the page stands alone."""

from collections.abc import Callable, Mapping
from html import escape

from rvllm_jax.data.prepare.tallies import OTHER

STYLE = """
:root{color-scheme:light dark;--ink:#1c2430;--soft:#667085;--line:#e4e7ec;--page:#f6f7f9;
--card:#fff;--mark:#3867d6;--good:#127c4b;--goodbg:#e5f6ec;--bad:#b42318;--badbg:#fdeceb}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ef;--soft:#98a2b3;--line:#2c3440;--page:#11151b;
--card:#1a2028;--mark:#7aa2ff;--good:#6bd49c;--goodbg:#12301f;--bad:#ff9c92;--badbg:#3a1a17}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,"Segoe UI",Roboto,
"Helvetica Neue",Arial,sans-serif}
main{max-width:1120px;margin:0 auto;padding:32px 24px 64px}
h1{font-size:27px;margin:0;letter-spacing:-.02em}h1 em{font-style:normal;color:var(--mark)}
h2{font-size:17px;margin:36px 0 12px}summary h2{display:inline-block;margin:8px 0}
summary{cursor:pointer;margin-top:16px}
.sub,small{color:var(--soft)}.sub{margin:4px 0 18px}small{font-size:12px;font-weight:400}
.count{color:var(--soft);font-weight:400;margin-left:6px}
.verdict{padding:12px 16px;border-radius:10px;margin:0 0 8px}.verdict b{margin-right:8px}
.verdict small{margin-left:8px;color:inherit;opacity:.7}
.verdict.good{background:var(--goodbg);color:var(--good)}
.verdict.bad{background:var(--badbg);color:var(--bad)}
.warn,.bad{color:var(--bad)}.good{color:var(--good)}.warn{margin:4px 16px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(135px,1fr));gap:12px;
margin-top:18px}
.tile,.chart,figure,.scroll{background:var(--card);border:1px solid var(--line);
border-radius:10px}
.tile{padding:12px 14px}.tile span,.tile small{display:block;color:var(--soft);font-size:12px}
.tile b{font-size:22px;letter-spacing:-.02em;font-variant-numeric:tabular-nums}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:13.5px;font-variant-numeric:tabular-nums}
th{text-align:left;color:var(--soft);font-weight:500;font-size:12px}
th,td{padding:7px 14px;border-bottom:1px solid var(--line);vertical-align:top;
overflow-wrap:break-word;max-width:640px}th{white-space:nowrap}
tr:last-child td{border-bottom:0}
.films{display:grid;grid-template-columns:repeat(auto-fill,minmax(205px,1fr));gap:12px}
figure{margin:0;overflow:hidden}figure img{width:100%;aspect-ratio:16/10;object-fit:cover;
display:block;background:var(--line)}
figcaption{padding:9px 12px 12px;font-size:13px;line-height:1.4;overflow-wrap:anywhere}
figcaption>*{display:block}figcaption q{margin-top:6px}figcaption i{color:var(--mark);
font-style:normal}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(260px,1fr));gap:12px;
align-items:start}
.chart{padding:12px 16px}.chart h3{font-size:13px;font-weight:600;margin:0 0 8px}
.chart svg{display:block;width:100%;height:96px}.chart rect{fill:var(--mark)}
.axis{display:flex;justify-content:space-between;color:var(--soft);font-size:12px}
.bar{display:grid;grid-template-columns:minmax(60px,38%) 1fr 56px;gap:8px;align-items:center;
font-size:12.5px;line-height:1.65}
.bar span{overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.bar div{height:9px;border-radius:3px;background:var(--mark)}
.bar .rest{background:var(--line)}
.none{columns:4 210px;margin:0;padding-left:18px;color:var(--soft);font-size:13.5px}
.bar b{font-weight:400;text-align:right;color:var(--soft);font-variant-numeric:tabular-nums}
"""

_WIDTH, _HEIGHT = 288, 96


def histogram(title: str, spread: Mapping, show: Callable[[float], str]) -> str:
    """A card of the histogram of `preparation_tallies.spread`; `show` writes a value."""
    if not spread["count"]:
        return f"<div class=chart><h3>{title}</h3><small>nothing is known</small></div>"
    counts, edges = spread["histogram"], spread["edges"]
    wide, most = _WIDTH / len(counts), max(counts)
    rects = []
    for number, count in enumerate(counts):
        tall = max(_HEIGHT * count / most, 1.5 if count else 0)
        hint = f"{show(edges[number])} to {show(edges[number + 1])}: {count:,}"
        rects.append(
            f'<rect x="{number * wide:.2f}" y="{_HEIGHT - tall:.2f}" width="{wide * 0.86:.2f}" '
            f'height="{tall:.2f}" rx="1"><title>{escape(hint)}</title></rect>'
        )
    middle = f"median {show(spread['median'])}, mean {show(spread['mean'])}"
    return (
        f'<div class=chart><h3>{title}</h3><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'preserveAspectRatio="none">{"".join(rects)}</svg><div class=axis>'
        f"<span>{show(spread['min'])}</span><span>{middle}</span>"
        f"<span>{show(spread['max'])}</span></div></div>"
    )


def bars(title: str, tally: Mapping[str, int]) -> str:
    """A card of one bar a value; nothing where there is no value."""
    if not tally:
        return ""
    most = max(count for name, count in tally.items() if name != OTHER or len(tally) == 1)
    rows = []
    for name, count in tally.items():
        kind = "class=rest " if name == OTHER else ""
        wide = min(100, 100 * count / most)
        rows.append(
            f'<div class=bar><span title="{escape(name)}">{escape(name)}</span>'
            f'<div {kind}style="width:{wide:.1f}%"></div><b>{count:,}</b></div>'
        )
    return f"<div class=chart><h3>{title}</h3>{''.join(rows)}</div>"


def clock(seconds: float) -> str:
    """A duration as a person says it: 9.7 s, 4:05, 2:03:09."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def size(count: float) -> str:
    """Bytes in decimal units."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count:.0f} B"
