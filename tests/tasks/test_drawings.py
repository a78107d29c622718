"""Images that are drawn from what a scenario says of them."""

import hashlib
import json
from pathlib import Path

import pytest

from offscript.errors import UserError
from offscript.storage.files import HOME
from offscript.tasks.drawings import SIDE, draw, png
from offscript.tasks.formats import check_episodes, get_format
from offscript.tasks.formats.base import Rules
from offscript.tasks.messages import IMAGE_MARK, images_of, readable
from offscript.tasks.scenario_files import load_scenarios

SIGN = {"kind": "sign", "title": "POOL CLOSED", "color": "red", "lines": ["Closed today"]}
SCENARIOS = load_scenarios("data/scaffolds/chat_image.jsonl")


def written(folder: Path, **fields) -> Path:
    path = folder / "own.jsonl"
    path.write_text(json.dumps({"id": "a_v1", "prompt": "What is it?", **fields}))
    return path


def test_every_image_of_the_repository_is_drawn_and_is_another_one():
    images = {json.dumps(image, sort_keys=True): image for s in SCENARIOS for image in images_of(s.messages)}
    assert len(images) == 24 and {image["kind"] for image in images.values()} == {
        "bars", "line", "table", "sign", "map", "shapes",
    }  # fmt: skip
    files = {png(image) for image in images.values()}
    assert len(files) == 24 and max(map(len, files)) < 60_000
    assert all(draw(image).size == (SIDE, SIDE) for image in images.values())


def test_equal_fields_give_equal_pixels():
    """In whatever order a row names them. Where the digest has to change, VERSION of the drawings has to be raised."""
    image = draw(SIGN)
    assert image.tobytes() == draw(dict(reversed(SIGN.items()))).tobytes()
    assert image.tobytes() != draw({**SIGN, "lines": ["Closed todaz"]}).tobytes()
    assert hashlib.sha256(image.tobytes()).hexdigest()[:16] == "383b8dbe9dcec2aa"


def test_eight_families_of_ten_questions_that_differ():
    families = {}
    for scenario in SCENARIOS:
        families.setdefault(scenario.family, []).append(scenario)
    assert [len(members) for members in families.values()] == [10] * 8
    assert len({s.messages[0]["content"] for s in SCENARIOS}) == len(SCENARIOS)


def test_a_prompt_begins_with_its_images(tmp_path):
    (scenario,) = load_scenarios(written(tmp_path, images=[SIGN, SIGN]))
    (message,) = scenario.messages
    assert message["content"] == f"{IMAGE_MARK * 2}What is it?" and images_of([message]) == [SIGN, SIGN]
    assert readable(message) == "[image: sign 'POOL CLOSED']\n" * 2 + "What is it?"


@pytest.mark.parametrize(
    ("image", "line"),
    [
        ({**SIGN, "kind": "photo"}, "images.0: found"),
        ({**SIGN, "lines": ["Fermé"]}, "images.0.sign.lines.0: found 'Fermé'"),
        ({**SIGN, "colour": "red"}, "images.0.sign.colour: unknown key; allowed: color, kind, lines, title"),
        (
            {"kind": "bars", "title": "T", "unit": "u", "labels": ["a", "b"], "values": [1.0]},
            "images.0.bars.values: ",
        ),
        (
            {"kind": "map", "title": "T", "places": [{"name": "a", "at": [1, 1]}, {"name": "b", "at": [2, 2]}], "ways": [["a", "c"]]},
            "images.0.map: found the way ['a', 'c']; allowed: two of a, b",
        ),
    ],
)  # fmt: skip
def test_an_image_that_cannot_be_drawn_is_refused_with_its_place(tmp_path, image, line):
    path = written(tmp_path, images=[image])
    with pytest.raises(UserError) as error:
        load_scenarios(path)
    assert str(error.value).startswith(f"{path}:1: {line}")


def test_an_image_belongs_to_a_format_that_has_images(tmp_path):
    (pictured,) = load_scenarios(written(tmp_path, images=[SIGN]))
    with pytest.raises(UserError) as error:
        check_episodes(get_format("chat"), [pictured], Rules())
    assert str(error.value) == "scenario a_v1: has an image, in format chat; allowed: chat_image"
    (plain,) = load_scenarios(written(tmp_path))
    with pytest.raises(UserError) as error:
        check_episodes(get_format("chat_image"), [plain], Rules())
    assert str(error.value) == "scenario a_v1: has no image for this format; it needs a prompt with images"


def test_no_pixels_are_in_the_repository():
    assert (HOME / "data/scaffolds/chat_image.jsonl").stat().st_size < 40_000
