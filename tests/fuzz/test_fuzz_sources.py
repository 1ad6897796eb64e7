"""Any bytes in a training folder are refused in one line, or are a possible example.

Any names of files lead nowhere else.
"""

import io
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
from damage import damaged, tried
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from biedsnet_jax.data.sources.image_folder import ImageFolder
from biedsnet_jax.data.sources.nifti_folder import NiftiFolder
from biedsnet_jax.prediction import outputs, scans
from biedsnet_jax.prediction.result import UNCERTAINTIES

RNG = np.random.default_rng(0)
LABEL = RNG.integers(0, 2, (16, 12), np.uint8)


def png(pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def volume(voxels) -> bytes:
    return nib.Nifti1Image(voxels, np.diag([-0.8, 0.8, 2.5, 1])).to_bytes()


PNG_IMAGE = png(LABEL * 200 + RNG.integers(0, 50, LABEL.shape, np.uint8))
PNG_MASK = png(LABEL * 255)
VOLUME = volume(RNG.normal(size=(6, 5, 4)).astype(np.float32))
LABELS = volume(RNG.integers(0, 2, (6, 5, 4), np.uint8))


def folder(place: Path, files: dict[str, bytes]) -> Path:
    shutil.rmtree(place / "data", ignore_errors=True)
    for name, data in files.items():
        path = place / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return place / "data"


def examples(make) -> list[dict]:
    source = make()
    source.verify()
    return [source[i] for i in range(len(source))]


def check_examples(read, channels, classes):
    for example in read or []:
        image, mask = example["image"], example["mask"]
        assert (
            image.ndim == 3 and image.shape[-1] == channels and np.isfinite(image).all()
        )
        assert (
            mask.dtype == np.uint8
            and mask.shape == (*image.shape[:2], classes)
            and mask.max() <= 1
        )


def test_a_folder_of_pictures(place):
    @given(
        image=st.just(PNG_IMAGE) | damaged(PNG_IMAGE),
        mask=damaged(PNG_MASK),
        classes=st.sampled_from([1, 2]),
    )
    def check(image, mask, classes):
        root = folder(place, {"images/a/1.png": image, "masks/a/1.png": mask})
        read = tried(
            lambda: examples(lambda: ImageFolder(root, classes=classes)), inside=place
        )
        check_examples(read, 1, classes)

    check()


def test_a_folder_of_volumes(place):
    header = 352

    @given(
        image=st.just(VOLUME) | damaged(VOLUME, within=header),
        label=st.just(LABELS) | damaged(LABELS, within=header),
        listed=st.none()
        | damaged(
            b'{"training": [{"image": "imagesTr/a.nii", "label": "labelsTr/a.nii"}]}'
        ),
        context=st.sampled_from([0, 1]),
    )
    def check(image, label, listed, context):
        files = {"imagesTr/a.nii": image, "labelsTr/a.nii": label}
        root = folder(
            place, files | ({} if listed is None else {"dataset.json": listed})
        )
        cache = place / "cache"
        shutil.rmtree(cache, ignore_errors=True)
        make = lambda: NiftiFolder(root, cache, context=context)  # noqa: E731
        check_examples(
            tried(lambda: examples(make), inside=place, writes=cache),
            1 + 2 * context,
            1,
        )

    check()


# A file system takes no slash, no NUL and no long name. The letters that are put behind
# make names of dots alone harmless.
NAMES = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), max_size=20
)


def test_names_of_files_lead_nowhere_else(place):
    @given(
        names=st.lists(
            st.tuples(st.sampled_from(["", "..", "a", "-"]) | NAMES, NAMES),
            min_size=1,
            max_size=3,
        )
    )
    def check(names):
        files = {}
        for below, name in names:
            safe = f"{below} x/" if below else ""
            files[f"{safe}{name} y.png"] = PNG_IMAGE
        root, out = folder(place, files), place / "data" / "out"
        items = (
            tried(
                lambda: scans.search(root, channels=1, leave_out=out).items,
                inside=place,
            )
            or []
        )
        where = [
            path
            for item in items
            for path in outputs.paths(
                out, item, classes=1, uncertainties=UNCERTAINTIES, samples=1
            ).values()
        ]
        assert len(set(where)) == len(where)
        assert all(path.resolve().is_relative_to(out.resolve()) for path in where)

    check()
