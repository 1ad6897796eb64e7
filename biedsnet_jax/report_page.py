"""The page of a report: one HTML file that loads nothing, from the template, style sheet and script in `web/`."""

import base64
import hashlib
import html
import json
import pathlib
import string
from collections.abc import Sequence

from biedsnet_jax import charts, report_charts, report_facts, report_pictures
from biedsnet_jax.report_data import Evaluated
from biedsnet_jax.tables import Table, html_table

_WEB = pathlib.Path(__file__).parent / "web"


def page(title: str, tables: Sequence[Table], shown: Sequence[Evaluated]) -> str:
    """The whole file; `tables` are of scores and costs."""
    style, theme, own = ((_WEB / name).read_text() for name in ("report.css", "theme.js", "report.js"))
    script = theme + own
    pictures = report_pictures.payload(shown)
    template = string.Template((_WEB / "report.html").read_text())
    return template.substitute(
        title=html.escape(title),
        policy=f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'",
        style=style,
        script=script,
        facts=html_table(report_facts.facts_table(shown)),
        cases=html_table(report_facts.cases_table(shown)),
        config=html_table(report_facts.config_table(shown)),
        tables="\n".join(map(html_table, tables)),
        learning=_figures(report_charts.learning_curves(shown), "No metrics.jsonl in the workdir."),
        dice=_figures(report_charts.by_case(shown) + report_charts.by_size(shown), "No slice has truth."),
        calibration=_figures(report_charts.reliability(shown) + report_charts.risk_coverage(shown), "No data."),
        missing=_missing(shown),
        pictures=json.dumps(pictures, separators=(",", ":")).replace("<", "\\u003c"),
        none="" if pictures["runs"] else " hidden",
        still="" if any("steps" in one for run in pictures["runs"] for one in run["slices"]) else " hidden",
    )


def _figures(figures, otherwise):
    parts = [
        f"<figure>\n<h3>{html.escape(one.title)}</h3>\n{charts.svg(one)}\n"
        f"<figcaption>{html.escape(one.caption)}</figcaption>\n</figure>"
        for one in figures
    ]
    return "\n".join(parts) or f"<p>{otherwise}</p>"


def _missing(shown):
    """Whose pictures are not there, why, and what brings them."""
    lines = [
        f"<li>{html.escape(one.name)}: {html.escape(one.missing)}; "
        f"<code>--mode=evaluate --workdir={html.escape(str(one.run.workdir))}</code> makes them</li>"
        for one in shown
        if one.data is None
    ]
    lines += [
        f"<li>{html.escape(one.name)}: none were kept, eval.pictures was 0</li>"
        for one in shown
        if one.data is not None and not len(one.data.slices)
    ]
    return f"<p>Without pictures and calibration:</p>\n<ul>{''.join(lines)}</ul>" if lines else ""


def _hash(text):
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
