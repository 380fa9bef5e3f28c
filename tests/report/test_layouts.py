"""Positions on the map."""

from pathlib import Path

import pytest
import torch

from reptk.core.errors import EnvironmentProblem
from reptk.report import layouts, write
from reptk.report.layouts import principal_components, quantize


def test_principal_components_are_those_of_scikit_learn() -> None:
    from sklearn.decomposition import PCA

    features = torch.randn(50, 8, generator=torch.Generator().manual_seed(1)) * torch.arange(1, 9)
    coordinates, shares = principal_components(features, 2)
    reference = PCA(2).fit(features.numpy())
    expected = torch.from_numpy(reference.transform(features.numpy()))
    assert torch.allclose(coordinates.abs(), expected.abs().float(), atol=1e-3)
    assert shares.tolist() == pytest.approx(reference.explained_variance_ratio_.tolist(), abs=1e-5)
    assert principal_components(features[:1], 2)[0].tolist() == [[0, 0]]


def test_quantized_positions_have_one_scale_for_both_axes() -> None:
    positions = torch.randn(50, 2, generator=torch.Generator().manual_seed(1)) * torch.tensor([8.0, 7.0])
    quantized = quantize(positions)
    assert quantized.min() >= 0
    assert quantized.max() <= 65535
    scales = (positions.amax(0) - positions.amin(0)) / (quantized.amax(0) - quantized.amin(0))
    assert scales[0] == pytest.approx(scales[1].item(), rel=1e-3)


def test_a_missing_umap_is_reported_before_anything_is_computed(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layouts, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentProblem, match=r"reptk\[viz\]"):
        write(run, tmp_path / "page.html", map="umap")
    assert not list(tmp_path.iterdir())
