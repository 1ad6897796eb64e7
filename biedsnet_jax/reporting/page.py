"""The page of a report: one HTML file that loads nothing, from the templates, style
sheet and script in `web/`.

A report of one's own runs starts with the verdict, then come the slices; one of several
networks starts with the tables that compare them.
"""

import base64
import hashlib
import html
import json
import pathlib
import string
from collections.abc import Sequence

from biedsnet_jax.reporting import figures, pictures, run_tables, svg
from biedsnet_jax.reporting.record import Evaluated
from biedsnet_jax.reporting.table import Table, html_table
from biedsnet_jax.reporting.verdict import Verdict, html_verdict

_WEB = pathlib.Path(__file__).parents[1] / "web"


def page(
    title: str,
    tables: Sequence[Table],
    shown: Sequence[Evaluated],
    verdict: Verdict | None = None,
) -> str:
    """The whole file; `tables` are of scores and costs, the verdict is of one row."""
    style = (_WEB / "report.css").read_text()
    script = (_WEB / "theme.js").read_text() + (_WEB / "report.js").read_text()
    # The page loads nothing, and only its own style and script run.
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; "
        f"script-src '{_hash(script)}'"
    )
    scores = _template("report_scores.html").substitute(
        tables="\n".join(map(html_table, tables))
    )
    data = pictures.payload(shown)
    recorded = [one for run in data["runs"] for one in run["slices"] if "steps" in one]
    several = any(len(run["times"]) > 1 for run in data["runs"])
    dice = figures.by_case(shown) + figures.by_size(shown)
    uncertainty = figures.reliability(shown) + figures.risk_coverage(shown)
    # "<" is escaped in the data, or a name could end the script element.
    packed = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    return _template("report.html").substitute(
        title=html.escape(title),
        policy=policy,
        style=style,
        script=script,
        verdict=html_verdict(verdict) if verdict else "",
        no_verdict=_hidden_unless(verdict),
        scores_first="" if verdict else scores,
        scores_last=scores if verdict else "",
        facts=html_table(run_tables.facts_table(shown)),
        cases=html_table(run_tables.cases_table(shown)),
        config=html_table(run_tables.config_table(shown)),
        learning=_figures(
            figures.learning_curves(shown), "No metrics.jsonl in the workdir."
        ),
        dice=_figures(dice, "No slice has truth."),
        calibration=_figures(uncertainty, "No data."),
        missing=_missing(shown),
        pictures=packed,
        no_pictures=_hidden_unless(data["runs"]),
        no_steps=_hidden_unless(recorded),
        stepwise=", step by step" if several else "",
    )


def _template(name):
    return string.Template((_WEB / name).read_text())


def _hidden_unless(something):
    """The attribute of a part of the page that is there only with something to show."""
    return "" if something else " hidden"


def _figures(charts, otherwise):
    parts = [
        f"<figure>\n<h3>{html.escape(one.title)}</h3>\n{svg.svg(one)}\n"
        f"<figcaption>{html.escape(one.caption)}</figcaption>\n</figure>"
        for one in charts
    ]
    return "\n".join(parts) or f"<p>{otherwise}</p>"


def _missing(shown):
    """Names the runs whose pictures are not there, why, and what brings them."""
    lines = []
    for one in shown:
        name = html.escape(one.name)
        if one.data is None:
            command = f"--mode=evaluate --workdir={html.escape(str(one.run.workdir))}"
            why = html.escape(one.missing)
            lines.append(f"<li>{name}: {why}. <code>{command}</code> makes them.</li>")
        elif not len(one.data.slices):
            lines.append(f"<li>{name}: none were kept, eval.pictures was 0.</li>")
    if not lines:
        return ""
    return f"<p>Without pictures and calibration:</p>\n<ul>{''.join(lines)}</ul>"


def _hash(text):
    digest = hashlib.sha256(text.encode()).digest()
    return "sha256-" + base64.b64encode(digest).decode()
