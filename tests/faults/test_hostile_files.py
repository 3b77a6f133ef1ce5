"""Whatever a file holds: a clear error or a correct result, in bounded time and memory, and nothing written elsewhere.

The default suite draws a few hundred rows and files, the long one tens of thousands.
"""

from __future__ import annotations

import json
import resource
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparsepo import LearnedMask, load_mask
from sparsepo.cli.base import CliError
from sparsepo.cli.main import main
from sparsepo.cli.recipe_files import read_recipe
from sparsepo.cli.saved_runs import saved_settings
from sparsepo.cli.texts import load_texts
from sparsepo.data import load_preference_data
from sparsepo.data.errors import DataError
from sparsepo.data.reading import read_rows
from sparsepo.inspection.storing import read_records
from sparsepo.masks import save_mask
from sparsepo.training.caching.store import check_file, write_file

from . import hostile as h

FEW, MANY = 25, 2_000
SUFFIXES = [".jsonl", ".json", ".csv", ".tsv", ".jsonl.gz", ".json.gz", ".csv.gz", ".parquet"]


def drawn(count: int) -> Callable[[Any], Any]:
    """Hypothesis with so many examples."""
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=count, deadline=None, suppress_health_check=checks)


def few_and_many(**strategies: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run a property with a few examples, and in the long suite with many."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.long)])
        def repeated(tmp_path: Path, count: int) -> None:
            def once(**values: Any) -> None:
                test(tmp_path, **values)

            drawn(count)(given(**strategies)(once))()

        repeated.__doc__ = test.__doc__
        return repeated

    return decorate


# ---- preference data ----


@few_and_many(content=h.bytes_of(h.texts_of_rows()), suffix=st.sampled_from(SUFFIXES), cut=st.integers(-2, 200))
def test_any_data_file(tmp_path: Path, content: bytes, suffix: str, cut: int) -> None:
    path = tmp_path / f"data{suffix}"
    path.write_bytes(h.packed(content, cut) if suffix.endswith(".gz") else content)
    with h.nothing_outside(tmp_path):
        h.clear_or_correct(lambda: len(load_preference_data(path)), "data")
        h.clear_or_correct(lambda: sum(1 for _ in load_preference_data(path, streaming=True)), "data")
        h.clear_or_correct(lambda: load_texts([str(path)]))


@few_and_many(rows=st.lists(h.rows, min_size=1, max_size=5))
def test_any_rows(tmp_path: Path, rows: list[Any]) -> None:
    """Rows of any types: what is loaded is what a table can hold, and is checked without an exception."""
    from sparsepo.data import check_preferences
    from tests.support import tiny_tokenizer

    path = tmp_path / "rows.jsonl"
    path.write_text("".join(h.as_json(row) + "\n" for row in rows))
    loaded = h.clear_or_correct(lambda: load_preference_data(path), "rows.jsonl")
    if loaded is not None:
        assert len(loaded) == len(rows)
        h.clear_or_correct(lambda: check_preferences(loaded, tokenizer=tiny_tokenizer(), max_length=64))


def test_a_gzip_bomb_costs_a_message(tmp_path: Path) -> None:
    """200 MiB of one line in 200 KiB, and of many lines: refused after a bounded read."""
    packed = h.bomb()
    began, memory = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name in ("bomb.jsonl.gz", "bomb.json.gz", "bomb.csv.gz"):
        (tmp_path / name).write_bytes(packed)
        with pytest.raises(DataError, match=r"bomb\.(.*) (unpacks to more than|a line has more than)"):
            list(read_rows(tmp_path / name))
    assert time.monotonic() - began < 60
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    assert grown < 600 << 10, f"{grown >> 10} MiB"  # a line of 64 Mi characters, and copies of it


def test_a_zip_bomb_costs_a_message(tmp_path: Path) -> None:
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../outside.txt", b"a good film\n")
        archive.writestr("bomb.txt", b"0" * (100 << 20))
    with h.nothing_outside(tmp_path), pytest.raises(CliError, match=r"bomb\.zip unpacks to 100 MiB, over 100 times"):
        load_texts([str(path)])


def test_names_in_archives_write_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    with zipfile.ZipFile(folder / "texts.zip", "w") as archive:
        archive.writestr("../../outside.txt", b"a good film\n")
        archive.writestr("/etc/outside.txt", b"a bad film\n")
    with h.nothing_outside(folder):
        rows, _ = load_texts([str(folder / "texts.zip")])
    assert rows["text"][:] == ["a bad film"]  # names that begin with a point are hidden files


def test_links_in_a_folder(tmp_path: Path) -> None:
    """Links to themselves, to nothing and to folders above: no loop."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "train.jsonl").write_text(json.dumps({"prompt": "a", "chosen": " b", "rejected": " c"}) + "\n")
    (folder / "loop.jsonl").symlink_to(folder / "loop.jsonl")
    (folder / "gone.jsonl").symlink_to(folder / "nowhere")
    (folder / "up").symlink_to(tmp_path)
    assert len(load_preference_data(folder)) == 1


def test_lone_surrogates_and_numbers_without_end_become_problems(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    good = {"prompt": "a", "text": "b", "reward": 1.0}
    rows = [good, {**good, "text": "\ud800"}, {**good, "reward": 10**400}, good]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    loaded = list(_scored(path))
    assert loaded[1]["text"] is None
    assert "lone surrogate" in loaded[1]["load_problem"]
    assert loaded[2]["reward"] is None
    assert "too large" in loaded[2]["load_problem"]


def _scored(path: Path) -> Any:
    from sparsepo.data.cells import table_from_rows

    return table_from_rows([row for _, row in read_rows(path)], str(path)).to_pylist()


# ---- recipes ----

yaml_texts = st.one_of(
    st.text(max_size=40),
    h.values.map(lambda value: yaml.safe_dump({"learning_rate": value}, allow_unicode=False)),
    st.sampled_from(
        [
            "a: !!python/object/apply:os.system ['touch /tmp/pwned']",
            "a: !!python/name:os.system",
            "!!python/object/new:type {}",
            "a: &a [*a]",
            "a: &a {b: *a}",
            "a: 2001-99-99",
            "a: !!binary '%%%'",
            "a: !!int 'x'",
            "a: !!timestamp 'x'",
            "? [1, 2]\n: 3",
            "? {a: 1}\n: 3",
            "<<: {objective: dpo}",
            "<<: 5",
            "0x10: 5",
            "yes: 5",
            "env: [1]",
            "env: {A: {B: C}}",
            "learning_rate: " + "9" * 5000,
            "learning_rate: 1" + "0" * 400,
            "max_steps: .inf",
            "max_steps: .nan",
            "learning_rate: 1:99:99",
            "a: b: c",
            "a: *nothing",
            "a: {" * 3000,
            "- " * 3000 + "a",
            "--- a\n--- b",
            "%YAML 9.9\n---\na: 1",
            "objective: [[[[sparsepo]]]]",
            "mask: .nan",
            "0: !!timestamp",  # PyYAML meets it with an AttributeError
        ]
    ),
)


@few_and_many(content=h.bytes_of(yaml_texts))
def test_any_recipe(tmp_path: Path, content: bytes) -> None:
    from sparsepo.cli.train import parser

    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    recipe = h.clear_or_correct(lambda: read_recipe(str(path)), "recipe.yaml")
    if recipe is not None and recipe.settings:
        h.clear_or_correct(lambda: _PARSER.setdefault("train", parser()).checked(recipe), "recipe.yaml")
    assert not Path("/tmp/pwned").exists()


_PARSER: dict[str, Any] = {}


@pytest.mark.parametrize("kind", ["[{}]", "{{k: [{}]}}"])
def test_billion_laughs_cost_a_message(tmp_path: Path, kind: str) -> None:
    lines = ["a0: &a0 lol"] + [f"a{i}: &a{i} {kind.format(', '.join([f'*a{i - 1}'] * 9))}" for i in range(1, 30)]
    path = tmp_path / "recipe.yaml"
    path.write_text("\n".join(lines) + "\nlearning_rate: *a29\n")
    began = time.monotonic()
    with pytest.raises(CliError, match="stands for more than 200,000 values"):
        read_recipe(str(path))
    assert time.monotonic() - began < 5


def test_the_command_answers_hostile_recipes_without_a_traceback(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "recipe.yaml"
    for text in ("a: &a [*a]", "yes: 5", "a: !!python/name:os.system", "\ud800".encode("utf-8", "surrogatepass")):
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        assert main(["train", "--config", str(path)]) == 1
        said = capfd.readouterr().err
        assert said.startswith(f"sparsepo train: error: {'--config ' if isinstance(text, bytes) else ''}{path}")
        assert "Traceback" not in said


# ---- mask/ ----

MASK_JSON = {"format": 1, "kind": "learned", "settings": {}, "base_model": None, "sparsepo_version": "0"}
_SETTINGS = [
    "hidden_size",
    "num_layers",
    "sharing",
    "position",
    "gate",
    "layer_map",
    "eps",
    "init",
    "\ud800",
    "__class__",
]


@few_and_many(
    changes=st.dictionaries(st.sampled_from([*MASK_JSON, "x"]), h.values, max_size=2),
    inner=st.dictionaries(st.sampled_from(_SETTINGS), h.values, max_size=2),
    noise=st.one_of(st.none(), st.binary(max_size=40)),
    header=st.one_of(st.just(None), h.values, st.just(h.DEEP.encode())),
)
def test_any_mask_folder(
    tmp_path: Path, changes: dict[str, Any], inner: dict[str, Any], noise: bytes | None, header: Any
) -> None:
    save_mask(LearnedMask(4, 2), tmp_path)
    file = tmp_path / "mask" / "mask.json"
    content = json.loads(file.read_text())
    content["settings"] |= inner
    file.write_bytes(h.as_json({**content, **changes}).encode() if noise is None else noise)
    if header is not None:
        (tmp_path / "mask" / "mask.safetensors").write_bytes(h.safetensors(header, b"\0" * 64))
    h.clear_or_correct(lambda: load_mask(tmp_path), "mask")


@pytest.mark.parametrize("size", [10**12, 10**30, -1, 0, 1.5, float("nan"), True, "4", [4], None])
@pytest.mark.parametrize("name", ["hidden_size", "num_layers"])
def test_a_mask_of_impossible_size(tmp_path: Path, name: str, size: Any) -> None:
    save_mask(LearnedMask(4, 2), tmp_path)
    file = tmp_path / "mask" / "mask.json"
    content = json.loads(file.read_text())
    content["settings"][name] = size
    file.write_text(json.dumps(content))
    began = time.monotonic()
    with pytest.raises(ValueError, match="mask"):
        load_mask(tmp_path)
    assert time.monotonic() - began < 5


# ---- reference cache ----


@few_and_many(
    content=st.one_of(st.binary(max_size=80), h.values.map(lambda v: h.safetensors(v, b"\0" * 32))), at=st.integers(0)
)
def test_any_cache_file(tmp_path: Path, content: bytes, at: int) -> None:
    """Noise and single changed bytes are found, whichever byte it is."""
    path = tmp_path / "rows-00000000-00000001.safetensors"
    shapes = {"logps": ()}
    path.write_bytes(content)
    assert check_file(path, shapes, 2)
    tensors = {"identity": torch.arange(2), "length": torch.tensor([1, 2]), "logps": torch.rand(3)}
    write_file(path, tensors)
    assert check_file(path, shapes, 2) == ""
    whole = bytearray(path.read_bytes())
    whole[at % len(whole)] ^= 0x10
    path.write_bytes(whole)
    found = check_file(path, shapes, 2)
    assert found or all(torch.equal(value, _read(path)[name]) for name, value in tensors.items())


def _read(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


# ---- inspection records, saved settings ----

_DAMAGED = ["pair", "side", "token", "token_id", "reward", "prompt_ids", "piece"]


@few_and_many(
    lines=st.lists(st.one_of(h.values.map(h.as_json), st.text(max_size=10), st.just(h.DEEP)), max_size=3),
    damage=st.dictionaries(
        st.sampled_from(["pair", "side", "token", "token_id", "reward", "prompt_ids", "piece"]), h.values
    ),
    parquet=st.booleans(),
)
def test_any_records(tmp_path: Path, lines: list[str], damage: dict[str, Any], parquet: bool) -> None:
    path = tmp_path / f"records.{'parquet' if parquet else 'jsonl'}"
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
    h.clear_or_correct(lambda: list(read_records(path)), "records")
    path = tmp_path / "records.jsonl"
    row = {"pair": 0, "group": "g", "side": "chosen", "loss": 0.1, "beta": 0.1, "reward": 0.0, "prompt": "a"}
    row |= {"prompt_ids": [1], "token": 0, "token_id": 3, "piece": "b", "special": False}
    both = [{**row, **damage}, {**row, "side": "rejected"}]
    text = "\n".join(map(h.as_json, [{"sparsepo_records": "1"}, *both]))
    path.write_text(text)
    h.clear_or_correct(lambda: list(read_records(path)), "records.jsonl")


@few_and_many(
    content=st.one_of(st.binary(max_size=30), h.values.map(lambda v: h.as_json(v).encode()), st.just(h.DEEP.encode()))
)
def test_any_saved_settings(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "sparsepo.json").write_bytes(content)
    h.clear_or_correct(lambda: saved_settings(str(tmp_path)), "sparsepo.json")


def test_remote_code_is_off_unless_asked_for(tmp_path: Path) -> None:
    """A model that wants to run code of its own is refused, and its code is not run."""
    from sparsepo import SparsePOConfig
    from sparsepo.cli.models import positions_of

    assert SparsePOConfig(str(tmp_path / "out"), report_to="none", use_cpu=True).trust_remote_code is False
    trap = tmp_path / "ran"
    content = {"model_type": "mine", "auto_map": {"AutoConfig": "config.Mine", "AutoModelForCausalLM": "config.Mine"}}
    (tmp_path / "config.json").write_text(json.dumps(content))
    (tmp_path / "config.py").write_text(f"open({str(trap)!r}, 'w').close()\nclass Mine: pass\n")
    with pytest.raises(ValueError, match="trust_remote_code"):
        positions_of(str(tmp_path))
    assert not trap.exists()


def test_nothing_is_unpickled() -> None:
    """Of what this library reads itself nothing is a pickle: no call that could load one, or run a text as code.

    Programs that are to be judged are run, within the sandbox's own confined processes.
    """
    import ast

    import sparsepo

    package = Path(sparsepo.__file__).parent
    for file in set(package.rglob("*.py")) - set((package / "evaluation" / "sandbox" / "inside").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            unsafe = (
                "torch.load",
                "pickle.load",
                "pickle.loads",
                "yaml.load",
                "yaml.unsafe_load",
                "joblib.load",
                "eval",
            )
            assert name not in (*unsafe, "exec"), f"{file.relative_to(package)}, line {node.lineno}: {name}"
            if name in ("np.load", "numpy.load"):
                assert "allow_pickle=True" not in ast.unparse(node)
    with pytest.raises(ValueError, match="allow_pickle"):  # numpy's own default
        np.load(_pickled_array(), allow_pickle=False)


def _pickled_array() -> Any:
    import io

    buffer = io.BytesIO()
    np.save(buffer, np.array([{}], dtype=object), allow_pickle=True)
    buffer.seek(0)
    return buffer
