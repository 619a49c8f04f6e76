"""What is shown of a private run: no image that it learned from, no hash of them, and what is not accounted for."""

import base64
import json
import re
import shutil

import pytest

import bpgan
from bpgan import cli
from bpgan.report import compare, page
from bpgan.runtime import records
from experiments import dp_merf, evaluate, export

pytestmark = pytest.mark.medium

SAID = "were computed on records and are not accounted for"


def run(module, *argv):
    return cli.run(
        module.Config, module.build if hasattr(module, "build") else module.run, {}, argv
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A private run, whose key is secret, with a picture that an experiment may have drawn."""
    path = tmp_path_factory.mktemp("private") / "run"
    flags = ["--net=mlp", "--latents=normal:8", "--features=20", "--batch_size=40", "--steps=4"]
    assert run(dp_merf, *flags, "--tensorboard=false", f"--workdir={path}") == cli.DONE
    (path / "pictures").mkdir()
    shutil.copy(next((path / "samples").glob("*.png")), path / "pictures" / "neighbors.png")
    return path


@pytest.fixture
def private(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def hashes(path):
    """Of the data and of the reference, in any length that is shown."""
    return records.read_run(path / "config.json").data[:8]


def test_the_page_of_a_run_shows_samples_and_what_they_cost(private):
    text = page.write_report(private).read_text()
    assert hashes(private) not in text
    assert "901" not in re.sub(r"base64,[^\"]*", "", text)  # images of the class 0
    assert "Neighbors" not in text and "pictures" not in re.sub(
        "<style>.*?</style>", "", text, flags=re.S
    )
    shown = {base64.b64decode(found) for found in re.findall('png;base64,([^"]*)"', text)}
    assert shown == {file.read_bytes() for file in (private / "samples").glob("*.png")}
    assert (
        "This run is private: epsilon = 0.9999 at delta = 1e-05 (add or remove one record)." in text
    )
    assert "<dt>noise_multiplier</dt>" in text
    assert SAID not in text


def test_a_run_with_a_known_key_says_that_it_guarantees_nothing(private):
    result = json.loads((private / "result.json").read_text())
    result["privacy"]["guarantee"] = False
    (private / "result.json").write_text(json.dumps(result))
    assert "This run guarantees no privacy" in page.write_report(private).read_text()


def test_damaged_terms_show_no_more(private):
    (private / "privacy.json").write_text("{")
    assert "Neighbors" not in page.write_report(private).read_text()
    (private / "privacy.json").unlink()
    assert "Neighbors" in page.write_report(private).read_text()  # the control


def test_an_evaluation_is_not_accounted_for_and_says_so(private, tmp_path, capsys):
    records.warn.cache_clear()
    flags = ["--metrics=fd", "--features=pixels", "--n=50", f"--workdir={tmp_path / 'numbers'}"]
    assert run(evaluate, f"--run={private}", *flags) == cli.DONE
    assert f"warning: {private}: is private; the numbers {SAID}" in capsys.readouterr().err
    rows = json.loads((private / "metrics.json").read_text())
    assert rows and all(not row["reference_sha256"] and not row["train_sha256"] for row in rows)
    text = (private / "report.html").read_text()
    assert f"Its evaluations {SAID}" in text and hashes(private) not in text
    found = compare.write(compare.read([private]), "", tmp_path)
    assert hashes(private) not in found.read_text()
    # Its card says so, too, and the export warns.
    assert run(export, f"--run={private}", f"--workdir={tmp_path / 'out'}") == cli.DONE
    assert f"the metrics in its card {SAID}" in capsys.readouterr().err
    assert f"The metrics below {SAID}" in (tmp_path / "out" / "README.md").read_text()


def test_an_export_holds_g_and_its_price(private, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(export, f"--run={private}", f"--workdir={out}") == cli.DONE
    assert "warning" not in capsys.readouterr().err
    card, (file,) = (out / "README.md").read_text(), out.glob("*.safetensors")
    raw = file.read_bytes()
    for text in (card, raw.decode("latin1")):
        assert records.read_run(private / "config.json").data not in text
    assert "SHA-256" not in card and "## Privacy" in card and "epsilon = 0.9999" in card
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]
    assert "data" not in header and json.loads(header["privacy"])["noise_multiplier"] > 0
    assert (private / ".secret").read_bytes() not in raw


def test_a_run_as_an_object_knows_that_it_is_private(private):
    assert bpgan.load(private).private
    (private / "privacy.json").unlink()
    assert not bpgan.load(private).private
