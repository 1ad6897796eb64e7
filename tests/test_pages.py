"""The pages are short, and what they say of kept results can be had again."""

import re
import shutil
import tarfile

import documented
import pytest
from places import ROOT

from benchmarks.tables import results_page
from biedsnet_jax.reporting import report

# bytes
LIMITS = {"README.md": 8_000, "RESULTS.md": 10_000}
MOST = 12_000
BY_HAND = [ROOT / "README.md", ROOT / "RESULTS.md", *ROOT.glob("docs/*.md")]
BY_HAND += ROOT.glob("results/*/notes.md")
PAGES = [*BY_HAND, *ROOT.glob("tests/*.md"), *ROOT.glob("results/*/*.md")]
KEPT = sorted(path.parent.name for path in ROOT.glob("results/*/scores.tar.xz"))
# characters of a line, but in tables
COLUMNS = 100


def name(page):
    return str(page.relative_to(ROOT))


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A copy of kept results, the archive unpacked as RESULTS.md says."""
    folder = tmp_path_factory.mktemp("results") / KEPT[-1]
    shutil.copytree(ROOT / "results" / KEPT[-1], folder)
    with tarfile.open(folder / "scores.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.mark.parametrize("page", sorted(set(PAGES)), ids=name)
def test_a_page_is_short(page):
    assert page.stat().st_size <= LIMITS.get(page.name, MOST)


@pytest.mark.parametrize("page", BY_HAND, ids=name)
def test_a_line_of_prose_is_short(page):
    lines = page.read_text().splitlines()
    long = [line for line in lines if len(line) > COLUMNS and not line.startswith("|")]
    assert long == []


@pytest.mark.parametrize("page", ROOT.glob("results/*/notes.md"), ids=name)
def test_links_of_notes_lead_somewhere(page):
    for place, target in documented.links(page):
        path, _, anchor = target.partition("#")
        other = (page.parent / path).resolve() if path else page
        assert other.exists(), f"{place}: {target}"
        assert not anchor or anchor in documented.anchors(other), f"{place}: {target}"


def test_mode_report_reads_kept_results(kept, tmp_path):
    report.run(str(kept), str(tmp_path / "report.html"))
    made = (tmp_path / "report.md").read_text()
    score = re.search(r"\| BIEDSNet \| 0\.\d+", made).group()
    assert score in (ROOT / "results" / KEPT[-1] / "report.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("folder", KEPT)
def test_kept_pages_are_what_is_made_of_the_scores(folder, tmp_path):
    made, kept = tmp_path / folder, ROOT / "results" / folder
    shutil.copytree(kept, made)
    results_page.write(made)
    for page in ("report.md", "ablation.md", "trials.md"):
        if (kept / page).exists():
            again = f"python benchmarks/tables/results_page.py --name={folder}"
            assert (made / page).read_text() == (kept / page).read_text(), again


@pytest.mark.parametrize("section", (1, 2))
def test_the_tables_of_results_are_those_of_the_kept_pages(section):
    """Dice, its interval and HD95 of each network, rounded as the page has them."""
    kept = (ROOT / "results" / KEPT[section - 1] / "report.md").read_text()
    kept = kept.partition("## Table 1, paper convention")[0]
    text = (ROOT / "RESULTS.md").read_text().split("\n## ")[section]
    rows = re.findall(
        r"\| (\w+\+*)( without diffusion)?.*? \| \**(0\.\d+)\** "
        r"\((0\.\d+) to (0\.\d+)\) \| \**([\d.]+)",
        text,
    )
    assert len(rows) == 9
    for network, direct, *said in rows:
        network += ", no diffusion" if direct else ""
        line = next(x for x in kept.splitlines() if x.startswith(f"| {network} |"))
        _, dice, interval, _, hd95, *_ = line.split(" | ")
        for value, exact in zip(said, [dice, *interval.split(" to "), hd95]):
            digits = len(value.partition(".")[2])
            assert abs(float(value) - float(exact)) < 0.51 * 10**-digits, network
