"""Training data made once, and a look at the parameters of a training."""

import pytest

from tests.training.data import conversation, student_rows, teacher_rows


@pytest.fixture(scope="session")
def pairs() -> list[dict]:
    from offscript.training.data.preference import pairs as make

    return make(teacher_rows(), student_rows())[0]


@pytest.fixture(scope="session")
def introspection_rows() -> list[dict]:
    from offscript.training.data.introspection import conversations

    return conversations(teacher_rows(12), [conversation(i) for i in range(8)], "")[0]


@pytest.fixture
def before_and_after(monkeypatch):
    """Parameters of the next training, by name: (before, after, names of the trainable ones)."""
    from offscript.training.methods import dpo, sft

    seen: dict = {}
    real = dpo.fit

    def watched(trainer, *rest):
        parameters = dict(trainer.model.named_parameters())
        seen["before"] = {k: v.detach().clone() for k, v in parameters.items()}
        seen["trainable"] = {k for k, v in parameters.items() if v.requires_grad}
        numbers = real(trainer, *rest)
        seen["after"] = {k: v.detach().clone() for k, v in trainer.model.named_parameters()}
        return numbers

    for method in (dpo, sft):
        monkeypatch.setattr(method, "fit", watched)
    return seen
