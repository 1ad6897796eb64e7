"""The page of a report: one HTML file that loads nothing, from the template, style
sheet and script in `web/`.
"""

import base64
import hashlib
import html
import json
import pathlib
import string
from collections.abc import Sequence

from biedsnet_jax.reporting import figures as report_charts
from biedsnet_jax.reporting import pictures as report_pictures
from biedsnet_jax.reporting import run_tables, svg
from biedsnet_jax.reporting.record import Evaluated
from biedsnet_jax.reporting.table import Table, html_table

_WEB = pathlib.Path(__file__).parents[1] / "web"


def page(title: str, tables: Sequence[Table], shown: Sequence[Evaluated]) -> str:
    """The whole file; `tables` are of scores and costs."""
    style, theme, own = (
        (_WEB / name).read_text() for name in ("report.css", "theme.js", "report.js")
    )
    script = theme + own
    pictures = report_pictures.payload(shown)
    template = string.Template((_WEB / "report.html").read_text())
    return template.substitute(
        title=html.escape(title),
        policy=f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'",
        style=style,
        script=script,
        facts=html_table(run_tables.facts_table(shown)),
        cases=html_table(run_tables.cases_table(shown)),
        config=html_table(run_tables.config_table(shown)),
        tables="\n".join(map(html_table, tables)),
        learning=_figures(
            report_charts.learning_curves(shown), "No metrics.jsonl in the workdir."
        ),
        dice=_figures(
            report_charts.by_case(shown) + report_charts.by_size(shown),
            "No slice has truth.",
        ),
        calibration=_figures(
            report_charts.reliability(shown) + report_charts.risk_coverage(shown),
            "No data.",
        ),
        missing=_missing(shown),
        pictures=json.dumps(pictures, separators=(",", ":")).replace("<", "\\u003c"),
        none="" if pictures["runs"] else " hidden",
        still=""
        if any("steps" in one for run in pictures["runs"] for one in run["slices"])
        else " hidden",
    )


def _figures(figures, otherwise):
    parts = [
        f"<figure>\n<h3>{html.escape(one.title)}</h3>\n{svg.svg(one)}\n"
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
    return (
        f"<p>Without pictures and calibration:</p>\n<ul>{''.join(lines)}</ul>"
        if lines
        else ""
    )


def _hash(text):
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
