"""Hook of MkDocs: the site has the pages where the repository has them.

MkDocs knows one folder of pages, but README, results and tests have pages too. With the
same places, the links between them are the same on the site and on GitHub.
"""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

PAGES = (
    "README.md",
    "RESULTS.md",
    "CHANGELOG.md",
    "CITATION.cff",
    "CONTRIBUTING.md",
    "docs/**/*",
    "results/**/*.md",
    "tests/README.md",
)
# A page that only the site has: GitHub would show its directives as text.
API = "docs/api.md"
NAMES = (
    "biedsnet_jax.load",
    "biedsnet_jax.train",
    "biedsnet_jax.evaluate",
    "biedsnet_jax.get_config",
    "biedsnet_jax.prediction.predictor.Predictor",
    "biedsnet_jax.prediction.scan_prediction.ScanPrediction",
    "biedsnet_jax.prediction.result.Prediction",
    "biedsnet_jax.errors.BadInput",
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replaces the files of `docs/` by those of PAGES, and adds the API page."""
    for file in [*files]:
        if file.src_dir == config.docs_dir:
            files.remove(file)
    root = Path(config.config_file_path).parent
    for path in sorted(path for pattern in PAGES for path in root.glob(pattern)):
        if path.is_file() and path.suffix != ".py":
            place = path.relative_to(root).as_posix()
            files.append(
                File(place, str(root), config.site_dir, config.use_directory_urls)
            )
    directives = "\n\n".join(f"::: {name}" for name in NAMES)
    files.append(File.generated(config, API, content=f"# Python API\n\n{directives}\n"))
    return files
