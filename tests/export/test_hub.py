"""reptk push and reptk pull, with a hub that is a folder."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from embedding_inputs import run_command
from killed_processes import flip_bit
from reptk.embeddings.encoding.embedder import Embedder
from reptk.export import formats, hub
from reptk.models.classifier import read_classifier
from reptk.models.encoder import Encoder

pytestmark = [pytest.mark.usefixtures("one_thread")]

FILES = ["README.md", "classifier.safetensors", "config.json", "head.safetensors", "manifest.json", "model.safetensors"]


class FolderHub:
    """Has the methods of `huggingface_hub.HfApi` that are used here; repositories are folders."""

    root: Path
    created: list[tuple[str, bool | None]]
    is_private: dict[str, bool]

    def create_repo(self, repo_id: str, *, private: bool | None, exist_ok: bool) -> str:
        assert exist_ok
        self.created.append((repo_id, private))
        self.is_private.setdefault(repo_id, bool(private))
        return f"https://huggingface.co/{repo_id}"

    def model_info(self, repo_id: str) -> SimpleNamespace:
        return SimpleNamespace(private=self.is_private[repo_id])

    def upload_folder(
        self, *, repo_id: str, folder_path: Path, commit_message: str, delete_patterns: list[str] | None = None
    ) -> None:
        for name in delete_patterns or ():
            (self.root / repo_id / name).unlink(missing_ok=True)
        shutil.copytree(folder_path, self.root / repo_id, dirs_exist_ok=True)

    def snapshot_download(
        self, repo_id: str, *, revision: str | None, local_dir: Path, allow_patterns: list[str]
    ) -> str:
        if not (self.root / repo_id).is_dir() or revision not in (None, "main"):
            raise OSError(f"404 Client Error. {repo_id}\nwith details")
        (local_dir / ".cache" / "huggingface").mkdir(parents=True)
        for path in (self.root / repo_id).iterdir():
            if path.name in allow_patterns:
                shutil.copy(path, local_dir / path.name)
        return str(local_dir)


@pytest.fixture
def folder_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[FolderHub]:
    FolderHub.root, FolderHub.created, FolderHub.is_private = tmp_path / "hub", [], {}
    monkeypatch.setattr(hub, "HfApi", FolderHub)
    monkeypatch.setattr(hub, "check_host", lambda: None)
    return FolderHub


def read_card(path: Path) -> tuple[dict[str, Any], str]:
    """Return the metadata of a card, and its text."""
    _, metadata, text = path.read_text().split("---\n", 2)
    return yaml.safe_load(metadata), text


def test_a_dry_run_writes_what_would_be_uploaded(
    classifier_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    printed = run_command(["push", classifier_run, "me/photos", "--dry-run", tmp_path / "card"], capsys)
    assert "what would be uploaded to me/photos" in printed
    assert "the card names no license" in printed
    assert sorted(path.name for path in (tmp_path / "card").iterdir()) == FILES
    metadata, text = read_card(tmp_path / "card" / "README.md")
    assert metadata == {
        "library_name": "timm",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["reptk", "image-feature-extraction", "timm", "joint", "supcon"],
    }
    for part in (
        "Training helped.",
        "| **knn@20** | 50.0 | 75.0 (70.0 \u2013 80.0) |",
        "- data: `photos` (folder); images: bank 8, query 4; classes: 3",
        "- intervals: 95 %",
        'timm.create_model("hf-hub:me/photos", pretrained=True)',
        "Training started from random weights.",
        'root = "gone"',
        "a linear classifier of 3 classes: `cats`, `dogs`, `birds`",
    ):
        assert part in text
    for private in ("secret", "/home/somebody", str(classifier_run.parent)):
        assert private not in text


@torch.no_grad()
def test_what_was_pushed_is_pulled(
    folder_hub: type[FolderHub], classifier_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    printed = run_command(["push", classifier_run, "me/photos", "--private", "--license", "mit"], capsys)
    assert "https://huggingface.co/me/photos" in printed
    assert folder_hub.created == [("me/photos", True)]
    assert read_card(folder_hub.root / "me" / "photos" / "README.md")[0]["license"] == "mit"
    out = tmp_path / "pulled"
    run_command(["pull", "me/photos@main", "--out", out], capsys)
    assert sorted(path.name for path in out.iterdir()) == FILES
    pulled, pushed = Encoder.from_run(out), Encoder.from_run(classifier_run)
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(pulled(images), pushed(images))
    assert read_classifier(out).classes == ("cats", "dogs", "birds")
    # A model alone can be pushed as well; the images' preprocessing comes with it.
    expected = Embedder.open(classifier_run, device="cpu").native_preprocessing()
    assert Embedder.open(out, device="cpu").native_preprocessing() == expected
    assert "exists. Choose another --out, or replace the model" in run_command(
        ["pull", "me/photos", "--out", out], capsys, 2
    )
    run_command(["pull", "me/photos", "--out", out, "--force"], capsys)
    run_command(["push", out, "me/again"], capsys)
    assert "None are recorded" in (folder_hub.root / "me" / "again" / "README.md").read_text()


@torch.no_grad()
def test_a_second_push_replaces_all_files_of_the_first_model(
    folder_hub: type[FolderHub], classifier_run: Path, tmp_path: Path
) -> None:
    hub.push(classifier_run, "me/photos")
    (folder_hub.root / "me" / "photos" / "LICENSE").write_text("of the owner")
    without_head = Encoder("test_resnet", size=32, head_layers=0).eval()
    without_head.save(tmp_path / "model")
    hub.push(tmp_path, "me/photos")
    left = sorted(path.name for path in (folder_hub.root / "me" / "photos").iterdir())
    assert left == ["LICENSE", "README.md", "config.json", "manifest.json", "model.safetensors"]
    pulled = Encoder.from_run(hub.pull("me/photos", tmp_path / "pulled"))
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(pulled(images), without_head(images))


def test_the_default_visibility_is_that_of_the_organization(
    folder_hub: type[FolderHub], classifier_run: Path, capsys: pytest.CaptureFixture
) -> None:
    run_command(["push", classifier_run, "me/photos"], capsys)
    assert folder_hub.created == [("me/photos", None)]


def test_a_private_model_is_not_uploaded_into_a_public_repository(
    folder_hub: type[FolderHub], classifier_run: Path, capsys: pytest.CaptureFixture
) -> None:
    folder_hub.is_private["me/photos"] = False
    message = run_command(["push", classifier_run, "me/photos", "--private"], capsys, 2)
    assert "nothing was uploaded: me/photos exists and is public" in message
    assert not folder_hub.root.exists()
    folder_hub.is_private["me/photos"] = True
    run_command(["push", classifier_run, "me/photos", "--private"], capsys)
    assert (folder_hub.root / "me" / "photos").is_dir()


def test_a_model_without_its_manifest_is_not_pulled(
    folder_hub: type[FolderHub], classifier_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run_command(["push", classifier_run, "me/photos"], capsys)
    (folder_hub.root / "me" / "photos" / "manifest.json").unlink()
    message = run_command(["pull", "me/photos", "--out", tmp_path / "out"], capsys, 3)
    assert "me/photos has no manifest.json, without which its files cannot be checked" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("root", "labelled", "splits", "expected"),
    [
        (
            "/home/me/my secret/photos",
            "",
            "/home/me/my secret/photos: bank the training images, queries every 5th image",
            "photos: bank the training images, queries every 5th image",
        ),
        (
            "~/secret/photos/",
            "",
            f"bank {Path.home()}/secret/photos/train, queries {Path.home()}/secret/photos/val",
            "bank photos/train, queries photos/val",
        ),
        (
            "../secret/photos.csv",
            "../secret/some.txt",
            "split train of ../secret/photos.csv: nothing held out; 2 of 8 training images have a label (those in "
            "../secret/some.txt)",
            "split train of photos.csv: nothing held out; 2 of 8 training images have a label (those in some.txt)",
        ),
        (
            "moved",
            "",
            "bank /srv/secret/train and ~/secret/more, queries /mnt/secret/val",
            "bank train and more, queries val",
        ),
        (".", "", "bank train, queries val", "bank train, queries val"),
    ],
)
def test_the_card_names_no_folder_in_a_sentence(
    root: str, labelled: str, splits: str, expected: str, classifier_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(classifier_run, run)
    results = json.loads((run / "results.json").read_text())
    results["protocol"]["data"] = {"name": "folder", "root": root, "labelled": labelled}
    results["protocol"]["splits"] = splits
    (run / "results.json").write_text(json.dumps(results))
    hub.push(run, "me/photos", dry_run=tmp_path / "card")
    text = (tmp_path / "card" / "README.md").read_text()
    assert f"- splits: {expected}\n" in text
    assert "secret" not in text


@torch.no_grad()
def test_the_folder_of_a_backbone_is_not_published(tmp_path: Path, photo_folder: Path) -> None:
    base = tmp_path / "secret" / "base"
    Encoder("test_resnet", size=32, head_layers=0).save(base)
    encoder = Encoder(f"local-dir:{base}", size=32).eval()
    encoder.save(tmp_path / "run" / "model")
    hub.push(tmp_path / "run", "me/photos", dry_run=tmp_path / "card")
    formats.export_model(tmp_path / "run", "timm", tmp_path / "timm", data=str(photo_folder), num_images=2)
    shutil.rmtree(base)
    images = torch.rand(2, 3, 32, 32)
    for folder in (tmp_path / "card", tmp_path / "timm"):
        for path in folder.iterdir():
            assert b"secret" not in path.read_bytes()
        pushed = Encoder.from_run(folder)
        assert pushed.config["backbone"] == "local-dir:base"
        assert torch.equal(pushed(images), encoder(images))


def test_mistakes_end_in_one_message(
    folder_hub: type[FolderHub], classifier_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for name in ("photos", "me/my/photos", "me/..", ""):
        assert "is named as USER/NAME" in run_command(["push", classifier_run, name], capsys, 2)
    message = run_command(["pull", "me/nothing", "--out", tmp_path / "out"], capsys, 4)
    assert "me/nothing cannot be downloaded: 404 Client Error. me/nothing. Check the name" in message
    (tmp_path / "hub" / "timm" / "resnet").mkdir(parents=True)
    (tmp_path / "hub" / "timm" / "resnet" / "config.json").write_text('{"architecture": "resnet18"}')
    message = run_command(["pull", "timm/resnet", "--out", tmp_path / "out"], capsys, 3)
    assert "holds no model of reptk; it is one of timm: encoder.backbone=hf-hub:timm/resnet" in message
    run_command(["push", classifier_run, "me/photos"], capsys)
    flip_bit(tmp_path / "hub" / "me" / "photos" / "model.safetensors", -5)
    message = run_command(["pull", "me/photos", "--out", tmp_path / "out"], capsys, 3)
    assert "model.safetensors has another hash" in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hub"]


def test_a_hub_that_refuses_is_reported(
    folder_hub: type[FolderHub], classifier_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("401 Unauthorized")

    monkeypatch.setattr(FolderHub, "upload_folder", refuse)
    message = run_command(["push", classifier_run, "me/photos"], capsys, 4)
    assert "nothing was uploaded to me/photos: 401 Unauthorized. Log in by `hf auth login` or HF_TOKEN" in message


@pytest.mark.parametrize(
    ("encoder", "weights", "license_id", "base_model"),
    [
        (
            'backbone = "resnet18"\npretrained = true',
            "timm's weights `resnet18.a1_in1k`",
            "apache-2.0",
            "timm/resnet18.a1_in1k",
        ),
        ('backbone = "resnet18"\nweights = "/home/me/moco.pth"', "the weights `moco.pth`", None, None),
        ('backbone = "resnet18"\nweights = "hf-hub:you/it@v1"', "the weights `hf-hub:you/it@v1`", None, "you/it"),
        ('backbone = "resnet18"\nweights = "package:lite0"', "the weights in the Python package `lite0`", None, None),
        (
            'backbone = "x"\nweights = "EARLIER/model"',
            "timm's weights `resnet18.a1_in1k`",
            "apache-2.0",
            "timm/resnet18.a1_in1k",
        ),
    ],
)
def test_the_card_says_what_training_started_from(
    encoder: str, weights: str, license_id: str | None, base_model: str | None, classifier_run: Path, tmp_path: Path
) -> None:
    earlier = tmp_path / "earlier"
    (earlier / "model").mkdir(parents=True)
    (earlier / "recipe.toml").write_text('[encoder]\nbackbone = "resnet18"\npretrained = true\n')
    run = tmp_path / "run"
    shutil.copytree(classifier_run, run)
    (run / "recipe.toml").write_text("[encoder]\n" + encoder.replace("EARLIER", str(earlier)))
    hub.push(run, "me/photos", dry_run=tmp_path / "card")
    metadata, text = read_card(tmp_path / "card" / "README.md")
    assert metadata.get("license") == license_id
    assert metadata.get("base_model") == base_model
    shown_license = license_id or "not known; check it before you use the model"
    assert f"Training started from {weights} (license: {shown_license})." in text
    assert str(tmp_path) not in text


def test_the_card_of_a_small_stem_is_not_for_timm(tmp_path: Path) -> None:
    Encoder("test_resnet", size=32, stem="small", head_layers=0).save(tmp_path / "model")
    hub.push(tmp_path, "me/photos", dry_run=tmp_path / "card")
    metadata, text = read_card(tmp_path / "card" / "README.md")
    assert metadata["library_name"] == "reptk"
    assert "timm.create_model" not in text
    assert "timm cannot open it: encoder.stem=small" in text
    assert json.loads((tmp_path / "card" / "config.json").read_text())["reptk"]["stem"] == "small"
