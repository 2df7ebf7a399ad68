from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner

from app.cli import main
from app.models.architectures import ARCHITECTURES

README = Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- tuili models --markdown -->\n", "<!-- end -->\n"


def models(*options: str) -> str:
    result = CliRunner().invoke(main, ["models", *options])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_readme_has_the_table() -> None:
    table = README.read_text().partition(BEGIN)[2].partition(END)[0]
    assert table == models("--markdown"), f"put what `tuili models --markdown` prints into {README.name}"


def test_people_see_every_family_and_whole_names_in_a_pipe() -> None:
    table = models()
    for row in ARCHITECTURES:
        for text in (row.title, row.examples, *row.hf, *row.gguf):
            assert text in table
    assert "--via transformers (slow, theirs)" in table.splitlines()[-1]


def test_json_has_a_record_of_each_family() -> None:
    (line,) = models("--json").splitlines()
    found = {record["title"]: record for record in json.loads(line)}
    assert len(found) == len(ARCHITECTURES)
    assert found["Llama"] == {
        "title": "Llama",
        "examples": next(row.examples for row in ARCHITECTURES if row.title == "Llama"),
        "architectures": ["LlamaForCausalLM"],
        "gguf": ["llama"],
        "tasks": ["generate"],
        "formats": ["safetensors", "gguf"],
        "tested": "trained",
    }
    assert found["Mixtral"]["gguf"] == ["llama"]


def test_one_form_at_a_time() -> None:
    assert CliRunner().invoke(main, ["models", "--json", "--markdown"]).exit_code == 2


def test_torch_is_not_imported() -> None:
    code = "import sys; from app.cli import main\ntry: main(['models'])\nfinally: assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
