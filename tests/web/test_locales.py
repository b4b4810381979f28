"""Names, tooltips and help pages of every node, in every language, as the real host hands them to its interface."""

import json
import re
import urllib.request

import pytest

from host import ROOT

LANGUAGES = ("en", "zh", "ja")
PLACES = {"en": "docs/{}.md", "zh": "docs/{}/zh.md", "ja": "docs/{}/ja.md"}
INPUTS = {
    "VGTLoader": 3,
    "VGTEncode": 3,
    "VGTDecode": 2,
    "VGTARSampler": 20,
    "VGTFlowHeadSettings": 9,
    "VGTRegion": 5,
    "VGTPromptSchedule": 5,
    "VGTLoadLoRA": 4,
    "VGTTrainLoRA": 17,
}
NODES = tuple(INPUTS)
FILES = ("model", "lora_name", "existing_lora")
"""Inputs whose options are what lies in folders."""


@pytest.fixture(scope="module")
def schemas(host):
    """The nodes of this pack by id."""
    return {name: node for name, node in host.object_info().items() if node["python_module"].endswith("ComfyUI-VGT")}


@pytest.fixture(scope="module")
def translations(host):
    """What the interface gets: by language, then by node."""
    return {language: texts["nodeDefs"] for language, texts in host.get("/i18n").items()}


def inputs(schema):
    """Input name → its options."""
    sections = (schema["input"].get(section, {}) for section in ("required", "optional"))
    return {name: spec[1] for section in sections for name, spec in section.items()}


def test_these_are_the_nodes(schemas):
    assert set(schemas) == set(NODES)


@pytest.mark.parametrize("name", NODES)
def test_everything_has_a_tooltip(schemas, name):
    assert schemas[name]["description"]
    told = [key for key, options in inputs(schemas[name]).items() if options.get("tooltip")]
    assert told == list(inputs(schemas[name])) and len(told) == INPUTS[name]
    assert len(schemas[name]["output_tooltips"]) == len(schemas[name]["output"]) > 0
    assert all(schemas[name]["output_tooltips"])


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", NODES)
def test_translation_is_complete(schemas, translations, language, name):
    schema, texts = schemas[name], translations[language][name]
    assert set(texts) == {"display_name", "description", "inputs", "outputs"}
    assert set(texts["inputs"]) == set(inputs(schema))
    assert list(texts["outputs"]) == [str(index) for index in range(len(schema["output"]))]
    for entry in (*texts["inputs"].values(), *texts["outputs"].values()):
        assert set(entry) == {"name", "tooltip"}
    for text in leaves(texts).values():
        assert text.strip()
        assert not re.search(r"[@{}|]", text), "the interface reads these characters as its own"


@pytest.mark.parametrize("name", NODES)
def test_english_is_what_the_node_says(schemas, translations, name):
    schema, texts = schemas[name], translations["en"][name]
    assert (texts["display_name"], texts["description"]) == (schema["display_name"], schema["description"])
    tooltips = {key: entry["tooltip"] for key, entry in texts["inputs"].items()}
    assert tooltips == {key: options["tooltip"] for key, options in inputs(schema).items()}
    assert [entry["name"] for entry in texts["outputs"].values()] == schema["output_name"]
    assert [entry["tooltip"] for entry in texts["outputs"].values()] == schema["output_tooltips"]


@pytest.mark.parametrize("language", ("zh", "ja"))
@pytest.mark.parametrize("name", NODES)
def test_translation_is_one(translations, language, name):
    """Every description and tooltip differs from the English one, and has its numbers."""
    english, other = (leaves(translations[key][name]) for key in ("en", language))
    assert english.keys() == other.keys()
    for path in english:
        if path[-1] in ("tooltip", "description"):
            assert other[path] != english[path], path
            assert numbers(other[path]) >= numbers(english[path]), path


def leaves(tree, path=()):
    if not isinstance(tree, dict):
        return {path: tree}
    return {key: text for name, branch in tree.items() for key, text in leaves(branch, (*path, name)).items()}


def numbers(text):
    return set(re.findall(r"\d+(?:\.\d+)?", text))


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", NODES)
def test_help_page_explains_every_input(host, schemas, language, name):
    path = PLACES[language].format(name)
    with urllib.request.urlopen(f"{host.address}/extensions/ComfyUI-VGT/{path}") as answer:
        page = answer.read().decode()
    assert page.startswith("# ")
    for key, options in inputs(schemas[name]).items():
        assert f"- **{key}**" in page, key
        for value in options.get("options", []) if key not in FILES else []:
            assert f"`{value}`" in page, f"{key}: {value}"
    for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page):
        assert (ROOT / "web" / "docs" / picture).is_file(), f"{path} shows {picture}, which is not there"


def test_files_are_in_one_order():
    """So that two languages can be laid side by side."""
    files = [(ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8") for language in LANGUAGES]
    orders = [list(leaves(json.loads(text))) for text in files]
    assert orders[0] == orders[1] == orders[2]
