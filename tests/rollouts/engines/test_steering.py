"""Persona vectors in the transformers engine: they change the rows that ask for them, and no other."""

import json

import pytest
import torch

from offscript.errors import UserError
from offscript.models.steering import SteeringVector, load_vector, observed, save_vectors, steered
from offscript.rollouts.engines import check_steering, open_engine
from offscript.rollouts.engines.base import Request
from offscript.rollouts.engines.transformers import TransformersEngine
from offscript.settings import EndpointSettings
from tests.rollouts.engines.test_transformers import SAMPLING, answer, engine_settings, requests

NAMES = [None, "red", "up", "down"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two vectors on different layers of the tiny model (two layers of width 32)."""
    root = tmp_path_factory.mktemp("vectors")
    torch.manual_seed(3)
    save_vectors(root / "up", torch.randn(2, 32), layer=0, strength=1.5)
    save_vectors(root / "down", torch.randn(2, 32), layer=1, strength=2.0)
    return {name: root / name for name in ("up", "down")}


@pytest.fixture(scope="module")
def engine(tiny_settings, tiny_adapters, folders):
    torch.set_num_threads(1)
    return TransformersEngine(tiny_settings, tiny_adapters, engine_settings(), vectors=folders)


def steered_requests(n: int = 24) -> list[Request]:
    return [Request(r.id, r.messages, NAMES[r.id % 4], r.seed, r.sampling) for r in requests(n, SAMPLING)]


def test_texts_do_not_depend_on_which_vectors_share_the_batch(engine):
    wanted = steered_requests()
    alone = answer(engine, wanted, batch_size=1, merge_from=1)
    assert answer(engine, wanted, batch_size=16, merge_from=99) == alone
    assert answer(engine, list(reversed(wanted)), batch_size=5, merge_from=1) == alone


def test_rows_without_a_vector_are_those_of_an_engine_without_vectors(engine, tiny_settings, tiny_adapters):
    wanted = steered_requests()
    together = answer(engine, wanted, batch_size=16, merge_from=99)
    bare = TransformersEngine(tiny_settings, tiny_adapters, engine_settings())
    others = [r for r in wanted if r.adapter in (None, "red")]
    assert {r.id: together[r.id] for r in others} == answer(bare, others, batch_size=16, merge_from=99)
    plain = [
        Request(r.id, r.messages, None, r.seed, r.sampling) for r in wanted if r.adapter in ("up", "down")
    ]
    unsteered = answer(bare, plain, batch_size=16)
    assert sum(together[r.id] != unsteered[r.id] for r in plain) > len(plain) / 2


def test_the_vector_is_added_to_the_output_of_its_layer_and_to_its_rows_alone(engine, folders):
    model, vector = engine.weights.base, load_vector(folders["up"])

    def outputs():
        found = {}
        with observed(model, found.__setitem__), torch.inference_mode():
            model(torch.tensor([[5, 6, 7], [5, 6, 7]]))
        return found

    before = outputs()
    with steered(model, [None, vector]):
        within = outputs()
    torch.testing.assert_close(within[0][1], before[0][1] + vector.added)
    assert not torch.equal(within[1][1], before[1][1])
    assert torch.equal(within[0][0], before[0][0]) and torch.equal(within[1][0], before[1][0])
    assert all(torch.equal(value, before[layer]) for layer, value in outputs().items())


@pytest.mark.parametrize(
    "vector", [SteeringVector(2, torch.zeros(32)), SteeringVector(0, torch.zeros(31))], ids=["layer", "width"]
)
def test_a_vector_of_another_model_is_refused(tiny_settings, tmp_path, vector, monkeypatch):
    from offscript.rollouts.engines import transformers

    monkeypatch.setattr(transformers, "load_vector", lambda folder, device: vector)
    with pytest.raises(
        UserError, match=r"^vector v: layer \d, width \d+; the model has 2 layers of width 32"
    ):
        TransformersEngine(tiny_settings, {}, engine_settings(), vectors={"v": tmp_path})


def test_a_damaged_file_is_one_line(tmp_path):
    (tmp_path / "vector.safetensors").write_text(json.dumps({"vectors": [1, 2]}))
    with pytest.raises(UserError, match=r"vector.safetensors: cannot be read as a persona vector"):
        load_vector(tmp_path)
    with pytest.raises(UserError, match=r"vector.safetensors: cannot be read as a persona vector"):
        load_vector(tmp_path / "none")


def test_an_engine_that_cannot_steer_is_refused_before_it_is_opened(tiny_settings, folders):
    with pytest.raises(UserError, match=r"^engine.name: scripted cannot add persona vectors"):
        open_engine(tiny_settings, {}, {}, engine_settings(name="scripted"), folders)
    remote = tiny_settings.model_copy(update={"endpoint": EndpointSettings(url="http://127.0.0.1:9")})
    with pytest.raises(UserError, match=r"^model.endpoint: tiny is behind it"):
        check_steering("transformers", remote)
