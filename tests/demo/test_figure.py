"""The figure: orientation of the slices, colours of the coordinate map, one file written whole."""

import matplotlib.image
import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_locctx.demo.figure import Row, draw_figure, plot_rows, read_row
from nnunet_locctx.phantoms.twin_organs import make_phantom


@pytest.fixture(scope="module")
def straight_and_turned(tmp_path_factory):
    """One patient stored in two orientations."""
    rows = []
    for code in ("LPS", "SRP"):
        folder = make_phantom(
            tmp_path_factory.mktemp(code),
            1,
            cases=1,
            test_cases=0,
            size=(20, 24, 28),
            spacing=(4, 4, 6),
            orientations=[code],
        )
        label = folder / "labelsTr" / "phantom_000.nii.gz"
        rows.append(
            read_row("phantom_000", folder / "imagesTr" / "phantom_000_0000.nii.gz", {"truth": label})
        )
    return rows


def test_storage_orientation_does_not_show(straight_and_turned):
    straight, turned = straight_and_turned
    assert np.array_equal(straight.scan, turned.scan)
    assert np.array_equal(straight.segmentations["truth"], turned.segmentations["truth"])
    assert np.allclose(straight.location, turned.location, atol=1e-6)
    assert straight.pixel == turned.pixel == pytest.approx(1.5)


def test_slice_and_location_agree(straight_and_turned):
    """Each organ lies where the coordinate map says: left and lower organs at small R and S."""
    row = straight_and_turned[1]
    labels = row.segmentations["truth"]
    assert set(np.unique(labels)) == set(range(7))  # the slice cuts through all six
    place = {label: row.location[:, labels == label].mean(1) for label in range(1, 7)}
    for left in (1, 3, 5):
        assert place[left][0] < -0.05 < 0.05 < place[left + 1][0]
    for side in (1, 2):
        assert place[side][2] > place[side + 2][2] + 0.1 > place[side + 4][2] + 0.2
    columns = np.nonzero(labels == 1)[1].mean(), np.nonzero(labels == 2)[1].mean()
    assert columns[0] > columns[1]  # the patient's left is drawn on the right


def test_draws_every_scan_and_prediction(tmp_path):
    folder = make_phantom(tmp_path, 1, cases=1, test_cases=2, size=16)
    truth = folder / "labelsTs"
    predictions = {"plain": truth, "located": truth}
    file = tmp_path / "figure.png"
    draw_figure(file, images=folder / "imagesTs", truth=truth, predictions=predictions)
    image = matplotlib.image.imread(file)
    assert min(image.shape[:2]) > 200
    assert len(np.unique(image.reshape(-1, image.shape[-1]), axis=0)) > 100
    one = tmp_path / "one.png"
    draw_figure(one, images=folder / "imagesTs", truth=truth, predictions=predictions, scans=1)
    assert matplotlib.image.imread(one).shape[0] < image.shape[0]


def test_a_failed_drawing_leaves_nothing(tmp_path):
    row = Row("a", np.zeros((4, 4)), {"truth": np.zeros((4, 4), dtype=np.uint8)}, np.zeros((3, 4, 4)))
    file = tmp_path / "figure.unknown"
    (tmp_path / "missing").write_text("a file, no folder")
    with pytest.raises(OSError, match="missing"):
        plot_rows([row], tmp_path / "missing" / "figure.png")
    assert not file.exists()
    plot_rows([row], tmp_path / "figure.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figure.png", "missing"]


def test_nothing_to_draw(tmp_path):
    with pytest.raises(ValueError, match=r"holds no \.nii.gz file"):
        draw_figure(tmp_path / "figure.png", images=tmp_path, truth=tmp_path, predictions={})


def test_a_scan_without_labels_still_gives_a_slice(tmp_path):
    sitk.WriteImage(
        sitk.GetImageFromArray(np.zeros((4, 5, 6), dtype=np.int16)), str(tmp_path / "scan.nii.gz")
    )
    row = read_row("empty", tmp_path / "scan.nii.gz", {"truth": tmp_path / "scan.nii.gz"})
    assert row.scan.shape == (4, 6)
    assert row.location.shape == (3, 4, 6)
