"""`sparsepo doctor`, and what happens on versions that sparsepo does not know."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sparsepo import compatibility
from sparsepo.cli import doctor
from tests.cli.conftest import Outcome

Call = Callable[..., Outcome]


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let libraries have other versions, None: not installed."""
    real = importlib.metadata.version

    def fake(**others: str | None) -> None:
        def version(name: str) -> str:
            found = others.get(name.replace("-", "_"), "")
            if found is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return found or real(name)

        monkeypatch.setattr(importlib.metadata, "version", version)

    return fake


def test_an_installation_in_range_passes() -> None:
    compatibility.check_versions()
    assert {"trl", "transformers", "torch"} <= {requirement.name for requirement in compatibility.requirements()}


@pytest.mark.parametrize(("name", "found"), [("trl", "1.15.0"), ("trl", "2.0.0"), ("transformers", "5.22.0"),
                                             ("transformers", "6.0.0"), ("torch", "2.4.0"), ("peft", None)])  # fmt: skip
def test_a_version_outside_the_range_is_one_message(
    versions: Callable[..., None], monkeypatch: pytest.MonkeyPatch, name: str, found: str | None
) -> None:
    versions(**{name: found})
    with pytest.raises(ImportError) as error:
        compatibility.check_versions()
    message = str(error.value)
    assert "\n" not in message
    for part in (name, found or "none", "pip install", "sparsepo doctor"):
        assert part in message
    monkeypatch.setenv(compatibility.SWITCH, "1")
    with pytest.warns(UserWarning, match=f"found {found or 'none'}"):
        compatibility.check_versions()


def test_a_cpu_build_of_torch_is_in_range(versions: Callable[..., None]) -> None:
    versions(torch="2.13.0+cpu")
    compatibility.check_versions()


def test_every_wrong_library_is_named_at_once(versions: Callable[..., None]) -> None:
    versions(trl="1.0.0", accelerate="0.30.0")
    with pytest.raises(ImportError, match=r"(?s)accelerate.*0\.30\.0.*trl==1\.16\.0 and found 1\.0\.0"):
        compatibility.check_versions()


@pytest.mark.parametrize("code", ["import sparsepo.training", "from sparsepo import SparsePOTrainer"])
def test_importing_on_another_trl_says_so_before_anything_breaks(code: str) -> None:
    result = _with_trl("1.15.0", code)
    assert result.returncode != 0
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: sparsepo needs trl==1.16.0 and found 1.15.0. Install with")
    assert "AttributeError" not in result.stderr


@pytest.mark.parametrize("command", ["train", "sft"])
def test_commands_on_another_trl_end_with_one_line(command: str) -> None:
    code = f"from sparsepo.cli.main import main; sys.exit(main([{command!r}, '--learning_rate', '1']))"
    result = _with_trl("1.15.0", code)
    assert result.returncode == 1
    assert result.stderr.startswith(f"sparsepo {command}: error: sparsepo needs trl==1.16.0 and found 1.15.0")
    assert len(result.stderr.strip().splitlines()) == 1


def _with_trl(version: str, code: str) -> subprocess.CompletedProcess[str]:
    fake = (
        "import importlib.metadata, sys; real = importlib.metadata.version; "
        f"importlib.metadata.version = lambda name: {version!r} if name == 'trl' else real(name); "
    )
    return subprocess.run([sys.executable, "-c", fake + code], capture_output=True, text=True, check=False)


def test_doctor_shows_versions_devices_and_what_is_missing(sparsepo: Call) -> None:
    result = sparsepo("doctor", "--json")
    found = json.loads(result.out)
    assert result.status == 0
    assert found["ok"]
    assert found["versions"]["trl"] == {"found": importlib.metadata.version("trl"), "wanted": "==1.16.0", "ok": True}
    assert any(device["device"] == "cpu" for device in found["devices"])
    for entry in found["optional"].values():
        assert (entry["found"] is None) == ("mend" in entry)


def test_doctor_fails_where_something_needed_is_wrong(sparsepo: Call, versions: Callable[..., None]) -> None:
    versions(trl="1.15.0", peft=None)
    result = sparsepo("doctor")
    assert result.status == 1
    assert "sparsepo needs trl==1.16.0 and found 1.15.0: pip install 'trl==1.16.0'" in result.out
    assert "found none: pip install 'peft" in result.out
    assert "2 problem(s)" in result.out
    assert "Everything needed is there" not in result.out


def test_optional_libraries_do_not_fail_it(sparsepo: Call, versions: Callable[..., None]) -> None:
    versions(triton=None, bitsandbytes=None, openai=None)
    result = sparsepo("doctor", "--json")
    assert result.status == 0
    optional = json.loads(result.out)["optional"]
    assert optional["triton"]["mend"] == "pip install 'sparsepo[kernels]'"
    assert "QLoRA" in optional["bitsandbytes"]["disables"]


def test_a_reader_sees_what_is_missing_apart_from_what_is_there(
    versions: Callable[..., None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    versions(triton=None, tensorboard="9.9.9")
    cpu = {"device": "cpu", "name": "2 processors"}
    report = doctor.Report(devices=[cpu], disk={"HF_HOME": "here", "free_gib": 1})
    doctor._look_at_versions(report)
    doctor._look_at_optional(report)
    doctor._print(report)
    shown = capsys.readouterr().out
    assert "Optional, not installed: triton; without it no rows of logits by Triton kernels" in shown
    assert "pip install 'sparsepo[kernels]'\n" in shown
    there = shown.split("Optional, installed: ")[1]
    assert "tensorboard 9.9.9" in there.splitlines()[0]
    assert "not installed: tensorboard" not in shown
    assert "torch is a build without CUDA" in there
    assert "Everything needed is there. To try it: `sparsepo demo --fast`" in there


def test_a_library_that_does_not_import_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sparsepo.training", None)
    report = doctor.Report()
    doctor._look_at_imports(report)
    assert "sparsepo.training cannot be imported" in report.problems[0]


def test_the_disk_of_the_hub_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "not" / "yet"))
    report = doctor.Report()
    doctor._look_at_disk(report)
    assert report.disk["HF_HOME"] == str(tmp_path / "not" / "yet")
    assert report.disk["free_gib"] > 0
